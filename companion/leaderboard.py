r"""The leaderboard: every method that was run beside a baseline, in one table, and one figure for each notebook.

A row is a method on a data set: accuracy over its seeds, the gain over the baseline of the same seeds, and what it
cost, in passes over the network and in seconds. The papers' own numbers stand beside ours, each with its setting,
which is none of ours: they are no rows of one ranking.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import suppress
from itertools import groupby
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import numpy as np

from companion.plots import COLOURS, GREY, Picture, caption, headline, save, styled
from companion.records import committed, markdown
from companion.stats import Summary, gains, points, summary
from companion.studies import NothingToDraw, Study, modules
from semaug.core.files import write_whole
from semaug.training.record import Record


class Row(NamedTuple):
    """A method on a data set, on the seeds shared with the baseline.

    accuracy and gain in points, the gain of the baseline None; passes and seconds over the baseline's, seconds as the
    median over seeds, NaN where they were not measured; runs: its records.
    """

    study: Study
    method: str
    accuracy: Summary
    gain: Summary | None
    passes: float
    seconds: float
    runs: Sequence[Record]


def results(notebook: str) -> dict[str, tuple[Study, dict[str, list[Record]]]]:
    """The studies of a notebook that measure accuracy, by title, and their records by method, the baseline first.

    By a study module's own ``results`` where it has one; otherwise the arms that are no variants of others.
    """
    module, index = modules()[notebook], committed(notebook)
    if hasattr(module, "results"):
        found: dict[str, tuple[Study, dict[str, list[Record]]]] = module.results(index)
        return found
    shown = {
        study.title: (study, index.by_arm(study, [arm.name for arm in study.arms if not arm.variant]))
        for study in module.STUDIES
    }
    return {
        title: (study, by_arm)
        for title, (study, by_arm) in shown.items()
        if len(by_arm) > 1 and "test_accuracy" in by_arm[study.baseline.name][0].metrics
    }


def rows(notebook: str | None = None) -> list[Row]:
    """All rows, or those of a notebook, study by study."""
    found = []
    for name in modules() if notebook is None else [notebook]:
        for study, by_method in results(name).values():
            first, *_ = by_method
            base = {record.seed: record for record in by_method[first]}
            for method, runs in by_method.items():
                common = [record for record in runs if record.seed in base]
                if not common:
                    continue
                epochs = _epochs(common[0]) / _epochs(base[common[0].seed])
                passes = epochs * next((arm.passes for arm in study.arms if arm.name == common[0].arm), 1.0)
                took = [
                    record.seconds / base[record.seed].seconds
                    for record in common
                    if base[record.seed].seconds > 0 and not _shared(record) and not _shared(base[record.seed])
                ]
                gain = None if method == first else summary(gains(common, base.values()))
                accuracy = summary(map(points, common))
                seconds = median(took) if took else math.nan
                found.append(Row(study, method, accuracy, gain, passes, seconds, common))
    return found


def _epochs(record: Record) -> int:
    return int(record.config["recipe"]["epochs"])


def _shared(record: Record) -> bool:
    """Whether its seconds are a share of those of several runs together, and say nothing of its own."""
    return "together" in {**record.environment.get("resumed_from", {}), **record.environment}


def table(notebook: str | None = None) -> str:
    """The rows in Markdown, of one notebook or of all, a table a study. Raises NothingToDraw without a row."""
    chosen = rows(notebook)
    if not chosen:
        raise NothingToDraw("a baseline and another method under one recipe")
    parts: list[str] = []
    for (of, title), own in groupby(chosen, lambda row: (row.study.notebook, row.study.title)):
        found = list(own)
        first = found[0].runs[0]
        where = f"profile {first.profile}, {first.environment.get('device', 'unknown device')}"
        lines = []
        for row in found:
            gain = "" if row.gain is None else row.gain.text("+.1f")
            cost = f"{row.passes:.3g}", "" if math.isnan(row.seconds) else f"{row.seconds:.2f}"
            lines.append([row.method, str(row.accuracy.n), row.accuracy.text(), gain, *cost])
        head = ["method", "n", "accuracy (%)", "gain (points)", "passes", "seconds"]
        title = f"**{of}: {title}** (n seeds, mean ± 95% interval; {where})"
        parts.append(f"{title}\n\n{markdown(head, lines)}")
    return "\n\n".join(parts) + "\n"


def papers(notebook: str | None = None) -> str:
    """What the papers report, in Markdown, of one notebook or of all; empty where there is nothing."""
    lines = [(name, *said) for name, module in modules().items() if notebook in (None, name) for said in module.PAPER]
    return markdown(["notebook", "setting", "accuracy reported (%)", "by"], lines) + "\n" if lines else ""


MARKS = "oDs^vP*X<>"

MOST = 10
"""Methods in a picture: those of most data sets, of as many the first."""


@styled
def drawn(notebook: str) -> Picture:
    """Gains over the baseline by method, a mark a data set, with 95% intervals over seeds.

    Raises NothingToDraw without a row.
    """
    methods: dict[str, list[Row]] = {}
    for row in rows(notebook):
        if row.gain is not None:
            methods.setdefault(row.method, []).append(row)
    if not methods:
        raise NothingToDraw("a baseline and another method under one recipe")
    total, often = len(methods), sorted(methods, key=lambda method: -len(methods[method]))[:MOST]
    methods = {method: marks for method, marks in methods.items() if method in often}
    shown = [row for marks in methods.values() for row in marks]
    sets = dict.fromkeys(row.study.title for row in shown)
    style = {name: (COLOURS[k % len(COLOURS)], MARKS[k % len(MARKS)]) for k, name in enumerate(sets)}
    high = max(4, len(methods))
    figure = Picture(figsize=(7.5, min(6.3, 1.5 + 0.2 * (len(sets) // 2) + 0.24 * high)))
    axes = figure.subplots()
    seen: dict[str, Any] = {}
    for at, marks in enumerate(methods.values()):
        for shift, row in zip(np.linspace(-0.25, 0.25, len(marks) + 2)[1:-1], marks, strict=True):
            colour, mark = style[row.study.title]
            gain = row.gain or row.accuracy
            half, face = (gain.half_width, colour) if gain.n > 2 else (0.0, "white")
            look: dict[str, Any] = {"fmt": mark, "color": colour, "markerfacecolor": face, "markersize": 4}
            seen.setdefault(row.study.title, axes.errorbar(gain.mean, at + shift, xerr=half, elinewidth=1, **look))
    axes.axvline(0, color=GREY, linewidth=1)
    axes.set_yticks(range(len(methods)), list(methods), fontsize=8)
    axes.set_ylim(len(methods) - 0.5, -0.5)
    axes.grid(visible=False, axis="y")
    axes.set_xlabel("gain over the baseline (points)")
    below = (0.5, -0.5 / (0.24 * high))  # half an inch, for the axis and its label
    axes.legend(seen.values(), seen, loc="upper center", bbox_to_anchor=below, ncols=3, fontsize=7.5)
    better = sum(row.gain is not None and row.gain.n > 2 and row.gain.side > 0 for row in shown)
    headline(figure, f"{notebook}: {better} of {len(shown)} gains over the baseline are significantly above zero")
    text = "Bars: 95% intervals; open: fewer than three seeds."
    if total > len(methods):
        text += f" The {len(methods)} methods of most data sets; all {total} are in leaderboard.md."
    caption(figure, [record for row in shown for record in row.runs], text)
    return figure


HEAD = """# Leaderboard

Drawn by `make figures` from the committed records. Every block is one study: one data set, network and recipe, paired
seeds. *Gain* is over the first method on the same seeds; *passes* and *seconds* are over its own. Blocks are no ranking
of each other: they differ in images, epochs and device. Seconds were measured on shared cores and are a rough guide;
`make bench` measures.
"""


def text() -> str:
    """The whole page: accuracies, the tables of what is not compared by accuracy, what the papers report."""
    parts = [HEAD, table()]
    for name, module in modules().items():
        if hasattr(module, "TABLE"):
            with suppress(NothingToDraw):
                parts += [f"\n## {module.TABLE}\n", module.table(committed(name))]
    return "\n".join([*parts, f"\n## What the papers report\n\n{papers()}"])


def write(folder: Path) -> list[Path]:
    """``leaderboard.md`` in ``folder/leaderboard``, and a picture a notebook. Raises NothingToDraw without a row."""
    content, paths = text(), list[Path]()
    for notebook in modules():
        with suppress(NothingToDraw):
            paths.append(save(drawn(notebook), folder / "leaderboard", notebook))
    return [*paths, write_whole(folder / "leaderboard" / "leaderboard.md", content)]
