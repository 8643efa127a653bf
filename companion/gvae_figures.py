"""The figures of G-VAE (notebook 2), drawn from records as those of room ``figures``.

What a network itself would have to be asked, strips of decoded images and codes in the plane, lies beside the record of
seed 0 (:func:`semaug.gvae_measures.pictures`). It is looked for among the committed records, whoever asks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch

from companion import records
from companion.figures import NothingToDraw, experiments, needed, runs_of, titled, trained_on
from companion.plots import BLUE, COLOURS, GREY, RED, Picture, band, caption, comparison, sheet, styled
from companion.stats import summary
from semaug.data.shapes import RANGES
from semaug.measures.codes import COLUMNS, STEPS, separation
from semaug.training.record import PROFILES, Record

NAMES = {"VAE": "VAE", "ConditionalVAE": "conditional VAE", "GVAE": "G-VAE"}

COLOUR = dict(zip(NAMES.values(), ("black", COLOURS[2], RED), strict=True))

USUAL = {"deviation": 0.27, "reconstruction": "l2", "balance": "fixed"}

SWEPT = ("embedded", 30.0)

"""The set on which one setting is changed at a time, and the class weight that stays; other sets have one weight."""

ARMS = {"none": "none", "noise": "Gaussian noise", "vae": "VAE", "cvae": "conditional VAE", "gvae": "G-VAE"}

ARM_COLOUR = COLOUR | {"none": GREY, "Gaussian noise": COLOURS[3], "G-VAE, difference": COLOURS[5]}

SWEEP = {
    "consistency_6": "class kept at 3σ (%)",
    "movement_6": "movement at 3σ",
    "reconstruction_error": "squared error",
    "posterior_deviation": "mean σ",
    "probe_accuracy": "linear probe (%)",
}

"""What a sweep shows, and its label."""

KEPT = "class kept"

BOTH = "VAE and G-VAE on one set of images"

GROUPS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "gender": lambda label: label // 2,
    "smile": lambda label: label % 2,
    "all four": lambda label: label,
}

"""What the labels of faces, 2 male + smiling, say."""

TILE = 0.4

"""Inches of a tile in a sheet of strips."""

Study = dict[str, list[Record]]


def is_usual(record: Record) -> bool:
    """Whether it is of the comparison of methods, and not of a sweep."""
    settings, (swept, weight) = record.config["settings"], SWEPT
    if any(settings.get(name, value) != value for name, value in USUAL.items()):
        return False
    return record.config["data"]["name"] != swept or settings.get("class_weight", weight) == weight


def studies(found: Iterable[Record]) -> dict[str, Study]:
    """VAE, conditional VAE and G-VAE, a study an experiment that has the first and the last, titled."""
    known = [record for record in found if record.config["objective"] in NAMES and is_usual(record)]
    groups = experiments(known, lambda group: {"VAE", "GVAE"} <= {record.config["objective"] for record in group})
    made: list[Study] = []
    for group in groups.values():
        ordered = sorted(group, key=lambda record: record.seed)
        study = {name: [r for r in ordered if r.config["objective"] == kind] for kind, name in NAMES.items()}
        made.append({name: runs for name, runs in study.items() if runs})
    return titled(made, _vae, lambda study: trained_on(_vae(study)))


def _vae(study: Study) -> Record:
    return study["VAE"][0]


def _of_sets(found: Iterable[Record], sets: Sequence[str]) -> list[Study]:
    """The studies of these sets in their order, of each set the paper's profile first."""

    def place(study: Study) -> tuple[int, int]:
        return sets.index(_vae(study).config["data"]["name"]), -PROFILES.index(_vae(study).profile)

    return sorted(studies(r for r in found if r.config["data"]["name"] in sets).values(), key=place)


def variant(record: Record) -> str:
    """What is changed in a run of the sweep."""
    settings, words = record.config["settings"], []
    if settings["deviation"] != USUAL["deviation"]:
        words.append(f"s = {settings['deviation']:g}")
    if settings["class_weight"] != SWEPT[1]:
        words.append(f"c = {settings['class_weight']:g}")
    words += ["L1"] * (settings["reconstruction"] == "l1") + ["learned s, c"] * (settings["balance"] == "learned")
    return ", ".join(words) or f"s = {USUAL['deviation']:g}, c = {SWEPT[1]:g}"


