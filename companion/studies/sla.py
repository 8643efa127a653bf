"""SLA (notebook 5): views of every image as data, as a second task and as joint labels.

H. Lee, S. J. Hwang, J. Shin, "Self-supervised label augmentation via input transformations", ICML 2020,
arXiv:1910.05872. Compared with cross-entropy for as many epochs, and for M times as many, which are as many passes.
A network trained on views infers in two ways, from the image as it is, in one pass, and from all M views together, in
M; one run records both, so a record stands in two rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from companion import plots
from companion.plots import BLUE, GREEN, GREY, PURPLE, RED, YELLOW, Picture, band, counts, finish, styled, titled
from companion.records import ByArm, Index, by_frequency, committed, markdown, needed, pictures, runs_of
from companion.stats import Summary, gains, summary
from companion.studies import Arm, Setting, Study
from semaug.data.sets import Data
from semaug.data.split import Split
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
FEWER = replace(PLAIN, epochs=10, batch_size=32, evaluate_every=5)
FULL = Recipe.preset("sla/resnet", evaluate_every=10, precision="bfloat16")


def _study(name: str, title: str, recipe: Recipe, arms: tuple[Arm, ...], seconds: float, /, **data: Any) -> Study:
    """Five seeds of the small network; ``seconds`` of an epoch of cross-entropy."""
    data = {"name": name.removesuffix("-tail"), "validation": 0.1, **data}
    return Study(NOTEBOOK, name, title, data, "small", recipe, arms, 5, seconds * recipe.epochs)


def _full(name: str, title: str) -> Study:
    arms = (*ROTATED, *on_views("SLA", "SLA+SD", transforms="color_perm"))
    seconds = 3.0 * FULL.epochs
    return Study(NOTEBOOK, f"{name}-resnet32", title, {"name": name}, "resnet32", FULL, arms, 3, seconds, "paper")


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


LONGER = (BASELINE, longer(BASELINE, 4), *on_views("SLA", "SLA+SD"))
FASHION = (*ROTATED, *ALONE, *of_views("rotation2"))
SHAPES = (*ROTATED, *ALONE, *of_views("rotation2", "color_perm3", "color_perm", "rotation+color_perm3"))
PHOTOS = (*ROTATED, *of_views("rotation2", "color_perm3", "color_perm"))
CLOTHING = _study("fashion-mini", "fashion-mini, 2,000 images", PLAIN, FASHION, 0.5, train_size=2000)
MNIST = _study("mnist", "MNIST, 1,000 images", PLAIN, (*ROTATED, *ALONE), 0.3, train_size=1000)
CIFAR = _study("cifar10", "CIFAR-10, 2,000 images", CROP, PHOTOS, 0.8, train_size=2000)
CLOTHING, MNIST = replace(CLOTHING, pictures=_answers(6)), replace(MNIST, pictures=_answers(6, 9))
OF_FEW = {"name": "mnist", "validation": 0.02, "train_size": 300, "test_size": 5000}
FEW = replace(_study("mnist-300", "MNIST, 300 images", FEWER, LONGER, 0.1, **OF_FEW), seeds=3)
MANY_STEPS = replace(
    FEW,
    name="mnist-300-long",
    title="MNIST, 300 images, six times the steps",
    recipe=replace(FEWER, epochs=60, evaluate_every=15),
    seconds=6 * FEW.seconds,
)
GENERATED = _study("shapes", "shapes, 1,000 images", PLAIN, SHAPES, 0.4, train_size=1000)
SETS = (
    CLOTHING,
    MNIST,
    FEW,
    MANY_STEPS,
    GENERATED,
    CIFAR,
    _full("cifar10", "CIFAR-10, ResNet-32"),
    _full("cifar100", "CIFAR-100, ResNet-32"),
)
TAILS = (
    _study("fashion-mini-tail", "fashion-mini, ρ = 100", replace(PLAIN, epochs=40), TAIL, 0.5, imbalance=100),
    _study("cifar10-tail", "CIFAR-10, ρ = 100", replace(CROP, epochs=40), TAIL, 0.9, train_size=10000, imbalance=100),
)


STUDIES = (*SETS, *TAILS)
METHODS_OF_PAPER = ("cross-entropy", "DA", "MT", "SLA, single", "SLA+SD", "SLA+AG")
REPORTED = {
    "CIFAR-10": (92.39, 90.44, 90.79, 92.50, 93.26, 94.50),
    "CIFAR-100": (68.27, 65.73, 66.10, 68.68, 71.85, 74.14),
}
"""Test accuracies in the paper, as noted from memory."""
PAPER = tuple(
    (
        f"{name}, ResNet-32, turns, 205 epochs",
        ", ".join(f"{method} {value:.2f}" for method, value in zip(METHODS_OF_PAPER, values, strict=True)),
        "Lee et al., ICML 2020, noted from memory, not checked",
    )
    for name, values in REPORTED.items()
)

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
# What the lesson takes from the records


def sixes_and_nines(seed: int) -> Data:
    """The eighty sixes and nines of MNIST beside a record: a random half of each class to train on, the rest to test.

    Raises NothingToDraw without them.
    """
    found = next((pictures(NOTEBOOK, run) for run in committed(NOTEBOOK).of(MNIST, "SLA")[:1]), {})
    needed(found, "the pictures of a network of SLA on MNIST")
    images, nine = torch.tensor(found["views"][:, 0]), torch.tensor(found["target"] == 9).long()
    generator, train = torch.Generator().manual_seed(seed), torch.zeros(len(nine), dtype=torch.bool)
    for label in (0, 1):
        places = (nine == label).nonzero()[:, 0]
        train[places[torch.randperm(len(places), generator=generator)[: len(places) // 2]]] = True
    one, other = (Split(images[half], nine[half]) for half in (train, ~train))
    return Data("sixes and nines", one, other, classes=("6", "9"), settings={"seed": seed})


def reported(index: Index) -> str:
    """The accuracies of the paper as a table."""
    rows = [[name, *(f"{value:.2f}" for value in values)] for name, values in REPORTED.items()]
    return markdown(
        ["ResNet-32, 80,000 steps", *(name.replace("single", "one view") for name in METHODS_OF_PAPER)], rows
    )


Differences = dict[tuple[str, str], dict[str, Summary]]


def differences(index: Index, pairs: Iterable[tuple[str, str]]) -> Differences:
    """A - B of each pair of rows over paired seeds, by data set and steps; only of three seeds or more."""
    found: Differences = {}
    columns = {described(by_arm["SLA+AG"][0]): by_arm for by_arm in blocks(index, methods=("SLA+AG",)).values()}
    for one, other in pairs:
        both = {name: by_arm for name, by_arm in columns.items() if {one, other} <= by_arm.keys()}
        each = {name: gains(by_arm[one], by_arm[other]) for name, by_arm in both.items()}
        found[one, other] = {name: summary(values) for name, values in each.items() if len(values) > 2}
    return found


def compared(found: Differences) -> str:
    """A table of :func:`differences`, a column a data set."""
    columns = list(dict.fromkeys(name for each in found.values() for name in each))
    rows = []
    for (one, other), each in found.items():
        cells = [each[name].text("+.1f") if name in each else "" for name in columns]
        rows.append([f"{called(one)} \N{MINUS SIGN} {called(other)}", *cells])
    return markdown(["A \N{MINUS SIGN} B (points)", *columns], rows)


# ---------------------------------------------------------------------------------------------------------------------
# Figures

SUBJECTS = {"fashion-mini": "clothing", "mnist": "digits", "cifar10": "photographs"}
COLOUR = {"cross-entropy": "black", "DA": BLUE, "MT": GREEN, "SLA": RED, "SLA+SD": PURPLE}


def _method(name: str) -> str:
    """The method of a row, without its inference."""
    return name.split(",")[0].removesuffix("+AG")


def colour(name: str, title: str = "") -> str:
    """Of a row, by its method."""
    return COLOUR.get(_method(name), YELLOW)


def many(name: str, title: str = "") -> bool:
    """Whether a row infers in M passes."""
    return "+AG" in name or "averaged" in name or "views" in name


EQUAL = "cross-entropy, 4x epochs"
COMPARED = ("DA", "MT", "SLA, single", "SLA+SD", "SLA+AG")
IN_LESSON = (CLOTHING, GENERATED, FEW, MANY_STEPS)


def called(name: str) -> str:
    """A row as figures and tables call it."""
    plain = "cross-entropy"
    several = {plain: f"{plain}, equal updates", EQUAL: f"{plain}, equal passes"}
    several |= {"DA": "DA, one view", "MT": "MT, one view"}
    return several.get(name, name.replace("single", "one view").replace("averaged", "four views"))


def described(run: Record) -> str:
    """Data set, images and steps of a run."""
    name = run.config["data"]["name"]
    return f"{SUBJECTS.get(name, name)}, {sum(run.train_counts):,} images, {steps(run):,} steps"


def steps(run: Record) -> int:
    """Steps of training."""
    recipe = run.config["recipe"]
    return int(recipe["epochs"] * (sum(run.train_counts) // recipe["batch_size"]))


def _listed(names: Sequence[str]) -> str:
    return " and ".join(filter(None, (", ".join(names[:-1]), *names[-1:])))


@styled
def digits(index: Index) -> Picture:
    """A six and a nine that DA confuses, with the answers of two networks, and the accuracy on all sixes and nines."""
    names = [EQUAL, "DA", "MT", "SLA+SD", "SLA"]
    found = {name: runs for name in names if (runs := index.of(MNIST, name))}
    drawn = {name: pictures(NOTEBOOK, found[name][0]) for name in ("DA", "SLA") if name in found}
    needed(drawn.get("DA", {}) and drawn.get("SLA", {}), "the answers of a network of DA and of one of SLA on MNIST")
    needed(found if len(found) == len(names) else {}, f"{', '.join(names)} on MNIST")
    target, each = drawn["SLA"]["target"], {name: arrays["each"].argmax(-1) for name, arrays in drawn.items()}
    swapped = {name: said[:, 0] == 15 - target for name, said in each.items()}
    figure, ((left, right),) = plots.panels(3.5, 1, 2, width_ratios=(1.4, 1))
    rows = []
    for digit in (6, 9):  # where DA errs by the other digit in most views, the upright one among them, and SLA in none
        best = swapped["DA"] * 8 + (each["DA"] == 15 - digit).sum(1) + 4 * (each["SLA"] == digit).all(1)
        rows.append(int(np.where(target == digit, best, -1).argmax()))
    mosaic = 255 - drawn["SLA"]["views"][rows][:, :, 0]
    mosaic = np.pad(mosaic, ((0, 0), (0, 0), (1, 15), (3, 3)), constant_values=255)
    left.imshow(mosaic.transpose(0, 2, 1, 3).reshape(2 * 44, 4 * 34), cmap="gray", vmin=0, vmax=255)
    for row, column in np.ndindex(2, 4):
        words = "DA: {}\nSLA: {}".format(*(int(each[name][rows[row], column]) for name in ("DA", "SLA")))
        left.text(34 * column + 17, 44 * row + 30, words, ha="center", va="top", fontsize=9)
    left.set_xticks([34 * column + 16.5 for column in range(4)], ["0°", "90°", "180°", "270°"])
    left.set_yticks([])
    plots.bare(left)

    def score(run: Record) -> float:
        return 50 * (run.class_accuracy[6] + run.class_accuracy[9])

    for at, (name, runs) in enumerate(found.items()):
        value = summary(map(score, runs))
        half = value.half_width if value.n > 2 else 0.0
        right.barh(at, value.mean, 0.6, xerr=half, color=colour(name), capsize=3, ecolor=GREY)
        label = {"SLA": "SLA+AG (four views)", EQUAL: "cross-entropy"}.get(name, name)
        right.text(3, at, f"{label}: {value.mean:.0f}%", va="center", color="white", weight="bold", fontsize=8.5)
    right.set(xlim=(0, 100), ylim=(len(found) - 0.5, -0.5), yticks=[], xlabel="accuracy on sixes and nines (%)")
    right.grid(visible=False, axis="y")
    lost = {name: -round(summary(gains(found[name], found[EQUAL], score)).mean) for name in ("DA", "SLA+SD", "SLA")}
    kept = [{"SLA": "SLA+AG"}.get(name, name) for name, points in lost.items() if points <= 0]
    text = f"On sixes and nines DA loses {lost['DA']} points"
    text += f"; {_listed(kept)} lose{'s' * (len(kept) == 1)} none" if kept else ""
    one, upright, others = found["SLA"][0], len(target), int((each["DA"][:, 0] != target).sum() - swapped["DA"].sum())
    tiles = int((each["DA"][rows] == 15 - target[rows, None]).sum())
    words = (
        f"{sum(one.train_counts):,} training images, {steps(one)} steps, cross-entropy {steps(found[EQUAL][0])}; "
        f"{counts(found)}, bars: 95% intervals. One view at test, but for SLA+AG. Left: networks of seed 0; DA swaps "
        f"{tiles} of 8 tiles. Of {upright} upright sixes and nines it swaps {int(swapped['DA'].sum())} (SLA "
        f"{int(swapped['SLA'].sum())}) and takes {others} for other digits."
    )
    return finish(figure, text, [run for runs in found.values() for run in runs], words)


def _at_equal_passes(index: Index, studies: Iterable[Study]) -> dict[str, ByArm]:
    """The blocks that hold SLA+AG and cross-entropy with as many passes."""
    return {title: by_arm for title, by_arm in blocks(index, studies, ("SLA+AG",)).items() if EQUAL in by_arm}


def _sides(found: Mapping[str, ByArm]) -> dict[str, tuple[str, int]]:
    """By title, what a sentence calls a data set, and the side of SLA+AG minus cross-entropy there.

    Images and steps are named only where others would be called the same.
    """
    parts = [described(by_arm["SLA+AG"][0]).rsplit(", ", 2) for by_arm in found.values()]
    sides = {}
    for (title, by_arm), (name, few, length) in zip(found.items(), parts, strict=True):
        alike = [other for other in parts if other[0] == name]
        words = f"{few.removesuffix(' images')} {name}" if len(alike) > 1 else name
        words += f" after {length}" if sum(other[1] == few for other in alike) > 1 else ""
        sides[title] = words, summary(gains(by_arm["SLA+AG"], by_arm[EQUAL])).side
    return sides


@styled
def _over_cross_entropy(index: Index, studies: Iterable[Study]) -> Picture:
    """Methods on views against cross-entropy with as many passes in training, a row a study, on one axis."""
    found = needed(_at_equal_passes(index, studies), f"an objective on views beside {EQUAL}")
    figure, ((axes,),) = plots.panels(1.9 + 0.78 * len(found), 1, 1)
    labels, marks = [], dict[str, Any]()
    for row, by_arm in enumerate(found.values()):
        images, length = described(by_arm["SLA+AG"][0]).rsplit(", ", 1)
        labels.append(f"{images}\n{length} ({steps(by_arm[EQUAL][0]):,})")
        for method in (method for method in COMPARED if method in by_arm):
            values = gains(by_arm[method], by_arm[EQUAL])
            result, shift = summary(values), 0.15 * (COMPARED.index(method) - 2)
            if result.n < 3:
                continue
            look: dict[str, Any] = {"fmt": "D" if many(method) else "o", "color": colour(method), "markersize": 6}
            drawn = axes.errorbar(result.mean, row + shift, xerr=result.half_width, capsize=3, **look)
            marks.setdefault(method.replace("single", "one view"), drawn[0])
    axes.axvline(0, color="black", linewidth=1)
    axes.text(0, -0.53, "cross-entropy", ha="center", va="bottom", fontsize=8.5)
    axes.set_yticks(range(len(found)), labels, fontsize=9)
    axes.set_ylim(len(found) - 0.5, -0.5)
    axes.grid(visible=False, axis="y")
    axes.set_xlabel("accuracy over that of cross-entropy with as many passes (points)")
    for border in range(1, len(found)):
        axes.axhline(border - 0.5, color=GREY, linewidth=0.5, alpha=0.5)
    ahead, behind = (_listed([name for name, own in _sides(found).values() if own == side]) for side in (1, -1))
    parts = [f"ahead on {ahead}"] * bool(ahead) + [f"behind on {behind}"] * bool(behind)
    text = f"At equal passes SLA+AG is {', '.join(parts)}" if parts else "SLA+AG at equal passes, by data set"
    words = "Circles: one view at test; diamonds: four. Bars: 95% intervals. In brackets: the steps of cross-entropy."
    others = {title: pair for title, pair in _sides(_at_equal_passes(index, SETS)).items() if title not in found}
    if hidden := [name for name, side in others.values() if side < 0]:
        words += f" Not drawn, behind as well: {_listed(hidden)}."
    return finish(figure, text, runs_of(found), words, marks)


def accuracy(index: Index) -> Picture:
    """Methods on views against cross-entropy of as many passes: the data sets of the lesson."""
    return _over_cross_entropy(index, IN_LESSON)


def accuracy_all(index: Index) -> Picture:
    """Methods on views against cross-entropy of as many passes: every data set."""
    return _over_cross_entropy(index, SETS)


@styled
def longer_training(index: Index) -> Picture:
    """Validation accuracy over passes in training: in a short study and in one of six times the steps."""
    found = blocks(index, (FEW, MANY_STEPS), ("SLA+AG", EQUAL))
    needed(found if len(found) == 2 else {}, "SLA and cross-entropy in the short and in the long study of MNIST")
    figure, (grid,) = plots.panels(3.6, 1, 2)
    gained, names, short, lines = [], ("cross-entropy", EQUAL, "SLA+AG"), True, dict[str, list[Record]]()
    for axes, by_arm in zip(grid, found.values(), strict=True):
        epochs = by_arm["cross-entropy"][0].config["recipe"]["epochs"]
        places = [(0, (0, -14), "left"), (-1, (0, 8), "right"), (-1, (0, -44), "right")]
        if not short:
            places = [(0, (0, 26), "left"), (-1, (0, -24), "right"), (-1, (0, 12), "right")]
        for name, (place, offset, align) in zip(names, places, strict=True):
            values = 100 * np.array([run.curves["validation_accuracy"] for run in by_arm[name]])
            passes = (1 if name == "cross-entropy" else 4) * epochs / values.shape[1]
            style = {"color": colour(name), "linestyle": ":" if name == "cross-entropy" else "-"}
            band(axes, passes * np.arange(1, values.shape[1] + 1), values, name, marker="o", markersize=3, **style)
            lines[words := f"{name}: {steps(by_arm[name][0]):,} steps"] = by_arm[name]
            at, mean = passes * (place % values.shape[1] + 1), float(values.mean(0)[place])
            axes.annotate(
                words, (at, mean), offset, textcoords="offset points", ha=align, fontsize=8, color=colour(name)
            )
        gained.append(summary(gains(by_arm["SLA+AG"], by_arm[EQUAL])))
        axes.set_xlabel("passes over the training images")
        short = False
    grid[0].set_ylabel("validation accuracy (%)")
    parts = [f"{gain.text('+.1f')}{'' if gain.side else ' (not significant)'}" for gain in gained]
    lengths = [steps(by_arm["SLA+AG"][0]) for by_arm in found.values()]
    after = " and ".join(f"{gain} after {length} steps" for gain, length in zip(parts, lengths, strict=True))
    text = f"SLA+AG \N{MINUS SIGN} cross-entropy at equal passes: {after}"
    images = sum(next(iter(found.values()))["SLA+AG"][0].train_counts)
    words = f"MNIST, {images} images. Curves: validation, {counts(lines)}, 95% intervals; axes differ. Title: test."
    return finish(figure, text, runs_of(found), words)


def inference(index: Index) -> Picture:
    """What the views together gain over the image alone, by the same network."""
    columns, shown, sides = {}, blocks(index, methods=("MT",)), set()
    for title, by_arm in shown.items():
        panel = {called(more): gains(by_arm[more], by_arm[one]) for one, more in NAMES.values() if more in by_arm}
        columns[title.split(",")[0]] = panel
        for name in {"DA, four views", "MT, four views"} & panel.keys() if "SLA+AG" in panel else ():
            paired = [ours - theirs for ours, theirs in zip(panel["SLA+AG"], panel[name], strict=False)]
            sides.add(summary(paired).side)
    text = "Four views − one view, same network."
    figure = plots.forest({"": columns}, "gain (points)", runs_of(shown), text, colour, many, shared=True)
    plain = "What M passes gain over one"
    return titled(figure, plain if 1 in sides else f"{plain}: nowhere significantly more by SLA than by DA or MT")


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
                    columns.setdefault(called(method).replace("four", "M"), {})[row] = gains(
                        by_arm[method], by_arm["cross-entropy"]
                    )
                    shown += by_arm[method]
    needed(columns, "two sets of transformations on one set of images, beside cross-entropy")
    text = "Over cross-entropy with as many updates. In brackets: M."
    of_panel = (lambda _, title: colour(title)), (lambda _, title: many(title))
    figure = plots.forest({"": columns}, "gain (points)", shown, text, *of_panel, shared=True)
    plain = "Gains over cross-entropy by set of transformations"
    sides = {row: summary(columns.get("DA, one view", {}).get(row, [0.0])).mean for row in columns["SLA, one view"]}
    ahead = [row for row, of_da in sides.items() if summary(columns["SLA, one view"][row]).mean > of_da]
    names = list(dict.fromkeys(row.split(":")[0] for row in ahead))
    behind = list(dict.fromkeys(row.split(":")[0] for row in sides if row not in ahead))
    if not names or not behind or set(names) & set(behind):
        return titled(figure, plain)
    return titled(
        figure, f"By the mean, SLA from one view is ahead of DA on {_listed(names)} and behind on {_listed(behind)}"
    )


def imbalance(index: Index) -> Picture:
    """SLA on a long tail, alone and with class weights or margins: gains by how many images a class has."""
    found, lines = blocks(index, TAILS), {}
    for title, by_arm in found.items():
        known = {name: runs for name, runs in by_arm.items() if all(run.class_accuracy for run in runs)}
        lines[title] = by_frequency(known)
    text = "Over cross-entropy; the test set is balanced."
    figure = plots.forest(lines, "gain (points)", runs_of(found), text, colour, many, shared=True)
    plain = "Long tails: gains over cross-entropy, by the frequency of the class"
    everywhere = lines[next(iter(lines))]["all"]
    if len(lines) > 1 or not {"SLA+AG", "SLA+AG, CE-DRW"} <= everywhere.keys():
        return titled(figure, plain)
    alone, weighted = (summary(everywhere[name]).text("+.1f") for name in ("SLA+AG", "SLA+AG, CE-DRW"))
    return titled(figure, f"A long tail: SLA+AG alone {alone} points, with class weights {weighted}")


@styled
def method_diagram() -> Picture:
    """SLA in three panels: one joint label a view, the aggregate of the views, and its distillation."""
    figure, (panels,) = plots.panels(3.2, 1, 3)
    figure.set_label(
        "SLA in three panels: one label for class and turn; four answers averaged; a head that learns the average"
    )
    grey, red, blue = ("#555555", "white"), (RED, "#FDECEE"), (BLUE, "#EAF0F7")
    titles = ("1 · a label of $C \\cdot M$", "2 · the aggregate (SLA+AG)", "3 · distillation (SLA+SD)")
    for axes, title in zip(panels, titles, strict=True):
        axes.set(xlim=(0, 24), ylim=(0, 24), title=title)
        axes.axis("off")
    for axes, (x, top) in ((panels[0], (12, "pair $(y, j)$\nclass and turn")), (panels[2], (18, "classes"))):
        name, head = ("view $t_j(x)$", "head $w$") if axes is panels[0] else ("upright\n$x$", "head $q$")
        wide = 14 if axes is panels[0] else 10
        style = red if axes is panels[0] else blue
        for y, text, (edge, face) in ((3, name, grey), (10, head, style), (18, top, style)):
            plots.draw_box(axes, (x, y), (wide, 4.6), text, edge, face)
        for low, high in ((5.3, 7.7), (12.3, 15.7)):
            plots.draw_arrow(axes, (x, low), (x, high), "#555555")
    middle, last = panels[1:]
    for k, turn in enumerate(("0°", "90°", "180°", "270°")):
        place = 3.2 + 5.9 * k
        plots.draw_box(middle, (place, 3), (5, 4.6), turn, *grey)
        plots.draw_box(middle, (place, 10), (5, 4.6), f"turn {k}", *red)
        plots.draw_arrow(middle, (place, 5.3), (place, 7.7), "#555555")
        plots.draw_arrow(middle, (place, 12.3), (12 + (place - 12) * 0.4, 15.7), "#555555")
    plots.draw_box(middle, (12, 18), (18, 4.6), "mean of the logits,\nthen the classes", *red)
    plots.draw_box(last, (5.2, 18), (9, 4.6), "aggregate", *red)
    plots.draw_arrow(last, (9.7, 18), (13, 18), RED, "--")
    last.text(11.4, 21.4, "is learned", ha="center", fontsize=8.5, color=RED)
    return figure


FIGURES: dict[str, Callable[[Index], Picture]] = {
    draw.__name__: draw for draw in (digits, accuracy, accuracy_all, longer_training, inference, transforms, imbalance)
}
