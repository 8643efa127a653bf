"""The figures of notebook 4, drawn from records as those of room ``figures``: GANs by where the transformation stands,
learned, fixed and no augmentation of a classifier's images, styles across domains.

GANs of one set and number of images are trained for as many steps, paired by seed; their records say more than their
losses (:class:`semaug.gan_measures.Quality`), at several steps. Pictures of seed 0 lie beside the records.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

from companion import ledger, plots, records
from companion.figures import NothingToDraw, budget, needed, on_common_seeds, runs_of, titled, without_stand_ins
from companion.plots import COLOURS, GREY, Picture, band, caption, comparison, sheet, styled
from companion.sla_figures import gains
from companion.stats import summary
from semaug.training.record import Record

BLUE, RED, GREEN, YELLOW, CYAN, PURPLE = COLOURS

PLACES = {settings["where"]: name for name, settings in ledger.PLACES.items()}

COLOUR = {"none": "black", "reals only": RED, "discriminator only": YELLOW, "DiffAugment": BLUE}

KINDS: dict[str, dict[str, Any]] = {
    "training": {"color": GREEN},
    "held out": {"color": GREEN, "linestyle": "--"},
    "generated": {"color": GREY},
}

"""How lines of images that D is asked about are drawn: in no colour of ``COLOUR``."""

BASELINE = "none"

GREY_SETS, COLOUR_SETS = ("embedded",), ("portraits", "cifar10")

WORDS = {"embedded": "clothing", "portraits": "one person's faces", "cifar10": "photographs", "hues": "shapes"}

"""What sets are called here; others by their name."""

SCALED = "FeatureAugmentation"

BOTH = "GANs without T and with DiffAugment"

Study = dict[str, list[Record]]

Values = Mapping[str, Mapping[str, Sequence[float]]]


def method(record: Record) -> str:
    """What a GAN is called: where T stands, and what of it is not as usual."""
    settings = record.config["settings"]
    words = [PLACES[settings["where"]]]
    words += ["adaptive"] if settings.get("ada_span") else []
    words += [f"R1 {settings['r1']:g}"] if settings.get("r1") else []
    return ", ".join(words)


def players(
    found: Iterable[Record], sets: Sequence[str] = (*GREY_SETS, *COLOUR_SETS), longer: bool = False
) -> dict[str, Study]:
    """GANs by method, a study a budget (room ``figures``) and length, titled, in order of set and number of images; the
    places of T first.

    longer: those trained for more epochs than others of their budget, instead of these. Quick ones only of sets without
    longer ones. Those are left out that have not both ``BASELINE`` and DiffAugment. Raises ValueError where a method
    has two runs of one seed.
    """
    groups: dict[str, dict[int, list[Record]]] = {}
    for record in found:
        if record.config["objective"] == "GAN" and record.config["data"]["name"] in sets:
            lengths = groups.setdefault(budget(record), {})
            lengths.setdefault(record.config["recipe"]["epochs"], []).append(record)
    made = [
        _by_method(runs)
        for lengths in groups.values()
        for epochs, runs in sorted(lengths.items())
        if (epochs > min(lengths)) == longer
    ]
    made = [study for study in made if {BASELINE, "DiffAugment"} <= study.keys()]
    made = without_stand_ins(made, _first)
    made.sort(key=lambda study: (sets.index(_set(study)), images(study)))
    return titled(made, _first, lambda study: f"{WORDS.get(_set(study), _set(study))}, {images(study)} images")


def _by_method(group: Iterable[Record]) -> Study:
    study: Study = {}
    for record in sorted(group, key=lambda record: record.seed):
        study.setdefault(method(record), []).append(record)
    for name, runs in study.items():
        seeds = [record.seed for record in runs]
        if len(seeds) != len(set(seeds)):
            raise ValueError(f"{name!r}: got seeds {seeds}; takes each seed once")
    places = list(PLACES.values())
    return {name: study[name] for name in sorted(study, key=lambda n: (places.index(n) if n in places else 9, n))}


def _first(study: Study) -> Record:
    return next(iter(study.values()))[0]


def _set(study: Study) -> str:
    return str(_first(study).config["data"]["name"])


def images(study: Study) -> int:
    """How many training images the runs of a study have."""
    return sum(_first(study).train_counts)


def steps(record: Record) -> Float[np.ndarray, " measured"]:
    """The discriminator's steps at which the curves of a GAN have their values."""
    per_epoch = sum(record.train_counts) // record.config["recipe"]["batch_size"]
    return per_epoch * np.array(record.curves["epoch"], dtype=float)