def sweeps(found: Iterable[Record]) -> Study:
    """G-VAE on the swept set by what is changed, the usual settings first; of the experiment with most runs.

    Empty without the usual settings and another.
    """
    known = [r for r in found if r.config["objective"] == "GVAE" and r.config["data"]["name"] == SWEPT[0]]
    groups = experiments(known, lambda group: any(map(is_usual, group)) and not all(map(is_usual, group)))
    result: Study = {}
    most = max(groups.values(), key=len, default=[])
    for record in sorted(most, key=lambda r: (not is_usual(r), _changes(r), variant(r), r.seed)):
        result.setdefault(variant(record), []).append(record)
    return result


def _changes(record: Record) -> tuple[Any, ...]:
    settings = record.config["settings"]
    other = settings["reconstruction"] != "l2", settings["balance"] != "fixed"
    return *other, settings["class_weight"] != SWEPT[1], settings["class_weight"], settings["deviation"]


def arms(found: Iterable[Record]) -> dict[str, Study]:
    """Classifiers trained on augmented images, by set and its size, "none" first."""
    known = [record for record in found if record.config["objective"] == "Augmented"]
    result: dict[str, Study] = {}
    for title, group in experiments(
        known, lambda group: len({r.config["settings"]["method"] for r in group}) > 1
    ).items():
        named: Study = {}
        for method, name in ARMS.items():
            for record in sorted(group, key=lambda r: (bool(r.config["settings"].get("residual")), r.seed)):
                if record.config["settings"]["method"] == method:
                    more = ", difference" if record.config["settings"].get("residual") else ""
                    named.setdefault(name + more, []).append(record)
        if "none" in named:
            result[title] = named
    return result


@styled
def consistency(found: Sequence[Record]) -> Picture:
    """How often the judge still calls a decoded image by its class, over the distance moved; a row a data set."""
    blocks = needed(studies(found), BOTH)
    figure = Picture(figsize=(7.5, 0.7 + 1.5 * len(blocks)))
    grid = figure.subplots(len(blocks), 2, squeeze=False, sharey="row", sharex=True)
    for line, (title, study) in zip(grid, blocks.items(), strict=True):
        for axes, (prefix, which) in zip(line, (("", "all"), ("tenth_", "the largest tenth")), strict=True):
            for name, runs in study.items():
                values = [[100 * r.metrics[f"{prefix}consistency_{i}"] for i in range(STEPS + 1)] for r in runs]
                band(axes, np.arange(STEPS + 1) / 2, np.array(values), name, color=COLOUR[name], marker="o")
            judged = 100 * next(iter(study.values()))[0].metrics["judge_accuracy"]
            axes.axhline(judged, color=GREY, linewidth=1, linestyle="--")
            axes.axhline(_chance(study), color=GREY, linewidth=1, linestyle=":")
            axes.set_title(f"{title}: {which}", fontsize=9)
        line[0].set_ylabel("class kept (%)")
        line[0].legend(fontsize=7)
    for axes in grid[-1]:
        axes.set_xlabel("distance moved (σ)")
    text = "Bands: 95% intervals of the mean. Dashed: the judge on real images; dotted: chance."
    caption(figure, runs_of(blocks.values()), text)
    return figure


def _chance(study: Study) -> float:
    """What a judge that guesses would keep, in percent: the mean is over the classes."""
    return 100 / len(next(iter(study.values()))[0].class_accuracy)


