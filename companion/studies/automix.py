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
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Float

from companion import masks, plots, records
from companion.plots import BLUE, CYAN, GREEN, GREY, PURPLE, RED, YELLOW, Picture, finish, styled, titled
from companion.records import Blocks, ByArm, Index, Pictured, gained, metric, needed, on_common_seeds, runs_of
from companion.stats import gains, points, summary
from companion.studies import Arm, Measured, NothingToDraw, Setting, Study
from semaug.data.sets import Data
from semaug.measures.robustness import CORRUPTIONS, measures
from semaug.methods import mixing
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
COMIXUP = Arm("Co-Mixup", "CoMixup", color=PURPLE, passes=2, cost=20)  # its solvers run on the CPU
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

_SHOWN = (*METHODS, COMIXUP, SHORT, *LONGER)
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

# Pictures, of one seed. The pairs are places in the test split of 2,000 photographs.
PAIRS = ((62, 88), (152, 25), (146, 17), (24, 203), (92, 111))
LOOKED: dict[str, Setting] = {"momentum": 0.95, "std": 1.0, "block_rate": 0.3, "mask_weight": 2.0, "stage": 2}
"""For masks of 8 x 8 on photographs of 32 pixels, as the released CIFAR configurations have them. Weights, rate and
weight of the mask loss were chosen by the masks of short trainings of seed 0: at smaller first weights they lose their
shape within 300 steps, at a smaller rate they do not follow the ratio."""

PICTURED = Arm("AutoMix", "AutoMix", LOOKED, RED, passes=3)
PICTURED_ONE = Arm("AutoMix, one network", "AutoMix", {**LOOKED, "pipeline": False}, GREY, passes=2, variant=True)
_WATCHED = replace(_CROP, epochs=16, batch_size=50, lr=0.05, evaluate_every=0)
MASKS = Study(
    NOTEBOOK,
    "cifar10-masks",
    "CIFAR-10, 5,000 images, masks of 8 × 8",
    {"name": "cifar10", "validation": 0.1, "train_size": 5000, "test_size": 2000},
    "small",
    _WATCHED,
    (PICTURED, PICTURED_ONE),
    seeds=1,
    seconds=80,
    execute=partial(masks.watch, pairs=PAIRS),
)
LOOKING = Study(
    NOTEBOOK,
    "cifar10-pasted",
    "CIFAR-10 on canvases of 56 × 56, 2,000 images",
    {"name": "cifar10", "validation": 0.1, "train_size": 2000, "test_size": 1000, "pasted on": 56},
    "small",
    replace(_CROP, epochs=8, augment="flip", batch_size=50, lr=0.05, evaluate_every=0),
    (PLAIN, *(replace(arm, variant=True) for arm in (MIXUP, CUTMIX, PICTURED))),
    seeds=1,
    seconds=100,
    execute=partial(masks.localise, shown=8),
)

STUDIES = (FASHION, CIFAR, VIT, MASKS, LOOKING, *PAPER_SETTING)

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


def accuracy(index: Index) -> Picture:
    """Every method's gain over cross-entropy, a panel a data set."""
    return _gains(_blocks(index, SETS), " over cross-entropy")


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


MINUS = "\N{MINUS SIGN}"
LONG_PLAIN, LONG_MIXUP = LONGER
COMPARED = {
    f"cross-entropy:\n3\u00d7 epochs {MINUS} 1\u00d7": (LONG_PLAIN, PLAIN),
    f"AutoMix {MINUS} cross-entropy\nof 3\u00d7 epochs": (SHORT, LONG_PLAIN),
    f"mixup:\n3\u00d7 epochs {MINUS} 1\u00d7": (LONG_MIXUP, MIXUP),
    f"AutoMix {MINUS} mixup\nof equal epochs": (SHORT, MIXUP),
    f"AutoMix {MINUS} mixup\nof 3\u00d7 epochs": (SHORT, LONG_MIXUP),
}
"""What three times the epochs gain, and AutoMix minus its rivals of as many passes, or of as many epochs."""


