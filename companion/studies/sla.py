"""SLA (notebook 5): views of every image as data, as a second task and as joint labels.

H. Lee, S. J. Hwang, J. Shin, "Self-supervised label augmentation via input transformations", ICML 2020,
arXiv:1910.05872. Compared with cross-entropy for as many epochs, and for M times as many, which are as many passes.
A network trained on views infers in two ways, from the image as it is, in one pass, and from all M views together, in
M; one run records both, so a record stands in two rows.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from matplotlib.ticker import LogLocator, MaxNLocator

from companion import plots
from companion.plots import BLUE, GREEN, PURPLE, RED, YELLOW, Picture, band, finish, styled, titled
from companion.records import ByArm, Index, by_frequency, needed, over_first, runs_of
from companion.stats import gains, points, summary
from companion.studies import Arm, Setting, Study
from semaug.data.sets import Data
from semaug.methods.sla import TRANSFORMS, DataAugmentation, views
from semaug.training.recipe import Recipe
from semaug.training.record import Record

NOTEBOOK = "5_sla"

# ---------------------------------------------------------------------------------------------------------------------
# Arms and studies

BASELINE = Arm("cross-entropy", "CrossEntropy", color="black")
DISTILLED: dict[str, Setting] = {"temperature": 1.0, "inference": "single"}
WEIGHTS: dict[str, Setting] = {"beta": 0.9999, "defer": 0.8}
MARGINS: dict[str, Setting] = {**WEIGHTS, "loss": "ldam"}
METHODS: dict[str, tuple[str, dict[str, Setting], str]] = {
    "DA": ("DataAugmentation", {}, BLUE),
    "MT": ("MultiTask", {}, GREEN),
    "SLA": ("SLA", {}, RED),
    "SLA+SD": ("SLA", DISTILLED, PURPLE),
    "SLA+SD, no KL": ("SLA", {**DISTILLED, "distillation": 0.0}, PURPLE),
    "SLA, CE-DRW": ("LongTailedSLA", WEIGHTS, YELLOW),
    "SLA, LDAM-DRW": ("LongTailedSLA", MARGINS, YELLOW),
}


def on_views(*methods: str, transforms: str = "rotation") -> tuple[Arm, ...]:
    """Arms trained on the views of a set of transformations, which a name says where it is not the rotations."""
    arms, M = [], len(TRANSFORMS[transforms])
    for method in methods:
        name = method if transforms == "rotation" else f"{method}, {transforms}"
        objective, settings, color = METHODS[method]
        settings = {"transforms": transforms, **settings}
        arms.append(Arm(name, objective, settings, color, passes=M, cost=1.1 * M))
    return tuple(arms)


def longer(arm: Arm, times: int) -> Arm:
    """An arm for ``times`` as many epochs."""
    return replace(arm, name=f"{arm.name}, {times}x epochs", recipe={"times": times})


def of_views(*sets: str) -> tuple[Arm, ...]:
    """DA, SLA and cross-entropy with as many passes for several sets of transformations."""
    arms = []
    for transforms in sets:
        arms += [longer(BASELINE, len(TRANSFORMS[transforms])), *on_views("DA", "SLA", transforms=transforms)]
    return tuple(arms)


ROTATED = (BASELINE, longer(BASELINE, 4), *on_views("DA", "MT", "SLA", "SLA+SD"))
ALONE = on_views("SLA+SD, no KL")
WEIGHTED = (Arm("CE-DRW", "LongTailed", WEIGHTS, YELLOW), Arm("LDAM-DRW", "LongTailed", MARGINS, YELLOW))
TAIL = (
    BASELINE,
    *WEIGHTED,
    *(longer(arm, 4) for arm in WEIGHTED),
    *on_views("SLA", "SLA+SD", "SLA, CE-DRW", "SLA, LDAM-DRW"),
)

PLAIN = Recipe(epochs=20, weight_decay=5e-4, evaluate_every=5)
CROP = replace(PLAIN, augment="crop+flip")
LONG = replace(CROP, epochs=60, batch_size=64, evaluate_every=12)  # six times the steps of CROP
FULL = Recipe.preset("sla/resnet", evaluate_every=10, precision="bfloat16")


def _study(name: str, title: str, recipe: Recipe, arms: tuple[Arm, ...], seconds: float, **data: Any) -> Study:
    """Five seeds of the small network; ``seconds`` of an epoch of cross-entropy."""
    data = {"name": re.sub("-(tail|long|answers)$", "", name), "validation": 0.1, **data}
    return Study(NOTEBOOK, name, title, data, "small", recipe, arms, 5, seconds * recipe.epochs)


def _full(name: str, title: str) -> Study:
    arms = (*ROTATED, *on_views("SLA", "SLA+SD", transforms="color_perm"))
    seconds = 3.0 * FULL.epochs
    return Study(NOTEBOOK, f"{name}-resnet32", title, {"name": name}, "resnet32", FULL, arms, 3, seconds, "paper")


LONGER = (BASELINE, longer(BASELINE, 4), *on_views("SLA", "SLA+SD"))
FASHION = (*ROTATED, *ALONE, *of_views("rotation2"))
SHAPES = (*ROTATED, *ALONE, *of_views("rotation2", "color_perm3", "color_perm", "rotation+color_perm3"))
PHOTOS = (*ROTATED, *of_views("rotation2", "color_perm3", "color_perm"))
SETS = (
    _study("fashion-mini", "fashion-mini, 2,000 images", PLAIN, FASHION, 0.5, train_size=2000),
    _study("mnist", "MNIST, 1,000 images", PLAIN, (*ROTATED, *ALONE), 0.3, train_size=1000),
    _study("shapes", "shapes, 1,000 images", PLAIN, SHAPES, 0.4, train_size=1000),
    _study("cifar10", "CIFAR-10, 2,000 images", CROP, PHOTOS, 0.8, train_size=2000),
    replace(
        _study("cifar10-long", "CIFAR-10, 2,000 images, six times the steps", LONG, LONGER, 0.9, train_size=2000),
        seeds=3,
    ),
    _full("cifar10", "CIFAR-10, ResNet-32"),
    _full("cifar100", "CIFAR-100, ResNet-32"),
)
TAILS = (
    _study("fashion-mini-tail", "fashion-mini, ρ = 100", replace(PLAIN, epochs=40), TAIL, 0.5, imbalance=100),
    _study("cifar10-tail", "CIFAR-10, ρ = 100", replace(CROP, epochs=40), TAIL, 0.9, train_size=10000, imbalance=100),
)


def _answers(*classes: int) -> Callable[[DataAugmentation, Data], dict[str, np.ndarray]]:
    """For the first test images of some classes: all views, the class that each is given, and their aggregate."""

    def pictures(model: DataAugmentation, dataset: Data) -> dict[str, np.ndarray]:
        model.eval()
        chosen = torch.cat([(dataset.test.target == label).nonzero()[:40, 0] for label in classes])
        images = dataset.test.floats(chosen)
        seen = [transform(images) for transform in TRANSFORMS[model.transforms]]
        with torch.no_grad():
            each = [model.class_logits(model.network.features(view), j).softmax(1) for j, view in enumerate(seen)]
            together = model.aggregated(images).softmax(1)
        answers = {"target": dataset.test.target[chosen], "each": torch.stack(each, 1), "together": together}
        tiles = views(dataset.test.images[chosen], model.transforms)
        return {"views": tiles.numpy(), **{name: value.numpy() for name, value in answers.items()}}

    return pictures


DIGITS = replace(
    _study("mnist-answers", "MNIST, sixes and nines", PLAIN, on_views("DA", "SLA"), 0.3, train_size=1000),
    seeds=1,
    pictures=_answers(6, 9),
)
SHIRTS = replace(
    _study("fashion-mini-answers", "fashion-mini, shirts", PLAIN, on_views("SLA"), 0.5, train_size=2000),
    seeds=1,
    pictures=_answers(6),
)
STUDIES = (*SETS, *TAILS, DIGITS, SHIRTS)
PAPER = ()  # no readable table of the paper was found

# ---------------------------------------------------------------------------------------------------------------------
# A record by its inferences

INFERENCES = ("single", "aggregated")
NAMES = {
    "DA": ("DA", "DA, averaged"),
    "MT": ("MT", "MT, averaged"),
    "SLA": ("SLA, single", "SLA+AG"),
    "SLA+SD": ("SLA+SD", "SLA+SD+AG"),
    "SLA+SD, no KL": ("SLA+SD, no KL", "SLA+SD+AG, no KL"),
    "SLA, CE-DRW": ("SLA, single, CE-DRW", "SLA+AG, CE-DRW"),
    "SLA, LDAM-DRW": ("SLA, single, LDAM-DRW", "SLA+AG, LDAM-DRW"),
}
"""What a method is called by how it infers: in one pass, or in one for every view."""


def inferred(record: Record, inference: str) -> Record:
    """A run on views with ``test_accuracy`` of one of its inferences.

    Accuracies by class are known of the inference of its ``predict`` alone; of the other they are empty.
    """
    metrics = record.metrics | {"test_accuracy": record.metrics[f"{inference}_test_accuracy"]}
    by_class = record.class_accuracy if record.config["settings"]["inference"] == inference else []
    return replace(record, metrics=metrics, class_accuracy=by_class)


def by_inference(by_arm: Mapping[str, Sequence[Record]]) -> ByArm:
    """Records by method and inference: those without views, then single inferences, then those in M passes."""
    rows = {name: list(runs) for name, runs in by_arm.items() if name not in NAMES}
    for place, inference in enumerate(INFERENCES):
        for name, runs in by_arm.items():
            if name in NAMES:
                rows[NAMES[name][place]] = [inferred(run, inference) for run in runs]
    return rows


def rows(index: Index, study: Study, transforms: str = "rotation") -> ByArm:
    """The records of a study with one set of transformations, cross-entropy first.

    What is trained without views stands there for as many epochs, and for M times as many. Empty where nothing was
    trained on these views.
    """
    chosen, M = dict[str, list[Record]](), len(TRANSFORMS[transforms])
    for name, runs in index.by_arm(study).items():
        arm = study.arm(name)
        on_views = arm.settings.get("transforms")
        if on_views == transforms or (on_views is None and arm.recipe.get("times", 1) in (1, M)):
            chosen[name.removesuffix(f", {transforms}")] = runs
    return by_inference(chosen) if chosen.keys() & NAMES.keys() else {}


def blocks(index: Index, studies: Iterable[Study] = SETS, methods: Iterable[str] = ()) -> dict[str, ByArm]:
    """:func:`rows` of rotations by title, of the studies that have these methods; raises NothingToDraw without one."""
    found = {study.title: rows(index, study) for study in studies}
    found = {title: by_arm for title, by_arm in found.items() if by_arm and set(methods) <= by_arm.keys()}
    return needed(found, f"{' and '.join(methods) or 'an objective on views'} beside cross-entropy")


def results(index: Index) -> dict[str, tuple[Study, ByArm]]:
    """The rows of the leaderboard: every study with every set of transformations, by title."""
    found = {}
    for transforms in TRANSFORMS:
        for study in (*SETS, *TAILS):
            title = f"{study.title}, {transforms}"
            if by_arm := rows(index, study, transforms):
                found[title] = replace(study, title=title), by_arm
    return found


# ---------------------------------------------------------------------------------------------------------------------
# Figures

COLOUR = {"cross-entropy": "black", "DA": BLUE, "MT": GREEN, "SLA": RED, "SLA+SD": PURPLE}


def _method(name: str) -> str:
    """The method of a row, without its inference."""
    return name.split(",")[0].removesuffix("+AG")


def colour(name: str, title: str = "") -> str:
    """Of a row, by its method."""
    return COLOUR.get(_method(name), YELLOW)


def many(name: str, title: str = "") -> bool:
    """Whether a row infers in M passes."""
    return "+AG" in name or "averaged" in name


def _unbroken(title: str) -> str:
    """A title that can be broken after its set of images only."""
    name, _, rest = title.partition(", ")
    return f"{name}, {rest.replace(' ', chr(0xA0))}"


def accuracy(index: Index) -> Picture:
    """Every method by both inferences, and cross-entropy with as many passes: gains over cross-entropy."""
    columns, shown, ahead = {}, blocks(index), []
    for title, by_arm in shown.items():
        reached = summary(map(points, by_arm["cross-entropy"])).mean
        drawn = {name: runs for name, runs in by_arm.items() if "no KL" not in name}
        columns[_unbroken(f"{title}: {reached:.1f}%")] = over_first(drawn)
        at_equal = gains(by_arm.get("SLA+AG", []), by_arm.get("cross-entropy, 4x epochs", []))
        if at_equal and summary(at_equal).side > 0:
            ahead.append(title.split(",")[0])
    text = "Title: accuracy of cross-entropy. Filled: M passes at inference."
    figure = plots.forest({"": columns}, "gain (points)", runs_of(shown), text, colour, many)
    plain = "Gains over cross-entropy, by method and inference"
    few = f"At equal passes in training SLA+AG is ahead of cross-entropy only on {' and '.join(ahead)}"
    return titled(figure, few if 0 < len(ahead) < len(shown) else plain)


def inference(index: Index) -> Picture:
    """What the views together gain over the image alone, by the same network."""
    columns, shown, sides = {}, blocks(index), set()
    for title, by_arm in shown.items():
        panel = {more: gains(by_arm[more], by_arm[one]) for one, more in NAMES.values() if more in by_arm}
        columns[_unbroken(title)] = panel
        for name in {"DA, averaged", "MT, averaged"} & panel.keys() if "SLA+AG" in panel else ():
            differences = [ours - theirs for ours, theirs in zip(panel["SLA+AG"], panel[name], strict=False)]
            sides.add(summary(differences).side)
    text = "M passes − one pass, same network."
    figure = plots.forest({"": columns}, "gain (points)", runs_of(shown), text, colour, many, shared=True)
    plain = "What M passes gain over one"
    return titled(figure, plain if 1 in sides else f"{plain}: nowhere more by SLA than by DA or MT")


def training(index: Index) -> Picture:
    """Is MT harder to optimise than SLA? The loss of class and transformation on the training images by epoch."""
    figure = joint_loss(blocks(index, methods=("MT", "SLA+AG")), "Of class and transformation together, (21) and (22).")
    return titled(figure, "Is MT harder to optimise? The joint loss on the training images")


def joint_loss(found: Mapping[str, ByArm], text: str = "") -> Picture:
    """The loss of class and transformation by epoch, of records by title and method."""
    return _curves(found, "train_loss", ("MT", "SLA+AG"), "joint loss (nats)", text)


def class_loss(index: Index) -> Picture:
    """The loss of the class, where the transformation is known, on the training images by epoch."""
    figure = class_loss_of(blocks(index, methods=("MT", "SLA+AG")))
    return titled(figure, "The class loss on the training images, the transformation known")


def class_loss_of(found: Mapping[str, ByArm]) -> Picture:
    """The loss of the class by epoch, of records by title and method."""
    return _curves(found, "class_loss", ("DA", "MT", "SLA+AG"), "class loss (nats)", "")


def distilled(index: Index) -> Picture:
    """The distilled head, in one pass, against the aggregate of a network without distillation, over training."""
    methods, found = ("cross-entropy", "SLA+AG", "SLA+SD", "SLA+SD, no KL"), blocks(index, methods=("SLA+SD",))
    text = "SLA+AG: M passes, a network without distillation. No KL: the same second head, taught by labels alone."
    figure = _curves(found, "validation_accuracy", methods, "validation accuracy (%)", text)
    return titled(figure, "The second head in one pass, beside the aggregate of SLA in M passes")


def divergence(index: Index) -> Picture:
    """The distance of the second head from the network's own aggregate, on the training images by epoch."""
    found = blocks(index, methods=("SLA+SD",))
    figure = _curves(found, "distillation", ("SLA+SD", "SLA+SD, no KL"), "divergence (nats)", "")
    return titled(figure, "Divergence of the second head from the network's own aggregate")


