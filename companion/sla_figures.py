"""The figures of joint labels (notebook 5), drawn from records as those of room ``figures``.

A run on views was trained with M passes over the network for every one of cross-entropy and holds two inferences: of
the image as it is, in one pass, and of all its views together, in M (:func:`inferences`). So its record stands in two
rows, and cross-entropy stands there a second time, with M times the epochs.
"""

from __future__ import annotations

import dataclasses
import math
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from matplotlib.ticker import LogLocator, MaxNLocator

from companion import longtail_figures, plots
from companion.figures import NothingToDraw, budget, needed, runs_of, titled, trained_on, without_stand_ins
from companion.plots import COLOURS, Picture, band, caption, styled
from companion.stats import summary
from semaug.methods.sla import TRANSFORMS
from semaug.training.record import Record

BASELINE = "cross-entropy"

NAMES = {
    "DataAugmentation": {"single": "DA", "aggregated": "DA, averaged"},
    "MultiTask": {"single": "MT", "aggregated": "MT, averaged"},
    "SLA": {"single": "SLA, single", "aggregated": "SLA+AG"},
    "distilled": {"single": "SLA+SD", "aggregated": "SLA+SD+AG"},
    "labels alone": {"single": "SLA+SD, no KL", "aggregated": "SLA+SD+AG, no KL"},
}

"""What a method is called by how it infers: in one pass, or in one for every view."""

WAYS = tuple(names[inference] for inference in ("single", "aggregated") for names in NAMES.values())

COLOUR = {"cross-entropy": "black", "DA": COLOURS[0], "MT": COLOURS[2], "SLA": COLOURS[1], "SLA+SD": COLOURS[5]}

"""By the first word of a name."""

Study = dict[str, list[Record]]


def inferences(record: Record) -> dict[str, Record]:
    """A run by the names of its inferences, ``test_accuracy`` of each being its own.

    A record has accuracies by class for the inference of its ``predict`` alone; of the other they are empty.
    """
    objective, settings = record.config["objective"], record.config["settings"]
    words = ""
    if objective in ("LongTailed", "LongTailedSLA"):
        words = longtail_figures.method({"objective": "LongTailed", "settings": {"normalised": False} | settings})
    if objective == "LongTailed":
        return {words: record}
    if objective not in (*NAMES, "LongTailedSLA"):
        return {BASELINE: record}
    distilled = "distilled" if settings.get("distillation", 1.0) else "labels alone"
    names = NAMES[distilled if settings.get("temperature") else objective.removeprefix("LongTailed")]
    if settings.get("temperature", 1.0) != 1:
        words = ", ".join(filter(None, [words, f"T = {settings['temperature']:g}"]))
    names = {inference: ", ".join(filter(None, [name, words])) for inference, name in names.items()}
    result = {}
    for inference, name in names.items():
        metrics = record.metrics | {"test_accuracy": record.metrics[f"{inference}_test_accuracy"]}
        of_classes = record.class_accuracy if settings["inference"] == inference else []
        result[name] = dataclasses.replace(record, metrics=metrics, class_accuracy=of_classes)
    return result


def studies(found: Iterable[Record], transforms: str = "rotation", long_tail: bool = False) -> dict[str, Study]:
    """Runs by method and inference, a study a budget (room ``figures``), titled; ``BASELINE`` is the first method.

    What is trained without views for as many passes, M times the epochs, is a method of its own. Of those
    that have the baseline and an objective on views; quick ones only of data sets without longer ones.
    """
    groups: dict[str, list[Record]] = {}
    for record in found:
        config, settings = record.config, record.config["settings"]
        known = config["objective"] in (*NAMES, "CrossEntropy", "LongTailed", "LongTailedSLA")
        wanted = bool(config["data"].get("imbalance")) == long_tail
        if known and wanted and settings.get("transforms", transforms) == transforms:
            groups.setdefault(budget(record), []).append(record)
    made = [_study(group, len(TRANSFORMS[transforms])) for _, group in sorted(groups.items())]
    viewed = [any("transforms" in run.config["settings"] for runs in study.values() for run in runs) for study in made]
    made = [study for study, seen in zip(made, viewed, strict=True) if BASELINE in study and seen]
    return titled(without_stand_ins(made, _baseline), _baseline, lambda study: trained_on(_baseline(study)))


