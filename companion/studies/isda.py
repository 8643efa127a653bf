"""ISDA beside cross-entropy, over its strength, its two forms of covariance, data sets and their sizes.

Wang et al., "Regularizing Deep Networks with Semantic Data Augmentation", TPAMI 2021, https://arxiv.org/abs/2007.10538.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from companion.plots import BLUE, CYAN, GREY, Picture, band, comparison, curves, finish, panels, styled, titled
from companion.records import ByArm, Index, needed, on_common_seeds, over_first, runs_of
from companion.stats import gains, points, summary
from companion.studies import Arm, NothingToDraw, Setting, Study
from semaug.training.recipe import Recipe

NOTEBOOK = "1_isda"

# ---------------------------------------------------------------------------------------------------------------------
# Arms


def isda(form: str, strength: float, change: str = "", **settings: Setting) -> Arm:
    """ISDA with covariances of a form at a strength, and with a ``change`` of its other settings."""
    name, color = f"ISDA {form}, λ₀ = {strength:g}{change}", BLUE if form == "full" else CYAN
    settings = {"covariance": form, "strength": strength, **settings}
    return Arm(name, "ISDA", settings, color, seeds=3 if change else None, variant=bool(change))


CROSS_ENTROPY = Arm("cross-entropy", "CrossEntropy", color="black")
FULL = tuple(isda("full", strength) for strength in (0.1, 0.25, 0.5, 1.0, 2.5))
DIAGONAL = tuple(isda("diagonal", strength) for strength in (0.5, 2.5, 7.5))
STRENGTHS = (CROSS_ENTROPY, *FULL, *DIAGONAL)
PAIR = (CROSS_ENTROPY, isda("full", 0.5))
FORMS = (*PAIR, isda("diagonal", 2.5))
CONTROLS = (  # other covariances of equal trace, and moments that forget
    *(isda("full", 0.5, f", control {name}", control=name) for name in ("diagonal", "identity", "random", "shared")),
    isda("full", 0.5, ", decay 0.99", decay=0.99),
)

# ---------------------------------------------------------------------------------------------------------------------
# Studies

PLAIN = Recipe(epochs=40, weight_decay=5e-4, evaluate_every=4)
CROP = replace(PLAIN, augment="crop+flip")
SHORT = replace(PLAIN, epochs=10, evaluate_every=1)
BRIEF = replace(CROP, epochs=20, evaluate_every=2)
RELEASED = Recipe.preset("isda/resnet", evaluate_every=10, precision="bfloat16")

MINI = {"name": "fashion-mini", "validation": 0.1}
FASHION = {"name": "fashion", "validation": 0.1}
CIFAR_10000 = {"name": "cifar10", "validation": 0.1, "train_size": 10000}
CIFAR_5000 = CIFAR_10000 | {"train_size": 5000}


def _study(name: str, title: str, data: dict[str, Any], recipe: Recipe, arms: Sequence[Arm], seconds: float) -> Study:
    """Ten seeds of the small network."""
    return Study(NOTEBOOK, name, title, data, "small", recipe, arms, 10, seconds)


SMALL = _study("fashion-mini", "fashion-mini", MINI, PLAIN, STRENGTHS, 90.0)
SIZES = {
    n: _study(f"fashion-mini-{n}", f"fashion-mini, {n:,} images", MINI | {"train_size": n}, PLAIN, FORMS, seconds)
    for n, seconds in ((500, 8.0), (2000, 25.0))
} | {7200: SMALL}
COLOUR = _study("cifar10-10000", "CIFAR-10, 10,000 images", CIFAR_10000, CROP, STRENGTHS, 170.0)
WHOLE = replace(_study("fashion", "Fashion-MNIST", FASHION, SHORT, FORMS, 160.0), seeds=5)
PIXELS = tuple(
    Study(NOTEBOOK, name, title, CIFAR_5000, "small", replace(BRIEF, augment=augment), arms, 5, seconds)
    for name, title, augment, arms, seconds in (
        ("cifar10-5000", "CIFAR-10, 5,000 images", "crop+flip", (*PAIR, *CONTROLS), 45.0),
        ("cifar10-5000-cutout16", "CIFAR-10, 5,000 images, Cutout", "crop+flip+cutout16", PAIR, 60.0),
        ("cifar10-5000-randaugment", "CIFAR-10, 5,000 images, RandAugment", "crop+flip+randaugment", PAIR, 60.0),
        ("cifar10-5000-autoaugment", "CIFAR-10, 5,000 images, AutoAugment", "crop+flip+autoaugment", PAIR, 60.0),
    )
)
PAPER_SETTING = tuple(
    Study(NOTEBOOK, f"{name}-resnet32", title, {"name": name}, "resnet32", RELEASED, PAIR, 5, 230.0, "paper")
    for name, title in (("cifar10", "CIFAR-10, ResNet-32"), ("cifar100", "CIFAR-100, ResNet-32"))
)
STUDIES = (*SIZES.values(), COLOUR, WHOLE, *PIXELS, *PAPER_SETTING)
COLOURS = {arm.name: arm.color for study in STUDIES for arm in study.arms}
PAPER = tuple(
    (
        f"{name}, ResNet-32, 160 epochs, the best on the test set; ± standard deviation, n = 5",
        f"cross-entropy {plain}, ISDA {ours}",
        "ISDA, TPAMI 2021",
    )
    for name, plain, ours in (("CIFAR-10", "92.61 ± .10", "92.91 ± .12"), ("CIFAR-100", "68.80 ± .41", "69.73 ± .34"))
)

# ---------------------------------------------------------------------------------------------------------------------
# What the figures show


def chosen(index: Index, study: Study) -> ByArm:
    """The baseline and, of each form of covariance, the strength with the best mean validation accuracy."""
    by_arm = index.by_arm(study, [arm.name for arm in study.arms if not arm.variant])
    best: dict[Setting, tuple[float, str]] = {}
    for name, runs in by_arm.items():
        form = study.arm(name).settings.get("covariance")
        reached = summary(record.metrics.get("validation_accuracy", 0.0) for record in runs).mean
        if form not in best or reached > best[form][0]:
            best[form] = reached, name
    return {name: by_arm[name] for _, name in best.values()}


def results(index: Index) -> dict[str, tuple[Study, ByArm]]:
    """What the leaderboard shows: the studies by title, of each form the strength chosen on validation data."""
    return {study.title: (study, found) for study in STUDIES if len(found := chosen(index, study)) > 1}


def over_strength(index: Index, study: Study) -> dict[str, tuple[list[float], np.ndarray]]:
    """By form of covariance: strengths from 0, and gains over cross-entropy in points (seeds, strengths)."""
    result = {}
    for form, arms in (("full", FULL), ("diagonal", DIAGONAL)):
        found = on_common_seeds(index.by_arm(study, [CROSS_ENTROPY.name, *(arm.name for arm in arms)]))
        if len(found) > 2:
            strengths = [0.0, *(float(str(arm.settings["strength"])) for arm in arms if arm.name in found)]
            baseline = found[CROSS_ENTROPY.name]
            result[form] = strengths, np.array([gains(runs, baseline) for runs in found.values()]).T
    return result


def _sides(by_arm: ByArm) -> set[int]:
    """On which sides of zero the intervals of the gains over the first arm lie (``Summary.side``)."""
    return {summary(values).side for values in over_first(by_arm).values()}


# ---------------------------------------------------------------------------------------------------------------------
# Figures


def accuracy(index: Index) -> Picture:
    """Test accuracy of cross-entropy and ISDA on their common seeds, a block a data set."""
    found = {study.title: chosen(index, study) for study in (SMALL, COLOUR, WHOLE, *PAPER_SETTING)}
    blocks = {title: on_common_seeds(by_arm) for title, by_arm in found.items() if len(by_arm) > 1}
    needed(blocks, "cross-entropy and ISDA on one data set")
    figure = comparison(blocks, note="Of several strengths, the best on validation data.", colours=COLOURS)
    message = "ISDA is significantly better than cross-entropy on none of these data sets"
    gained = any(1 in _sides(by_arm) for by_arm in blocks.values())
    return titled(figure, "ISDA beside cross-entropy" if gained else message)


def training(index: Index) -> Picture:
    """Training loss and held-out accuracy by epoch on CIFAR-10."""
    found = on_common_seeds(chosen(index, COLOUR))
    if len(found) < 2:
        raise NothingToDraw(f"cross-entropy and ISDA on {COLOUR.title}")
    figure = curves(found, "train_loss", "validation_accuracy", colours=COLOURS)
    figure.axes[0].set_yscale("log")
    figure.axes[0].yaxis.set_major_formatter("{x:g}")
    figure.axes[0].yaxis.set_minor_formatter("{x:g}")
    least = min(summary(record.metrics["train_loss"] for record in runs).mean for runs in found.values())
    fits = "training by epoch" if least < 0.1 else "the small network never fits its training images"
    return titled(figure, f"{COLOUR.title}: {fits}")


@styled
def strength(index: Index) -> Picture:
    """Gain over cross-entropy seed by seed, over the strength; a panel a data set, a line a form of covariance."""
    found = [(study, gained) for study in (COLOUR, SMALL) if (gained := over_strength(index, study))]
    needed(found, "cross-entropy and ISDA at two strengths or more, on the same seeds")
    figure, (grid,) = panels(3.7, 1, len(found))
    for axes, (study, gained) in zip(grid, found, strict=True):
        ticks = sorted({strength for strengths, _ in gained.values() for strength in strengths})
        for form, (strengths, values) in gained.items():  # at equal steps, as a logarithm has no 0
            at = [ticks.index(strength) for strength in strengths]
            band(axes, at, values, form, color=BLUE if form == "full" else CYAN, marker="o")
        axes.axhline(0, color=GREY, linewidth=1)
        axes.set_xticks(range(len(ticks)), [f"{tick:g}" for tick in ticks])
        axes.set(xlabel="strength λ₀ (not to scale)", title=study.title)
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.18), ncols=2)
    grid[0].set_ylabel("gain over cross-entropy\n(points of test accuracy)")
    colour = [np.diff(values.mean(0)) for _, values in over_strength(index, COLOUR).values()]
    falls = colour and all((steps < 0).all() for steps in colour)
    message = "On CIFAR-10 the cost of ISDA grows with its strength" if falls else "ISDA over its strength"
    drawn = runs_of({study.name: index.by_arm(study) for study, _ in found})
    return finish(figure, message, drawn, "Bands: 95% intervals of the mean difference.")


@styled
def size(index: Index) -> Picture:
    """Accuracy, and gain over cross-entropy seed by seed, over the number of training images of fashion-mini."""
    names = [arm.name for arm in FORMS]
    found = {f"{images} {name}": index.of(study, name) for images, study in SIZES.items() for name in names}
    if not all(found.values()):
        raise NothingToDraw(f"{'; '.join(names)}: each on {', '.join(map(str, SIZES))} images of fashion-mini")
    found = on_common_seeds(found)
    scores = {name: np.array([[*map(points, found[f"{n} {name}"])] for n in SIZES]).T for name in names}
    gained = {name: scores[name] - scores[names[0]] for name in names[1:]}
    figure, (grid,) = panels(3.9, 1, 2)
    labels = "test accuracy (%)", f"gain over {names[0]} (points)"
    for axes, label, drawn in zip(grid, labels, (scores, gained), strict=True):
        for name, values in drawn.items():
            band(axes, list(SIZES), values, name, color=COLOURS[name], marker="o")
        axes.set(xlabel="training images", xscale="log", ylabel=label)
        axes.set_xticks(list(SIZES), [f"{images:,}" for images in SIZES])
        axes.minorticks_off()
    grid[0].legend(loc="upper center", bbox_to_anchor=(0.5, -0.18))
    grid[1].axhline(0, color=GREY, linewidth=1)
    better = any(summary(column).side > 0 for values in gained.values() for column in values.T)
    message = "ISDA is significantly better at none of three sizes of fashion-mini"
    plain, text = "ISDA over the number of training images", "Bands: 95% intervals of the mean (difference)."
    return finish(figure, plain if better else message, runs_of({"": found}), text)


def augmentation(index: Index) -> Picture:
    """ISDA beside augmentations of pixels and with them, against cross-entropy with crop and flip alone."""
    found = {study.title: index.by_arm(study, [arm.name for arm in PAIR]) for study in PIXELS}
    found = {title: by_arm for title, by_arm in found.items() if len(by_arm) > 1}
    if len(found) < 2:
        raise NothingToDraw("cross-entropy and ISDA with two augmentations of pixels")
    rows, colours = ByArm(), dict[str, str]()
    for title, by_arm in found.items():
        policy = title.removeprefix(PIXELS[0].title).removeprefix(", ") or "no policy"
        rows |= {f"{policy}: {name}": runs for name, runs in by_arm.items()}
        colours |= {f"{policy}: {name}": COLOURS[name] for name in by_arm}
    figure = comparison({f"{PIXELS[0].title}, all with crop and flip": rows}, colours=colours)
    costs = _sides({name: runs for name, runs in rows.items() if CROSS_ENTROPY.name in name}) == {-1}
    regained = any(1 in _sides(by_arm) for by_arm in found.values())
    message = "Policies of pixels cost accuracy in 20 epochs, and ISDA regains none of it"
    return titled(figure, message if costs and not regained else "ISDA beside and with augmentations of pixels")


def controls(index: Index) -> Picture:
    """ISDA along other covariances of equal trace, and with decay, beside the published form."""
    found = index.by_arm(PIXELS[0])
    if not any(PIXELS[0].arm(name).variant for name in found):
        raise NothingToDraw("ISDA with a control or with decay")
    short = {name.removeprefix(f"{PAIR[1].name}, "): runs for name, runs in on_common_seeds(found).items()}
    figure = comparison({PIXELS[0].title: short}, colours=dict.fromkeys([*short][1:], BLUE) | COLOURS)
    message = "Neither ISDA nor any of its controls is significantly better than cross-entropy"
    return titled(figure, "ISDA and its controls" if 1 in _sides(short) else message)


FIGURES: dict[str, Callable[[Index], Picture]] = {
    "accuracy": accuracy,
    "curves": training,
    **{draw.__name__: draw for draw in (strength, size, augmentation, controls)},
}
