r"""Mixing: AutoMix beside ten methods that mix or erase, and AutoMix with one thing changed.

Liu et al., *AutoMix: Unveiling the Power of Mixup for Stronger Classifiers*, ECCV 2022 (https://arxiv.org/abs/2103.13027).

All methods of a study are trained by one recipe. Their records say more than accuracy
(``semaug.measures.robustness.measures``): calibration, accuracy under FGSM and under corruptions. AutoMix takes about
three passes over the network for one of the others, so cross-entropy and mixup are trained a second time, for three
times the epochs.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from scipy.stats import binom

from companion import plots
from companion.plots import BLUE, CYAN, GREEN, GREY, PURPLE, RED, YELLOW, Picture, caption, headline, styled
from companion.records import Index, on_common_seeds
from companion.stats import gains, points, summary
from companion.studies import Arm, Measured, NothingToDraw, Setting, Study
from semaug.data.sets import Data
from semaug.measures.robustness import CORRUPTIONS, measures
from semaug.training.recipe import Recipe
from semaug.training.record import Record

NOTEBOOK = "3_automix"

BASELINE = "cross-entropy"

# ---------------------------------------------------------------------------------------------------------------------
# Arms, in the order in which they are drawn: pixels erased, blended, cut, fitted; features; learned

PLAIN = Arm(BASELINE, "CrossEntropy", color="black")
CUTOUT = Arm("Cutout", "Cutout", {"size": 8}, YELLOW)
MIXUP = Arm("mixup", "Mixup", color=BLUE)
CUTMIX = Arm("CutMix", "CutMix", color=GREEN)
RESIZEMIX = Arm("ResizeMix", "ResizeMix", color=GREEN)
SALIENCYMIX = Arm("SaliencyMix", "SaliencyMix", color=GREEN, cost=1.1)
PUZZLEMIX = Arm("PuzzleMix", "PuzzleMix", color=PURPLE, passes=2, cost=5)  # one pass more, for the saliency
MANIFOLD = Arm("Manifold Mixup", "ManifoldMixup", color=CYAN, cost=1.2)
MIXSTYLE = Arm("MixStyle", "MixStyle", color=CYAN)
AUTOMIX = Arm("AutoMix", "AutoMix", color=RED, passes=3)
"""As in its paper. Its passes are those of the images, of the mixtures, and of the mixtures that its block learns from;
its maps, forward through the first stages, are not counted."""

METHODS = (PLAIN, CUTOUT, MIXUP, CUTMIX, RESIZEMIX, SALIENCYMIX, PUZZLEMIX, MANIFOLD, MIXSTYLE)

FEW = (PLAIN, MIXUP, CUTMIX)

LONGER = tuple(replace(arm, name=f"{arm.name}, 3\u00d7 epochs", recipe={"times": 3}) for arm in (PLAIN, MIXUP))

DRIVEN: dict[str, Setting] = {"momentum": 0.9, "std": 0.3, "block_rate": 1.0, "mask_weight": 0.1}
"""The copy follows at a momentum that suits some hundred steps, and the block starts with weights (std) of which the
masks have a shape after a few epochs at all; its rate is the classifier's, and the weight of its mask loss the paper's.
No seed of three kept that shape."""

CHOSEN: dict[str, Setting] = {**DRIVEN, "block_rate": 0.3, "mask_weight": 1.0}
"""Rate and weight were chosen by the masks of seed 0 over 30 epochs (the curve ``mask_spread``, and whether their mean
follows the ratio), not by accuracy."""

SHORT = replace(AUTOMIX, settings=CHOSEN)
"""AutoMix in trainings of some hundred steps."""

FIXED: dict[str, Setting] = {"momentum": 0.9}


def _changed(words: str, settings: dict[str, Setting], passes: float = 3) -> Arm:
    """AutoMix with something changed."""
    return Arm(f"AutoMix, {words}", "AutoMix", settings, RED, passes=passes, cost=3, variant=True)


RELEASED_RATE = _changed("γ = 0.1, block at the classifier's rate", DRIVEN)
NO_PIPELINE = _changed("no pipeline", {**CHOSEN, "pipeline": False}, 2)
NO_ATTENTION = _changed("no attention", {**CHOSEN, "attention": False})

ABLATION = (
    _changed("mixup as policy", {**FIXED, "policy": "mixup"}, 2),
    _changed("CutMix as policy", {**FIXED, "policy": "cutmix"}, 2),
    NO_PIPELINE,
    _changed("momentum 0", {**CHOSEN, "momentum": 0.0}),
    _changed("no one-hot pass", {**CHOSEN, "one_hot": False}, 2),
    _changed("no mask loss", {**CHOSEN, "mask_weight": 0.0}),
    RELEASED_RATE,
    _changed("no λ channel", {**CHOSEN, "lambda_channel": False}),
    NO_ATTENTION,
    _changed("block every 4 steps", {**CHOSEN, "every": 4}, 2.25),
)

TUNED = (
    _changed("γ = 0.1", {**CHOSEN, "mask_weight": 0.1}),
    _changed("block at the classifier's rate", {**CHOSEN, "block_rate": 1.0}),
    _changed("std 0.01", {**CHOSEN, "std": 0.01}),
)
"""What was changed for short trainings, one at a time."""

ALPHAS = {1: _changed("α = 1", {**CHOSEN, "alpha": 1.0}), 2: SHORT, 4: _changed("α = 4", {**CHOSEN, "alpha": 4.0})}

STAGES = {1: _changed("stage 1", {**CHOSEN, "stage": 1}), 2: _changed("stage 2", {**CHOSEN, "stage": 2}), 3: SHORT}

WATCHED = (SHORT, RELEASED_RATE, STAGES[2], NO_PIPELINE, NO_ATTENTION)
"""Whose masks are followed over training."""

CHANGES = (
    _changed("mixup as policy", {"policy": "mixup"}, 2),
    _changed("CutMix as policy", {"policy": "cutmix"}, 2),
    _changed("no pipeline", {"pipeline": False}, 2),
)

# ---------------------------------------------------------------------------------------------------------------------
# Studies


def _measures(objective: Any, dataset: Data, device: torch.device) -> Measured:
    return measures(objective.predict, dataset.test.to(device))


_PLAIN = Recipe(epochs=40, weight_decay=5e-4, evaluate_every=4)
_CROP = replace(_PLAIN, epochs=30, augment="crop+flip", evaluate_every=3)
_ADAM = replace(_PLAIN, epochs=20, optimizer="adam", lr=1e-3, weight_decay=0.0, warmup=0.1)
_PAPER = Recipe.preset("openmixup/cifar", evaluate_every=10, precision="bfloat16")

_CLOTHES = {"name": "fashion-mini", "validation": 0.1, "train_size": 2000}
_PHOTOS = {"name": "cifar10", "validation": 0.1, "train_size": 5000, "test_size": 2000}

_study = partial(Study, NOTEBOOK, seeds=3, measure=_measures)

_ALL = (*METHODS, SHORT, *LONGER, *ABLATION, *TUNED, ALPHAS[1], ALPHAS[4], STAGES[1], STAGES[2])
FASHION = _study("fashion-mini", "fashion-mini, 2,000 images", _CLOTHES, "small", _PLAIN, _ALL, seconds=32)
CIFAR = _study(
    "cifar10-5000", "CIFAR-10, 5,000 images", _PHOTOS, "small", _CROP, (*METHODS, SHORT, *LONGER), seconds=66
)
VIT = _study("fashion-mini-vit", "fashion-mini, 2,000 images, ViT", _CLOTHES, "vit", _ADAM, (*FEW, SHORT), seconds=44)

_LARGE = tuple(replace(arm, settings={"size": 16}) if arm is CUTOUT else arm for arm in METHODS)
PAPER_SETTING = tuple(
    _study(f"{data}-{network}", title, {"name": data}, network, _PAPER, arms, seconds=seconds, profile="paper")
    for data, network, title, arms, seconds in (
        ("cifar100", "resnet18", "CIFAR-100, ResNet-18", (*METHODS, AUTOMIX, *CHANGES), 1500),
        ("cifar10", "resnet18", "CIFAR-10, ResNet-18", (*_LARGE, AUTOMIX, *CHANGES), 1500),
        ("cifar100", "resnext50", "CIFAR-100, ResNeXt-50", (*FEW, AUTOMIX), 6000),
    )
)

STUDIES = (FASHION, CIFAR, VIT, *PAPER_SETTING)

PAPER = (
    (
        "CIFAR-100, ResNet-18, 200 epochs; median of the last epochs of one run",
        "vanilla 76.42, mixup 78.52, CutMix 79.45, Manifold Mixup 79.18, PuzzleMix 79.96, AutoMix 80.12",
        "OpenMixup's benchmark",
    ),
    (
        "CIFAR-10, ResNet-18, 800 epochs; median of the last epochs of one run",
        "vanilla 95.50, mixup 96.62, CutMix 96.68, Manifold Mixup 96.71, PuzzleMix 97.10, AutoMix 97.34",
        "OpenMixup's benchmark",
    ),
)

# ---------------------------------------------------------------------------------------------------------------------
# Accuracy, and what it costs

Blocks = Mapping[str, Mapping[str, Sequence[Record]]]
"""Records by title of the study and arm."""

COLOURS = {arm.name: arm.color for study in STUDIES for arm in study.arms}


def _blocks(index: Index, studies: Sequence[Study], *measured: str) -> dict[str, dict[str, list[Record]]]:
    """Methods that are no variants, trained for the study's epochs, whose records hold what is ``measured``."""
    blocks = {}
    for study in studies:
        by_arm = index.by_arm(study, [arm.name for arm in study.arms if not arm.variant and arm not in LONGER])
        runs = _runs({study.title: by_arm})
        if len(by_arm) > 1 and all(name in {**run.metrics, **run.curves} for run in runs for name in measured):
            blocks[study.title] = by_arm
    if not blocks:
        words = f" with {', '.join(measured)} in their records" if measured else ""
        raise NothingToDraw(f"cross-entropy and a method that mixes, of one study{words}")
    return blocks