@styled
def equal_passes(index: Index) -> Picture:
    """AutoMix against rivals of as many passes, on the set where these ran.

    Passes, not seconds: runs that share their cores with others take as long as those let them.
    """
    by_arm = index.by_arm(FASHION, [arm.name for arm in (PLAIN, MIXUP, *LONGER, SHORT)])
    pairs = {row: pair for row, pair in COMPARED.items() if all(arm.name in by_arm for arm in pair)}
    fair = [one for one, other in pairs.values() if one is SHORT and other in LONGER]
    needed(fair, "AutoMix, and cross-entropy or mixup for three times the epochs")
    values = {row: gains(by_arm[one.name], by_arm[other.name]) for row, (one, other) in pairs.items()}
    figure, ((axes,),) = plots.panels(0.9 + 0.46 * len(pairs), 1, 1)
    plots.differences(axes, values, {row: (one.color, one not in LONGER) for row, (one, _) in pairs.items()})
    axes.set_yticks(range(len(pairs)), list(pairs), fontsize=9)
    axes.set_xlabel("difference (points)", fontsize=9)
    message = "AutoMix against longer training"
    same, long = (summary(values[row]) if row in values else None for row in [*COMPARED][-2:])
    if same and long:
        message = f"AutoMix {MINUS} mixup: {long.text('+.1f')} points at equal passes"
        message += f", {same.text('+.1f')} at equal epochs"
    text = f"{FASHION.title}, {plots.counts(values)}. Dots: seeds. Bars: 95% intervals of the mean difference."
    return finish(figure, message, runs_of({"": by_arm}), text)


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
    """Accuracy over confidence by bin, of all seeds together, on the first set that has it; three panels."""
    title, by_arm = next(iter(_calibrated(index).items()))
    by_arm = {name: by_arm[name] for name in (PLAIN.name, CUTMIX.name, AUTOMIX.name) if name in by_arm}
    figure, (line,) = plots.panels(3.4, 1, len(by_arm), sharex=True, sharey=True)
    ticks, gaps = ((0, 0.5, 1), ("0", "0.5", "1")), {name: summary(map(gap, runs)) for name, runs in by_arm.items()}
    for axes, (name, runs) in zip(line, by_arm.items(), strict=True):
        share, confidence, right = bins(runs).T
        axes.plot([0, 1], [0, 1], color=GREY, linewidth=1)
        axes.plot(confidence, right, color=COLOURS[name], linewidth=1)
        axes.scatter(confidence, right, s=4 + 120 * share, color=COLOURS[name], linewidths=0)
        error, over = summary(map(metric("ece"), runs)), gaps[name]
        axes.set_title(f"{name}, n = {over.n}\nECE {error.text()}, gap {over.text('+.1f')}", fontsize=8.5)
        axes.set_aspect("equal")
        axes.set_xticks(*ticks)
        axes.set_yticks(*ticks)
        axes.set_xlabel("confidence", fontsize=9)
    line[0].set_ylabel("accuracy", fontsize=9)
    message, ours = "Accuracy over confidence", gaps.get(AUTOMIX.name)
    if gaps[BASELINE].side == 1 and ours is not None and ours.side == -1:
        message = f"{BASELINE.capitalize()} is {gaps[BASELINE].mean:.1f} points too sure,"
        message += f" AutoMix {-ours.mean:.1f} points less sure than right"
    text = f"{title}. Below the line: too sure. Area of a mark: share of the predictions. ECE in percent; gap: mean"
    text += " confidence - accuracy, in points; both with 95% intervals of the mean."
    return finish(figure, message, runs_of({title: by_arm}), text)


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
# Pictures of one seed: the zoo in colour, masks over ratio and training, class activation maps

FIRST, SECOND = RED, BLUE
"""Colours of the two images of a pair in the bars of their labels."""

