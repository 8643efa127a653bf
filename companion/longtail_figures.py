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
from matplotlib.axes import Axes

from companion.figures import NothingToDraw, experiments, on_common_seeds
from companion.plots import COLOURS, GREY, Picture, caption, comparison, styled
from companion.stats import Summary, summary
from semaug.methods.long_tail import class_groups, many_medium_few
from semaug.training.record import Record

ORDER = ("CrossEntropy", "LongTailed", "ISDA", "MetaSAug")

RELEASED = {"loss": "ldam", "covariance": "full", "strength": 0.75}

RELEASED |= {"meta_steps": 1, "meta_lr": 0.1, "psd": False, "keep": False, "stage": 0.8}

RELEASED |= {"beta": 0.9999, "max_margin": 0.5}

"""MetaSAug as released; what differs from it is named in a legend."""

USUAL: dict[str, dict[str, Any]] = {"MetaSAug": RELEASED, "ISDA": {"strength": 0.5, "covariance": "full"}}

USUAL["ISDA"] |= dict.fromkeys(("control", "rank", "decay"))

USUAL["LongTailed"] = {"beta": 0.9999, "gamma": 2.0, "max_margin": 0.5}

NUMBERS = {"strength": r"$\lambda_0$ = {:g}", "meta_lr": r"$\alpha$ = {:g}", "stage": "from {:.0%}"}

NUMBERS |= {"beta": r"$\beta$ = {:g}", "max_margin": r"$\Delta_{{\max}}$ = {:g}", "gamma": r"$\gamma$ = {:g}"}

WORDS = {"loss": "CE", "psd": "projected", "keep": "kept"}  # for the one other value that each has


def method(config: Mapping[str, Any]) -> str:
    """What a method of the long tail is called in a legend; DRW is deferred re-weighting, by class weights."""
    settings = config["settings"]
    usual, parts = USUAL.get(config["objective"], {}), [config["objective"]]
    if config["objective"] == "CrossEntropy":
        parts = ["cross-entropy"]
    elif config["objective"] == "LongTailed":
        parts = [{"ce": "CE", "focal": "focal loss", "ldam": "LDAM"}[settings["loss"]]]
        if settings["beta"]:
            parts[0] += "-DRW" if settings["defer"] else ", class weights"
        # as released: cosines and scale 30 (Cao et al.), which is named, or neither; the other losses have no scale
        cosines, scale = settings["normalised"], settings.get("scale", 1.0)
        parts += [f"s = {scale:g}"] if scale != 1 or (cosines and "scale" in settings) else []
        if cosines != (scale == 30):
            parts.append("cosines" if cosines else "no cosines")
        if settings["defer"] not in (0, RELEASED["stage"]):
            parts.append(f"from {settings['defer']:.0%}")
    changed = {name: settings[name] for name, value in usual.items() if settings.get(name, value) != value}
    if config["objective"] == "LongTailed" and not settings["beta"]:
        changed.pop("beta", None)  # no weights: said already, by no word
    return ", ".join(parts + [_word(name, value) for name, value in changed.items()])


def _word(name: str, value: Any) -> str:
    """What a legend says of a setting that is not the usual one."""
    if name == "meta_steps":
        return f"{value or 'no'} meta step{'s' * (value > 1)}"
    if name == "beta" and value == 0:
        return "no class weights"
    if name in ("covariance", "control"):
        return str(value)
    return WORDS[name] if name in WORDS else NUMBERS.get(name, f"{name} {{:g}}").format(value)


def is_ablation(config: Mapping[str, Any]) -> bool:
    """MetaSAug with more changed than its two losses and two forms of covariance; weights deferred to another time."""
    settings = config["settings"]
    if config["objective"] == "LongTailed":
        return settings["defer"] not in (0, RELEASED["stage"])
    fixed = {name: usual for name, usual in RELEASED.items() if name not in ("loss", "covariance")}
    return config["objective"] == "MetaSAug" and any(
        settings.get(name, usual) != usual for name, usual in fixed.items()
    )


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