def _runs(blocks: Blocks) -> list[Record]:
    return [record for by_arm in blocks.values() for runs in by_arm.values() for record in runs]


def _percent(metric: str) -> Callable[[Record], float]:
    return lambda record: 100 * record.metrics[metric]


def _gained(
    blocks: Blocks, score: Callable[[Record], float] = points, baseline: str = BASELINE
) -> dict[str, dict[str, list[float]]]:
    """Gains over the baseline by titled panel and arm; the title has what the baseline reaches, in percent."""
    return {
        f"{title}: {summary(map(score, by_arm[baseline])).mean:.1f}%": {
            name: gains(runs, by_arm[baseline], score) for name, runs in by_arm.items() if name != baseline
        }
        for title, by_arm in blocks.items()
    }


def _ahead(panels: Mapping[str, Mapping[str, Sequence[float]]], side: int = 1) -> str:
    """How many rows of each panel are significantly above zero (or below), such as '3 of 9 on CIFAR-10'."""
    counted = []
    for title, values in panels.items():
        there = sum(summary(row).side == side for row in values.values())
        counted.append(f"{there} of {len(values)} on {title.split(':')[0].split(', ')[0]}")
    return ", ".join(counted)


def _colour(name: str, title: str = "") -> str:
    return COLOURS[name]