def _baseline(study: Study) -> Record:
    return study[BASELINE][0]


def by_transforms(found: Sequence[Record]) -> dict[str, dict[str, Study]]:
    """Studies of one budget by set of transformations, titled."""
    joined: dict[str, dict[str, Study]] = {}
    for transforms in TRANSFORMS:
        for study in studies(found, transforms).values():
            joined.setdefault(budget(_baseline(study)), {})[transforms] = study

    def first(of: dict[str, Study]) -> Record:
        return _baseline(next(iter(of.values())))

    return titled(joined.values(), first, lambda of: trained_on(first(of)))


def _study(group: list[Record], M: int) -> Study:
    """Its runs by method, in order of seed: ``BASELINE``, what stands beside it, ``WAYS``, SLA with a weighted loss.

    Raises ValueError where a method has two runs of one seed, of ``accumulate`` and not, say.
    """
    viewed = [record for record in group if "transforms" in record.config["settings"]]
    epochs, study = min(record.config["recipe"]["epochs"] for record in viewed or group), Study()
    for record in sorted(group, key=lambda record: record.seed):
        times = record.config["recipe"]["epochs"] / epochs
        if times not in (1, M):
            continue
        for name, version in inferences(record).items():
            study.setdefault(name if times == 1 else f"{name}, {times:g}x epochs", []).append(version)
    for name, runs in study.items():
        seeds = [record.seed for record in runs]
        if len(seeds) != len(set(seeds)):
            raise ValueError(f"{name!r}: got seeds {seeds}; takes each seed once")
    places = {BASELINE: -1} | {name: at for at, name in enumerate(WAYS, start=1)}
    names = sorted(study, key=lambda name: (places.get(name, 99 if name.startswith("SLA") else 0), name))
    return {name: study[name] for name in names}


def test_points(record: Record) -> float:
    """Test accuracy in points."""
    return 100 * record.metrics["test_accuracy"]


def gains(
    runs: Sequence[Record], baseline: Sequence[Record], score: Callable[[Record], float] = test_points
) -> list[float]:
    """Differences of a score from the baseline on the seeds that both have, in their order. Raises ValueError where a
    side holds a seed twice.
    """
    sides = [{record.seed: score(record) for record in side} for side in (runs, baseline)]
    for name, side, values in zip(("runs", "baseline"), (runs, baseline), sides, strict=True):
        if len(side) != len(values):
            raise ValueError(f"{name}: got seeds {[record.seed for record in side]}; takes each seed once")
    return [sides[0][seed] - sides[1][seed] for seed in sorted(sides[0].keys() & sides[1].keys())]


def _first(name: str) -> str:
    """What a name is coloured by: its first word, without its inference."""
    return name.split(",")[0].removesuffix("+AG")


def _named(name: str, title: str) -> str:
    """What a mark is of: the row, or the panel where rows are sets of transformations or groups of classes."""
    return name if _first(name) in COLOUR else title


def _colour(name: str, title: str) -> str:
    return COLOUR.get(_first(_named(name, title)), COLOURS[3])


def _many(name: str, title: str = "") -> bool:
    """Whether it infers in M passes."""
    named = _named(name, title)
    return "+AG" in named or "averaged" in named


forest = partial(plots.forest, colour=_colour, filled=_many)

"""Differences over paired seeds; a filled mark is of M passes at inference, an open one of a single pass."""


def accuracy(found: Sequence[Record]) -> Picture:
    """Every method by both inferences, and cross-entropy with as many passes: gains over cross-entropy."""
    blocks = needed(studies(found), "cross-entropy and an objective on views, of one set and recipe")
    columns = {}
    for title, study in blocks.items():
        reached = summary(100 * record.metrics["test_accuracy"] for record in study[BASELINE]).mean
        values = {name: gains(runs, study[BASELINE]) for name, runs in study.items() if name != BASELINE}
        columns[f"{title}: {reached:.1f}%"] = values
    text = "Title: accuracy of cross-entropy. Filled: M passes at inference."
    return forest({"": columns}, "gain (points)", runs_of(blocks.values()), text)