def _metric(name: str, scale: float = 1.0) -> Callable[[Record], float]:
    return lambda record: scale * record.metrics[name]


def _colour(name: str, title: str = "") -> str:
    return COLOUR.get(name, CYAN if "adaptive" in name else PURPLE)


@styled
def places() -> Picture:
    """Where T stands, a panel each: what D sees when it learns, and what it is asked when G learns.

    Red: the way of G's gradient.
    """
    figure = Picture(figsize=(7.5, 2.5))
    figure.set_layout_engine("none")
    grid = figure.subplots(1, len(PLACES), gridspec_kw={"left": 0.005, "right": 0.995, "bottom": 0.0, "top": 0.9})
    for axes, (where, name) in zip(grid, PLACES.items(), strict=True):
        axes.set(xlim=(0, 18.5), ylim=(0, 22))
        axes.axis("off")
        axes.set_title(name, color=_colour(name), weight="bold")
        ways = {
            "D learns, real images": (17.0, "$x$", where != "nowhere"),
            "and generated ones": (10.5, "$G(z)$", where in ("discriminator", "everywhere")),
            "G learns": (3.5, "$G(z)$", where == "everywhere"),
        }
        for words, (height, start, transformed) in ways.items():
            back = words == "G learns"
            axes.text(0.3, height + 2.2, words, fontsize=8.5, color=GREY)
            axes.text(2.4, height, start, ha="center", va="center")
            ends = [(4.6, 7.4), (10.2, 13.4)] if transformed else [(4.6, 13.4)]
            for one, other in ends:
                plots.draw_arrow(axes, (one, height), (other, height), "#555555")
                if back:  # the way of its gradient
                    plots.draw_arrow(axes, (other, height - 1.2), (one, height - 1.2), RED, "--")
            if transformed:
                plots.draw_box(axes, (8.8, height), (2.8, 3.0), "$T$", _colour(name), "white")
            plots.draw_box(axes, (15.2, height), (3.4, 3.0), "$D$", "#555555", "#F6F6F6")
    return figure


# -- GANs over their steps ---------------------------------------------------------------------------------------------

CURVES = {
    "fid": "FID",
    "kid": "KID",
    "auc": "train over\nheld out (AUC)",
    "copy_ratio": "distance to train\nover test images",
    "leak": "with a flat\ngrey window",
}

CHANCE = {"auc": 0.5, "copy_ratio": 1.0, "leak": 0.01}

"""What these would be if nothing were remembered and nothing leaked."""

AUGMENTED = {"leak": "leak_augmented"}

"""What these are of augmented test images: what G would draw if these were its aim."""

BOUNDS = {"leak": (-0.05, 1.05), "auc": (0.35, 1.03), "copy_ratio": (0.0, 1.5)}

"""What is drawn of these, whose intervals of the mean may leave what they can be."""


@styled
def over_steps(
    found: Sequence[Record],
    names: Sequence[str],
    sets: Sequence[str] = GREY_SETS,
    text: str = "",
    longer: bool = False,
) -> Picture:
    """Curves of GANs over their steps: a row a measure of ``CURVES``, a column a study, a line a place of T."""
    blocks = {t: on_common_seeds(_places(study)) for t, study in needed(players(found, sets, longer), BOTH).items()}
    figure = Picture(figsize=(7.5, 1.0 + 1.55 * len(names)))
    grid = figure.subplots(len(names), len(blocks), squeeze=False, sharex=True, sharey="row")
    labels: dict[str, Any] = {}
    for line, name in zip(grid, names, strict=True):
        for axes, study in zip(line, blocks.values(), strict=True):
            for label, runs in study.items():
                values = np.array([record.curves[name] for record in runs])
                band(axes, steps(runs[0]), values, label, color=_colour(label))
                labels.setdefault(label, axes.lines[-1])
            if name in CHANCE:
                axes.axhline(CHANCE[name], color=GREY, linewidth=1, linestyle=":")
            aims = [run.metrics[AUGMENTED[name]] for run in runs_of([study]) if name in AUGMENTED]
            if aims:
                axes.axhline(sum(aims) / len(aims), color=GREY, linewidth=1, linestyle="--")
            if name in BOUNDS:
                axes.set_ylim(*BOUNDS[name])
            if name in ("fid", "kid"):
                axes.set_yscale("log")
                axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
                axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
                axes.yaxis.set_minor_formatter(NullFormatter())
        if name in ("fid", "kid"):  # an interval may reach below 0, which a logarithm has no place for
            line[0].set_ylim(bottom=0.6 * min(drawn.get_ydata().min() for axes in line for drawn in axes.lines))
        line[0].set_ylabel(CURVES[name], fontsize=9)
    for axes, (title, study) in zip(grid[0], blocks.items(), strict=True):
        n = len(next(iter(study.values())))
        axes.set_title(f"{title.replace(', ', chr(10), 1)}\nn = {n}", fontsize=9)
    for axes in grid[-1]:
        axes.set_xlabel("steps", fontsize=9)
    figure.legend(labels.values(), labels, loc="outside upper center", ncols=len(labels), fontsize=9)
    shown = runs_of(blocks.values())
    caption(figure, shown, f"Bands: 95% intervals of the mean. {text} {_real(shown, names)}".strip())
    return figure