TITLES = "Baseline: cross-entropy, whose accuracy stands above each panel."


def accuracy(index: Index, studies: Sequence[Study] = (FASHION, CIFAR)) -> Picture:
    """Every method's gain over cross-entropy, a panel a data set."""
    blocks = _blocks(index, studies)
    panels = _gained(blocks)
    figure = plots.forest({"": panels}, "gain (points)", _runs(blocks), TITLES, _colour, shared=True)
    headline(figure, f"Significant gains over cross-entropy: {_ahead(panels)}")
    return figure


def networks(index: Index) -> Picture:
    """The gains of the methods that were run on two networks, a panel a network."""
    names = {"small network": FASHION, "ViT": VIT}
    blocks = {
        f"{name}, {study.recipe.epochs} epochs": index.by_arm(study, [arm.name for arm in VIT.arms])
        for name, study in names.items()
    }
    if min(map(len, blocks.values())) < 2:
        raise NothingToDraw("cross-entropy and another method on two networks")
    panels = _gained(blocks)
    text = f"{FASHION.title}. {TITLES}"
    figure = plots.forest({"": panels}, "gain (points)", _runs(blocks), text, _colour, shared=True)
    figure.set_figheight(2.5)
    above = _ahead(panels).replace(" on ", " with the ")
    headline(figure, f"Significant gains: {above}")
    return figure