def inference(found: Sequence[Record]) -> Picture:
    """What the views together gain over the image alone, by the same network."""
    pairs = [(names["single"], names["aggregated"]) for names in NAMES.values()]
    blocks = needed(studies(found), "an objective on views, beside cross-entropy")
    columns = {
        title: {many: gains(study[many], study[one]) for one, many in pairs if many in study}
        for title, study in blocks.items()
    }
    return forest({"": columns}, "over one pass (points)", runs_of(blocks.values()), "M passes less one, same network.")


@styled
def cost(found: Sequence[Record]) -> Picture:
    """Accuracy over passes of training, for every set of transformations; open marks infer in one pass, filled in M."""
    blocks = needed(by_transforms(found), "cross-entropy and an objective on views, of one set and recipe")
    rows = (len(blocks) + 1) // 2
    figure = Picture(figsize=(7.5, 0.6 + 2.8 * rows))
    grid = figure.subplots(rows, min(2, len(blocks)), squeeze=False).ravel()
    for unused in grid[len(blocks) :]:
        unused.remove()
    labels: dict[str, Any] = {}
    for axes, (title, by_views) in zip(grid, blocks.items(), strict=False):
        ticks = {1}
        for transforms, study in by_views.items():
            M = len(TRANSFORMS[transforms])
            for name, runs in study.items():
                epochs = runs[0].config["recipe"]["epochs"] / study[BASELINE][0].config["recipe"]["epochs"]
                passes = round(epochs * (1 if name.startswith(BASELINE) else M))
                ticks.add(passes)
                first, many = _first(name), _many(name)
                shift = 1 + 0.04 * (list(COLOUR).index(first) - 2)
                result = summary(100 * record.metrics["test_accuracy"] for record in runs)
                half, colour = result.half_width if result.n > 2 else 0.0, COLOUR[first]
                style = {"color": colour, "markerfacecolor": colour if many else "white", "capsize": 2}
                mark = axes.errorbar(
                    passes * shift, result.mean, yerr=half, fmt="D" if many else "o", markersize=5, **style
                )
                labels.setdefault(BASELINE if first == BASELINE else name, mark)
        axes.set(xscale="log", xlabel="passes in training, over cross-entropy's", title=title)
        axes.set_xticks(sorted(ticks), [str(tick) for tick in sorted(ticks)])
        axes.minorticks_off()
    for axes in grid[: len(blocks) : 2]:
        axes.set_ylabel("test accuracy (%)")
    figure.legend(labels.values(), labels, loc="outside upper center", ncols=5, fontsize=8)
    shown = [record for by_views in blocks.values() for record in runs_of(by_views.values())]
    text = (
        "Marks of one number of passes are moved apart. Bars: 95% intervals of the mean. Filled: M passes at inference."
    )
    caption(figure, shown, text)
    return figure