@styled
def _curves(found: Mapping[str, ByArm], curve: str, methods: Sequence[str], label: str, text: str) -> Picture:
    """A curve by epoch, a panel a study, a line a method."""
    figure, (grid,) = plots.panels(3.2, 1, len(found))
    lines: dict[str, Any] = {}
    for axes, (title, by_arm) in zip(grid, found.items(), strict=True):
        drawn = {name: by_arm[name] for name in methods if name in by_arm and by_arm[name][0].curves.get(curve)}
        for name, runs in drawn.items():
            values = np.array([run.curves[curve] for run in runs])
            epochs = np.arange(1, values.shape[1] + 1) * runs[0].config["recipe"]["epochs"] / values.shape[1]
            dashes, scale = "--" if "no KL" in name else "-", 100 if "accuracy" in curve else 1
            band(axes, epochs, scale * values, name, color=colour(name), linestyle=dashes)
            lines.setdefault(name, axes.lines[-1])
        axes.set_title("\n".join([*title.split(", "), plots.seeds_of(drawn)]), fontsize=9)
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
        if "accuracy" not in curve:
            axes.set_yscale("log")
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.yaxis.set_major_formatter("{x:g}")
            axes.minorticks_off()
    grid[0].set_ylabel(label)
    figure.legend(lines.values(), list(lines), loc="outside right center", fontsize=8)
    plots.caption(figure, runs_of(found), f"Bands: 95% intervals of the mean. {text}".strip())
    return figure