@styled
def equal_passes(index: Index) -> Picture:
    """What three times the epochs gain, what PuzzleMix and AutoMix gain over them, and accuracy over passes.

    Passes, not seconds: runs that share their cores with others take as long as those let them.
    """
    arms = (PLAIN, LONGER[0], MIXUP, LONGER[1], PUZZLEMIX, SHORT)
    found = [(study, index.by_arm(study, [arm.name for arm in arms])) for study in (FASHION, CIFAR)]
    found = [
        (study, by_arm)
        for study, by_arm in found
        if all(any(arm.name in by_arm for arm in some) for some in (LONGER, (PUZZLEMIX, SHORT)))
    ]
    if not found:
        raise NothingToDraw("cross-entropy for three times the epochs, beside PuzzleMix or AutoMix")
    figure = Picture(figsize=(7.5, 0.8 + 2.9 * len(found)))
    grid = figure.subplots(len(found), 2, squeeze=False, width_ratios=(1, 1.35))
    shown: list[Record] = []
    for (left, right), (study, by_arm) in zip(grid, found, strict=True):
        values: dict[str, list[float]] = {}
        rows: dict[str, tuple[str, bool]] = {}
        for longer, arm in zip(LONGER, (PLAIN, MIXUP), strict=True):
            for one, other in ((longer, arm), (PUZZLEMIX, longer), (SHORT, longer)):
                if one.name in by_arm and other.name in by_arm:
                    row = f"{one.name} - {other.name}".replace(f"{longer.name} - {arm.name}", f"{arm.name}: 3× - 1×")
                    values[row] = gains(by_arm[one.name], by_arm[other.name])
                    rows[row] = one.color, one is not longer
        plots.differences(left, values, rows)
        left.set_yticks(range(len(rows)), [textwrap.fill(row, 25, break_on_hyphens=False) for row in rows], fontsize=8)
        left.set_title(f"{study.title}\n{plots.counts(values)}", fontsize=8.5)
        left.set_xlabel("difference (points)", fontsize=9)
        for arm in (arm for arm in arms if arm.name in by_arm):
            table = 100 * np.array([run.curves["validation_accuracy"] for run in by_arm[arm.name]])
            passes = arm.passes * study.recipe_of(arm).epochs * np.arange(1, table.shape[1] + 1) / table.shape[1]
            right.plot(passes, table.mean(0), "--" if arm in LONGER else "-", color=arm.color, label=arm.name)
        right.set_xlabel("passes over the training images", fontsize=9)
        right.set_ylabel("validation accuracy (%)", fontsize=9)
        right.legend(fontsize=7.5, loc="lower right")
        shown += _runs({study.title: by_arm})
        last = f"{SHORT.name} - {LONGER[1].name}"
        if study is FASHION and last in values:
            effect = summary(values[last])
            headline(figure, f"At equal passes AutoMix - mixup is {effect.text('+.1f')} points (n = {effect.n})")
    text = "Left: dots are seeds, bars 95% intervals of the mean difference. Right: means over seeds, during training;"
    caption(figure, shown, f"{text} dashed: three times the epochs.")
    return figure


# ---------------------------------------------------------------------------------------------------------------------
# Calibration, attacks and corruptions


def bins(runs: Sequence[Record]) -> Float[np.ndarray, "rows 3"]:
    """Reliability of all seeds together: share of the predictions, confidence and accuracy of a bin that has any."""
    columns = ("low", "count", "confidence", "accuracy")
    low, count, *means = (np.concatenate([run.curves[f"reliability_{name}"] for run in runs]) for name in columns)
    rows, low = [], low.round(5)  # records hold seven digits
    for edge in np.unique(low):
        here = low == edge
        rows.append([count[here].sum() / count.sum(), *(np.average(mean[here], weights=count[here]) for mean in means)])
    return np.array(rows)


def floor(record: Record) -> float:
    r"""The expected calibration error, in [0, 1], of a network that is as often right as it is sure.

    It is not 0: of $n$ predictions of confidence $p$ a share is right that is off $p$ by chance, on average by
    $2 v (1 - p)\, b(v; n, p) / n$ with $v = \lfloor n p \rfloor + 1$ and $b$ the binomial probability (de Moivre).
    """
    n, p = (np.array(record.curves[f"reliability_{name}"]) for name in ("count", "confidence"))
    v = np.floor(n * p) + 1
    return float((2 * v * (1 - p) * binom.pmf(v, n, p)).sum() / n.sum())


def gap(record: Record) -> float:
    """Mean confidence - accuracy, in points: above zero a network is too sure."""
    return 100 * (record.metrics["mean_confidence"] - record.metrics["test_accuracy"])