def _curves(blocks: Mapping[str, Study], rows: Mapping[str, tuple[str, Sequence[str]]], text: str) -> Picture:
    """Curves by epoch, a column a study; ``rows``: by label of the y axis, name of the curve and methods."""
    figure = Picture(figsize=(7.5, 0.9 + 2.3 * len(rows)))
    grid = figure.subplots(len(rows), len(blocks), squeeze=False, sharex="col")
    labels: dict[str, Any] = {}
    for number, (line, (label, (curve, methods))) in enumerate(zip(grid, rows.items(), strict=True)):
        for axes, (title, study) in zip(line, blocks.items(), strict=True):
            for name in methods:
                runs = [record for record in study.get(name, []) if record.curves.get(curve)]
                if runs:
                    values = np.array([record.curves[curve] for record in runs])
                    x = np.arange(1, values.shape[1] + 1) * runs[0].config["recipe"]["epochs"] / values.shape[1]
                    scale = 100 if "accuracy" in curve else 1
                    dashes = "--" if "no KL" in name else "-"
                    band(axes, x, scale * values, name, color=COLOUR[_first(name)], linestyle=dashes)
                    labels.setdefault(name, axes.lines[-1])
            if number == 0:
                axes.set_title("\n".join(textwrap.wrap(title, 76 // len(blocks))), fontsize=9)
            if "accuracy" not in curve:
                axes.set_yscale("log")
                axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
                axes.yaxis.set_major_formatter("{x:g}")
                axes.minorticks_off()
        line[0].set_ylabel(label)
    for axes, study in zip(grid[-1], blocks.values(), strict=True):
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        counts = sorted({len(runs) for name, runs in study.items() if any(name in row[1] for row in rows.values())})
        axes.set_xlabel("epoch (n = {})".format(" to ".join(map(str, dict.fromkeys((counts[0], counts[-1]))))))
    figure.legend(labels.values(), labels, loc="outside upper center", ncols=5, fontsize=9)
    caption(figure, runs_of(blocks.values()), f"Bands: 95% intervals of the mean. {text}")
    return figure


@styled
def training(found: Sequence[Record], transforms: str = "rotation") -> Picture:
    """Is MT harder to optimise than SLA? Losses on the training images by epoch."""
    blocks = {t: s for t, s in studies(found, transforms).items() if "MT" in s and "SLA+AG" in s}
    rows = {
        "joint loss (nats)": ("train_loss", ("MT", "SLA+AG")),
        "class loss (nats)": ("class_loss", ("DA", "MT", "SLA+AG")),
    }
    text = "Joint loss: of class and transformation, (21) and (22). Class loss: of the class, the transformation known."
    return _curves(needed(blocks, "MT and SLA beside cross-entropy"), rows, text)


@styled
def distilled(found: Sequence[Record]) -> Picture:
    """The distilled head against the aggregate, over training."""
    blocks = {t: s for t, s in studies(found).items() if "SLA+SD" in s}
    rows = {
        "validation accuracy (%)": ("validation_accuracy", (BASELINE, "SLA+AG", "SLA+SD", "SLA+SD, no KL")),
        "divergence (nats)": ("distillation", ("SLA+SD", "SLA+SD, no KL")),
    }
    text = (
        "SLA+AG: aggregate of a network without distillation. Divergence: from the network's own aggregate, training."
    )
    return _curves(needed(blocks, "SLA+SD beside cross-entropy"), rows, text)


def transforms(found: Sequence[Record]) -> Picture:
    """Sets of transformations on one set of images: gains of DA and SLA over cross-entropy."""
    lines: dict[str, dict[str, dict[str, list[float]]]] = {}
    shown: list[Record] = []
    for title, of in by_transforms(found).items():
        for name, study in of.items():
            for way in ("DA", "DA, averaged", "SLA, single", "SLA+AG"):
                if way in study:
                    column = lines.setdefault(title, {}).setdefault(way, {})
                    column[f"{name}, M = {len(TRANSFORMS[name])}"] = gains(study[way], study[BASELINE])
                    shown += study[way]
    lines = {title: columns for title, columns in lines.items() if max(map(len, columns.values())) > 1}
    if not lines:
        raise NothingToDraw("two sets of transformations on one set of images, beside cross-entropy")
    return forest(lines, "gain (points)", shown, "Over cross-entropy.")


def imbalance(found: Sequence[Record]) -> Picture:
    """SLA on a long tail, alone and with class weights or margins: gains by how many images a class has."""
    blocks = needed(studies(found, long_tail=True), "cross-entropy and SLA on a long tail")
    lines: dict[str, dict[str, dict[str, list[float]]]] = {}
    for title, study in blocks.items():
        for group, reached in longtail_figures.scores(study[BASELINE][0]).items():
            if not math.isnan(reached):
                lines.setdefault(title, {})[group] = {
                    name: gains(runs, study[BASELINE], partial(_of_group, group=group))
                    for name, runs in study.items()
                    if name != BASELINE and all(record.class_accuracy for record in runs)
                }
    return forest(lines, "gain (points)", runs_of(blocks.values()), "Over cross-entropy; the test set is balanced.")


def _of_group(record: Record, group: str) -> float:
    return 100 * longtail_figures.scores(record)[group]


FIGURES: dict[str, dict[str, Callable[[Sequence[Record]], Picture]]] = {
    "5_sla": {
        "accuracy": accuracy,
        "inference": inference,
        "training": training,
        "distilled": distilled,
        "cost": cost,
        "transforms": transforms,
        "imbalance": imbalance,
    },
}
