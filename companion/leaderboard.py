r"""The leaderboard: every method that was run beside cross-entropy, in one table and one figure.

A row is a method on a data set: accuracy over its seeds, the gain over cross-entropy of the same seeds, and what it
cost, in passes over the network and in seconds. Methods are called and grouped as in the figures of their notebooks;
the runs of one setting changed at a time are left to those. The papers' own numbers stand beside ours, each with its
setting, which is none of ours: they are no rows of one ranking.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import numpy as np

from companion import figures, gan_figures, gvae_figures, longtail_figures, mixing_figures, records, sla_figures
from companion.figures import NothingToDraw
from companion.plots import COLOURS, GREY, Picture, caption, save, styled
from companion.stats import Summary, summary
from semaug.methods.sla import TRANSFORMS
from semaug.training.record import Record, write_whole

BASELINE = "cross-entropy"

Study = Mapping[str, Sequence[Record]]


class Row(NamedTuple):
    """A method on a data set. accuracy and gain in points, on the seeds shared with cross-entropy, whose own gain is
    None; passes and seconds over cross-entropy's, these as the median over seeds, nan where they were not measured;
    runs: its records.
    """

    notebook: str
    title: str
    method: str
    accuracy: Summary
    gain: Summary | None
    passes: float
    seconds: float
    runs: Sequence[Record]


def passes(record: Record) -> float:
    """Passes over the network, forward and back, for each image and epoch; cross-entropy's are 1.

    SLA, DA and MT: one for each of M views. MetaSAug: in its second stage 8/3 more for each meta step (room
    ``metasaug``). TeachAugment: student and teacher once more at every so many-th step. AutoMix, PuzzleMix and
    Co-Mixup: see :func:`semaug.mixing_figures.passes`. Not counted: the decoder of G-VAE and the generator of
    FeatureAugmentation, which are other networks.
    """
    objective, settings = record.config["objective"], record.config["settings"]
    if "transforms" in settings:
        return float(len(TRANSFORMS[settings["transforms"]]))
    if objective == "MetaSAug":
        begins, steps = settings.get("stage") or 0.0, settings.get("meta_steps", 1)
        return begins + (1 - begins) * (1 + steps * 8 / 3)
    if objective == "TeachAugment":
        return 1 + 2 / settings.get("every", 5)
    return mixing_figures.passes(record)


def studies(found: Mapping[str, Sequence[Record]]) -> dict[tuple[str, str], Study]:
    """Records by notebook and title of the experiment, then by method, cross-entropy first."""
    result: dict[tuple[str, str], Study] = {}

    def add(notebook: str, made: Mapping[str, Study], first: str = BASELINE) -> None:
        for title, study in made.items():
            if first in study and len(study) > 1:
                result[notebook, title] = {BASELINE: study[first], **{n: r for n, r in study.items() if n != first}}

    plain = figures.experiments(
        figures.as_published(found.get("1_isda", [])), lambda group: len(figures.chosen(group)) > 1
    )
    add("1_isda", {title: figures.chosen(group) for title, group in plain.items()})
    tails = longtail_figures.long_tails(found.get("1_metasaug", []))
    of_methods = {t: [r for r in g if not longtail_figures.is_ablation(r.config)] for t, g in tails.items()}
    add("1_metasaug", {title: longtail_figures.methods(group) for title, group in of_methods.items()})
    add("2_gvae", gvae_figures.arms(found.get("2_gvae", [])), "none")
    mixed = mixing_figures.studies(found.get("3_automix", []))
    add("3_automix", {t: {**mixing_figures.plain(s), **mixing_figures.longer(s)} for t, s in mixed.items()})
    for sets in (gan_figures.GREY_SETS, ("hues",)):
        with suppress(NothingToDraw):
            study = gan_figures.classifiers(found.get("4_diffaugment", []), sets)
            first = study[gan_figures.BASELINE][0]
            title = f"{first.config['data']['name']}, {sum(first.train_counts)} images"
            add("4_diffaugment", {title: study}, gan_figures.BASELINE)
    for name in TRANSFORMS:
        for long_tail in (False, True):
            made = sla_figures.studies(found.get("5_sla", []), name, long_tail)
            add("5_sla", {f"{title}, {name}": study for title, study in made.items()})
    return result


def rows(found: Mapping[str, Sequence[Record]]) -> list[Row]:
    """All rows, experiment by experiment; ``found``: records by notebook."""
    result = []
    for (notebook, title), study in studies(found).items():
        base = {record.seed: record for record in study[BASELINE]}
        for method, runs in study.items():
            common = [record for record in runs if record.seed in base]
            if not common:
                continue
            gained = [100 * (r.metrics["test_accuracy"] - base[r.seed].metrics["test_accuracy"]) for r in common]
            epochs = common[0].config["recipe"]["epochs"] / base[common[0].seed].config["recipe"]["epochs"]
            took = [
                record.seconds / base[record.seed].seconds
                for record in common
                if base[record.seed].seconds > 0 and not _shared(record) and not _shared(base[record.seed])
            ]
            seconds = median(took) if took else math.nan
            accuracy = summary(100 * r.metrics["test_accuracy"] for r in common)
            gain = None if method == BASELINE else summary(gained)
            cost = epochs * passes(common[0])
            result.append(Row(notebook, title, method, accuracy, gain, cost, seconds, common))
    return result


def _shared(record: Record) -> bool:
    """Whether its seconds are a share of those of several runs together, and say nothing of its own."""
    return "together" in {**record.environment.get("resumed_from", {}), **record.environment}


def table(found: Mapping[str, Sequence[Record]], notebook: str | None = None) -> str:
    """The rows in Markdown, of one notebook or of all, a table an experiment; and the papers' numbers.

    Raises NothingToDraw without a row.
    """
    chosen = [row for row in rows(found) if notebook in (None, row.notebook)]
    if not chosen:
        raise NothingToDraw("cross-entropy and another method under one recipe")
    parts: list[str] = []
    for key in dict.fromkeys((row.notebook, row.title) for row in chosen):
        of = [row for row in chosen if (row.notebook, row.title) == key]
        first = of[0].runs[0]
        where = f"profile {first.profile}, {first.environment.get('device', 'unknown device')}"
        lines = [f"**{key[0]}: {key[1]}** (n seeds, mean ± 95% interval; {where})", ""]
        lines += ["| method | n | accuracy (%) | gain (points) | passes | seconds |", "|---|---|---|---|---|---|"]
        for row in of:
            gain = "" if row.gain is None else row.gain.text("+.1f")
            cost = f"{row.passes:.3g} | {'' if math.isnan(row.seconds) else f'{row.seconds:.2f}'}"
            lines.append(f"| {row.method} | {row.accuracy.n} | {row.accuracy.text()} | {gain} | {cost} |")
        parts.append("\n".join(lines))
    return "\n\n".join(parts) + "\n"


PAPERS: dict[str, list[tuple[str, str, str]]] = {
    "1_isda": [
        ("CIFAR-10, ResNet-32, 160 epochs, n = 5", "cross-entropy 92.61 ± .10, ISDA 92.91 ± .12", "ISDA, TPAMI 2021"),
        ("CIFAR-100, ResNet-32, 160 epochs, n = 5", "cross-entropy 68.80 ± .41, ISDA 69.73 ± .34", "ISDA, TPAMI 2021"),
    ],
    "1_metasaug": [
        ("CIFAR-10-LT, ρ = 100, ResNet-32, best epoch", "MetaSAug 80.66 (LDAM), 80.54 (CE)", "MetaSAug's repository"),
        ("CIFAR-100-LT, ρ = 100, ResNet-32, best epoch", "MetaSAug 48.01 (LDAM), 46.87 (CE)", "MetaSAug's repository"),
    ],
    "3_automix": [
        (
            "CIFAR-100, ResNet-18, 200 epochs",
            "vanilla 76.42, mixup 78.52, CutMix 79.45, Manifold Mixup 79.18, PuzzleMix 79.96, AutoMix 80.12",
            "OpenMixup's benchmark",
        ),
        (
            "CIFAR-10, ResNet-18, 800 epochs",
            "vanilla 95.50, mixup 96.62, CutMix 96.68, Manifold Mixup 96.71, PuzzleMix 97.10, AutoMix 97.34",
            "OpenMixup's benchmark",
        ),
    ],
}

"""Accuracies that the papers or their code report, in percent: setting, numbers, source. The errors of ISDA and
MetaSAug are subtracted from 100; of SLA no readable table was found, of G-VAE there is none."""


def papers(notebook: str | None = None) -> str:
    """``PAPERS`` in Markdown, of one notebook or of all; empty where there are none."""
    lines = [
        f"| {name} | {setting} | {numbers} | {source} |"
        for name, entries in PAPERS.items()
        if notebook in (None, name)
        for setting, numbers, source in entries
    ]
    head = ["| notebook | setting | accuracy reported (%) | by |", "|---|---|---|---|"]
    return "\n".join([*head, *lines]) + "\n" if lines else ""


MARKS = "oDs^vP*X<>"


@styled
def drawn(found: Mapping[str, Sequence[Record]]) -> Picture:
    """Gains over cross-entropy by method, a panel a notebook, a mark a data set, with 95% intervals over seeds.

    Of the sets of views of notebook 5 the rotations. Raises NothingToDraw without a row.
    """
    chosen = [row for row in rows(found) if row.gain is not None]
    if not chosen:
        raise NothingToDraw("cross-entropy and another method under one recipe")
    panels: dict[str, dict[str, list[Row]]] = {}
    for row in chosen:
        if row.notebook != "5_sla" or row.title.endswith(", rotation"):
            panels.setdefault(row.notebook, {}).setdefault(row.method, []).append(row)
    sets = list(dict.fromkeys(_of(row) for row in chosen))
    style = {name: (COLOURS[k % len(COLOURS)], MARKS[k % len(MARKS)]) for k, name in enumerate(sets)}
    heights = [len(methods) + 1.6 for methods in panels.values()]
    figure = Picture(figsize=(7.5, 0.9 + 0.215 * sum(heights)))
    grid = figure.subplots(len(panels), 1, squeeze=False, height_ratios=heights)[:, 0]
    seen: dict[str, Any] = {}
    for axes, (notebook, methods) in zip(grid, panels.items(), strict=True):
        for at, of in enumerate(methods.values()):
            for shift, row in zip(np.linspace(-0.25, 0.25, len(of) + 2)[1:-1], of, strict=True):
                colour, mark = style[_of(row)]
                gain = row.gain or row.accuracy
                half = gain.half_width if gain.n > 2 else 0.0
                face = colour if gain.n > 2 else "white"
                bar = axes.errorbar(
                    gain.mean, at + shift, xerr=half, fmt=mark, color=colour, markersize=4, elinewidth=1
                )
                bar[0].set_markerfacecolor(face)
                seen.setdefault(_of(row), bar)
        axes.axvline(0, color=GREY, linewidth=1)
        axes.set_yticks(range(len(methods)), list(methods), fontsize=7.5)
        axes.set(ylim=(len(methods) - 0.5, -0.5))
        axes.set_title(notebook, fontsize=9)
        axes.grid(visible=False, axis="y")
    grid[-1].set_xlabel("gain over cross-entropy (points)")
    figure.legend(seen.values(), seen, loc="outside upper center", ncols=4, fontsize=7.5)
    shown = [record for methods in panels.values() for of in methods.values() for row in of for record in row.runs]
    caption(figure, shown, "Bars: 95% intervals over paired seeds; open: fewer than three.")
    return figure


def _of(row: Row) -> str:
    """The data set of a row in short; ρ is the imbalance of a long tail."""
    config = row.runs[0].config
    name, size = str(config["data"]["name"]), sum(row.runs[0].train_counts)
    tail = f", ρ = {config['data']['imbalance']}" if config["data"].get("imbalance") else ""
    worth = "" if row.runs[0].profile == "cpu" else f", {row.runs[0].profile}"
    network = "" if config["network"] == "small" else f", {config['network']}"
    return f"{name}{f' {size}' if size and not tail else ''}{tail}{network}{worth}"


def everything(folder: Path) -> dict[str, list[Record]]:
    """The records below a folder by notebook, the name of the subfolder they lie in; none where there is no folder."""
    return {path.name: records.load(path) for path in sorted(folder.glob("*")) if path.is_dir()}


def write(folder: Path) -> list[Path]:
    """``leaderboard.png``, ``.svg`` and ``.md`` in ``folder/leaderboard``, from ``folder/records``.

    Raises NothingToDraw without a row.
    """
    found = everything(folder / "records")
    text = f"{HEAD}\n{table(found)}\n"
    for notebook, (head, draw) in OTHERS.items():
        with suppress(NothingToDraw):
            text += f"## {head}\n\n{draw(found.get(notebook, []))}\n"
    text += f"## What the papers report\n\n{papers()}"
    paths = save(drawn(found), folder / "leaderboard", "leaderboard")
    return [*paths, write_whole(folder / "leaderboard" / "leaderboard.md", text)]


OTHERS: dict[str, tuple[str, Callable[[Sequence[Record]], str]]] = {
    "2_gvae": ("Autoencoders, mean ± 95% interval over seeds", gvae_figures.table),
    "4_diffaugment": ("GANs, FID and KID on features of classifiers trained here, by block", gan_figures.table),
}

"""What is not compared by accuracy: its notebook's own table."""

HEAD = """# Leaderboard

Drawn by `make figures` from the committed records. Every block is one experiment: one data set, network and recipe,
paired seeds. *Gain* is over cross-entropy of the same seeds; *passes* and *seconds* are over cross-entropy's. Blocks
are no ranking of each other: they differ in images, epochs and device. Seconds by the clock, of runs on shared cores,
are a rough guide; `make bench` measures.
"""