def _calibrated(index: Index) -> dict[str, dict[str, list[Record]]]:
    blocks = _blocks(index, (FASHION, CIFAR), "ece", "mean_confidence", "reliability_low")
    return {title: on_common_seeds(by_arm) for title, by_arm in blocks.items()}


@styled
def reliability(index: Index) -> Picture:
    """Accuracy over confidence by bin, predictions of all seeds together: a row a data set, a column a method."""
    blocks, names = _calibrated(index), [PLAIN.name, CUTMIX.name, AUTOMIX.name]
    blocks = {title: {name: by_arm[name] for name in names if name in by_arm} for title, by_arm in blocks.items()}
    figure = Picture(figsize=(7.5, 0.9 + 2.6 * len(blocks)))
    grid = figure.subplots(len(blocks), len(names), squeeze=False, sharex=True, sharey=True)
    for line, (title, by_arm) in zip(grid, blocks.items(), strict=True):
        for unused in line[len(by_arm) :]:
            unused.remove()
        for axes, (name, runs) in zip(line, by_arm.items(), strict=False):
            share, confidence, right = bins(runs).T
            axes.plot([0, 1], [0, 1], color=GREY, linewidth=1)
            axes.plot(confidence, right, color=COLOURS[name], linewidth=1)
            axes.scatter(confidence, right, s=4 + 120 * share, color=COLOURS[name], linewidths=0)
            error, over = summary(map(_percent("ece"), runs)), summary(map(gap, runs))
            axes.set_title(f"{name}, n = {over.n}\nECE {error.text()}, gap {over.text('+.1f')}", fontsize=8.5)
            axes.set_aspect("equal")
            axes.set_xticks((0, 0.5, 1), ("0", "0.5", "1"))
            axes.set_yticks((0, 0.5, 1), ("0", "0.5", "1"))
        line[0].set_ylabel(f"{title}\naccuracy", fontsize=9)
    for axes in grid[-1]:
        axes.set_xlabel("confidence", fontsize=9)
    lower = all(
        summary(map(gap, runs)).mean < summary(map(gap, by_arm[BASELINE])).mean
        for by_arm in blocks.values()
        for name, runs in by_arm.items()
        if name != BASELINE
    )
    plain = "Accuracy over confidence"
    headline(figure, "Mixing labels lowers confidence, whether it was too high or not" if lower else plain)
    text = "Below the line: too sure. Area of a mark: share of the predictions. ECE in percent; gap: mean confidence"
    caption(figure, _runs(blocks), f"{text} - accuracy, in points; both with 95% intervals of the mean.")
    return figure


def calibration(index: Index) -> Picture:
    """Mean confidence - accuracy of every method, a panel a data set."""
    blocks = _calibrated(index)
    panels = {title: {name: [*map(gap, runs)] for name, runs in by_arm.items()} for title, by_arm in blocks.items()}
    text = "Above zero: too sure; below: not sure enough."
    figure = plots.forest({"": panels}, "confidence - accuracy (points)", _runs(blocks), text, _colour, shared=True)
    headline(figure, f"Significantly less sure than right: {_ahead(panels, side=-1)}")
    return figure


def _attacked(record: Record) -> float:
    """Accuracy under FGSM of 4/255 in percent; NothingToDraw where it was not measured."""
    for epsilon, value in zip(record.curves["fgsm_epsilon"], record.curves["fgsm_accuracy"], strict=True):
        if math.isclose(255 * epsilon, 4, rel_tol=1e-5):  # records hold seven digits
            return 100 * value
    raise NothingToDraw("accuracy under FGSM of 4/255")


def _corrupted(names: Sequence[str]) -> Callable[[Record], float]:
    """Accuracy in percent, mean over these corruptions."""
    return lambda record: 100 * sum(record.metrics[f"{name}_accuracy"] for name in names) / len(names)


LIGHT = ("brightness", "contrast")

KINDS = {
    "noise (4), blur, pixelate, JPEG": [name for name in CORRUPTIONS if name not in LIGHT],
    "brightness, contrast": LIGHT,
}
"""The corruptions; brightness and contrast apart, as mixing with a dark image changes both."""


def fgsm(index: Index) -> Picture:
    """Gain over cross-entropy in accuracy under FGSM of 4/255, a panel a data set."""
    blocks = _blocks(index, (FASHION, CIFAR), "fgsm_epsilon", "fgsm_accuracy")
    panels = _gained(blocks, _attacked)
    figure = plots.forest({"": panels}, "gain (points)", _runs(blocks), TITLES, _colour, shared=True)
    headline(figure, f"Significant gains under FGSM of 4/255: {_ahead(panels)}")
    return figure