ZOO = ("mixup", "CutMix", "ResizeMix", "SaliencyMix", "PuzzleMix", "AutoMix")

CENTRE = (12, 20)
"""Row and column of the centre of the boxes in the zoo, the same for all."""


def kept(index: Index, study: Study = MASKS) -> Pictured:
    """By arm the first run with arrays, and these; raises NothingToDraw without the study's baseline."""
    found = records.pictured(NOTEBOOK, index.by_arm(study))
    return found if study.baseline.name in found else needed({}, f"arrays of {study.baseline.name} on {study.title}")


def mixture(
    name: str, arrays: Mapping[str, np.ndarray], pair: int, lam: float
) -> tuple[Float[torch.Tensor, "channels H W"], float]:
    """The first image of a pair, mixed by a method of ``ZOO``, in [0, 1], and the ratio in its label.

    PuzzleMix and AutoMix as the run has kept them, lam one of ``masks.PUZZLES``, or of ``masks.LAMS``; others anew.
    """
    images, swap = torch.tensor(arrays["pairs"][pair]).float() / 255, torch.tensor([1, 0])
    if name == "PuzzleMix":
        at = masks.PUZZLES.index(lam)
        return torch.tensor(arrays["puzzles"][pair, at]).float() / 255, float(arrays["puzzle_lams"][pair, at])
    if name == "AutoMix":
        cells = torch.tensor(arrays["masks"][-1, pair, masks.LAMS.index(lam)]).float() / 255
        scale = images.shape[-1] // cells.shape[-1]
        mask = cells.repeat_interleave(scale, 0).repeat_interleave(scale, 1)
        return mask * images[0] + (1 - mask) * images[1], lam
    soft = torch.eye(2)
    if name == "mixup":
        mixed = mixing.mixup(images, soft, lam, swap)
    elif name == "SaliencyMix":
        mixed = mixing.saliencymix(images, soft, lam, swap, mixing.fine_grained_saliency(images))
    else:
        method: Any = {"CutMix": mixing.cutmix, "ResizeMix": mixing.resizemix}[name]
        mixed = method(images, soft, lam, swap, *(torch.tensor(place) for place in CENTRE))
    return mixed.images[0].clamp(0, 1), float(mixed.target[0, 0])


BAR = 15
"""Rows of pixels of the bar below a tile of 96."""


def _bared(image: torch.Tensor, ratio: float) -> np.ndarray:
    """A tile, enlarged, above a bar of the label: the share of the first image in its colour, then the second's."""
    from matplotlib.colors import to_rgb

    tile = _large(image)
    under, end = np.ones((BAR + 2, tile.shape[1], 3)), round(ratio * tile.shape[1])
    under[2:, :end], under[2:, end:] = to_rgb(FIRST), to_rgb(SECOND)
    return np.pad(np.concatenate([tile, under]), ((0, 9), (0, 8), (0, 0)), constant_values=1)


ZOO_LAMS = (0.3, 0.5, 0.7)