@styled
def cost(index: Index) -> Picture:
    """Accuracy over passes of training, for every set of transformations; open marks infer in one pass, filled in M."""
    found = {study.title: [(t, by_arm) for t in TRANSFORMS if (by_arm := rows(index, study, t))] for study in SETS}
    found = {title: by_views for title, by_views in found.items() if by_views}
    needed(found, "an objective on views beside cross-entropy")
    lines = -(-len(found) // 2)
    figure, panels = plots.panels(0.8 + 2.6 * lines, lines, min(2, len(found)))
    grid = panels.ravel()
    for unused in grid[len(found) :]:
        unused.remove()
    marks: dict[str, Any] = {}
    for axes, (title, by_views) in zip(grid, found.items(), strict=False):
        ticks = {1}
        for transforms, by_arm in by_views:
            epochs = by_arm["cross-entropy"][0].config["recipe"]["epochs"]
            for name, runs in by_arm.items():
                if "no KL" in name:
                    continue
                method, filled, views = _method(name), many(name), 1 if name.startswith("cross") else transforms
                M = 1 if views == 1 else len(TRANSFORMS[transforms])
                passes = round(M * runs[0].config["recipe"]["epochs"] / epochs)
                ticks.add(passes)
                result = summary(map(points, runs))
                style = {"color": COLOUR[method], "capsize": 2, "markersize": 5, "fmt": "D" if filled else "o"}
                half, shift = result.half_width if result.n > 2 else 0.0, 1 + 0.04 * (list(COLOUR).index(method) - 2)
                bar = axes.errorbar(passes * shift, result.mean, yerr=half, **style)
                bar[0].set_markerfacecolor(COLOUR[method] if filled else "white")
                marks.setdefault(method if method == "cross-entropy" else name, bar)
        axes.set(xscale="log", xlabel="passes in training, over cross-entropy's", title=title)
        axes.set_xticks(sorted(ticks), [str(tick) for tick in sorted(ticks)])
        axes.minorticks_off()
    for axes in grid[: len(found) : 2]:
        axes.set_ylabel("test accuracy (%)")
    figure.legend(marks.values(), list(marks), loc="outside right center", fontsize=8)
    text = "Marks of one number of passes are moved apart. Bars: 95% intervals. Filled: M passes at inference."
    shown = [run for by_views in found.values() for run in runs_of(dict(by_views))]
    return finish(figure, "Accuracy over passes in training", shown, text)


def transforms(index: Index) -> Picture:
    """Sets of transformations on one set of images: gains of DA and SLA over cross-entropy."""
    columns: dict[str, dict[str, list[float]]] = {}
    shown: list[Record] = []
    for study in SETS:
        found = {name: by_arm for name in TRANSFORMS if (by_arm := rows(index, study, name))}
        for name, by_arm in found.items() if len(found) > 1 else []:
            row = f"{study.title.split(',')[0]}: {name} ({len(TRANSFORMS[name])})"
            for method in ("DA", "DA, averaged", "SLA, single", "SLA+AG"):
                if method in by_arm:
                    columns.setdefault(method, {})[row] = gains(by_arm[method], by_arm["cross-entropy"])
                    shown += by_arm[method]
    needed(columns, "two sets of transformations on one set of images, beside cross-entropy")
    text = "Over cross-entropy. In brackets: M."
    of_panel = (lambda _, title: colour(title)), (lambda _, title: many(title))
    figure = plots.forest({"": columns}, "gain (points)", shown, text, *of_panel, shared=True)
    return titled(figure, "Gains by set of transformations")


def imbalance(index: Index) -> Picture:
    """SLA on a long tail, alone and with class weights or margins: gains by how many images a class has."""
    found, lines = blocks(index, TAILS), {}
    for title, by_arm in found.items():
        known = {name: runs for name, runs in by_arm.items() if all(run.class_accuracy for run in runs)}
        lines[title] = by_frequency(known)
    text = "Over cross-entropy; the test set is balanced."
    figure = plots.forest(lines, "gain (points)", runs_of(found), text, colour, many)
    return titled(figure, "Long tails: gains over cross-entropy, by the frequency of the class")


FIGURES: dict[str, Callable[[Index], Picture]] = {
    **{draw.__name__: draw for draw in (accuracy, inference, training, class_loss, distilled, divergence)},
    **{draw.__name__: draw for draw in (cost, transforms, imbalance)},
}