def corruption(index: Index) -> Picture:
    """Gain over cross-entropy in accuracy under corruptions, mean over kinds and severities."""
    blocks = _blocks(index, (FASHION, CIFAR), *(f"{name}_accuracy" for name in CORRUPTIONS))
    lines = {kind: _gained(blocks, _corrupted(names)) for kind, names in KINDS.items()}
    figure = plots.forest(lines, "gain (points)", _runs(blocks), TITLES, _colour, shared=True)
    figure.set_figheight(6.6)
    light = next(iter(lines["brightness, contrast"].values()))
    side = {name: summary(values).side for name, values in light.items()}
    blend = all(side.get(arm.name) == 1 for arm in (MIXUP, MANIFOLD, SHORT))
    cut = all(side.get(arm.name) in (0, -1) for arm in (CUTMIX, RESIZEMIX, SALIENCYMIX))
    message = "On fashion-mini what blends helps under brightness and contrast; what cuts does not"
    headline(figure, message if blend and cut else "Gain under corruptions")
    return figure


# ---------------------------------------------------------------------------------------------------------------------
# AutoMix with one thing changed


def ablation(index: Index) -> Picture:
    """AutoMix with something changed: gain over AutoMix, a row a change, with its passes for one of cross-entropy's."""
    arms = (SHORT, *ABLATION)
    by_arm = index.by_arm(FASHION, [arm.name for arm in arms])
    if SHORT.name not in by_arm or len(by_arm) < 2:
        raise NothingToDraw("AutoMix, and AutoMix with one thing changed")
    rows = {arm.name: f"{arm.name.removeprefix('AutoMix, ')} ({arm.passes:.3g})" for arm in arms}
    blocks = {f"{FASHION.title}; AutoMix, 3 passes": {rows[name]: runs for name, runs in by_arm.items()}}
    panels = _gained(blocks, baseline=rows[SHORT.name])
    text = "In brackets: passes for one of cross-entropy's; those of fewer passes are cheaper, not equal."
    figure = plots.forest(
        {"": panels}, "AutoMix with the change - AutoMix (points)", _runs(blocks), text, lambda *_: RED
    )
    worse, better = (_ahead(panels, side).split(" on ")[0] for side in (-1, 1))
    headline(figure, f"Changes that make AutoMix significantly worse: {worse}; better: {better}")
    return figure


@styled
def mask_spread(index: Index) -> Picture:
    """Spread of the masks over epochs: the standard deviation of the pixels of a mask, a line a seed; 0: no shape."""
    by_arm = index.by_arm(FASHION, [arm.name for arm in WATCHED])
    if len(by_arm) < 2:
        raise NothingToDraw(f"AutoMix and one of {', '.join(arm.name for arm in WATCHED[1:])}")
    figure = Picture(figsize=(7.5, 3.1))
    left = {SHORT.name: 1.0, NO_PIPELINE.name: 0.0}  # what is left of the largest spread
    panels = figure.subplots(1, len(by_arm), sharey=True)
    for axes, (name, runs) in zip(panels, by_arm.items(), strict=True):
        spreads = [run.curves["mask_spread"] for run in runs]
        left[name] = (min if name == NO_PIPELINE.name else max)(values[-1] / max(values) for values in spreads)
        for values in spreads:
            axes.plot(range(1, len(values) + 1), values, color=RED, linewidth=1.2)
        words = textwrap.wrap(name.removeprefix("AutoMix, "), 17)
        axes.set_title("\n".join([*words, f"n = {len(runs)}"]), fontsize=8.5)
        axes.set(ylim=(0, 0.52), xlabel="epoch")
    panels[0].set_ylabel("spread of the masks")
    message = "AutoMix's masks fade during training; without the pipeline they do not"
    fades = left[SHORT.name] < 0.5 < left[NO_PIPELINE.name]
    headline(figure, message if fades else "Spread of the masks during training")
    text = (
        f"{FASHION.title}. A line a seed, the mean over an epoch's steps. 0: one gray, as mixup's, or one image alone."
    )
    caption(figure, _runs({"": by_arm}), text)
    return figure