@styled
def zoo(index: Index) -> Picture:
    """One pair of photographs under six methods, a column a method and a row a ratio, each label as a bar."""
    from matplotlib.patches import Rectangle

    run, arrays = kept(index)[PICTURED.name]
    names = ["car" if name == "automobile" else str(name) for name in arrays["names"][0]]
    made = {name: [mixture(name, arrays, 0, lam) for lam in ZOO_LAMS] for name in ZOO}
    figure, ((axes,),) = plots.panels(4.4, 1, 1)
    photographs = (torch.tensor(image).float() / 255 for image in arrays["pairs"][0])
    image, partner = (_bared(photograph, share) for photograph, share in zip(photographs, (1.0, 0.0), strict=True))
    blank = np.ones_like(image)
    gap = np.ones((len(blank), 64, 3))
    columns = [[image, blank, partner], [gap] * 3, *([_bared(*each) for each in row] for row in made.values())]
    height, width = blank.shape[:2]
    axes.imshow(np.concatenate([np.concatenate(column) for column in columns], 1))
    lefts = [width + 64 + k * width for k in range(len(ZOO))]
    for left, mixtures in zip(lefts, made.values(), strict=True):
        for row, (_, ratio) in enumerate(mixtures):
            where = (left + 4, row * height + 98 + BAR / 2)
            axes.text(*where, f"{ratio:.0%}", color="white", fontsize=7.5, va="center")
    for row, lam in enumerate(ZOO_LAMS):
        axes.text(width + 54, row * height + 48, f"λ = {lam:g}", fontsize=9, ha="right", va="center")
    for row, (name, what) in enumerate(zip(names, ("the image", "its partner"), strict=True)):
        axes.text(48, (1.02, 1.98)[row] * height, f"{what}: {name}", fontsize=8, ha="center", va=("top", "bottom")[row])
    frame = Rectangle((lefts[-1] - 5, -5), width, 3 * height, fill=False, edgecolor=RED, linewidth=2, clip_on=False)
    axes.add_patch(frame)
    axes.set_xticks([left + 48 for left in lefts], ZOO)
    axes.set_yticks([])
    plots.bare(axes)
    ends = [row[1][1] for row in made.values()]
    message = f"Six ways to mix one pair: at λ = 0.5 the label gives the {names[0]} {min(ends):.0%} to {max(ends):.0%}"
    text = f"Bars: the label, the {names[0]}'s share in figures. Masks after {run.config['recipe']['epochs']} epochs on"
    return finish(figure, message, [run], f"{text} {MASKS.title}; one seed. PuzzleMix by the same classifier.")


def rise(run: Record, at: int = -1) -> float:
    """By how much the mean of the masks rises as λ goes from 0 to 1, after an epoch."""
    return run.curves["mask_mean_1"][at] - run.curves["mask_mean_0"][at]


def spread(run: Record, at: int = -1) -> float:
    """The mean standard deviation of the cells of a mask at λ = 0.5, after an epoch."""
    return run.curves["mask_spread_0.5"][at]


SHOWN_LAMS = (0.0, 0.5, 1.0)


