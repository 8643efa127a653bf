"""The committed figures: which of the notebooks' figures are drawn from records, and from which records.

``python -m semaug.figures`` redraws ``figures/<notebook>/*.png`` and ``*.svg`` from the records in
``figures/records/<notebook>/`` and from nothing else: the same records give the same bytes.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from semaug import records as rec
from semaug.plots import COLOURS, GREY, Picture, band, caption, comparison, curves, save, styled
from semaug.records import PROFILES, Record, summary


class NothingToDraw(LookupError):
    """The records do not hold what a figure needs; the message says what that is."""


def experiments(found: Sequence[Record], enough: Callable[[list[Record]], bool]) -> dict[str, list[Record]]:
    """Records by experiment (data, network, recipe, profile), titled: of those that hold ``enough`` for a figure, the
    ones of the best profile of each data set; PROFILES are in order of worth.
    """
    groups: dict[str, list[Record]] = {}
    for record in found:
        key = {name: record.config[name] for name in ("data", "network", "recipe")} | {"profile": record.profile}
        groups.setdefault(json.dumps(key, sort_keys=True), []).append(record)
    kept = [group for _, group in sorted(groups.items()) if enough(group)]
    best: dict[str, int] = {}
    for group in kept:
        best[_set(group)] = max(best.get(_set(group), 0), PROFILES.index(group[0].profile))
    titled: dict[str, list[Record]] = {}
    for group in kept:
        if PROFILES.index(group[0].profile) == best[_set(group)]:
            config = group[0].config
            words = [f"{key.replace('_', ' ')} {config['data'][key]}" for key in SUBSETS if config["data"].get(key)]
            title = ", ".join([_set(group), *words, str(config["network"]), f"{config['recipe']['epochs']} epochs"])
            titled[title if title not in titled else f"{title}, {group[0].hash}"] = group
    return titled


SUBSETS = ("train_size", "per_class", "imbalance")


def _set(group: Sequence[Record]) -> str:
    return str(group[0].config["data"]["name"])


def method(config: Mapping[str, Any]) -> str:
    """What a method is called in a legend: its name and settings."""
    settings = dict(config["settings"])
    words = ["cross-entropy" if config["objective"] == "CrossEntropy" else str(config["objective"])]
    if "covariance" in settings:
        words.append(str(settings.pop("covariance")))
    if "strength" in settings:
        words.append(rf"$\lambda_0$ = {settings.pop('strength'):g}")
    words += [f"{key.replace('_', ' ')} {value}" for key, value in settings.items() if value not in (None, False)]
    return ", ".join(words)


def methods(found: Iterable[Record]) -> dict[str, list[Record]]:
    """Records by method, in order of seed; plain cross-entropy is the first method."""
    groups: dict[str, list[Record]] = {}
    for record in sorted(found, key=lambda r: (r.config["objective"] != "CrossEntropy", method(r.config), r.seed)):
        groups.setdefault(method(record.config), []).append(record)
    return groups


def chosen(found: Iterable[Record]) -> dict[str, list[Record]]:
    """Of each method the strength with the best mean validation accuracy; all strengths where none was measured."""
    families: dict[str, dict[str, list[Record]]] = {}
    for name, group in methods(found).items():
        settings = {key: value for key, value in group[0].config["settings"].items() if key != "strength"}
        families.setdefault(json.dumps([group[0].config["objective"], settings], sort_keys=True), {})[name] = group
    result: dict[str, list[Record]] = {}
    for family in families.values():
        if all("validation_accuracy" in record.metrics for group in family.values() for record in group):
            mean = {
                name: summary(r.metrics["validation_accuracy"] for r in group).mean for name, group in family.items()
            }
            best = max(mean, key=mean.__getitem__)
            result[best] = family[best]
        else:
            result |= family
    return result


def isda_accuracy(found: Sequence[Record]) -> Picture:
    """Notebook 1: test accuracy of cross-entropy and ISDA, a block a data set; strengths chosen on validation data."""
    panels = experiments(found, lambda group: len(chosen(group)) > 1)
    if not panels:
        raise NothingToDraw("two methods under one recipe")
    blocks = {title: chosen(group) for title, group in panels.items()}
    validated = all("validation_accuracy" in record.metrics for group in panels.values() for record in group)
    return comparison(blocks, note="Strengths chosen on validation data." if validated else "")


def isda_curves(found: Sequence[Record]) -> Picture:
    """Notebook 1: training loss and held-out accuracy by epoch, of the experiment with most records."""
    name = "validation_accuracy"
    panels = experiments(found, lambda group: all(name in record.curves for record in group))
    if not panels:
        raise NothingToDraw("accuracies on a validation split during training (Recipe.evaluate_every)")
    title, group = max(panels.items(), key=lambda entry: len(entry[1]))
    figure = curves(chosen(group), "train_loss", name)
    figure.suptitle(title, x=0.01, ha="left")
    return figure


@styled
def isda_strength(found: Sequence[Record]) -> Picture:
    """Notebook 1: gain over cross-entropy, seed by seed, over the strength; a panel a data set, a line a covariance."""
    panels = experiments(found, lambda group: bool(_gains(group)))
    if not panels:
        raise NothingToDraw("cross-entropy and ISDA at two strengths or more, on the same seeds")
    rows = (len(panels) + 1) // 2
    figure = Picture(figsize=(7.5, 0.3 + 3.1 * rows))
    grid = figure.subplots(rows, min(2, len(panels)), squeeze=False).ravel()
    for unused in grid[len(panels) :]:
        unused.remove()
    forms = sorted({form for group in panels.values() for form in _gains(group)}, reverse=True)  # full, diagonal
    for axes, (title, group) in zip(grid, panels.items(), strict=False):
        gains = _gains(group)
        ticks = sorted({strength for strengths, _ in gains.values() for strength in strengths})
        for form, (strengths, values) in gains.items():  # at equal steps: strengths are chosen as 1/4, 1/2, 1, 2.5, 7.5
            at = [ticks.index(strength) for strength in strengths]
            band(axes, at, values, form, color=COLOURS[forms.index(form)], marker="o")
        axes.axhline(0, color=GREY, linewidth=1)
        axes.set_xticks(range(len(ticks)), [f"{tick:g}" for tick in ticks])
        axes.set(xlabel=r"strength $\lambda_0$", title=title)
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.18), ncols=len(gains))
    grid[0].set_ylabel("gain over cross-entropy\n(points of test accuracy)")
    caption(
        figure,
        [record for group in panels.values() for record in group],
        "Bands: 95% intervals of the mean difference.",
    )
    return figure


def _gains(group: Sequence[Record]) -> dict[str, tuple[list[float], np.ndarray]]:
    """By covariance form: strengths, and test accuracy less cross-entropy's in points (seeds, strengths)."""
    score = {}
    for record in group:
        settings = record.config["settings"]
        key = (settings["covariance"], settings["strength"]) if record.config["objective"] == "ISDA" else ("", 0.0)
        score[key, record.seed] = 100 * record.metrics["test_accuracy"]
    result = {}
    for form in sorted({form for (form, _), _ in score if form}, reverse=True):
        strengths = sorted({strength for (other, strength), _ in score if other == form})
        columns = [("", 0.0), *((form, strength) for strength in strengths)]
        seeds = [
            seed for seed in sorted({seed for _, seed in score}) if all((column, seed) in score for column in columns)
        ]
        if seeds and len(strengths) > 1:
            rows = [[score[column, seed] - score[columns[0], seed] for column in columns] for seed in seeds]
            result[form] = ([0.0, *strengths], np.array(rows))
    return result


FIGURES: dict[str, dict[str, Callable[[Sequence[Record]], Picture]]] = {
    "1_isda": {"accuracy": isda_accuracy, "curves": isda_curves, "strength": isda_strength},
}
"""The figures of each notebook that are drawn from records."""


def main(arguments: list[str] | None = None) -> int:
    """Redraw the committed figures, saying what has no records."""
    parser = argparse.ArgumentParser(
        prog="python -m semaug.figures", description="Redraw figures/ from figures/records/."
    )
    parser.add_argument(
        "--folder", type=Path, default=Path(__file__).parents[1] / "figures", help="default: %(default)s"
    )
    folder = parser.parse_args(arguments).folder
    for notebook, drawings in FIGURES.items():
        found = rec.load(folder / "records" / notebook)
        for name, draw in drawings.items():
            try:
                save(draw(found), folder / notebook, name)
                print(f"drew     {notebook}/{name} from {len(found)} records")
            except NothingToDraw as missing:
                print(f"skipped  {notebook}/{name}: needs {missing}; {len(found)} records there do not hold them")
    return 0


if __name__ == "__main__":
    sys.exit(main())
