"""The figures of the long tail (notebook 1, second part), drawn from records as those of room ``figures``.

Methods are trained on one long-tailed set and tested on a balanced one, so accuracy is balanced accuracy. What a
method moves between frequent and rare classes shows in the classes: one by one, and in the groups of many, medium and
few training images (:func:`semaug.evaluation.many_medium_few`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from semaug.evaluation import class_groups, many_medium_few
from semaug.figures import NothingToDraw, experiments, on_common_seeds
from semaug.plots import COLOURS, GREY, Picture, band, caption, comparison, styled
from semaug.records import Record, Summary, summary

ORDER = ("CrossEntropy", "LongTailed", "ISDA", "MetaSAug")
RELEASED = {"loss": "ldam", "covariance": "full", "strength": 0.75}
RELEASED |= {"meta_steps": 1, "meta_lr": 0.1, "psd": False, "keep": False, "stage": 0.8}
"""MetaSAug as released; what differs from it is named in a legend."""


def method(config: Mapping[str, Any]) -> str:
    """What a method of the long tail is called in a legend; DRW is deferred re-weighting, by class weights."""
    settings = config["settings"]
    if config["objective"] == "LongTailed":
        loss = {"ce": "CE", "focal": "focal loss", "ldam": "LDAM"}[settings["loss"]]
        weights = ("-DRW" if settings["defer"] else ", class weights") if settings["beta"] else ""
        early = f", from {settings['defer']:.0%}" if settings["defer"] not in (0, RELEASED["stage"]) else ""
        return loss + weights + (f", s = {settings['scale']:g}" if settings["normalised"] else "") + early
    if config["objective"] != "MetaSAug":
        return {"CrossEntropy": "cross-entropy"}.get(config["objective"], config["objective"])
    changed = {name: settings[name] for name, usual in RELEASED.items() if settings[name] != usual}
    words = {"loss": "CE", "covariance": "diagonal", "psd": "projected", "keep": "kept"}
    steps = {"meta_steps": f"{changed.get('meta_steps') or 'no'} meta step{'s' * (changed.get('meta_steps', 0) > 1)}"}
    numbers = {"strength": r"$\lambda_0$ = {:g}", "meta_lr": r"$\alpha$ = {:g}", "stage": "from {:.0%}"}
    words |= steps | {name: text.format(changed.get(name, 0)) for name, text in numbers.items()}
    return ", ".join(["MetaSAug", *(words[name] for name in changed)])


def is_ablation(config: Mapping[str, Any]) -> bool:
    """MetaSAug with more changed than its two losses and two forms of covariance; weights deferred to another time."""
    settings = config["settings"]
    if config["objective"] == "LongTailed":
        return settings["defer"] not in (0, RELEASED["stage"])
    fixed = {name: usual for name, usual in RELEASED.items() if name not in ("loss", "covariance")}
    return config["objective"] == "MetaSAug" and any(settings[name] != usual for name, usual in fixed.items())


def methods(found: Iterable[Record]) -> dict[str, list[Record]]:
    """Records by method in order of seed: cross-entropy, the losses of the long tail, ISDA, MetaSAug."""
    groups: dict[str, list[Record]] = {}
    for record in sorted(found, key=lambda r: (ORDER.index(r.config["objective"]), method(r.config), r.seed)):
        groups.setdefault(method(record.config), []).append(record)
    return groups


def long_tails(found: Sequence[Record], enough: Callable[[list[Record]], bool] = bool) -> dict[str, list[Record]]:
    """The long-tailed experiments among records, by title; see :func:`semaug.figures.experiments`."""
    known = [r for r in found if r.config["data"].get("imbalance") and r.config["objective"] in ORDER]
    return experiments(known, enough)


def _compared(found: Sequence[Record]) -> dict[str, dict[str, list[Record]]]:
    """By experiment, the methods that share seeds with cross-entropy, which is the first."""
    result = {}
    for title, group in long_tails(found).items():
        named = methods(r for r in group if not is_ablation(r.config))
        baseline = {record.seed for record in named.get("cross-entropy", [])}
        named = {name: runs for name, runs in named.items() if baseline & {record.seed for record in runs}}
        if len(named) > 1:
            result[title] = named
    if not result:
        raise NothingToDraw("cross-entropy and another method on a long tail, on the same seeds")
    return result


def gains(runs: Sequence[Record], baseline: Sequence[Record]) -> dict[str, Summary]:
    """Gain over a baseline in points, seed by seed: of all classes alike, and of those with many, medium, few images.

    A group without a class is left out. Raises ValueError where they share no seed.
    """
    ours, theirs = ({record.seed: scores(record) for record in side} for side in (runs, baseline))
    common = sorted(ours.keys() & theirs.keys())
    if not common:
        raise ValueError(f"runs: got seeds {sorted(ours)}; takes some of the baseline's, {sorted(theirs)}")
    names = [name for name, value in ours[common[0]].items() if not np.isnan(value)]
    return {name: summary(100 * (ours[seed][name] - theirs[seed][name]) for seed in common) for name in names}


def scores(record: Record) -> dict[str, float]:
    """Accuracy of all classes alike, and of those with many, medium and few training images, in [0, 1]."""
    accuracy, counts = torch.tensor(record.class_accuracy, dtype=torch.float64), torch.tensor(record.train_counts)
    return {"all": float(accuracy.mean()), **many_medium_few(accuracy, counts)}


def accuracy(found: Sequence[Record]) -> Picture:
    """Test accuracy of the methods, a block a data set, and the difference from cross-entropy seed by seed."""
    return comparison(_compared(found), note="The test set is balanced.")


@styled
def groups(found: Sequence[Record]) -> Picture:
    """Gain over cross-entropy in the classes with many, medium and few training images."""
    blocks = _compared(found)
    rows = [len(named) - 1 for named in blocks.values()]
    figure = Picture(figsize=(7.5, 0.6 + sum(0.6 + 0.28 * n for n in rows)))
    grid = figure.subplots(len(rows), 3, squeeze=False, height_ratios=[n + 0.6 for n in rows], sharex="col")
    for line, (title, named) in zip(grid, blocks.items(), strict=True):
        (_, baseline), *others = named.items()
        members = class_groups(torch.tensor(baseline[0].train_counts))
        for axes, (group, chosen) in zip(line, members.items(), strict=True):
            for row, (_, runs) in enumerate(others):
                gain = gains(runs, baseline).get(group)
                if gain:
                    half, colour = gain.half_width if gain.n > 1 else 0.0, COLOURS[(row + 1) % len(COLOURS)]
                    axes.errorbar(gain.mean, row, xerr=half, fmt="D", color=colour, markersize=5, capsize=3)
            axes.axvline(0, color=GREY, linewidth=1)
            axes.set(ylim=(len(others) - 0.5, -0.5), title=f"{group} ({int(chosen.sum())} classes)")
            axes.set_yticks(range(len(others)), [])
            axes.grid(visible=False, axis="y")
        line[0].set_yticks(range(len(others)), [f"{name} (n = {len(runs)})" for name, runs in others])
        line[0].set_ylabel(title.replace(", ", "\n"), fontsize=8)
    for axes in grid[-1]:
        axes.set_xlabel("gain (points)")
    shown = [record for named in blocks.values() for runs in named.values() for record in runs]
    caption(figure, shown, "Over cross-entropy, seed by seed. Bars: 95% intervals of the mean difference.")
    return figure


@styled
def classes(found: Sequence[Record], shown: Sequence[str] = ("ISDA", "LDAM-DRW", "MetaSAug")) -> Picture:
    """Accuracy of every class, the most frequent first, and its gain over cross-entropy; a row a data set."""
    blocks = _compared(found)
    figure = Picture(figsize=(7.5, 0.5 + 2.9 * len(blocks)))
    grid = figure.subplots(len(blocks), 2, squeeze=False)
    drawn = []
    for (left, right), (title, named) in zip(grid, blocks.items(), strict=True):
        picked = on_common_seeds({name: named[name] for name in ("cross-entropy", *shown) if name in named})
        counts = np.array(picked["cross-entropy"][0].train_counts)
        order = np.argsort(-counts, kind="stable")
        table = {name: 100 * np.array([r.class_accuracy for r in runs])[:, order] for name, runs in picked.items()}
        for colour, (name, values) in zip(("black", *COLOURS), table.items(), strict=False):
            band(left, np.arange(len(counts)), values, name, color=colour)
            if name != "cross-entropy":
                band(right, np.arange(len(counts)), values - table["cross-entropy"], name, color=colour)
        ticks = np.unique(np.linspace(0, len(counts) - 1, 10).round().astype(int))
        for axes, label in ((left, "test accuracy (%)"), (right, "gain over cross-entropy (points)")):
            axes.set_xticks(ticks, [str(count) for count in counts[order][ticks]])
            axes.set(xlabel="training images of the class", ylabel=label)
        right.axhline(0, color=GREY, linewidth=1)
        left.set_ylim(0, 100)
        left.set_title(title, loc="left")
        left.legend()
        drawn += [record for runs in picked.values() for record in runs]
    caption(figure, drawn, "Bands: 95% intervals of the mean (difference).")
    return figure


def ablation(found: Sequence[Record]) -> Picture:
    """MetaSAug with one thing changed, for each of its losses, forms and beginnings of the second stage; and the DRW
    method of this loss and beginning.
    """
    blocks: dict[str, dict[str, list[Record]]] = {}
    for title, group in long_tails(found).items():
        meta = [r for r in group if r.config["objective"] == "MetaSAug"]
        variants = [{name: r.config["settings"][name] for name in ("loss", "covariance", "stage")} for r in meta]
        for own in (dict(pairs) for pairs in sorted({tuple(v.items()) for v in variants}, reverse=True)):
            named = methods(r for r, variant in zip(meta, variants, strict=True) if variant == own)
            released = method({"objective": "MetaSAug", "settings": RELEASED | own})
            others = {name: runs for name, runs in named.items() if name != released}
            if released in named and others:
                drw = {"loss": own["loss"], "defer": own["stage"], "normalised": False}
                weighted = methods(r for r in group if drw.items() <= r.config["settings"].items())
                form = ", diagonal" if own["covariance"] == "diagonal" else ""
                start = f", from {own['stage']:.0%}" if own["stage"] != RELEASED["stage"] else ""
                blocks[f"{title}: {own['loss'].upper()}{form}{start}"] = {
                    released: named[released],
                    **others,
                    **weighted,
                }
    if not blocks:
        raise NothingToDraw("MetaSAug as released, and with something changed")
    return comparison(blocks)


FIGURES: dict[str, dict[str, Callable[[Sequence[Record]], Picture]]] = {
    "1_metasaug": {"accuracy": accuracy, "groups": groups, "classes": classes, "ablation": ablation},
}
