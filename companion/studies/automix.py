r"""Mixing: AutoMix beside ten methods that mix or erase, and AutoMix with one thing changed.

Liu et al., *AutoMix: Unveiling the Power of Mixup for Stronger Classifiers*, ECCV 2022 (https://arxiv.org/abs/2103.13027).

All methods of a study are trained by one recipe. Their records say more than accuracy
(``semaug.measures.robustness.measures``): calibration, accuracy under FGSM and under corruptions. AutoMix takes about
three passes over the network for one of the others, so cross-entropy and mixup are trained a second time, for three
times the epochs.
"""

from __future__ import annotations

import math
import re
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Float

from companion import plots
from companion.plots import BLUE, CYAN, GREEN, GREY, PURPLE, RED, YELLOW, Picture, finish, styled, titled
from companion.records import Blocks, ByArm, Index, gained, markdown, metric, needed, on_common_seeds, runs_of
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


def _changed(words: str, passes: float = 3, usual: Mapping[str, Setting] = CHOSEN, **settings: Setting) -> Arm:
    """AutoMix with something changed."""
    return Arm(f"AutoMix, {words}", "AutoMix", {**usual, **settings}, RED, passes=passes, cost=3, variant=True)


RELEASED_RATE = _changed("γ = 0.1, block at the classifier's rate", usual=DRIVEN)
NO_PIPELINE = _changed("no pipeline", 2, pipeline=False)
NO_ATTENTION = _changed("no attention", attention=False)

ABLATION = (
    _changed("mixup as policy", 2, FIXED, policy="mixup"),
    _changed("CutMix as policy", 2, FIXED, policy="cutmix"),
    NO_PIPELINE,
    _changed("momentum 0", momentum=0.0),
    _changed("no one-hot pass", 2, one_hot=False),
    _changed("no mask loss", mask_weight=0.0),
    RELEASED_RATE,
    _changed("no λ channel", lambda_channel=False),
    NO_ATTENTION,
    _changed("block every 4 steps", 2.25, every=4),
)

TUNED = (
    _changed("γ = 0.1", mask_weight=0.1),
    _changed("block at the classifier's rate", block_rate=1.0),
    _changed("std 0.01", std=0.01),
)
"""What was changed for short trainings, one at a time."""

ALPHAS = {1: _changed("α = 1", alpha=1.0), 2: SHORT, 4: _changed("α = 4", alpha=4.0)}

STAGES = {1: _changed("stage 1", stage=1), 2: _changed("stage 2", stage=2), 3: SHORT}

WATCHED = (SHORT, RELEASED_RATE, STAGES[2], NO_PIPELINE, NO_ATTENTION)
"""Whose masks are followed over training."""

