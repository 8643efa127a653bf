"""ISDA beside cross-entropy, over its strength, its two forms of covariance, data sets and their sizes.

Wang et al., "Regularizing Deep Networks with Semantic Data Augmentation", TPAMI 2021, https://arxiv.org/abs/2007.10538.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from matplotlib.layout_engine import ConstrainedLayoutEngine

from companion import pretrained, restored
from companion.plots import (
    BLUE,
    CYAN,
    GREEN,
    GREY,
    PURPLE,
    Picture,
    band,
    comparison,
    finish,
    headline,
    panels,
    styled,
    titled,
)
from companion.records import ByArm, Index, markdown, needed, on_common_seeds, over_first, pictures, runs_of
from companion.stats import Summary, gains, summary
from companion.studies import Arm, NothingToDraw, Setting, Study
from semaug.training.recipe import Recipe
from semaug.training.record import Record

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

ONCE = Recipe(epochs=1)  # of what is not trained by epochs
HEADS = tuple(
    Arm(name, "LinearHead", {"loss": loss, "tuned": tuned}, color)
    for name, loss, tuned, color in (
        ("cross-entropy", "cross-entropy", "nothing", "black"),
        ("cross-entropy, tuned weight decay", "cross-entropy", "decay", GREY),
        ("ISDA full", "full", "strength", BLUE),
        ("ISDA diagonal", "diagonal", "strength", CYAN),
        ("ISDA shared", "shared", "strength", PURPLE),
        ("quadratic part of ISDA shared", "quadratic", "strength", GREEN),
        ("ISDA full, tuned weight decay", "full", "both", BLUE),
        ("ISDA shared, tuned weight decay", "shared", "both", PURPLE),
    )
)
FROZEN = tuple(
    Study(
        NOTEBOOK,
        f"{name}-frozen",
        f"{title}, frozen features",
        {"name": name},
        "efficientnet-lite0",
        ONCE,
        HEADS,
        20,
        seconds,
        execute=pretrained.train_heads,
    )
    for name, title, seconds in (("cifar10", "CIFAR-10", 20.0), ("cifar100", "CIFAR-100", 60.0))
)
PHOTOGRAPHS = tuple(
    Study(
        NOTEBOOK,
        f"{name}-directions",
        title,
        {"name": name},
        "efficientnet-lite0",
        ONCE,
        (Arm("directions", "Directions"),),
        1,
        90.0,
        execute=pretrained.look,
    )
    for name, title in (("cifar10", "50,000 photographs of CIFAR-10"), ("lfw64", "LFW faces"))
)
EIGHT = Recipe(epochs=8, batch_size=64, weight_decay=5e-4)
RESTORED = tuple(
    Study(NOTEBOOK, f"{name}-restored", title, {"name": name}, network, recipe, arms, 1, seconds, execute=execute)
    for name, title, network, recipe, arms, seconds, execute in (
        ("shapes", "generated shapes", "small", EIGHT, (Arm("restored", "Restored"),), 190.0, restored.shapes_moved),
        ("lfw64", "LFW faces", "principal axes", ONCE, (Arm("restored", "Restored"),), 100.0, restored.faces_moved),
    )
)
STUDIES = (*SIZES.values(), COLOUR, WHOLE, *PIXELS, *PHOTOGRAPHS, *RESTORED, *FROZEN, *PAPER_SETTING)
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


SHOWN = ("automobile", "bird", "dog", "horse", "ship", "man, not smiling")
"""Classes of the figures of directions, in their order."""

SHOWN_KINDS = ("class", "random", "between")
"""Directions of the figure of neighbours."""


SHAPES = ("crescent", "heart", "triangle", "square", "star", "arrow")
"""Shapes of the figure of restored images, in its order."""


def photographed(index: Index, what: str) -> tuple[dict[str, np.ndarray], Record]:
    """Arrays of :func:`companion.pretrained.look` by class, and the record of CIFAR-10; see there for their axes."""
    tiles = dict[str, np.ndarray]()
    for study in PHOTOGRAPHS:
        for record in index.of(study, study.baseline):
            tiles |= zip(record.config["classes"], pictures(NOTEBOOK, record)[what], strict=True)
    if not index.of(PHOTOGRAPHS[0], "directions"):
        raise NothingToDraw(f"the study {PHOTOGRAPHS[0].name}")
    return tiles, index.of(PHOTOGRAPHS[0], "directions")[0]


def share_kept(record: Record, kind: str) -> float:
    """Mean over the classes of the share of moved features whose nearest photograph is still of the class, in %."""
    return 100 * float(np.mean([record.metrics[f"kept, {name}, {kind}"] for name in record.config["classes"]]))


def deviation(record: Record, kind: str) -> float:
    """Mean over the classes of the standard deviation of their features along a direction."""
    return float(np.mean([record.metrics[f"deviation, {name}, {kind}"] for name in record.config["classes"]]))


@styled
def _blocks_of(tiles: Mapping[str, Sequence[np.ndarray]], titles: Sequence[str], text: str, gap: int = 0) -> Picture:
    """Rows of images under a few titles: for each a strip (columns, 3, H, W), with a gap after so many columns."""
    widths = [len(strip) for strip in next(iter(tiles.values()))]
    columns = sum(widths) + 0.6 * len(titles)
    layout = ConstrainedLayoutEngine(w_pad=0.02, h_pad=0.02, hspace=0.02, wspace=0.08)
    figure = Picture(figsize=(7.5, 0.9 + (6.6 / columns + 0.05) * len(tiles)), layout=layout)
    grid = figure.subplots(len(tiles), len(titles), squeeze=False, width_ratios=widths)
    for axes, (name, strips) in zip(grid, tiles.items(), strict=True):
        for one, strip in zip(axes, strips, strict=True):
            framed = list(np.pad(strip, ((0, 0), (0, 0), (1, 1), (2, 2)), constant_values=255))
            between = [np.full_like(framed[0][..., : len(strip[0][0]) // 3], 255)] if gap else []
            one.imshow(np.concatenate([*framed[:gap], *between, *framed[gap:]], 2).transpose(1, 2, 0))
            one.set(xticks=[], yticks=[])
            one.spines[:].set_visible(False)
        axes[0].set_ylabel(name, rotation=0, ha="right", va="center")
    for one, title in zip(grid[0], titles, strict=True):
        one.set_title(title, fontsize=9)
    figure.supxlabel(text, fontsize=8, color=GREY, x=0.01, ha="left")
    return figure


def directions(index: Index, other: str = "random") -> Picture:
    """Photographs at both ends of the leading direction of their class's covariance, beside another direction."""
    tiles, record = photographed(index, "ends")
    kinds = record.config["directions"]
    strips = {
        name: [tiles[name][kinds.index(kind)][[0, 1, 2, 5, 6, 7]] for kind in ("class", other)]
        for name in SHOWN
        if name in tiles and other in kinds[: len(tiles[name])]
    }
    words = {
        "random": "a random direction",
        "between": "the leading direction between the classes",
    }
    text = "Left of each gap the three photographs of smallest coordinate, right of it the three of largest."
    figure = _blocks_of(strips, ("leading direction of the class covariance", words[other]), text, gap=3)
    wide, along = (deviation(record, kind) for kind in ("class", other))
    message = f"A class varies {wide / along:.1f} times as much along its leading direction as along {words[other]}"
    headline(figure, message)
    return figure