@styled
def movement(found: Sequence[Record]) -> Picture:
    """Class kept against how far the pixels moved, from 0 to 3σ, a line a run; a strip that stands still keeps all."""
    blocks = needed(studies(found), BOTH)
    rows = (len(blocks) + 1) // 2
    figure = Picture(figsize=(7.5, 0.8 + 2.3 * rows))
    grid = figure.subplots(rows, min(2, len(blocks)), squeeze=False).ravel()
    for unused in grid[len(blocks) :]:
        unused.remove()
    for axes, (title, study) in zip(grid, blocks.items(), strict=False):
        for name, runs in study.items():
            for number, run in enumerate(runs):
                label = {"label": f"{name} (n = {len(runs)})"} if number == 0 else {}
                for prefix, line in (("", "-"), ("tenth_", ":")):
                    x, y = (
                        [run.metrics[f"{prefix}{what}_{i}"] for i in range(STEPS + 1)]
                        for what in ("movement", "consistency")
                    )
                    axes.plot(x, 100 * np.array(y), line, color=COLOUR[name], alpha=0.7, **({} if prefix else label))
                for what, mark in ((f"each_{{}}_{STEPS}", "s"), ("noise_{}", "x")):
                    at, share = (run.metrics[what.format(part)] for part in ("movement", "consistency"))
                    axes.plot(at, 100 * share, mark, color=COLOUR[name], alpha=0.7, markersize=5)
        axes.axhline(_chance(study), color=GREY, linewidth=1, linestyle=":")
        axes.set_xlabel("movement (root mean square of a pixel)", fontsize=9)
        axes.set_title(title, fontsize=9)
        axes.legend(fontsize=7)
    grid[0].set_ylabel("class kept (%)")
    text = (
        "Solid: all coordinates; dotted: the largest tenth; squares: one at a time, 3σ; crosses: unit noise on codes;"
        " grey: chance."
    )
    caption(figure, runs_of(blocks.values()), f"A line a run, from 0 to 3σ. {text}")
    return figure


def probe(found: Sequence[Record]) -> Picture:
    """Accuracy of one and the same linear probe of the mean codes, and the difference from the VAE's."""
    note = "A ridge regression of mean codes, the same for all."
    return comparison(needed(studies(found), BOTH), "probe_accuracy", note, COLOUR)


def reconstruction(found: Sequence[Record]) -> Picture:
    """Squared error of a pixel of the decoded mean code, and the difference from the VAE's."""
    return comparison(needed(studies(found), BOTH), "reconstruction_error", "Range of a pixel: [0, 1].", COLOUR)


def augmented(found: Sequence[Record]) -> Picture:
    """Test accuracy of a classifier on real images, trained on augmented ones."""
    blocks = needed(arms(found), "classifiers trained with and without augmented images")
    note = "Half of the images of a batch replaced, from 30% of training on."
    return comparison(blocks, note=note, colours=ARM_COLOUR)


@styled
def sweep(found: Sequence[Record]) -> Picture:
    """G-VAE with one setting changed: a row a setting, a column a measure."""
    named = needed({"": sweeps(found)} if sweeps(found) else {}, "G-VAE at two settings on one set")[""]
    figure = Picture(figsize=(7.5, 1.1 + 0.3 * len(named)))
    panels = figure.subplots(1, len(SWEEP), sharey=True)
    for axes, (metric, label) in zip(panels, SWEEP.items(), strict=True):
        scale = 100 if "%" in label else 1
        for row, runs in enumerate(named.values()):
            values = [scale * record.metrics[metric] for record in runs]
            result, colour = summary(values), RED if row == 0 else BLUE
            axes.plot(values, [row + 0.25] * len(values), "o", color=colour, alpha=0.35, markersize=3)
            half = result.half_width if result.n > 2 else 0.0
            axes.errorbar(result.mean, row, xerr=half, fmt="D", color=colour, markersize=4, capsize=2)
        axes.set_title(label, fontsize=8)
        axes.set_ylim(len(named) - 0.5, -0.5)
        axes.tick_params(axis="x", labelsize=7)
    panels[0].set_yticks(range(len(named)), [f"{name} (n = {len(runs)})" for name, runs in named.items()], fontsize=8)
    caption(
        figure,
        runs_of([named]),
        "Red: the usual settings. Dots: seeds. Bars: 95% intervals of the mean, of three seeds or more.",
    )
    return figure


# -- numbers -----------------------------------------------------------------------------------------------------------


def reach(study: Study) -> float:
    """A movement that every run of a study arrives at: 0.9 of the smallest at 3 sigma, all coordinates moved."""
    return 0.9 * min(record.metrics[f"movement_{STEPS}"] for runs in study.values() for record in runs)


def kept_at(record: Record, movement: float) -> float:
    """Share of a run's strips that keep their class where they have moved so far; linear between half deviations.

    Raises ValueError for a movement that the run does not arrive at.
    """
    moved, share = (
        np.array([record.metrics[f"{what}_{i}"] for i in range(STEPS + 1)]) for what in ("movement", "consistency")
    )
    if not 0 <= movement <= moved[-1]:
        raise ValueError(f"movement: got {movement:.4g}; takes 0 to {moved[-1]:.4g}, where the run's strips end")
    return float(np.interp(movement, moved, share))