def _real(shown: Sequence[Record], names: Sequence[str]) -> str:
    """The distances that other real images have: far below all others, so in words."""
    found, without = [], False
    for name in ("fid", "kid"):
        values = [record.metrics[f"real_{name}"] for record in shown if f"real_{name}" in record.metrics]
        if name in names and values:
            found.append(f"{name.upper()} {sum(values) / len(values):.2g}")
            without = without or len(values) < len(shown)
    of = " where there are as many of them as test images" if without else ""
    return f"Other real images{of}: {', '.join(found)}." if found else ""


REAL = {"real_fid": ".2f", "real_kid": ".3f"}

"""What other real images have: of FID, only where there are as many of them as test images."""


def _places(study: Study) -> Study:
    """The runs that differ in where T stands, and in nothing else."""
    return {name: runs for name, runs in study.items() if name in COLOUR}


distances = partial(over_steps, names=("fid", "kid"), text="Features of a classifier trained here.")

longer = partial(
    over_steps,
    names=("fid", "auc", "copy_ratio"),
    sets=(*GREY_SETS, "portraits"),
    longer=True,
    text="Features of a classifier trained here.",
)

TEXT = "Dotted: nothing remembered, nothing leaked; dashed: augmented real images."

overfitting = partial(over_steps, names=("auc", "copy_ratio", "leak"), text=TEXT)


@styled
def discriminator(found: Sequence[Record], sets: Sequence[str] = GREY_SETS) -> Picture:
    """Mean logits of training, held-out and generated images over the steps: a row a study, a column a place of T."""
    blocks = {title: _places(study) for title, study in needed(players(found, sets), BOTH).items()}
    names = [name for name in COLOUR if any(name in study for study in blocks.values())]
    figure = Picture(figsize=(7.5, 0.9 + 1.4 * len(blocks)))
    grid = figure.subplots(len(blocks), len(names), squeeze=False, sharex="row", sharey="row")
    curves = {"training": "logit_train", "held out": "logit_held_out", "generated": "logit_fake"}
    labels: dict[str, Any] = {}
    for row, (title, study) in enumerate(blocks.items()):
        for axes, name in zip(grid[row], names, strict=True):
            runs = study.get(name, [])
            for kind, style in KINDS.items() if runs else ():
                values = np.array([record.curves[curves[kind]] for record in runs])
                band(axes, steps(runs[0]), values, kind, **style)
                labels.setdefault(kind, axes.lines[-1])
            axes.set_title(f"{name}, n = {len(runs)}" if row == 0 else f"n = {len(runs)}", fontsize=8.5)
        grid[row, 0].set_ylabel(title.replace(", ", "\n", 1) + "\nlogit", fontsize=8)
    for axes in grid[-1]:
        axes.set_xlabel("steps", fontsize=9)
    figure.legend(labels.values(), labels, loc="outside upper center", ncols=3, fontsize=9)
    caption(figure, runs_of(blocks.values()), "Mean logits, of images as they are. Bands: 95% intervals of the mean.")
    return figure


# -- GANs at their end -------------------------------------------------------------------------------------------------

ENDS: dict[str, Callable[[Record], float]] = {
    "FID (factors of two)": lambda record: math.log2(record.metrics["fid"]),
    "train over held out (AUC, points)": _metric("auc", 100),
    "flat grey windows (points)": _metric("leak", 100),
}

"""Measures whose differences are drawn; of FID, which ranges over decades, those of its logarithm."""