CHANGES = (
    _changed("mixup as policy", 2, {}, policy="mixup"),
    _changed("CutMix as policy", 2, {}, policy="cutmix"),
    _changed("no pipeline", 2, {}, pipeline=False),
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

_SHOWN = (*METHODS, SHORT, *LONGER)
_ALL = (*_SHOWN, *ABLATION, *TUNED, ALPHAS[1], ALPHAS[4], STAGES[1], STAGES[2])
FASHION = _study("fashion-mini", "fashion-mini, 2,000 images", _CLOTHES, "small", _PLAIN, _ALL, seconds=32)
CIFAR = _study("cifar10-5000", "CIFAR-10, 5,000 images", _PHOTOS, "small", _CROP, _SHOWN, seconds=66)
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

PAPER = tuple(
    (f"{title} epochs; median of the last epochs of one run", numbers, "OpenMixup's benchmark")
    for title, numbers in (
        (
            "CIFAR-100, ResNet-18, 200",
            "vanilla 76.42, mixup 78.52, CutMix 79.45, Manifold Mixup 79.18, PuzzleMix 79.96, AutoMix 80.12",
        ),
        (
            "CIFAR-10, ResNet-18, 800",
            "vanilla 95.50, mixup 96.62, CutMix 96.68, Manifold Mixup 96.71, PuzzleMix 97.10, AutoMix 97.34",
        ),
    )
)

# ---------------------------------------------------------------------------------------------------------------------
# Accuracy, and what it costs

COLOURS = {arm.name: arm.color for study in STUDIES for arm in study.arms}


def _blocks(index: Index, studies: Sequence[Study], *measured: str) -> dict[str, ByArm]:
    """Methods that are no variants, trained for the study's epochs, whose records hold what is ``measured``."""
    blocks = {}
    for study in studies:
        by_arm = index.by_arm(study, [arm.name for arm in study.arms if not arm.variant and arm not in LONGER])
        runs = runs_of({"": by_arm})
        if len(by_arm) > 1 and all(name in run.metrics or name in run.curves for run in runs for name in measured):
            blocks[study.title] = by_arm
    words = f" with {', '.join(measured)} in their records" if measured else ""
    return needed(blocks, f"cross-entropy and a method that mixes, of one study{words}")


def _ahead(panels: Mapping[str, Mapping[str, Sequence[float]]], side: int = 1, on: str = "on") -> str:
    """How many rows of each panel are significantly above zero (or below), such as '3 of 9 on CIFAR-10'."""
    counted = []
    for title, values in panels.items():
        there = sum(summary(row).side == side for row in values.values())
        counted.append(f"{there} of {len(values)} {on} {re.split('[:,]', title)[0]}")
    return ", ".join(counted)


def _colour(name: str, title: str = "") -> str:
    return COLOURS.get(name, RED)  # AutoMix, where it is not named


TITLES = "Baseline: cross-entropy, whose accuracy stands above each panel."
SETS = (FASHION, CIFAR)


def _gains(
    blocks: Blocks, where: str, score: Callable[[Record], float] = points, text: str = TITLES, on: str = "on"
) -> Picture:
    """Gains over cross-entropy, a panel a block; the headline counts the significant ones."""
    panels = gained(blocks, score)
    figure = plots.forest({"": panels}, "gain (points)", runs_of(blocks), text, _colour, shared=True)
    return titled(figure, f"Significant gains{where}: {_ahead(panels, on=on)}")


def accuracy(index: Index, studies: Sequence[Study] = SETS) -> Picture:
    """Every method's gain over cross-entropy, a panel a data set."""
    return _gains(_blocks(index, studies), " over cross-entropy")


def networks(index: Index) -> Picture:
    """The gains of the methods that were run on two networks, a panel a network."""
    blocks = {
        f"{name}, {study.recipe.epochs} epochs": index.by_arm(study, [arm.name for arm in VIT.arms])
        for name, study in (("small network", FASHION), ("ViT", VIT))
    }
    if min(map(len, blocks.values())) < 2:
        raise NothingToDraw("cross-entropy and another method on two networks")
    figure = _gains(blocks, "", text=f"{FASHION.title}. {TITLES}", on="with the")
    figure.set_figheight(2.5)
    return figure


PAIRS = {
    f"{arm.name}: 3× - 1×" if one is longer else f"{one.name} - {longer.name}": (one, arm if one is longer else longer)
    for arm, longer in zip((PLAIN, MIXUP), LONGER, strict=True)
    for one in (longer, PUZZLEMIX, SHORT)
}
"""What is compared at equal passes, and what three times the epochs gain."""


@styled
def equal_passes(index: Index) -> Picture:
    """What three times the epochs gain, what PuzzleMix and AutoMix gain over them, and accuracy over passes.

    Passes, not seconds: runs that share their cores with others take as long as those let them.
    """
    arms = (PLAIN, LONGER[0], MIXUP, LONGER[1], PUZZLEMIX, SHORT)
    found = [(study, index.by_arm(study, [arm.name for arm in arms])) for study in SETS]
    both = [{arm.name for arm in some} for some in (LONGER, (PUZZLEMIX, SHORT))]
    found = [(study, by_arm) for study, by_arm in found if all(by_arm.keys() & names for names in both)]
    needed(found, "cross-entropy for three times the epochs, beside PuzzleMix or AutoMix")
    figure, grid = plots.panels(0.8 + 2.9 * len(found), len(found), 2, width_ratios=(1, 1.35))
    for (left, right), (study, by_arm) in zip(grid, found, strict=True):
        pairs = {row: pair for row, pair in PAIRS.items() if all(arm.name in by_arm for arm in pair)}
        values = {row: gains(by_arm[one.name], by_arm[other.name]) for row, (one, other) in pairs.items()}
        plots.differences(left, values, {row: (one.color, one not in LONGER) for row, (one, _) in pairs.items()})
        left.set_yticks(
            range(len(pairs)), [textwrap.fill(row, 25, break_on_hyphens=False) for row in pairs], fontsize=8
        )
        left.set_title(f"{study.title}\n{plots.counts(values)}", fontsize=8.5)
        left.set_xlabel("difference (points)", fontsize=9)
        for arm in (study.arm(name) for name in by_arm):
            table = 100 * np.array([run.curves["validation_accuracy"] for run in by_arm[arm.name]])
            passes = arm.passes * study.recipe_of(arm).epochs * np.arange(1, table.shape[1] + 1) / table.shape[1]
            right.plot(passes, table.mean(0), "--" if arm in LONGER else "-", color=arm.color, label=arm.name)
        right.set_xlabel("passes over the training images", fontsize=9)
        right.set_ylabel("validation accuracy (%)", fontsize=9)
        right.legend(fontsize=7.5, loc="lower right")
        last = f"{SHORT.name} - {LONGER[1].name}"
        if study is FASHION and last in values:
            effect = summary(values[last])
            titled(figure, f"At equal passes AutoMix - mixup is {effect.text('+.1f')} points (n = {effect.n})")
    text = "Left: dots are seeds, bars 95% intervals of the mean difference. Right: means over seeds, during training;"
    plots.caption(
        figure, runs_of({study.title: by_arm for study, by_arm in found}), f"{text} dashed: three times the epochs."
    )
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
    from scipy.stats import binom  # imported where it is used: listing runs does without

    n, p = (np.array(record.curves[f"reliability_{name}"]) for name in ("count", "confidence"))
    v = np.floor(n * p) + 1
    return float((2 * v * (1 - p) * binom.pmf(v, n, p)).sum() / n.sum())


def gap(record: Record) -> float:
    """Mean confidence - accuracy, in points: above zero a network is too sure."""
    return 100 * (record.metrics["mean_confidence"] - record.metrics["test_accuracy"])


def _calibrated(index: Index) -> dict[str, ByArm]:
    blocks = _blocks(index, SETS, "ece", "mean_confidence", "reliability_low")
    return {title: on_common_seeds(by_arm) for title, by_arm in blocks.items()}


@styled
def reliability(index: Index) -> Picture:
    """Accuracy over confidence by bin, predictions of all seeds together: a row a data set, a column a method."""
    blocks, names = _calibrated(index), [PLAIN.name, CUTMIX.name, AUTOMIX.name]
    blocks = {title: {name: by_arm[name] for name in names if name in by_arm} for title, by_arm in blocks.items()}
    figure, grid = plots.panels(0.9 + 2.6 * len(blocks), len(blocks), len(names), sharex=True, sharey=True)
    ticks, lower = ((0, 0.5, 1), ("0", "0.5", "1")), True
    for line, (title, by_arm) in zip(grid, blocks.items(), strict=True):
        for unused in line[len(by_arm) :]:
            unused.remove()
        base = summary(map(gap, by_arm[BASELINE]))
        for axes, (name, runs) in zip(line, by_arm.items(), strict=False):
            share, confidence, right = bins(runs).T
            axes.plot([0, 1], [0, 1], color=GREY, linewidth=1)
            axes.plot(confidence, right, color=COLOURS[name], linewidth=1)
            axes.scatter(confidence, right, s=4 + 120 * share, color=COLOURS[name], linewidths=0)
            error, over = summary(map(metric("ece"), runs)), summary(map(gap, runs))
            lower &= name == BASELINE or over.mean < base.mean
            axes.set_title(f"{name}, n = {over.n}\nECE {error.text()}, gap {over.text('+.1f')}", fontsize=8.5)
            axes.set_aspect("equal")
            axes.set_xticks(*ticks)
            axes.set_yticks(*ticks)
        line[0].set_ylabel(f"{title}\naccuracy", fontsize=9)
    for axes in grid[-1]:
        axes.set_xlabel("confidence", fontsize=9)
    message = "Mixing labels lowers confidence, whether it was too high or not" if lower else "Accuracy over confidence"
    text = "Below the line: too sure. Area of a mark: share of the predictions. ECE in percent; gap: mean confidence"
    text += " - accuracy, in points; both with 95% intervals of the mean."
    return finish(figure, message, runs_of(blocks), text)


def calibration(index: Index) -> Picture:
    """Mean confidence - accuracy of every method, a panel a data set."""
    blocks = _calibrated(index)
    panels = {title: {name: [*map(gap, runs)] for name, runs in by_arm.items()} for title, by_arm in blocks.items()}
    text = "Above zero: too sure; below: not sure enough."
    figure = plots.forest({"": panels}, "confidence - accuracy (points)", runs_of(blocks), text, _colour, shared=True)
    return titled(figure, f"Significantly less sure than right: {_ahead(panels, side=-1)}")


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
    return _gains(_blocks(index, SETS, "fgsm_epsilon", "fgsm_accuracy"), " under FGSM of 4/255", _attacked)


def corruption(index: Index) -> Picture:
    """Gain over cross-entropy in accuracy under corruptions, mean over kinds and severities."""
    blocks = _blocks(index, SETS, *(f"{name}_accuracy" for name in CORRUPTIONS))
    lines = {kind: gained(blocks, _corrupted(names)) for kind, names in KINDS.items()}
    figure = plots.forest(lines, "gain (points)", runs_of(blocks), TITLES, _colour, shared=True)
    light = next(iter(lines["brightness, contrast"].values()))
    side = {name: summary(values).side for name, values in light.items()}
    blend = all(side.get(arm.name) == 1 for arm in (MIXUP, MANIFOLD, SHORT))
    cut = all(side.get(arm.name) in (0, -1) for arm in (CUTMIX, RESIZEMIX, SALIENCYMIX))
    message = "On fashion-mini what blends helps under brightness and contrast; what cuts does not"
    return titled(figure, message if blend and cut else "Gain under corruptions", 6.6)


# ---------------------------------------------------------------------------------------------------------------------
# AutoMix with one thing changed


def ablation(index: Index) -> Picture:
    """AutoMix with something changed: gain over AutoMix, a row a change, with its passes for one of cross-entropy's."""
    rows = {arm.name: f"{arm.name.removeprefix('AutoMix, ')} ({arm.passes:.3g})" for arm in (SHORT, *ABLATION)}
    by_arm = index.by_arm(FASHION, [*rows])
    if SHORT.name not in by_arm or len(by_arm) < 2:
        raise NothingToDraw("AutoMix, and AutoMix with one thing changed")
    blocks = {f"{FASHION.title}; AutoMix, 3 passes": {rows[name]: runs for name, runs in by_arm.items()}}
    panels, xlabel = gained(blocks), "AutoMix with the change - AutoMix (points)"
    text = "In brackets: passes for one of cross-entropy's; those of fewer passes are cheaper, not equal."
    worse, better = (_ahead(panels, side).split(" on ")[0] for side in (-1, 1))
    message = f"Changes that make AutoMix significantly worse: {worse}; better: {better}"
    return titled(plots.forest({"": panels}, xlabel, runs_of(blocks), text, _colour), message)


@styled
def mask_spread(index: Index) -> Picture:
    """Spread of the masks over epochs: the standard deviation of the pixels of a mask, a line a seed; 0: no shape."""
    by_arm = index.by_arm(FASHION, [arm.name for arm in WATCHED])
    if len(by_arm) < 2:
        raise NothingToDraw(f"AutoMix and one of {', '.join(arm.name for arm in WATCHED[1:])}")
    figure, (panels,) = plots.panels(3.1, 1, len(by_arm), sharey=True)
    left = {SHORT.name: [1.0], NO_PIPELINE.name: [0.0]}  # what is left of the largest spread
    for axes, (name, runs) in zip(panels, by_arm.items(), strict=True):
        spreads = [run.curves["mask_spread"] for run in runs]
        left[name] = [values[-1] / max(values) for values in spreads]
        axes.plot(range(1, len(spreads[0]) + 1), np.transpose(spreads), color=RED, linewidth=1.2)
        words = textwrap.wrap(name.removeprefix("AutoMix, "), 17)
        axes.set_title("\n".join([*words, f"n = {len(runs)}"]), fontsize=8.5)
        axes.set(ylim=(0, 0.52), xlabel="epoch")
    panels[0].set_ylabel("spread of the masks")
    fades = max(left[SHORT.name]) < 0.5 < min(left[NO_PIPELINE.name])
    message = "AutoMix's masks fade during training; without the pipeline they do not"
    text = "A line a seed, the mean over an epoch's steps. 0: one gray, as mixup's, or one image alone."
    plain = "Spread of the masks during training"
    return finish(figure, message if fades else plain, runs_of({"": by_arm}), f"{FASHION.title}. {text}")


@styled
def alpha_and_stage(index: Index) -> Picture:
    """Accuracy of AutoMix over α of its ratios' distribution, and over the stage that its block sees.

    On the validation images: settings are chosen there, if anywhere. Thin lines are seeds; the dashed line is the mean
    of cross-entropy.
    """
    found: dict[str, ByArm] = {}
    for label, arms in (("α (not to scale)", ALPHAS), ("stage", STAGES)):
        by_arm = index.by_arm(FASHION, [arm.name for arm in arms.values()])
        if len(by_arm) > 1:
            values = {str(value): by_arm[arm.name] for value, arm in arms.items() if arm.name in by_arm}
            found[label] = on_common_seeds(values)
    needed(found, "AutoMix at two values of alpha or of stage, and cross-entropy")
    figure, (panels,) = plots.panels(3.3, 1, len(found), sharey=True)
    drawn, score = runs_of(found), metric("validation_accuracy")
    for axes, (label, by_value) in zip(panels, found.items(), strict=True):
        table = np.array([[*map(score, runs)] for runs in by_value.values()]).T
        x = np.arange(len(by_value))
        axes.plot(x, table.T, color=RED, linewidth=0.8, alpha=0.4)
        plots.band(axes, x, table, "AutoMix", color=RED, marker="o")
        seeds = {run.seed for runs in by_value.values() for run in runs}
        base = [run for run in index.of(FASHION, PLAIN) if run.seed in seeds]
        axes.axhline(summary(map(score, base)).mean, color="black", linestyle="--", linewidth=1)
        axes.set_xticks(x, list(by_value))
        axes.set(xlabel=label, title=f"n = {len(table)}", ylabel="validation accuracy (%)")
        drawn += base
    text = f"{FASHION.title}. Thin: seeds; band: 95% interval of the mean; dashed: mean of cross-entropy."
    return finish(figure, "AutoMix by α of its ratios, and by the stage that its block sees", drawn, text)


# ---------------------------------------------------------------------------------------------------------------------
# The table

COLUMNS: dict[str, Callable[[Record], float]] = {
    "accuracy (%)": points,
    "ECE (%)": metric("ece"),
    "FGSM 4/255 (%)": _attacked,
    "noise, blur, pixels, JPEG (7) (%)": _corrupted(KINDS["noise (4), blur, pixelate, JPEG"]),
    "brightness, contrast (2) (%)": _corrupted(LIGHT),
}


def table(index: Index) -> str:
    """Accuracy, calibration, robustness and cost of every method in Markdown, a table a data set.

    In percent, but for the passes, which are over those of cross-entropy. Methods with more epochs stand below.
    """
    studies, parts = {study.title: study for study in STUDIES}, []
    needs = ("ece", "fgsm_epsilon", "fgsm_accuracy", *(f"{name}_accuracy" for name in CORRUPTIONS))
    for title, by_arm in _blocks(index, STUDIES, *needs).items():
        study, methods, rows = studies[title], on_common_seeds(by_arm), []
        first, seeds = methods[BASELINE][0], {run.seed for run in methods[BASELINE]}
        for arm in LONGER if LONGER[0] in study.arms else ():
            runs = [run for run in index.of(study, arm) if run.seed in seeds]
            methods |= {arm.name: runs} if len(runs) == len(seeds) else {}
        for arm, runs in ((study.arm(name), runs) for name, runs in methods.items()):
            passes = arm.passes * study.recipe_of(arm).epochs / study.recipe.epochs
            rows.append([arm.name, *(summary(map(score, runs)).text() for score in COLUMNS.values()), f"{passes:.3g}"])
        where = f"profile {first.profile}, {first.environment.get('device', 'unknown device')}"
        spread = "mean ± 95% interval" if len(seeds) > 2 else "mean"
        head = f"**{title}**: {spread}, n = {len(seeds)}; {where}."
        parts.append(f"{head}\n\n{markdown(['method', *COLUMNS, 'passes'], rows)}")
    return "\n\n".join(parts) + "\n"


FIGURES: dict[str, Callable[[Index], Picture]] = {
    "accuracy": accuracy,
    "accuracy_paper": partial(accuracy, studies=PAPER_SETTING),
    **{draw.__name__: draw for draw in (equal_passes, networks, reliability, calibration, fgsm, corruption)},
    **{draw.__name__: draw for draw in (ablation, mask_spread, alpha_and_stage)},
}