def recognised(study: Study) -> bool:
    """Whether the judge calls the VAE's m(mu) rightly at least half as often as real images; else nothing is kept."""
    runs = study["VAE"]
    at_mean, real = (summary(r.metrics[name] for r in runs).mean for name in ("consistency_0", "judge_accuracy"))
    return at_mean >= 0.5 * real


def compared(study: Study, first: str, second: str) -> dict[str, list[float]]:
    """What the second of two methods has more than the first, seed by seed on the seeds of both, by what is measured.

    In points and thousandths, as the names say. Equal movement: that of :func:`reach`.
    """
    sides = [{record.seed: record for record in study[name]} for name in (first, second)]
    pairs = [(sides[0][seed], sides[1][seed]) for seed in sorted(sides[0].keys() & sides[1].keys())]
    at = reach(study)
    measured: dict[str, tuple[float, Callable[[Record], float]]] = {
        "linear probe (points)": (100, lambda r: r.metrics["probe_accuracy"]),
        f"{KEPT} at μ (points)": (100, lambda r: r.metrics["consistency_0"]),
        f"{KEPT} at equal movement": (100, lambda r: kept_at(r, at)),
        f"{KEPT} at equal movement, less that at μ": (100, lambda r: kept_at(r, at) - r.metrics["consistency_0"]),
        f"{KEPT} at 3σ": (100, lambda r: r.metrics[f"consistency_{STEPS}"]),
        f"{KEPT} at 3σ, largest tenth": (100, lambda r: r.metrics[f"tenth_consistency_{STEPS}"]),
        "movement at 3σ (thousandths)": (1000, lambda r: r.metrics[f"movement_{STEPS}"]),
        "squared error (thousandths)": (1000, lambda r: r.metrics["reconstruction_error"]),
    }
    return {name: [scale * (of(b) - of(a)) for a, b in pairs] for name, (scale, of) in measured.items()}


def table(found: Sequence[Record]) -> str:
    """G-VAE less VAE, and less conditional VAE, in Markdown: a row a measure, a column a set.

    Bold: an interval without zero. Of sets whose decoded means the judge does not recognise (:func:`recognised`) no
    share of class kept is told.
    """
    blocks, parts = needed(studies(found), BOTH), []
    for other in ("VAE", "conditional VAE"):
        columns = {title: compared(s, other, "G-VAE") for title, s in blocks.items() if other in s}
        heads = [f"{title} (n = {len(next(iter(values.values())))})" for title, values in columns.items()]
        lines = [f"| G-VAE less {other} | {' | '.join(heads)} |", "|---" * (1 + len(heads)) + "|"]
        for measure in next(iter(columns.values()), {}):
            cells = [
                _cell(values[measure]) if recognised(blocks[title]) or not measure.startswith(KEPT) else ""
                for title, values in columns.items()
            ]
            lines.append(f"| {measure} | {' | '.join(cells)} |")
        parts.append("\n".join(lines))
    return "\n\n".join(parts) + "\n"


def _cell(values: Sequence[float]) -> str:
    if not values:
        return ""
    result = summary(values)
    text = result.text("+.1f")
    return f"**{text}**" if result.n > 2 and abs(result.mean) > result.half_width else text


def separations(found: Sequence[Record], sets: Sequence[str] = ("lfw64", "celeba")) -> dict[str, dict[str, Any]]:
    """How far faces lie apart in the plane, by gender, smile and all four: {label: {method: {seed: share}}}.

    From the record, or from the codes beside it where it is an older one; of the first of these sets that has them.
    """
    names = {"gender": "male_", "smile": "smiling_", "all four": ""}
    result: dict[str, dict[str, Any]] = {}
    made = _of_sets(found, sets)
    if not made:
        raise NothingToDraw("faces")
    for study in made:
        if result:
            break
        for name, runs in study.items():
            for run in runs:
                beside = {} if "plane_separation" in run.metrics else records.pictures("2_gvae", run)
                for title, key in names.items():
                    value = run.metrics.get(f"plane_{key}separation")
                    if beside:
                        labels = torch.from_numpy(GROUPS[title](beside["labels"])).long()
                        value = separation(torch.from_numpy(beside["plane"]), labels)
                    if value is not None:
                        result.setdefault(title, {}).setdefault(name, {})[run.seed] = value
    return result