def _compared(
    found: Sequence[Record], wanted: Callable[[Mapping[str, Any]], bool] = lambda config: not is_ablation(config)
) -> dict[str, dict[str, list[Record]]]:
    """By experiment, the methods wanted that share seeds with cross-entropy, which is the first."""
    result = {}
    for title, group in long_tails(found).items():
        named = methods(r for r in group if wanted(r.config))
        baseline = {record.seed for record in named.get("cross-entropy", [])}
        named = {name: runs for name, runs in named.items() if baseline & {record.seed for record in runs}}
        if len(named) > 1:
            result[title] = named
    if not result:
        raise NothingToDraw("cross-entropy and another method on a long tail, on the same seeds")
    devices = {title: str(named["cross-entropy"][0].environment.get("device")) for title, named in result.items()}
    several = len(set(devices.values())) > 1  # then each title says its own
    return {f"{title}, {devices[title]}" if several else title: named for title, named in result.items()}


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
    """Gain over cross-entropy in the classes with many, medium and few training images; a scale for each data set."""
    blocks = _compared(found)
    rows = [len(named) - 1 for named in blocks.values()]
    figure = Picture(figsize=(7.5, 0.4 + sum(0.8 + 0.28 * n for n in rows)))
    grid = figure.subplots(len(rows), 3, squeeze=False, height_ratios=[n + 0.6 for n in rows], sharex="row")
    for line, (title, named) in zip(grid, blocks.items(), strict=True):
        (_, baseline), *others = named.items()
        members = class_groups(torch.tensor(baseline[0].train_counts))
        for axes, (group, chosen) in zip(line, members.items(), strict=True):
            for row, (_, runs) in enumerate(others):
                gain = gains(runs, baseline).get(group)
                if gain:
                    half, colour = gain.half_width if gain.n > 1 else 0.0, COLOURS[(row + 1) % len(COLOURS)]
                    axes.errorbar(gain.mean, row, xerr=half, fmt="D", color=colour, markersize=5, capsize=3)
            axes.set_visible(bool(chosen.any()) or axes is line[0])  # the first has the names
            axes.axvline(0, color=GREY, linewidth=1)
            axes.set(ylim=(len(others) - 0.5, -0.5), xlabel="gain (points)")
            axes.set_title(f"{group} ({int(chosen.sum()) or 'no'} classes)", fontsize=9)
            axes.set_yticks(range(len(others)), [])
            axes.grid(visible=False, axis="y")
        line[0].set_yticks(range(len(others)), [f"{name} (n = {len(runs)})" for name, runs in others])
        line[0].set_ylabel(title.replace(", ", "\n"), fontsize=8)
    shown = [record for named in blocks.values() for runs in named.values() for record in runs]
    caption(figure, shown, "Over cross-entropy, seed by seed. Bars: 95% intervals of the mean difference.")
    return figure