def ends(found: Sequence[Record], sets: Sequence[str] = GREY_SETS) -> Picture:
    """Differences from the GAN without T at the end of training, paired by seed: a line of panels a measure."""
    blocks = needed(players(found, sets), BOTH)
    lines = {
        label: {
            title: {name: gains(runs, study[BASELINE], of) for name, runs in study.items() if name != BASELINE}
            for title, study in blocks.items()
        }
        for label, of in ENDS.items()
    }
    return plots.forest(
        lines, "difference", runs_of(blocks.values()), "Less the GAN without T; less is better.", colour=_colour
    )


def table(found: Sequence[Record], sets: Sequence[str] = (*GREY_SETS, *COLOUR_SETS)) -> str:
    """All GANs at their end, as tables in Markdown: mean ± 95% interval over seeds, of n seeds."""
    parts = []
    for title, study in needed(players(found, sets), BOTH).items():
        first = _first(study)
        where = f"profile {first.profile}, {first.environment.get('device', 'unknown device')}"
        heads = (
            "FID",
            "FID from T(real)",
            "KID",
            "accepted: train (%)",
            "held out (%)",
            "AUC",
            "copy ratio",
            "grey windows (%)",
        )
        lines = [f"**{title}**; {where}", "", f"| T | n | {' | '.join(heads)} |", "|---" * 10 + "|"]
        for name, runs in study.items():
            shown = {
                "fid": ".2f",
                "fid_augmented": ".2f",
                "kid": ".3f",
                "accepted_train": "%",
                "accepted_held_out": "%",
                "auc": ".2f",
            }
            cells = [
                summary((100 if form == "%" else 1) * record.metrics[of] for record in runs).text(
                    form.replace("%", ".0f")
                )
                for of, form in (shown | {"copy_ratio": ".2f", "leak": "%"}).items()
            ]
            lines.append(f"| {name} | {len(runs)} | {' | '.join(cells)} |")
        real = [f"{first.metrics[of]:{form}}" if of in first.metrics else "" for of, form in REAL.items()]
        if any(real):
            lines.append(f"| other real images | | {real[0]} | | {real[1]} {'| ' * 5}|")
        parts.append("\n".join(lines))
    return "\n\n".join(parts) + "\n"


def samples(found: Sequence[Record], sets: Sequence[str] = GREY_SETS, each: int = 4, longer: bool = False) -> Picture:
    """Samples of every place of T, and below each its nearest training image: so many columns a study.

    longer: of those that were trained for longer, which have not all places.
    """
    columns: list[str] = []
    lines: dict[str, list[np.ndarray]] = {}
    shown = []
    for title, study in needed(players(found, sets, longer), BOTH).items():
        kept = {name: (runs[0], records.pictures("4_diffaugment", runs[0])) for name, runs in _places(study).items()}
        if len(kept) < (2 if longer else len(COLOUR)) or not all(arrays for _, arrays in kept.values()):
            continue
        columns += [title.replace(" images", ""), *[""] * (each - 1)]
        for name, (record, arrays) in kept.items():
            shown.append(record)
            lines.setdefault(name, []).append(arrays["samples"][:each])
            lines.setdefault(f"{name}: nearest", []).append(arrays["nearest"][:each])
    if not lines:
        raise NothingToDraw("pictures of seed 0 of GANs with T in every place")
    mosaic = torch.from_numpy(np.stack([np.concatenate(row) for row in lines.values()]))
    titles = ["nearest" if "nearest" in name else name for name in lines]
    figure = sheet(mosaic, titles, columns)
    figure.axes[0].tick_params(labelsize=7)
    caption(figure, shown, "Averaged generator, first codes of seed 0; above: number of training images.")
    return figure


# -- classifiers -------------------------------------------------------------------------------------------------------


def classifier(record: Record) -> str:
    """What augments the images, or features, of a classifier."""
    config, settings = record.config, record.config["settings"]
    augment = config["recipe"].get("augment", "none")
    return {
        "CrossEntropy": augment,
        "FixedAugmentation": f"T: {str(settings.get('policy', '')).replace(',', ', ')}",
        "ISDA": f"ISDA {settings.get('strength', 0):g}",
        SCALED: f"features, scale {settings.get('scale', 0):g}",
        "TeachAugment": f"TeachAugment, reach {settings.get('reach', 0):g}",
        "MixStyle": f"MixStyle, stages 1 to {settings.get('last', 0)}".replace("s 1 to 1", " 1"),
    }[config["objective"]]