def neighbours(index: Index) -> Picture:
    """The photographs nearest to a feature moved along its class's direction, a random one, one between classes."""
    tiles, record = photographed(index, "walks")
    kinds = SHOWN_KINDS
    rows = {
        name: [tiles[name][record.config["directions"].index(kind)][[1, 0, 6]] for kind in kinds]  # -3, 0 and 3
        for name in SHOWN
        if name in record.config["classes"]
    }
    shares = [share_kept(record, kind) for kind in kinds]
    names = ("along the class's direction", "a random direction", "between the classes")
    titles = [f"{name}: {share:.0f}%" for name, share in zip(names, shares, strict=True)]
    text = (
        "In the middle a photograph; beside it the nearest of 50,000 others to its feature moved by 3 standard "
        "deviations of the class to either side, as far in all columns. In %: test features so moved whose nearest "
        f"photograph is of their class; unmoved {share_kept(record, 'unmoved'):.0f}%."
    )
    figure = _blocks_of(rows, titles, "\n".join(textwrap.wrap(text, 118)))
    stays = share_kept(record, "unmoved") - 3 < shares[0] and shares[0] > max(shares[1:])
    message = "Moved along its class's direction, a feature keeps its class almost as often as unmoved"
    return titled(figure, message if stays else "Photographs nearest to moved features")