@styled
def classes(found: Sequence[Record], shown: Sequence[str] = ("ISDA", "LDAM-DRW", "MetaSAug")) -> Picture:
    """Accuracy of every class by cross-entropy, the most frequent first, and the gains of others over it.

    A row a data set; shown: the others, by their names in :func:`methods`.
    """
    blocks = _compared(found, lambda config: method(config) in ("cross-entropy", *shown))
    figure = Picture(figsize=(7.5, 0.5 + 2.9 * len(blocks)))
    grid = figure.subplots(len(blocks), 2, squeeze=False, width_ratios=(1, 1.7))
    drawn = []
    for (left, right), (title, named) in zip(grid, blocks.items(), strict=True):
        picked = on_common_seeds({name: named[name] for name in ("cross-entropy", *shown) if name in named})
        counts = np.array(picked["cross-entropy"][0].train_counts)
        order = np.argsort(-counts, kind="stable")
        table = {name: 100 * np.array([r.class_accuracy for r in runs])[:, order] for name, runs in picked.items()}
        baseline = table.pop("cross-entropy")
        _dots(left, baseline, "", "black", 0.0)
        for row, (name, values) in enumerate(table.items()):
            aside, colour = 0.22 * (row - (len(table) - 1) / 2), COLOURS[shown.index(name) % len(COLOURS)]
            _dots(right, values - baseline, f"{name} (n = {len(values)})", colour, aside)
        named_left = f"cross-entropy (n = {len(baseline)}): accuracy (%)"
        for axes, label, most in ((left, named_left, 4), (right, "gain over cross-entropy (points)", 10)):
            ticks = np.unique(np.linspace(0, len(counts) - 1, most).round().astype(int))
            axes.set_xticks(ticks, [str(count) for count in counts[order][ticks]])
            axes.set(xlabel="training images of the class", ylabel=label)
        right.legend(fontsize=8)
        right.axhline(0, color=GREY, linewidth=1)
        left.set_ylim(0, 100)
        left.set_title(title, loc="left")
        drawn += [record for runs in picked.values() for record in runs]
    caption(figure, drawn, "Dots: seeds. Lines: their means.")
    return figure


def _dots(axes: Axes, values: Any, label: str, colour: str, aside: float) -> None:
    """A dot a seed (n) and class (C), and the line of the means: at three seeds an interval would hide all else."""
    where = np.arange(values.shape[1]) + aside
    axes.plot(where, values.mean(0), color=colour, label=label)
    axes.plot(np.tile(where, len(values)), values.ravel(), "o", color=colour, alpha=0.35, markersize=3)


def ablation(found: Sequence[Record]) -> Picture:
    """MetaSAug with one thing changed, for each of its losses, forms and beginnings of the second stage; and the DRW
    method of this loss and beginning.

    A block has one set of seeds, so that its means can be compared: a variant stands in every block whose seeds it has.
    """
    blocks: dict[str, dict[str, list[Record]]] = {}
    for title, group in long_tails(found).items():
        meta = [r for r in group if r.config["objective"] == "MetaSAug"]
        variants = [{name: r.config["settings"][name] for name in ("loss", "covariance", "stage")} for r in meta]
        for own in (dict(pairs) for pairs in sorted({tuple(v.items()) for v in variants}, reverse=True)):
            named = methods(r for r, variant in zip(meta, variants, strict=True) if variant == own)
            released = method({"objective": "MetaSAug", "settings": RELEASED | own})
            base = {record.seed for record in named.get(released, [])}
            drw = {"loss": own["loss"], "beta": RELEASED["beta"], "defer": own["stage"], "normalised": False}
            named |= methods(r for r in group if drw.items() <= r.config["settings"].items())
            seeds = {name: base & {record.seed for record in runs} for name, runs in named.items()}
            form = ", diagonal" if own["covariance"] == "diagonal" else ""
            start = f", from {own['stage']:.0%}" if own["stage"] != RELEASED["stage"] else ""
            others = [name for name in named if name.startswith("MetaSAug") and name != released]
            for common in sorted({frozenset(seeds[name]) for name in others} - {frozenset()}, key=sorted):
                rows = [released, *(name for name in named if name != released and seeds[name] >= common)]
                block = {name: [record for record in named[name] if record.seed in common] for name in rows}
                heading = (
                    f"{title}: {own['loss'].upper()}{form}{start}, n\N{NO-BREAK SPACE}=\N{NO-BREAK SPACE}{len(common)}"
                )
                blocks[heading] = {released: block.pop(released)}  # the others' names need not say whose they are
                blocks[heading] |= {name.removeprefix("MetaSAug, "): runs for name, runs in block.items()}
    if not blocks:
        raise NothingToDraw("MetaSAug as released, and with something changed")
    return comparison(blocks)


FIGURES: dict[str, dict[str, Callable[[Sequence[Record]], Picture]]] = {
    "1_metasaug": {"accuracy": accuracy, "groups": groups, "classes": classes, "ablation": ablation},
}