def rows_apart(found: Sequence[Record], sets: Sequence[str] = ("lfw64", "celeba")) -> dict[str, tuple[float, float]]:
    """Of :func:`directions`, by method, in units of the range of a pixel: how far a strip's ends lie from their middle,
    and how far from the same ends of another row; both root mean squares of a pixel."""
    result = {}
    for name, (_, kept) in _of(found, sets).items():
        strips = kept["directions"].astype(float) / 255
        middle = len(COLUMNS) // 2
        moved = strips[:, [0, -1]] - strips[:, [middle]]
        between = strips[:, [0, -1]] - strips[:, [0, -1]].mean(0)
        pairs = np.sqrt(2 * len(strips) / (len(strips) - 1) * (between**2).mean())
        result[name] = float(np.sqrt((moved**2).mean())), float(pairs)
    return result


# -- what lies beside a record -----------------------------------------------------------------------------------------


def _pictured(study: Study) -> dict[str, tuple[Record, dict[str, np.ndarray]]]:
    """By name the first run that has pictures, and these."""
    found: dict[str, tuple[Record, dict[str, np.ndarray]]] = {}
    for name, runs in study.items():
        for run in runs:
            if name not in found and (kept := records.pictures("2_gvae", run)):
                found[name] = run, kept
    return found


def _of(found: Sequence[Record], sets: Sequence[str]) -> dict[str, tuple[Record, dict[str, np.ndarray]]]:
    """Pictures by method, of the first of these sets that has those of VAE and G-VAE."""
    for study in _of_sets(found, sets):
        shown = _pictured(study)
        if {"VAE", "G-VAE"} <= shown.keys():
            return shown
    raise NothingToDraw(f"strips of VAE and G-VAE on {' or '.join(sets)}")


SIGMAS = [f"{'+' if i > 0 else ''}{i / 2:g}σ".replace("-", "\N{MINUS SIGN}") if i else "μ" for i in COLUMNS]


def strips(found: Sequence[Record], sets: Sequence[str], rows: int = 2) -> Picture:
    """Strips of G-VAE above those of the VAE: ends of the largest tenth, the image, all coordinates, unit noise."""
    shown, lines, titles = _of(found, sets), [], []
    classes = _classes(shown["VAE"][0])
    for name in ("G-VAE", "VAE"):
        kept = shown[name][1]
        for row in range(min(rows, len(kept["images"]))):
            image, noise = kept["images"][row : row + 1], kept["noise"][row : row + 1]
            lines.append(np.concatenate([kept["tenth"][row, [0, -1]], image, kept["all"][row], noise]))
            titles.append(f"{name}: {classes[kept['target'][row]]}")
    columns = [*(f"{SIGMAS[i]}\ntenth" for i in (0, -1)), "image", *(f"{text}\nall" for text in SIGMAS), "noise"]
    figure = sheet(torch.from_numpy(np.stack(lines)), titles, columns, size=TILE)
    figure.axes[0].tick_params(labelsize=7)
    caption(figure, [record for record, _ in shown.values()], "Unseen images, the first of their classes; seed 0.")
    return figure