def moved(index: Index, study: Study) -> tuple[Record, dict[str, list[np.ndarray]]]:
    """The record of a study of ``RESTORED``, and by class its tiles: initial, restored, each kind of draw.

    Those that were found, or seen, in another class have a red frame.
    """
    (record,) = needed(index.of(study, study.baseline), f"the study {study.name}")
    ends = np.cumsum([1, 1, *restored.COLUMNS.values()])[:-1]
    arrays = pictures(NOTEBOOK, record)
    lost = arrays["classes"] != np.arange(len(arrays["classes"]))[:, None]
    frame = np.pad(np.zeros((56, 56), bool), 4, constant_values=True) & lost[..., None, None, None]
    tiles = np.where(frame, np.array([220, 0, 0], np.uint8)[:, None, None], arrays["tiles"])
    return record, {name: np.split(row, ends) for name, row in zip(record.config["classes"], tiles, strict=True)}


def _restored_titles(means: Mapping[str, str]) -> list[str]:
    """Titles of the blocks of tiles, and below each what was measured."""
    names = {"class": "augmented, class covariance", "random": "random noise", "between": "between classes"}
    return [f"{names.get(name, name)}\n{words}" for name, words in means.items()]


def restored_shapes(index: Index) -> Picture:
    """Shapes found for the features of others, and for features moved by draws of three covariances of equal trace."""
    record, tiles = moved(index, RESTORED[0])
    strength = f"{restored.LAMBDAS[-1]:g}"

    def measured(what: str) -> dict[str, float]:
        return {kind: record.metrics[f"{what}, {strength}, {kind}"] for kind in restored.KINDS}

    kept, far, matched = (measured(what) for what in ("kept", "moved", "matched"))
    text = (
        f"What the renderer draws nearest to a feature; red frame: of another class. Below the titles: share that "
        f"keeps its class, mean move of the factors but the angle in their standard deviations (SD). {restored.IMAGES} "
        f"unseen images, {restored.DRAWS} draws of each kind, λ = {strength}, one network trained with ISDA. Along a "
        f"draw features go {100 * matched['class']:.0f}, {100 * matched['random']:.0f} and "
        f"{100 * matched['between']:.0f}% of its length."
    )
    below = {kind: f"{100 * kept[kind]:.0f}%, {far[kind]:.2f} SD" for kind in restored.KINDS}
    titles = _restored_titles({"initial": "", "restored": f"{100 * record.metrics['kept, restored']:.0f}%"} | below)
    rows = {name: tiles[name] for name in SHAPES}
    figure = _blocks_of(rows, titles, "\n".join(textwrap.wrap(text, 118)))
    ratio = far["class"] / far["random"]
    message = (
        f"The class covariance changes shapes {ratio:.1f} times as much as random noise of equal length, and "
        f"{100 * kept['class']:.0f}% keep their class (noise: {100 * kept['random']:.0f}%)"
    )
    return titled(figure, message if ratio > 1.2 else "Shapes found for moved features", 5.6)


def restored_faces(index: Index) -> Picture:
    """Faces decoded from their own codes, and from codes moved by draws of three covariances of equal trace."""
    record, tiles = moved(index, RESTORED[1])
    kept = {kind: 100 * record.metrics[f"kept, {kind}"] for kind in ("initial", "restored", *restored.KINDS)}
    rows = {name.replace(", ", ",\n"): strips for name, strips in tiles.items()}
    text = (
        f"Codes: coordinates along {restored.AXES} principal axes, λ = {restored.FACES:g}. In %: how many a classifier "
        f"trained apart sees in their class, mean over four classes of {restored.FACES_EACH} unseen faces; red frame: "
        f"seen in another class."
    )
    titles = _restored_titles({name: f"{share:.0f}%" for name, share in kept.items()})
    figure = _blocks_of(rows, titles, "\n".join(textwrap.wrap(text, 118)))
    stays = kept["class"] > max(kept["random"], kept["between"])
    message = (
        f"Moved by the class covariance {kept['class']:.0f}% of faces are seen in their class, by random noise "
        f"of equal length {kept['random']:.0f}%"
    )
    return titled(figure, message if stays else "Faces decoded from moved codes", 3.9)