def classifiers(found: Iterable[Record], sets: Sequence[str]) -> Study:
    """The classifiers on the first of these sets that has them, by what augments; no augmentation first.

    All of one budget but for the augmentation of pixels: the one with most methods.
    """
    runs = sorted((record for record in found if record.config["objective"] != "GAN"), key=lambda record: record.seed)
    for name in sets:
        groups: dict[str, Study] = {}
        for record in (record for record in runs if record.config["data"]["name"] == name):
            groups.setdefault(budget(record, ("augment",)), {}).setdefault(classifier(record), []).append(record)
        study = max((group for group in groups.values() if BASELINE in group), key=len, default=Study())
        if len(study) > 1:
            return {BASELINE: study.pop(BASELINE), **dict(sorted(study.items(), key=_order))}
    raise NothingToDraw(f"cross-entropy and an augmentation on {' or '.join(sets)}")


def _order(item: tuple[str, list[Record]]) -> tuple[int, float, str]:
    """Recipes, fixed T, ISDA, features by their scale, TeachAugment."""
    config = item[1][0].config
    kinds = ("CrossEntropy", "FixedAugmentation", "ISDA", SCALED, "TeachAugment")
    kind = kinds.index(config["objective"]) if config["objective"] in kinds else 9
    return kind, config["settings"].get("scale", 0.0), item[0]


def learned(found: Sequence[Record]) -> Picture:
    """Test accuracy of a classifier under learned, fixed and no augmentation, paired by seed."""
    study = classifiers(found, GREY_SETS)
    epochs = _first(study).config["recipe"]["epochs"]
    title = f"{WORDS.get(_set(study), _set(study))}, {images(study)} images, {epochs} epochs"
    kinds = {"CrossEntropy": GREY, "FixedAugmentation": GREEN, "ISDA": PURPLE, SCALED: BLUE, "TeachAugment": RED}
    colours = {name: kinds[runs[0].config["objective"]] for name, runs in study.items()}
    return comparison({title: study}, colours=colours)


@styled
def scale(found: Sequence[Record]) -> Picture:
    """The scale of the reversed gradient: how far G moves features from where they were, and the accuracy."""
    study = classifiers(found, GREY_SETS)
    study = {name: runs for name, runs in study.items() if runs[0].config["objective"] == SCALED}
    if len(study) < 2:
        raise NothingToDraw(f"{SCALED} at two scales")
    study = on_common_seeds(study)
    figure = Picture(figsize=(7.5, 3.0))
    left, right = figure.subplots(1, 2)
    at = range(len(study))  # at equal steps, as a logarithm has no 0
    moved = np.array([[record.curves["moved"][-1] for record in runs] for runs in study.values()]).T
    accuracy = np.array([[100 * record.metrics["test_accuracy"] for record in runs] for runs in study.values()]).T
    band(left, list(at), np.maximum(moved, 1e-12), "moved", color=BLUE, marker="o")
    band(right, list(at), accuracy, "accuracy", color=BLUE, marker="o")
    left.set(yscale="log", ylabel="|G(z) - z| over |z|")
    right.set(ylabel="test accuracy (%)")
    for axes in (left, right):
        axes.set_xticks(list(at), [f"{runs[0].config['settings']['scale']:g}" for runs in study.values()])
        axes.set_xlabel("scale of the reversed gradient")
    text = f"n = {len(moved)}. Scales at equal distances. Bands: 95% intervals of the mean."
    caption(figure, runs_of([study]), text)
    return figure


def domains(found: Sequence[Record]) -> Picture:
    """MixStyle against cross-entropy on the hues that were trained on (validation images) and on the others (test)."""
    study = classifiers(found, ("hues",))
    columns = {
        f"{label}: {summary(100 * record.metrics[metric] for record in study[BASELINE]).mean:.1f}%": {
            name: gains(runs, study[BASELINE], _metric(metric, 100)) for name, runs in study.items() if name != BASELINE
        }
        for label, metric in (("hues trained on", "validation_accuracy"), ("other hues", "test_accuracy"))
    }
    return plots.forest({"": columns}, "gain (points)", runs_of([study]), "Titles: cross-entropy.")


FIGURES: dict[str, dict[str, Callable[[Sequence[Record]], Picture]]] = {
    "4_diffaugment": {
        "distances": distances,
        "discriminator": discriminator,
        "overfitting": overfitting,
        "longer": longer,
        "ends": ends,
        "ends_colour": partial(ends, sets=COLOUR_SETS),
        "samples": samples,
        "samples_colour": partial(samples, sets=COLOUR_SETS),
        "samples_longer": partial(samples, sets=("portraits",), each=8, longer=True),
        "learned": learned,
        "scale": scale,
        "domains": domains,
    },
}

"""The figures of this notebook that are drawn from records."""
