"""MetaSAug on long tails, beside ISDA and the losses and weights of the long tail; then one setting at a time.

Li et al., "MetaSAug: Meta Semantic Augmentation for Long-Tailed Visual Recognition", CVPR 2021,
https://arxiv.org/abs/2103.12579. All methods are trained on the same images, those of the meta set taken out, and
tested on a balanced set.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from matplotlib.axes import Axes

from companion import plots
from companion.plots import BLUE, GREEN, GREY, RED, YELLOW, Picture, finish, styled, titled
from companion.records import Blocks, ByArm, Index, by_frequency, gained, group_scores, needed, on_common_seeds, runs_of
from companion.stats import gains, points, summary
from companion.studies import Arm, Setting, Study
from semaug.data.sets import Split, load
from semaug.methods.long_tail import class_groups
from semaug.training.loop import fit
from semaug.training.recipe import Recipe
from semaug.training.record import Record

if TYPE_CHECKING:
    from companion.runs import Run

NOTEBOOK = "1_metasaug"

# ---------------------------------------------------------------------------------------------------------------------
# Arms


def metasaug(change: str = "", meta_steps: int = 1, stage: float = 0.8, **settings: Setting) -> Arm:
    """MetaSAug as released but for a ``change``; its second stage begins after a part ``stage`` of training.

    There each meta step takes 8/3 passes over the network (``semaug.methods.metasaug``).
    """
    settings = {"strength": 0.75, **settings}
    settings |= {} if meta_steps == 1 else {"meta_steps": meta_steps}
    settings |= {} if stage == 0.8 else {"stage": stage}
    variant = not settings.keys() <= {"strength", "loss", "covariance"} or settings["strength"] != 0.75
    name, passes = f"MetaSAug, {change}" if change else "MetaSAug", 1 + (1 - stage) * meta_steps * 8 / 3
    return Arm(name, "MetaSAug", settings, RED, passes=passes, variant=variant)


CROSS_ENTROPY = Arm("cross-entropy", "CrossEntropy", color="black")
WEIGHTED = Arm("class weights", "LongTailed", {"beta": 0.9999}, YELLOW)
CE_DRW = Arm("CE-DRW", "LongTailed", {"beta": 0.9999, "defer": 0.8}, GREEN)
LDAM_DRW = Arm("LDAM-DRW", "LongTailed", {"loss": "ldam", "beta": 0.9999, "defer": 0.8}, GREEN)
COSINES = {"scale": 30.0, "normalised": True}  # LDAM as its own paper has it
METHODS = (
    CROSS_ENTROPY,
    WEIGHTED,
    CE_DRW,
    Arm("focal loss", "LongTailed", {"loss": "focal"}, YELLOW),
    Arm("LDAM", "LongTailed", {"loss": "ldam"}, YELLOW),
    LDAM_DRW,
    replace(LDAM_DRW, name="LDAM-DRW, s = 30", settings={**LDAM_DRW.settings, **COSINES}),
    Arm("ISDA", "ISDA", {"strength": 0.5, "covariance": "full"}, BLUE),
    metasaug(),
    metasaug("CE", loss="ce"),
    metasaug("diagonal", covariance="diagonal"),
)
OPTIONS = (
    metasaug("no meta step", meta_steps=0),
    metasaug("3 meta steps", meta_steps=3),
    metasaug("Σ′ projected", psd=True),
    metasaug("Σ′ kept", keep=True),
    metasaug("α = 100, Σ′ projected", meta_lr=100.0, psd=True),  # the released step is 0.1
    metasaug("α = 10,000, Σ′ projected", meta_lr=10000.0, psd=True),
)
STAGES = (  # two thirds of the second stage at the full learning rate
    metasaug("stage 2 from 40%", stage=0.4),
    metasaug("stage 2 from 40%, no meta step", stage=0.4, meta_steps=0),
    replace(LDAM_DRW, name="LDAM-DRW, stage 2 from 40%", settings={**LDAM_DRW.settings, "defer": 0.4}, variant=True),
)
CE_WITHOUT = metasaug("CE, no meta step", loss="ce", meta_steps=0)
ABLATIONS = (*OPTIONS, CE_WITHOUT, *STAGES)
STRENGTHS = tuple(metasaug(f"λ₀ = {strength:g}", strength=strength) for strength in (0.25, 0.5, 1.0))
LONG_STEPS = (
    metasaug("α = 10,000", meta_lr=10000.0),
    metasaug("α = 10,000, Σ′ projected and kept", meta_lr=10000.0, psd=True, keep=True),
    metasaug("α = 10,000, Σ′ projected, 3 meta steps", meta_lr=10000.0, psd=True, meta_steps=3),
)
LONGER = tuple(  # as many passes over the network as MetaSAug's 40 epochs take
    replace(arm, name=f"{arm.name}, 62 epochs", recipe={"epochs": 62}, variant=True) for arm in (WEIGHTED, LDAM_DRW)
)

# ---------------------------------------------------------------------------------------------------------------------
# Studies

RELEASED = Recipe.preset("metasaug/resnet", evaluate_every=20, precision="bfloat16")
CROP = replace(RELEASED, epochs=40, evaluate_every=4, precision="float32")
PLAIN = replace(CROP, augment="none")

TAIL = {"imbalance": 100, "meta": 10}
MINI = {"name": "fashion-mini", "validation": 0.1, **TAIL}
CIFAR_10 = {"name": "cifar10", "validation": 0.1, "train_size": 10000, "imbalance": 10, "meta": 10}
CIFAR_100 = CIFAR_10 | {"imbalance": 100}

_study = partial(Study, NOTEBOOK)
BOTH = (*METHODS, *ABLATIONS)
ALL = (*BOTH, *LONGER, *STRENGTHS, *LONG_STEPS)
SMALL = _study("fashion-mini-100", "fashion-mini, ρ = 100", MINI, "small", PLAIN, ALL, 5, 25.0)
STEEP = _study("cifar10-100", "CIFAR-10, ρ = 100", CIFAR_100, "small", CROP, BOTH, 5, 30.0)
MILD = _study("cifar10-10", "CIFAR-10, ρ = 10", CIFAR_10, "small", CROP, METHODS, 5, 50.0)
PAPER_SETTING = tuple(
    _study(f"{name}-100-resnet32", title, {"name": name, **TAIL}, "resnet32", RELEASED, BOTH, 3, 80.0, "paper")
    for name, title in (("cifar10", "CIFAR-10, ρ = 100, ResNet-32"), ("cifar100", "CIFAR-100, ρ = 100, ResNet-32"))
)


def _train_on_both(run: Run, root: str | None) -> tuple[Record, dict[str, np.ndarray]]:
    """Train on the images of the training set and of the meta set together."""
    said = dict(run.study.data)
    both = said.pop("trained on")
    images = load(**said, root=root)
    assert images.meta is not None
    parts = images.train, images.meta
    pixels, target = (torch.cat([getattr(part, name) for part in parts]) for name in ("images", "target"))
    settings = {**images.settings, "trained on": both}
    images = replace(images, train=Split(pixels, target), meta=None, settings=settings)
    model: Any = run.build(images)
    return fit(model, images, run.recipe, seed=run.seed, resume=run.checkpoint, progress=False), {}


JOINED = tuple(  # as many epochs as in the study beside it
    replace(
        study,
        name=f"{study.name}-joined",
        title=f"{study.title}, trained on the meta images too",
        data={**study.data, "trained on": "train and meta"},
        arms=(CROSS_ENTROPY, replace(CE_DRW, variant=True)),
        seeds=3,
        execute=_train_on_both,
    )
    for study in (SMALL, STEEP)
)
LONG_TAILS = (SMALL, STEEP, MILD, *PAPER_SETTING)
STUDIES = (*LONG_TAILS, *JOINED)
COLOURS = {arm.name: arm.color for arm in ALL}
PAPER = tuple(
    (f"{name}-LT, ρ = 100, ResNet-32, 200 epochs, the best on the test set; no ± given", told, "MetaSAug's repository")
    for name, told in (
        ("CIFAR-10", "MetaSAug 80.66 (LDAM), 80.54 (CE)"),
        ("CIFAR-100", "MetaSAug 48.01 (LDAM), 46.87 (CE)"),
    )
)

# ---------------------------------------------------------------------------------------------------------------------
# What the figures show


scores = group_scores
Lines = Mapping[str, Mapping[str, Mapping[str, Sequence[float]]]]
"""Gains by line of panels, panel and arm."""


def _forest(lines: Lines, runs: Iterable[Record], xlabel: str, text: str = "") -> Picture:
    """Rows in the colours of their arms; figures of MetaSAug alone leave its name out."""
    return plots.forest(lines, xlabel, runs, text, lambda name, _: COLOURS.get(name, RED), shared=True)


NEEDS = "cross-entropy and another method on a long tail, on the same seeds"
GROUPS = ("class weights", "CE-DRW", "LDAM-DRW", "ISDA", "MetaSAug")
CLASSES = ("ISDA", "LDAM-DRW", "MetaSAug")

# ---------------------------------------------------------------------------------------------------------------------
# Figures


def accuracy(index: Index) -> Picture:
    """Gains over cross-entropy in test accuracy, which is balanced; a panel a data set."""
    blocks = index.blocks(LONG_TAILS, NEEDS, [arm.name for arm in METHODS])
    panels = {title.replace(" = ", "\xa0=\xa0"): values for title, values in gained(blocks, reached=False).items()}
    text = "Gains are over cross-entropy; the test set is balanced."
    figure = _forest({"": panels}, runs_of(blocks), "gain (points)", text)
    pairs = [gains(by_arm.get("MetaSAug", []), by_arm.get("LDAM-DRW", [])) for by_arm in blocks.values()]
    sides = [summary(pair).side for pair in pairs if pair]
    message = "MetaSAug is significantly better than LDAM-DRW on none of these long tails"
    return titled(figure, message if sides and max(sides) < 1 else "Gains over cross-entropy")


def groups(index: Index) -> Picture:
    """Gains over cross-entropy in the classes with many, medium and few training images; a scale for each data set."""
    blocks = index.blocks((SMALL, STEEP), NEEDS, ["cross-entropy", *GROUPS])
    lines, moved = {}, []
    for title, by_arm in blocks.items():
        found = by_frequency(by_arm)
        members = class_groups(torch.tensor(by_arm[CROSS_ENTROPY.name][0].train_counts))
        sizes = {group: int(classes.sum()) for group, classes in members.items()}
        lines[title] = {f"{group} ({size} classes)": found[group] for group, size in sizes.items() if size}
        weighted = [name for name in found["all"] if name != "ISDA"]
        if all(summary(found["many"][name]).side < 0 < summary(found["medium"][name]).side for name in weighted):
            moved.append(title)
    figure = _forest(lines, runs_of(blocks), "gain (points)", "Gains are over cross-entropy.")
    message = f"{' and '.join(moved)}: weights move accuracy from frequent to rarer classes"
    plain = "Gains over cross-entropy by the number of training images of a class"
    return titled(figure, message if moved else plain)


def classes(index: Index) -> Picture:
    """Accuracy of every class by cross-entropy, the most frequent first, and the gains of others over it."""
    blocks = index.blocks((SMALL, STEEP, PAPER_SETTING[0]), NEEDS, ["cross-entropy", *CLASSES])
    rare = {name: [_on_rare(by_arm, name) for by_arm in blocks.values() if name in by_arm] for name in CLASSES}
    better = [name for name, values in rare.items() if values and min(values) > 0]
    message = f"In the mean over the rarer half of the classes {' and '.join(better)} gain everywhere"
    return titled(by_class(blocks), message if len(better) == 2 else "Accuracy by class, the most frequent class first")


def _on_rare(by_arm: ByArm, name: str) -> float:
    """Gain of a method over cross-entropy in the rarer half of the classes, in points, mean over seeds and classes."""
    runs = on_common_seeds({arm: by_arm[arm] for arm in (CROSS_ENTROPY.name, name)}).values()
    before, after = (np.mean([run.class_accuracy for run in group], 0) for group in runs)
    counts = by_arm[name][0].train_counts
    return float(100 * (after - before)[np.argsort(counts)[: len(counts) // 2]].mean())


@styled
def by_class(blocks: Blocks) -> Picture:
    """A row a data set: accuracy by class of the first method, the most frequent class first, and others' gains."""
    figure, grid = plots.panels(0.6 + 1.9 * len(blocks), len(blocks), 2, width_ratios=(1, 1.7))
    drawn = {title: on_common_seeds(by_arm) for title, by_arm in blocks.items()}
    for (left, right), (title, by_arm) in zip(grid, drawn.items(), strict=True):
        first, *others = by_arm
        counts = np.array(by_arm[first][0].train_counts)
        order = np.argsort(-counts, kind="stable")
        table = {name: 100 * np.array([run.class_accuracy for run in runs])[:, order] for name, runs in by_arm.items()}
        _dots(left, table[first], "", COLOURS[first], 0.0)
        for row, name in enumerate(others):
            aside = 0.22 * (row - (len(others) - 1) / 2)
            gain = table[name] - table[first]
            label = f"{name} (n = {len(gain)}): {gain[:, -(len(counts) // 2) :].mean():+.1f}"
            _dots(right, gain, label, COLOURS[name], aside)
        right.axvspan((len(counts) - 1) // 2 + 0.5, len(counts) - 0.5, color=GREY, alpha=0.12, linewidth=0)
        for axes, label, most in ((left, f"{first}:\naccuracy (%)", 4), (right, "gain (points)", 10)):
            ticks = np.unique(np.linspace(0, len(counts) - 1, most).round().astype(int))
            axes.set_xticks(ticks, [str(count) for count in counts[order][ticks]], fontsize=8)
            axes.set_ylabel(label, fontsize=8.5)
        right.legend(fontsize=7.5)
        right.axhline(0, color=GREY, linewidth=1)
        left.set_ylim(0, 100)
        left.set_title(title, loc="left")
    for axes in grid[-1]:
        axes.set_xlabel("training images of the class")
    text = (
        f"Right: gains over {CROSS_ENTROPY.name}. Shaded: the rarer half of the classes; the legend has the mean gain "
    )
    plots.caption(figure, runs_of(drawn), f"{text}there. Dots: seeds. Lines: means.")
    return figure


def _dots(axes: Axes, values: np.ndarray, label: str, colour: str, aside: float) -> None:
    """A dot a seed (n) and class (C), and the line of the means: at three seeds an interval would hide all else."""
    where = np.arange(values.shape[1]) + aside
    axes.plot(where, values.mean(0), color=colour, label=label)
    axes.plot(np.tile(where, len(values)), values.ravel(), "o", color=colour, alpha=0.35, markersize=3)


def _beside(index: Index, first: str, arms: Iterable[Arm]) -> dict[str, ByArm]:
    """By data set, the records of an arm and of others, whose names need not say that they are MetaSAug."""
    names = [first, *(arm.name for arm in arms)]
    found = {study.title: index.by_arm(study) for study in (SMALL, STEEP)}
    return {
        title: {name.removeprefix("MetaSAug, "): by_arm[name] for name in names if name in by_arm}
        for title, by_arm in found.items()
        if first in by_arm and len(by_arm.keys() & names) > 1
    }


def ablation(index: Index) -> Picture:
    """MetaSAug with other meta steps - MetaSAug as released; and LDAM-DRW - MetaSAug."""
    blocks = _beside(index, "MetaSAug", (LDAM_DRW, *OPTIONS, *LONG_STEPS))
    panels = gained(needed(blocks, "MetaSAug as released, and with something changed"), reached=False)
    none, far = (
        [summary(values) for panel in panels.values() if (values := panel.get(name))]
        for name in ("no meta step", "α = 10,000, Σ′ projected")
    )
    nothing = all(abs(effect.mean) + effect.half_width < 0.1 for effect in none)
    shown = none and far and nothing and all(effect.side > 0 for effect in far)
    message = "The released meta step changes nothing; 100,000 times as long, it gains"
    figure = _forest({"": panels}, runs_of(blocks), "gain over MetaSAug (points)")
    return titled(figure, message if shown else "MetaSAug with other meta steps")


def stages(index: Index) -> Picture:
    """What else has MetaSAug's loss and second stage - MetaSAug; with cross-entropy, and with an earlier stage."""
    early, *others = STAGES
    compared = {
        "over MetaSAug, CE": _beside(index, "MetaSAug, CE", (CE_WITHOUT, CE_DRW)),
        f"over {early.name}": _beside(index, early.name, others),
    }
    lines = {line: gained(blocks, reached=False) for line, blocks in compared.items() if blocks}
    needed(lines, "MetaSAug with another loss or stage, beside what has the same without its meta step")
    runs = [run for blocks in compared.values() for run in runs_of(blocks)]
    rows = [row for blocks in lines.values() for by_arm in blocks.values() for row in by_arm.items()]
    without = [values for name, values in rows if "no meta step" in name]
    sides = [summary(values).side for values in without if len(values) > 2]  # two seeds decide nothing
    better = f"significantly better in {sides.count(1)} of {len(sides)} cases"
    message = f"Without its meta step MetaSAug is {better}, in none significantly worse"
    shown = sides and min(sides) >= 0
    figure = _forest(lines, runs, "difference (points)")
    return titled(figure, message if shown else "MetaSAug without its meta step, and without ISDA")


@styled
def tail(index: Index) -> Picture:
    """Images and accuracy of each class, and the length of each epoch's meta steps, on CIFAR-10's long tail."""
    blocks = index.blocks((STEEP,), NEEDS, [CROSS_ENTROPY.name, "MetaSAug"])
    by_arm = blocks[STEEP.title]
    first, ours = by_arm[CROSS_ENTROPY.name], needed(by_arm.get("MetaSAug", []), NEEDS)
    figure, ((left, middle, right),) = plots.panels(3.0, 1, 3)
    found, sizes = 100 * np.array([run.class_accuracy for run in first]), np.array(first[0].train_counts)
    classes = range(len(sizes))
    left.bar(classes, sizes, color=GREY)
    left.set(title="CIFAR-10: training images", xlabel="class")
    middle.bar(classes, found.mean(0), color="black")
    middle.set(title="cross-entropy: accuracy (%)", xlabel="class", ylim=(0, 100))
    for c in np.flatnonzero(found.mean(0) < 1):
        middle.text(c, 3, "below 1%", rotation=90, ha="center", va="bottom", fontsize=8.5)
    steps = [[(epoch, step) for epoch, step in enumerate(run.curves["covariance_shift"], 1) if step] for run in ours]
    for run in steps:
        right.semilogy(*zip(*run, strict=True), "o", color=RED, alpha=0.6)
    right.axhline(1, color=GREY, linestyle="--")
    right.text(steps[0][0][0], 0.6, "Σ itself", color=GREY, va="top")
    right.set(title="length of the meta step", xlabel="epoch", ylabel="|Σ′ − Σ| / |Σ|", ylim=(1e-8, 3))
    right.set_yticks([1e-8, 1e-6, 1e-4, 1e-2, 1])
    for axes in (left, middle):
        axes.set_xticks(range(0, len(sizes), 3))
    missed, message = found.mean(0) < 1, "A long tail, the accuracy of its classes, and the length of meta steps"
    if missed.any() and not missed.all() and (most := sizes[missed].max()) < sizes[~missed].min():
        message = f"Cross-entropy recognises less than 1% of a class with {most} images or fewer"
    text = f"{STEEP.title}; cross-entropy, n = {len(first)}; MetaSAug, n = {len(ours)}, means of an epoch."
    return finish(figure, message, first + ours, text)


SIX = (CROSS_ENTROPY.name, "CE-DRW", "MetaSAug, no meta step", "MetaSAug", "MetaSAug, α = 10,000, Σ′ projected")
META_TOO = "cross-entropy, meta images too"
DRW_META_TOO = "CE-DRW, meta images too"


def six(index: Index, study: Study) -> ByArm:
    """The arms of :func:`bars` in one data set, on their common seeds; the last train on the meta images too."""
    joined = next(part for part in JOINED if part.name == f"{study.name}-joined")
    by_arm = index.by_arm(study, SIX)
    for name, arm in ((META_TOO, CROSS_ENTROPY.name), (DRW_META_TOO, CE_DRW.name)):
        if by_arm and len(runs := index.of(joined, arm)) > 2:
            by_arm[name] = runs
    return on_common_seeds(by_arm)


@styled
def bars(index: Index) -> Picture:
    """Test accuracy with and without MetaSAug's parts, and the gain of each arm over cross-entropy."""
    blocks = {study.title: found for study in (SMALL, STEEP) if len(found := six(index, study)) > 1}
    needed(blocks, NEEDS)
    figure, grid = plots.panels(2.3 * len(blocks) + 0.8, len(blocks), 1, sharex=True)
    nothing = True
    for (axes,), (title, by_arm) in zip(grid, blocks.items(), strict=True):
        base = by_arm[CROSS_ENTROPY.name]
        changes = {name: summary(gains(runs, base)) for name, runs in by_arm.items()}
        for row, (name, runs) in enumerate(by_arm.items()):
            mean, gain = summary(points(run) for run in runs).mean, changes[name]
            bar = {"color": COLOURS.get(name, BLUE), "alpha": 0.45 if name in SIX[2:3] else 1}
            axes.barh(row, gain.mean, xerr=gain.half_width, error_kw={"elinewidth": 1.2}, **bar)
            said = f"{mean:.2f}" if name == CROSS_ENTROPY.name else f"{mean:.2f}  ({gain.text('+.2f')})"
            axes.text(gain.mean + gain.half_width + 0.3, row, said, va="center", fontsize=9)
        axes.set_yticks(range(len(by_arm)), [name.removesuffix(", Σ′ projected") for name in by_arm])
        axes.set(xlim=(-2, 18), title=f"{title}, n = {len(base)}")
        axes.axvline(0, color="black", linewidth=1)
        axes.invert_yaxis()
        axes.grid(visible=False, axis="y")
        meta_step = summary(gains(by_arm.get("MetaSAug", base), by_arm.get(SIX[2], base)))
        nothing &= abs(meta_step.mean) + meta_step.half_width < 0.1
    grid[-1][0].set_xlabel("gain over cross-entropy (points); printed: test accuracy (gain ± interval)")
    message = (
        "MetaSAug as released is no better than without its meta step" if nothing else "Ways to train on a long tail"
    )
    return finish(figure, message, runs_of(blocks), "Means; lines and ± are 95% intervals of the paired gain.")


@styled
def two_loops() -> Picture:
    """One step of MetaSAug: the moments, the inner loop to Σ′, the real step that uses it, and back to the moments."""
    label = "Diagram: a tried step and its meta loss correct Σ; the real step uses Σ′ and forgets it"
    figure, axes = plots.canvas(3.7, 37, label)
    axes.text(18.5, 35.5, "1  try a step, look at the meta loss, correct Σ", color=RED, weight="bold", va="center")
    axes.text(43.5, 2.2, "2  take the step with Σ′", color=BLUE, weight="bold", va="center")
    axes.text(1, 2.2, "3  forget Σ′: back to the moments", color="#555555", weight="bold", va="center")
    grey, red, blue = ("#555555", "#F6F6F6"), (RED, "#FDECEE"), (BLUE, "#E8F0F7")
    boxes = {
        (8, 29): ("batch,\nlong-tailed", grey),
        (8, 19): ("moments of\nfeatures:  $\\Sigma$", grey),
        (28, 19): (r"loss  $L(\theta, \Sigma)$", red),
        (28, 29): (r"try:  $\theta' = \theta - \eta\, \nabla_\theta L$", red),
        (53, 29): (r"meta loss  $L_{meta}(\theta')$", red),
        (53, 19): (r"$\Sigma' = \Sigma - \alpha\, \nabla_\Sigma L_{meta}$", red),
        (53, 8): (r"loss  $L(\theta, \Sigma')$", blue),
        (28, 8): (r"optimiser:  new $\theta$", blue),
        (69, 19): ("meta batch,\nbalanced", grey),
    }
    for (x, y), (text, (edge, face)) in boxes.items():
        plots.draw_box(axes, (x, y), (19 if x in (28, 53) else 11, 5), text, edge, face)
    arrows = (
        ((8, 26.5), (8, 21.5), grey),
        ((13.5, 19), (18.5, 19), grey),
        ((37.5, 19), (43.5, 19), red),
        ((28, 21.5), (28, 26.5), red),
        ((37.5, 29), (43.5, 29), red),
        ((69, 21.5), (62.5, 28), grey),
        ((53, 26.5), (53, 21.5), red),
        ((53, 16.5), (53, 10.5), blue),
        ((43.5, 8), (37.5, 8), blue),
        ((18.5, 8), (8, 16.5), grey),
    )
    for start, end, (colour, _) in arrows:
        plots.draw_arrow(axes, start, end, colour)
    return figure


FIGURES: dict[str, Callable[[Index], Picture]] = {
    draw.__name__: draw for draw in (tail, bars, accuracy, groups, classes, ablation, stages)
}