def by_size(runs: Sequence[Record]) -> np.ndarray:
    """Test accuracy in points of heads on frozen features: (runs, sizes)."""
    return 100 * np.array([run.curves["test_accuracy"] for run in runs])


def head_gains(index: Index, study: Study = FROZEN[0]) -> dict[tuple[str, str], list[Summary]]:
    """Differences A - B of heads on frozen features, in points: by (A, B), one for each number of images."""
    found = on_common_seeds(index.by_arm(study))
    if len(found) < len(HEADS):
        raise NothingToDraw("linear heads on frozen features")
    scores = {name.replace("cross-entropy, tuned", "tuned"): by_size(runs) for name, runs in found.items()}
    decay, shared, quadratic = "tuned weight decay", "ISDA shared", "quadratic part of ISDA shared"
    pairs = [(name, "cross-entropy") for name in (decay, "ISDA full", shared, quadratic)]
    pairs += [(name, decay) for name in ("ISDA full", shared, f"{shared}, {decay}")] + [
        ("ISDA full", shared),
        (quadratic, shared),
    ]
    return {(one, other): [summary(column) for column in (scores[one] - scores[other]).T] for one, other in pairs}


def head_table(found: Mapping[tuple[str, str], Sequence[Summary]]) -> str:
    """Some of :func:`head_gains` as a table in Markdown."""
    head = ["A − B \\ training images", *(f"{size:,}" for size in pretrained.SIZES)]
    return markdown(head, [[f"{a} − {b}", *(each.text("+.2f") for each in row)] for (a, b), row in found.items()])


@styled
def frozen(index: Index) -> Picture:
    """Linear heads on frozen features: gain over cross-entropy with little weight decay, by the number of images."""
    plain, tuned, both = HEADS[0].name, HEADS[1].name, "ISDA shared, tuned weight decay"
    names = [plain, tuned, "ISDA full", "ISDA shared", both]
    found = [(study, on_common_seeds(index.by_arm(study, names))) for study in FROZEN]
    found = needed([each for each in found if len(each[1]) == len(names)], "linear heads on frozen features")
    figure = Picture(figsize=(7.5, 3.9))
    for axes, (study, by_arm) in zip(figure.subplots(1, len(found), squeeze=False)[0], found, strict=True):
        images = by_arm[plain][0].curves["images"]
        for name, runs in by_arm.items():
            style = {"color": study.arm(name).color, "linestyle": "--" if name == both else "-", "marker": "o"}
            if name != plain:
                band(axes, images, by_size(runs) - by_size(by_arm[plain]), name, **style)
        axes.axhline(0, color="black", linewidth=1)
        axes.set(xlabel="training images", title=study.title, xscale="log")
        axes.set_xticks(images, [f"{count:,.0f}" for count in images])
        axes.minorticks_off()
    figure.axes[0].set_ylabel("gain over cross-entropy\n(points of test accuracy)")
    lines = dict(zip(*figure.axes[0].get_legend_handles_labels()[::-1], strict=True))
    text = "Bands: 95% intervals of the mean. Full: a covariance for each class; shared: one for all. 64 features."
    alone = [by_size(by_arm[name]) - by_size(by_arm[tuned]) for _, by_arm in found for name in names[2:4]]
    beyond = [values.mean(0) for values in alone]
    message = f"On frozen features ISDA alone is at best {np.max(beyond):.2f} points ahead of a tuned weight decay"
    message = message if 0 < np.max(beyond) < 0.5 else "ISDA on frozen features"
    return finish(figure, message, [run for _, by_arm in found for run in runs_of({"": by_arm})], text, lines)


FIGURES: dict[str, Callable[[Index], Picture]] = {
    "directions": directions,
    "directions_between": partial(directions, other="between"),
    "neighbours": neighbours,
    "restored": restored_shapes,
    "restored_faces": restored_faces,
    "frozen": frozen,
    **{draw.__name__: draw for draw in (strength, augmentation, controls)},
}