@styled
def alpha_and_stage(index: Index) -> Picture:
    """Accuracy of AutoMix over α of its ratios' distribution, and over the stage that its block sees.

    On the validation images: settings are chosen there, if anywhere. Thin lines are seeds; the dashed line is the mean
    of cross-entropy.
    """
    axis = {"α (not to scale)": ALPHAS, "stage": STAGES}
    found: dict[str, dict[str, list[Record]]] = {}
    for label, arms in axis.items():
        by_arm = index.by_arm(FASHION, [arm.name for arm in arms.values()])
        if len(by_arm) > 1:
            values = {arm.name: str(value) for value, arm in arms.items()}
            found[label] = on_common_seeds({values[name]: runs for name, runs in by_arm.items()})
    if not found:
        raise NothingToDraw("AutoMix at two values of alpha or of stage, and cross-entropy")
    figure, score = Picture(figsize=(7.5, 3.3)), _percent("validation_accuracy")
    drawn: list[Record] = []
    for axes, (label, runs) in zip(
        figure.subplots(1, len(found), squeeze=False, sharey=True)[0], found.items(), strict=True
    ):
        table = np.array([[*map(score, each)] for each in runs.values()]).T
        x = np.arange(len(runs))
        axes.plot(x, table.T, color=RED, linewidth=0.8, alpha=0.4)
        plots.band(axes, x, table, "AutoMix", color=RED, marker="o")
        seeds = {run.seed for each in runs.values() for run in each}
        base = [run for run in index.of(FASHION, PLAIN) if run.seed in seeds]
        axes.axhline(summary(map(score, base)).mean, color="black", linestyle="--", linewidth=1)
        axes.set_xticks(x, list(runs))
        axes.set(xlabel=label, title=f"n = {len(table)}", ylabel="validation accuracy (%)")
        drawn += [*base, *(run for each in runs.values() for run in each)]
    headline(figure, "AutoMix by α of its ratios, and by the stage that its block sees")
    caption(
        figure, drawn, f"{FASHION.title}. Thin: seeds; band: 95% interval of the mean; dashed: mean of cross-entropy."
    )
    return figure


# ---------------------------------------------------------------------------------------------------------------------
# The table


def table(index: Index) -> str:
    """Accuracy, calibration, robustness and cost of every method in Markdown, a table a data set.

    In percent, but for the passes, which are over those of cross-entropy. Methods with more epochs stand below.
    """
    studies = {study.title: study for study in STUDIES}
    needs = ("ece", "fgsm_epsilon", "fgsm_accuracy", *(f"{name}_accuracy" for name in CORRUPTIONS))
    scores = [points, _percent("ece"), _attacked, *map(_corrupted, KINDS.values())]
    columns = ("accuracy", "ECE", "FGSM 4/255", "noise, blur, pixels, JPEG (7)", "brightness, contrast (2)")
    parts = []
    for title, by_arm in _blocks(index, STUDIES, *needs).items():
        study, methods = studies[title], on_common_seeds(by_arm)
        seeds = {run.seed for run in methods[BASELINE]}
        for arm in study.arms:
            runs = [run for run in index.of(study, arm) if run.seed in seeds] if arm in LONGER else []
            if len(runs) == len(seeds):
                methods[arm.name] = runs
        first = methods[BASELINE][0]
        where = f"profile {first.profile}, {first.environment.get('device', 'unknown device')}"
        spread = "mean ± 95% interval" if len(seeds) > 2 else "mean"
        lines = [f"**{title}**: {spread}, n = {len(seeds)}; {where}.", ""]
        lines += [f"| method | {' | '.join(f'{column} (%)' for column in columns)} | passes |", "|---" * 7 + "|"]
        for name, runs in methods.items():
            arm, cells = study.arm(name), [summary(map(score, runs)).text() for score in scores]
            passes = arm.passes * study.recipe_of(arm).epochs / study.recipe.epochs
            lines.append(f"| {' | '.join([name, *cells])} | {passes:.3g} |")
        parts.append("\n".join(lines))
    return "\n\n".join(parts) + "\n"


FIGURES: dict[str, Callable[[Index], Picture]] = {
    "accuracy": accuracy,
    "accuracy_paper": partial(accuracy, studies=PAPER_SETTING),
    "equal_passes": equal_passes,
    "networks": networks,
    "reliability": reliability,
    "calibration": calibration,
    "fgsm": fgsm,
    "corruption": corruption,
    "ablation": ablation,
    "mask_spread": mask_spread,
    "alpha_and_stage": alpha_and_stage,
}