ENDS = [0, len(COLUMNS) // 2, -1]


def directions(found: Sequence[Record], sets: Sequence[str] = ("lfw64", "celeba")) -> Picture:
    """One image moved along the mean deviation of each class: of G-VAE, then of the VAE."""
    shown, lines, titles = _of(found, sets), [], []
    classes = _classes(shown["VAE"][0])
    for name in ("G-VAE", "VAE"):
        kept = shown[name][1]
        for row, strip in enumerate(kept["directions"]):
            lines.append(np.concatenate([kept["images"][:1], strip[ENDS]]))
            titles.append(f"{name}: {classes[row]}")
    figure = sheet(torch.from_numpy(np.stack(lines)), titles, ["image", *(SIGMAS[i] for i in ENDS)], size=TILE)
    figure.axes[0].tick_params(labelsize=7)
    caption(figure, [record for record, _ in shown.values()], "One unseen image, seed 0.")
    return figure


def _classes(record: Record) -> Sequence[str]:
    from semaug.data.sources import FACES

    faces = record.config["data"]["name"] in ("lfw64", "celeba")
    return FACES if faces else [f"class {c}" for c in range(len(record.class_accuracy))]


@styled
def plane(found: Sequence[Record], sets: Sequence[str] = ("lfw64", "celeba")) -> Picture:
    """Mean codes of unseen faces in their first two principal components: by gender, by smile, all four classes."""
    shown = _of(found, sets)
    figure = Picture(figsize=(7.5, 3.9))
    grid = figure.subplots(2, 3, sharex="row", sharey="row")
    faces = _classes(shown["VAE"][0])
    parts = {"gender": ("woman", "man"), "smile": ("not smiling", "smiling"), "all four": faces}
    for line, name in zip(grid, ("G-VAE", "VAE"), strict=True):
        kept = shown[name][1]
        for axes, (title, words) in zip(line, parts.items(), strict=True):
            label = GROUPS[title](kept["labels"])
            for value, word in enumerate(words):
                points = kept["plane"][label == value]
                style = {"color": COLOURS[value], "markersize": 2.5, "alpha": 0.5, "label": word, "rasterized": True}
                axes.plot(*points.T, "o", **style)
            axes.set_title(f"{name}, {title}", fontsize=9)
            axes.legend(fontsize=6.5, markerscale=1.5)
        line[0].set_ylabel("second component")
        line[0].set_xlabel(f"first ({kept['share'][0]:.0%} and {kept['share'][1]:.0%} of variance)", fontsize=8)
    caption(figure, [record for record, _ in shown.values()], "Unseen faces, seed 0. The classes enter colours only.")
    return figure


@styled
def factors(found: Sequence[Record]) -> Picture:
    """Which known factor of the generated shapes each coordinate moves: mean cosine, the largest deviation first."""
    shown = _of(found, ("shapes",))
    if not all("alignment" in kept for _, kept in shown.values()):
        raise NothingToDraw("the alignment of coordinates with the factors of shapes")
    figure = Picture(figsize=(7.5, 0.8 + 1.7 * len(shown)))
    grid = figure.subplots(len(shown), 1, squeeze=False)[:, 0]
    for axes, (name, (_, kept)) in zip(grid, shown.items(), strict=True):
        order = np.argsort(-kept["deviation"])
        drawn = axes.imshow(kept["alignment"][:, order], vmin=0, vmax=1, cmap="Blues", aspect="auto")
        axes.set_yticks(range(len(RANGES)), [factor.replace("_", " ") for factor in RANGES], fontsize=7)
        axes.set_xticks(range(len(order)), [f"{value:.2f}" for value in kept["deviation"][order]], fontsize=6)
        axes.set_title(name, fontsize=9)
        axes.grid(visible=False)
    grid[-1].set_xlabel("coordinates, by mean σ")
    figure.colorbar(drawn, ax=list(grid), label="mean cosine")
    caption(figure, [record for record, _ in shown.values()], "300 unseen images, seed 0.")
    return figure


def sweep_strips(found: Sequence[Record], images: int = 1) -> Picture:
    """An image (or several) moved along all coordinates under each setting of the sweep."""
    shown = _pictured(sweeps(found))
    if len(shown) < 2:
        raise NothingToDraw("strips of G-VAE at two settings")
    lines = [
        np.concatenate([np.concatenate([p["images"][i : i + 1], p["all"][i]]) for i in range(images)])
        for _, p in shown.values()
    ]
    figure = sheet(torch.from_numpy(np.stack(lines)), list(shown), ["image", *SIGMAS] * images, size=TILE)
    figure.axes[0].tick_params(labelsize=7)
    caption(figure, [record for record, _ in shown.values()], "All coordinates moved. Unseen images, seed 0.")
    return figure


FIGURES: dict[str, dict[str, Callable[[Sequence[Record]], Picture]]] = {
    "2_gvae": {
        "consistency": consistency,
        "movement": movement,
        "probe": probe,
        "reconstruction": reconstruction,
        "sweep": sweep,
        "augmented": augmented,
        "strips_embedded": partial(strips, sets=("embedded",)),
        "strips_mnist": partial(strips, sets=("mnist",)),
        "strips_cifar10": partial(strips, sets=("cifar10",)),
        "strips_shapes": partial(strips, sets=("shapes",)),
        "strips_faces": partial(strips, sets=("lfw64", "celeba"), rows=3),
        "directions": directions,
        "plane": plane,
        "sweep_strips": sweep_strips,
        "factors": factors,
    },
}