@styled
def masks_over_epochs(index: Index) -> Picture:
    """Masks of one pair by epoch, a row a ratio; with the momentum pipeline, and beside it through one network."""
    found, pair = kept(index), 0
    epochs = found[PICTURED.name][1]["masks"].shape[0]
    marks = sorted({1, max(1, epochs // 3), epochs})
    figure, (grid,) = plots.panels(2.9, 1, len(found), sharey=True)
    for axes, (name, (_, arrays)) in zip(grid, found.items(), strict=True):
        rows = []
        for lam in SHOWN_LAMS:
            tiles = []
            for mark in marks:
                until = {**arrays, "masks": arrays["masks"][:mark]}
                tiles += [_mask_tile(until, pair, lam), _large(mixture("AutoMix", until, pair, lam)[0])]
            rows.append(np.concatenate([_framed(tile, 14 * (k % 2)) for k, tile in enumerate(tiles)], 1))
        axes.imshow(np.concatenate(rows))
        width, height = rows[0].shape[1] / len(marks), rows[0].shape[0]
        axes.set_xticks([(k + 0.46) * width for k in range(len(marks))], [f"epoch {mark}" for mark in marks])
        axes.set_yticks([(k + 0.5) * height for k in range(len(SHOWN_LAMS))], [f"λ = {lam:g}" for lam in SHOWN_LAMS])
        axes.set_title("with the pipeline" if name == PICTURED.name else "one network", fontsize=9.5)
        plots.bare(axes)
    text = f"{MASKS.title}, one seed. White: the image, black: its partner; beside each mask its mixture."
    learned = len(found) > 1 and min(rise(run) for run, _ in found.values()) > 0.3
    message = "Masks learn to show more of the image at larger λ, with the pipeline and through one network"
    return finish(
        figure,
        message if learned else "Masks of AutoMix over ratio and training",
        [run for run, _ in found.values()],
        text,
    )


def _mask_tile(arrays: Mapping[str, np.ndarray], pair: int, lam: float) -> np.ndarray:
    """The last mask of a pair as a gray tile."""
    cells = torch.tensor(arrays["masks"][-1, pair, masks.LAMS.index(lam)]) / 255
    return _large(cells.expand(3, -1, -1))


def _framed(tile: np.ndarray, right: int = 6) -> np.ndarray:
    """A tile with white below it and to its right."""
    return np.pad(tile, ((0, 6), (0, right), (0, 0)), constant_values=1)


def _message(found: Pictured) -> str:
    """What the masks do with the ratio, in the runs that are there."""
    rises = {name: rise(run) for name, (run, _) in found.items()}
    if len(rises) < 2:
        return "Masks of AutoMix over ratio and training"
    one, other = (f"{rises[arm.name]:.2f}" for arm in (PICTURED, PICTURED_ONE))
    return f"In the end a mask's mean rises by {one} over λ with the pipeline, by {other} through one network"


@styled
def masks_follow(index: Index) -> Picture:
    """Mean of the masks over the ratio, and over training how far they follow it and how much shape they have."""
    found = kept(index)
    figure, (panels,) = plots.panels(3.0, 1, 3)
    for name, (run, _) in found.items():
        colour = RED if name == PICTURED.name else GREY
        label = "with the pipeline" if name == PICTURED.name else "one network"
        means = np.array([run.curves[f"mask_mean_{lam:g}"] for lam in masks.LAMS])
        panels[0].plot(masks.LAMS, means[:, -1], "o-", color=colour, markersize=3, label=label)
        epochs = range(1, means.shape[1] + 1)
        panels[1].plot(epochs, means[-1] - means[0], color=colour)
        panels[2].plot(epochs, run.curves["mask_spread_0.5"], color=colour)
    panels[0].plot([0, 1], [0, 1], "--", color="black", linewidth=1, label="the ratio itself")
    panels[0].set(xlabel="λ", title="mean of the masks, at the end", ylim=(0, 1))
    panels[1].set(xlabel="epoch", title="rise of the mean, λ from 0 to 1", ylim=(-0.1, 1))
    panels[2].set(xlabel="epoch", title="spread of a mask, λ = 0.5", ylim=(0, 0.5))
    panels[0].legend(fontsize=7.5)
    for panel in panels:
        panel.title.set_fontsize(9)
    text = f"{MASKS.title}, one seed; means over {masks.COMPANY} pairs of test images."
    text += " Spread 0: one gray, as mixup's; 0.5: all or nothing."
    return finish(figure, _message(found), [run for run, _ in found.values()], text)


@styled
def cams(index: Index) -> Picture:
    """Class activation maps over photographs on canvases, a row a method, with the true boxes and those of the maps."""
    from matplotlib.patches import Rectangle

    found = kept(index, LOOKING)
    shown = min(len(arrays["boxes"]) for _, arrays in found.values())
    figure, grid = plots.panels(0.9 + 1.02 * len(found), len(found), shown)
    for line, (name, (run, arrays)) in zip(grid, found.items(), strict=True):
        for axes, canvas, heat, (true, ours) in zip(
            line, arrays["canvases"], arrays["maps"], arrays["boxes"], strict=False
        ):
            axes.imshow(canvas.transpose(1, 2, 0))
            axes.imshow(heat, cmap="inferno", alpha=0.45)
            for (top, left, bottom, right), colour, style in ((true, "white", "-"), (ours, CYAN, "--")):
                box = Rectangle((left - 0.5, top - 0.5), right - left, bottom - top, fill=False)
                box.set(edgecolor=colour, linestyle=style, linewidth=1.6)
                axes.add_patch(box)
            axes.set(xticks=[], yticks=[])
            axes.grid(visible=False)
        words = f"{name}\n{run.metrics['box']:.0%} found"
        line[0].set_ylabel(words, fontsize=8.5)
    runs = [run for run, _ in found.values()]
    low, high = (end(run.metrics["box"] for run in runs) for end in (min, max))
    guess = runs[0].metrics["box_guess"]
    better = "more than" if low > guess else "beside"
    message = f"Maps of classes find {low:.0%} to {high:.0%} of the boxes, {better} the {guess:.0%} of a fixed box"
    text = f"{LOOKING.title}, one seed. White: true box; dashed: box of the map. Found: overlap of one half or more."
    return finish(figure, message, runs, text)


# ---------------------------------------------------------------------------------------------------------------------
# Diagrams of the lesson


@styled
def loops_diagram() -> Picture:
    """Offline mixing and the closed loop, side by side."""
    figure, (panels,) = plots.panels(2.7, 1, 2)
    for axes, closed in zip(panels, (False, True), strict=True):
        axes.set(xlim=(0, 52), ylim=(0, 27), title="closed loop: AutoMix" if closed else "offline: mixup, CutMix")
        axes.axis("off")
        maker = ("Mix Block\n$\\varphi$", RED, "#FDECEE") if closed else ("a fixed\nrule", "#555555", "white")
        boxes = ((5, "images"), (19, maker[0]), (33, "classifier\n$\\theta$"), (46, "loss"))
        for x, text in boxes:
            edge, face = maker[1:] if x == 19 else (BLUE, "#EAF0F7") if x == 33 else ("#555555", "white")
            plots.draw_box(axes, (x, 15), (8.6 if x in (5, 46) else 10, 6), text, edge, face)
        for start, end in ((9.3, 14), (24, 28), (38, 41.7)):
            plots.draw_arrow(axes, (start, 15 + closed), (end, 15 + closed), "#555555")
        axes.plot([46, 46, 33], [12, 6.5, 6.5], color=BLUE, linewidth=1.3)
        plots.draw_arrow(axes, (33, 6.5), (33, 12), BLUE)
        axes.text(40, 7.3, "gradient", fontsize=8, ha="center", color=BLUE)
        if closed:
            for start, end in ((41.7, 38), (28, 24)):
                plots.draw_arrow(axes, (start, 13.5), (end, 13.5), RED)
            words = "gradient to the block, through the classifier\n(section 5: through a copy)"
            axes.text(32, 1.0, words, fontsize=8, ha="center", color=RED)
            axes.plot([33, 33, 19], [18, 23, 23], color="#555555", linewidth=1.3)
            plots.draw_arrow(axes, (19, 23), (19, 18), "#555555")
            axes.text(26, 24, "maps", fontsize=8, ha="center")
    plots.headline(figure, "In the closed loop the loss also teaches what makes the mixtures")
    return figure


@styled
def block_diagram() -> Picture:
    """The Mix Block, from the maps of a pair to the mask."""
    figure, axes = plots.canvas(2.9, 25, top=0.86)
    grey, soft, red = "#555555", "#F6F6F6", ("#EE6677", "#FDECEE")
    for centre, size, text, colours in (
        ((7, 19), (12, 5), "$z_i$ with λ", (grey, soft)),
        ((7, 7), (12, 5), "$z_j$ with $1-λ$", (grey, soft)),
        ((21, 19), (7, 5), "$W_P$", red),
        ((21, 10), (7, 4), "$W_P$", red),
        ((21, 4), (7, 4), "$W_Z$", red),
        ((34, 15), (10, 6), "softmax\n$P$: 64 × 64", (grey, soft)),
        ((46, 8), (5, 5), "$\\times$", (grey, soft)),
        ((57, 8), (10, 6), "upsample\n8 → 32", (grey, soft)),
        ((69.5, 8), (9, 6), "σ: $s_{1-λ}$", (grey, soft)),
    ):
        plots.draw_box(axes, centre, size, text, *colours)
    for start, end in (
        ((13, 19), (17.5, 19)), ((13, 8), (17.5, 10)), ((13, 6), (17.5, 4)), ((24.5, 19), (29, 16)),
        ((24.5, 10), (29, 14)), ((24.5, 4), (43.5, 7)), ((39, 15), (43.5, 9.5)), ((48.5, 8), (52, 8)),
        ((62, 8), (65, 8)),
    ):  # fmt: skip
        plots.draw_arrow(axes, start, end, grey)
    axes.text(25, 22.3, "query", fontsize=8)
    axes.text(27.4, 10.2, "key", fontsize=8)
    axes.text(30, 3.2, "value, one number a place", fontsize=8)
    axes.text(69.5, 13, "$s_λ = 1 - s_{1-λ}$", fontsize=9, ha="center")
    plots.headline(figure, "The Mix Block: cross-attention from the places of an image to those of its partner")
    return figure


@styled
def pipeline_diagram() -> Picture:
    """The momentum pipeline: its four losses, what each trains, and where gradients go."""
    figure, axes = plots.canvas(3.8, 36, top=0.9)
    grey, plain = "#555555", ("#555555", "white")
    frozen, red, blue = (grey, "#E8E8E8"), (RED, "#FDECEE"), (BLUE, "#EAF0F7")
    for centre, size, text, colours in (
        ((4.5, 19), (7, 5), "$x$, $y$", plain),
        ((15, 19), (8, 6), "copy $k$", frozen),
        ((25, 19), (6, 5), "maps\n$z$", plain),
        ((35.5, 19), (9, 6), "Mix Block\n$\\varphi$", red),
        ((46, 29), (7, 5), "$\\tilde{x}'$", plain),
        ((46, 13), (7, 5), "$\\tilde{x}$", plain),
        ((56.5, 29), (7, 6), "copy $k$", frozen),
        ((56.5, 10), (8, 12), "classifier\n$q$", blue),
        ((27, 29), (10, 4.6), "mask loss", red),
        ((69, 29), (11, 5.6), "MCE of $\\tilde{x}'$", red),
        ((69, 13), (11, 4.6), "MCE of $\\tilde{x}$", blue),
        ((69, 6), (11, 4.6), "CE of $x$", blue),
    ):
        plots.draw_box(axes, centre, size, text, *colours)
    for start, end in (
        ((8, 19), (11, 19)), ((19, 19), (22, 19)), ((28, 19), (31, 19)), ((38.5, 22), (42.5, 27.5)),
        ((38, 16), (42.5, 13)), ((49.5, 28), (53, 28)), ((60, 28), (63.5, 28)), ((49.5, 13), (52.5, 13)),
        ((60.5, 14), (63.5, 14)), ((60.5, 7), (63.5, 7)), ((32.5, 22), (28, 26.7)),
    ):  # fmt: skip
        plots.draw_arrow(axes, start, end, grey)
    axes.plot([4.5, 4.5], [16.5, 6], color=grey, linewidth=1.3)
    plots.draw_arrow(axes, (4.5, 6), (52.5, 6), grey)
    axes.text(20, 7, "the images themselves", fontsize=8)
    back = ((63.5, 60, 30.5, 30.5), (53, 49.5, 30.5, 30.5), (42.5, 36, 30.5, 22), (30.5, 34.5, 26.7, 22))
    for right, left, high, low in back:
        plots.draw_arrow(axes, (right, high), (left, low), RED)
    axes.text(56.5, 33.3, "gradient through $k$, none on its weights", fontsize=8, ha="center", color=RED)
    for y in (12, 5):
        plots.draw_arrow(axes, (63.5, y), (60.5, y), BLUE)
    axes.plot([40.2, 40.2], [12.6, 16.6], color="black", linewidth=2)
    axes.text(39.5, 11, "no gradient", fontsize=8, ha="right")
    plots.draw_arrow(axes, (56.5, 16), (56.5, 26), grey, "--")
    axes.text(57.4, 20.5, "average\nover steps", fontsize=8, va="center")
    plots.headline(figure, "Red losses train the block, blue ones the classifier; no loss moves the gray copy")
    return figure


@styled
def _frame(
    figure: Picture, found: Pictured, shown: Sequence[tuple[str, float]], pairs: Sequence[int], title: str
) -> Picture:
    """Pairs, and for each arm and ratio of ``shown`` mask and mixture, drawn anew into a figure."""
    figure.clear()
    axes, rows, first = figure.add_axes((0.01, 0, 0.98, 0.87)), [], found[PICTURED.name][1]
    step = 96 + 6
    for row, pair in enumerate(pairs):
        tiles = [_large(torch.tensor(photograph) / 255) for photograph in first["pairs"][pair]]
        for name, lam in shown:
            arrays = found[name][1]
            cells = arrays["masks"][-1, pair, masks.LAMS.index(lam)] / 255
            at = (len(tiles) * step, row * (step + 18) + 110)
            axes.text(*at, f"mean {cells.mean():.2f}", fontsize=8, va="center")
            tiles += [_mask_tile(arrays, pair, lam), _large(mixture("AutoMix", arrays, pair, lam)[0])]
        line = np.concatenate([_framed(tile) for tile in tiles], 1)
        rows.append(np.pad(line, ((0, 18), (0, 0), (0, 0)), constant_values=1))
    axes.imshow(np.concatenate(rows))
    axes.axis("off")
    axes.set_anchor("NW")
    words = ["image", "partner"]
    for name, lam in shown:
        arm = "pipeline" if name == PICTURED.name else "one network"
        words += [f"λ = {lam:g}" if len(shown) > 2 else arm, "mixture"]
    for k, word in enumerate(words):
        axes.text(step * k, -8, word, fontsize=9)
    axes.set_title(f"{title}\n", fontsize=10)
    return figure


def _large(image: torch.Tensor, side: int = 96) -> np.ndarray:
    """An image (3, H, W) with pixels enlarged to so many on a side, (side, side, 3)."""
    scale = side // image.shape[-1]
    return image.permute(1, 2, 0).numpy().repeat(scale, 0).repeat(scale, 1)


def over_lambda(
    found: Pictured, lams: Sequence[float] = masks.LAMS[1::2], pairs: Sequence[int] = (0, 1, 2)
) -> Iterator[Picture]:
    """The frames of a moving picture: masks and mixtures over the ratio, after training.

    The first, for print, has three ratios of the pipeline side by side; the others one ratio of both runs.
    """
    figure = Picture(figsize=(7.5, 4.0))
    figure.set_layout_engine("none")
    three, kept_masks = (0.1, 0.5, 0.9), found[PICTURED.name][1]["masks"][-1] / 255
    means = {lam: kept_masks[list(pairs), masks.LAMS.index(lam)].mean((1, 2)) for lam in three}
    off = max(abs(mean - lam).max() for lam, mean in means.items())
    title = f"With the pipeline the mean of a mask rises with λ, but a single mask can miss it by {off:.2f}"
    yield _frame(figure, found, [(PICTURED.name, lam) for lam in three], pairs, title)
    for lam in lams:
        yield _frame(figure, found, [(name, lam) for name in found], pairs, f"λ = {lam:g}")


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
        parts.append(f"{head}\n\n{records.markdown(['method', *COLUMNS, 'passes'], rows)}")
    return "\n\n".join(parts) + "\n"


FIGURES: dict[str, Callable[[Index], Picture]] = {
    **{draw.__name__: draw for draw in (accuracy, equal_passes, networks, reliability, calibration, fgsm, corruption)},
    **{draw.__name__: draw for draw in (ablation, mask_spread, alpha_and_stage)},
    **{draw.__name__: draw for draw in (zoo, masks_over_epochs, masks_follow, cams)},
}
