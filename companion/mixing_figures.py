"""The figures of mixing (notebook 3), drawn from records as those of room ``figures``.

Methods are trained with one recipe on one set, paired by seed with cross-entropy. Their records say more than accuracy
(:func:`semaug.robustness.measures`): calibration, accuracy under FGSM and under corruptions. AutoMix takes about three
passes over the network for one of the others, so cross-entropy and mixup stand there a second time, with three times
the epochs.
"""

from __future__ import annotations

import inspect
import math
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from statistics import multimode
from typing import Any

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator
from scipy.stats import binom

from companion.figures import (
    NothingToDraw,
    budget,
    needed,
    on_common_seeds,
    runs_of,
    titled,
    trained_on,
    without_stand_ins,
)
from companion.plots import COLOURS, GREY, Picture, band, caption, counts, differences, forest, styled
from companion.runs import OBJECTIVES
from companion.sla_figures import gains
from companion.stats import summary
from semaug.measures.robustness import CORRUPTIONS
from semaug.training.record import Record

BLUE, RED, GREEN, YELLOW, CYAN, PURPLE = COLOURS

BASELINE = "cross-entropy"

NAMES = {
    "CrossEntropy": BASELINE,
    "Cutout": "Cutout",
    "Mixup": "mixup",
    "CutMix": "CutMix",
    "ResizeMix": "ResizeMix",
    "SaliencyMix": "SaliencyMix",
    "PuzzleMix": "PuzzleMix",
    "CoMixup": "Co-Mixup",
    "ManifoldMixup": "Manifold Mixup",
    "MixStyle": "MixStyle",
    "AutoMix": "AutoMix",
}

"""The methods in the order they are drawn in: pixels erased, blended, cut, fitted; features; learned."""

DEAR = ("PuzzleMix", "AutoMix")

"""What takes more passes over the network, or more else, than one."""

COLOUR = {BASELINE: "black", "Cutout": YELLOW, "mixup": BLUE, "CutMix": GREEN, "ResizeMix": GREEN, "SaliencyMix": GREEN}

COLOUR |= {"PuzzleMix": PURPLE, "Co-Mixup": PURPLE, "Manifold Mixup": CYAN, "MixStyle": CYAN, "AutoMix": RED}

"""By kind, as there are more methods than colours that all can tell apart: no figure tells them apart by this alone."""

SHORT = {"momentum": 0.9, "std": 0.3, "block_rate": 0.3, "mask_weight": 1.0}

"""AutoMix's settings in the ledger's short trainings; in profile paper they are the paper's, its defaults."""

WORDS = {
    ("policy", "mixup"): "mixup as policy",
    ("policy", "cutmix"): "CutMix as policy",
    ("pipeline", False): "no pipeline",
    ("momentum", 0.0): "momentum 0",
    ("one_hot", False): "no one-hot pass",
    ("mask_weight", 0.0): "no mask loss",
    ("mask_weight", 0.1): r"$\gamma$ 0.1",
    ("block_rate", 1.0): "block at the classifier's rate",
    ("lambda_channel", False): r"no $\lambda$ channel",
    ("attention", False): "no attention",
    ("std", 0.01): "std 0.01",
    ("every", 4): "block every 4 steps",
}

"""What the changed settings of AutoMix are called, in the order of the ablation."""

KINDS = {
    "noise (4)": ("gaussian_noise", "shot_noise", "impulse_noise", "speckle_noise"),
    "blur": ("gaussian_blur",),
    "brightness": ("brightness",),
    "contrast": ("contrast",),
    "pixelate": ("pixelate",),
    "JPEG": ("jpeg",),
}

"""The corruptions, the four kinds of noise together."""

Study = dict[str, list[Record]]


def usual(record: Record) -> dict[str, Any]:
    """The usual settings of a run's method: its defaults; of AutoMix in a short training as of ``SHORT``."""
    objective = record.config["objective"]
    parameters = inspect.signature(OBJECTIVES[objective]).parameters.values()
    values = {parameter.name: parameter.default for parameter in parameters if parameter.default is not parameter.empty}
    return values | (SHORT if objective == "AutoMix" and record.profile != "paper" else {})


def changes(record: Record) -> dict[str, Any]:
    """The settings of a run that are not as usual; the size of Cutout is none, which the paper has by data set."""
    settings = record.config["settings"]
    changed = {name: settings[name] for name, value in usual(record).items() if settings.get(name, value) != value}
    return {name: value for name, value in changed.items() if name != "size"}


def method(record: Record) -> str:
    """What a run is called: its method, and what of it is not as usual."""
    words = [WORDS.get(item, f"{item[0].replace('_', ' ')} {item[1]}") for item in changes(record).items()]
    return ", ".join([NAMES[record.config["objective"]], *words])


def studies(found: Iterable[Record], wanted: Callable[[Study], bool] | None = None) -> dict[str, Study]:
    """Runs by method, a study a budget (room ``figures``), titled; ``BASELINE`` is the first method.

    A method that was given more epochs than most runs of the study is one of its own; one that shares no seed with
    cross-entropy is left out. Of those that are ``wanted``: by default, that have another method as it is; quick ones
    only of data sets without longer ones. Raises ValueError where a method has two runs of one seed.
    """
    wanted = wanted or (lambda study: len(plain(study)) > 1)
    groups: dict[str, list[Record]] = {}
    for record in found:
        if record.config["objective"] in NAMES and not record.config["data"].get("imbalance"):
            groups.setdefault(budget(record), []).append(record)
    made = [study for study in (_study(group) for _, group in sorted(groups.items())) if study and wanted(study)]
    made.sort(key=lambda study: sum(study[BASELINE][0].train_counts))
    return titled(without_stand_ins(made, _first), _first, _title)


def _study(group: list[Record]) -> Study:
    """Its runs by method in the order of ``NAMES``, then of changes and epochs, by seed; empty without a baseline."""
    usual, study = min(multimode(record.config["recipe"]["epochs"] for record in group)), Study()
    names = list(NAMES)
    for record in sorted(group, key=lambda r: (names.index(r.config["objective"]), r.config["recipe"]["epochs"])):
        times = record.config["recipe"]["epochs"] / usual
        if times >= 1:
            study.setdefault(method(record) + (f", {times:g}x epochs" if times > 1 else ""), []).append(record)
    for name, runs in study.items():
        seeds = sorted(record.seed for record in runs)
        if len(seeds) != len(set(seeds)):
            raise ValueError(f"{name!r}: got seeds {seeds}; takes each seed once")
        runs.sort(key=lambda record: record.seed)
    base = {record.seed for record in study.get(BASELINE, [])}
    study = {name: runs for name, runs in study.items() if base & {record.seed for record in runs}}
    return dict(sorted(study.items(), key=lambda item: _place(item[1][0])))


def _place(record: Record) -> tuple[int, bool, list[int]]:
    """Where a method stands in its study: the ones as usual first, their changes in the order of ``WORDS``."""
    changed = [list(WORDS).index(change) if change in WORDS else len(WORDS) for change in changes(record).items()]
    return list(NAMES).index(record.config["objective"]), bool(changed), changed


def _title(study: Study) -> str:
    return f"{trained_on(_first(study))}, {_first(study).config['network']}"


def _first(study: Study) -> Record:
    return study[BASELINE][0]


def _set(study: Study) -> str:
    return str(_first(study).config["data"]["name"])


def plain(study: Study) -> Study:
    """The methods as they are: nothing changed, no more epochs."""
    return {name: runs for name, runs in study.items() if name in COLOUR}


def longer(study: Study) -> Study:
    """Methods with more epochs than the others."""
    return {name: runs for name, runs in study.items() if name.endswith("x epochs")}


def widest(found: dict[str, Study]) -> dict[str, Study]:
    """Of each data set and profile the study with most methods."""
    best: dict[tuple[str, str], str] = {}
    for title, study in found.items():
        where = _set(study), _first(study).profile
        if len(plain(study)) > len(plain(found.get(best.get(where, ""), Study()))):
            best[where] = title
    return {title: found[title] for title in best.values()}


def percent(metric: str) -> Callable[[Record], float]:
    """A metric in [0, 1] as percent."""
    return lambda record: 100 * record.metrics[metric]


def passes(record: Record) -> float:
    """Passes over the network, forward and back, for each image and epoch; cross-entropy's are 1.

    AutoMix: of the images, of the mixtures, and, at every k-th step, of the mixtures that the block learns from; its
    maps, forward through the first stages, are not counted. PuzzleMix and Co-Mixup: one more, for the saliency.
    """
    objective, settings = record.config["objective"], record.config["settings"]
    if objective == "AutoMix":
        trained = 1 / settings.get("every", 1) if settings.get("policy", "block") == "block" else 0.0
        return 1.0 + settings.get("one_hot", True) + (trained if settings.get("pipeline", True) else 0.0)
    return {"PuzzleMix": 2.0, "CoMixup": 2.0}.get(objective, 1.0)


def cost(record: Record, baseline: Sequence[Record]) -> float:
    """Passes of a whole training over those of cross-entropy's."""
    return passes(record) * record.config["recipe"]["epochs"] / baseline[0].config["recipe"]["epochs"]


def _colour(name: str, title: str = "") -> str:
    return COLOUR[name.split(",")[0]]


def _measured(found: Sequence[Record], *needs: str) -> Mapping[str, Study]:
    """The widest study of every set all whose runs of methods as they are hold these metrics and curves."""

    def wanted(study: Study) -> bool:
        runs = runs_of([plain(study), longer(study)])
        return len(plain(study)) > 1 and all(need in {**run.metrics, **run.curves} for run in runs for need in needs)

    blocks = widest(studies(found, wanted))
    return needed(blocks, f"cross-entropy and another method with {', '.join(needs)} in their records")


def _common(blocks: Mapping[str, Study]) -> dict[str, Study]:
    """Methods as they are, on the seeds that all of a study have."""
    return {title: on_common_seeds(plain(study)) for title, study in blocks.items()}


# ---------------------------------------------------------------------------------------------------------------------
# Accuracy, and what it costs


def accuracy(found: Sequence[Record]) -> Picture:
    """Every method's gain over cross-entropy, a panel a data set and network."""
    blocks = needed(studies(found), "cross-entropy and a method that mixes, of one set and recipe, on the same seeds")
    return forest({"": _gained(blocks)}, "gain (points)", runs_of(map(plain, blocks.values())), TITLE, _colour)


TITLE = "Over cross-entropy, whose accuracy the title has."


def _gained(blocks: Mapping[str, Study]) -> dict[str, dict[str, list[float]]]:
    """By titled panel, the gains of the methods as they are."""
    columns = {}
    for title, study in blocks.items():
        reached = summary(map(percent("test_accuracy"), study[BASELINE])).mean
        values = {name: gains(runs, study[BASELINE]) for name, runs in plain(study).items() if name != BASELINE}
        columns[f"{title}: {reached:.1f}%"] = values
    return columns


def networks(found: Sequence[Record]) -> Picture:
    """The gains of the methods that were run on several networks of one data set, a panel a network."""

    def title(study: Study) -> str:
        config = _first(study).config
        return f"{config['network']}, {config['recipe'].get('optimizer', 'sgd')}, {config['recipe']['epochs']} epochs"

    together: dict[tuple[str, ...], list[Study]] = {}
    for study in studies(found).values():
        where = str(_first(study).environment.get("device"))
        together.setdefault((trained_on(_first(study)), _first(study).profile, where), []).append(plain(study))
    kept = []
    for group in together.values():
        common = set.intersection(*map(set, group))
        if len(group) > 1 and len(common) > 1:
            kept.append([{name: runs for name, runs in study.items() if name in common} for study in group])
    panels = titled(kept, lambda group: _first(group[0]), lambda group: trained_on(_first(group[0])))
    lines = {line: _gained(titled(group, _first, title)) for line, group in panels.items()}
    if not lines:
        raise NothingToDraw("cross-entropy and another method on two networks and one data set")
    return forest(lines, "gain (points)", runs_of(study for group in kept for study in group), TITLE, _colour)


@styled
def equal_passes(found: Sequence[Record]) -> Picture:
    """What longer training of cross-entropy and mixup gains, and the dear methods over it; and learning over passes.

    Passes, not seconds: runs that share their cores with others take as long as those let them.
    """
    blocks = studies(found, lambda study: bool(longer(study)) and any(name in study for name in DEAR))
    needed(blocks, "cross-entropy with three times the epochs, beside PuzzleMix or AutoMix")
    heights = [0.9 + 0.19 * max(len(plain(study)) + len(longer(study)), 10) for study in blocks.values()]
    figure = Picture(figsize=(7.5, 0.4 + sum(heights)))
    grid = figure.subplots(len(blocks), 2, squeeze=False, width_ratios=(1, 1.35), height_ratios=heights)
    shown = []
    for (left, right), (title, study) in zip(grid, blocks.items(), strict=True):
        values: dict[str, list[float]] = {}
        rows: dict[str, tuple[str, bool]] = {}
        for name, runs in longer(study).items():
            first, more = name.removesuffix(" epochs").split(", ")
            for dear in (first, *(dear for dear in DEAR if dear in study)):
                one, other = (runs, study[first]) if dear == first else (study[dear], runs)
                label = f"{first}: {more} less 1x" if dear == first else f"{dear} less {more} {first}"
                values[label], rows[label] = gains(one, other), (_colour(dear), dear != first)
        differences(left, values, rows)
        left.set_yticks(range(len(rows)), [textwrap.fill(row, 25, break_on_hyphens=False) for row in rows], fontsize=8)
        left.set_title("\n".join([*textwrap.wrap(title, 34), counts(values)]), fontsize=8.5)
        left.set_xlabel("difference (points)", fontsize=9)
        held_out = "validation_accuracy" if "validation_accuracy" in study[BASELINE][0].curves else "test_accuracy"
        drawn = {name: runs for name, runs in study.items() if name in (BASELINE, "mixup", *DEAR, *longer(study))}
        for name, runs in drawn.items():
            table = 100 * np.array([run.curves[held_out] for run in runs])
            epochs, style = runs[0].config["recipe"]["epochs"], "-" if name in COLOUR else "--"
            x = passes(runs[0]) * epochs * np.arange(1, table.shape[1] + 1) / table.shape[1]
            right.plot(x, table.mean(0), style, color=_colour(name), label=name)
        right.set_title(f"n = {counts_of(drawn)}", fontsize=8.5)
        right.set_xlabel("passes over the training images", fontsize=9)
        right.set_ylabel(f"{held_out.replace('_', ' ')} (%)", fontsize=9)
        right.legend(fontsize=7.5, loc="lower right")
        shown += runs_of([drawn])
    text = "Left: dots are seeds, bars 95% intervals of the mean difference. Right: means over seeds, during training;"
    caption(figure, shown, f"{text} dashed: with more epochs.")
    return figure


def counts_of(study: Study) -> str:
    """Over how many seeds a study's methods are: '3', '2 to 3'."""
    return counts({name: [record.seed for record in runs] for name, runs in study.items()}).removeprefix("n = ")


# ---------------------------------------------------------------------------------------------------------------------
# Calibration, attacks and corruptions


def _multiples(blocks: Mapping[str, Study]) -> tuple[Picture, dict[str, list[Axes]]]:
    """A picture with a panel for every method, five a line, a part for every study; and the panels by study."""
    lines = {title: math.ceil(len(study) / 5) for title, study in blocks.items()}
    heights = [0.35 + 1.65 * n for n in lines.values()]
    figure = Picture(figsize=(7.5, 0.5 + sum(heights)))
    parts = figure.subfigures(len(blocks), 1, squeeze=False, height_ratios=heights).ravel()
    panels = {}
    for part, (title, study) in zip(parts, blocks.items(), strict=True):
        across = min(5, len(study))
        grid = part.subplots(lines[title], across, squeeze=False, sharex=True, sharey=True)
        for unused in grid.ravel()[len(study) :]:
            unused.remove()
        for axes in grid.ravel()[max(0, len(study) - across) : len(study)]:
            axes.tick_params(labelbottom=True)
        part.suptitle(f"{title} (n = {counts_of(study)})", x=0.01, ha="left", fontsize=9.5)
        panels[title] = list(grid.ravel()[: len(study)])
    return figure, panels


def bins(runs: Sequence[Record]) -> Float[np.ndarray, "rows 3"]:
    """Reliability of all seeds together: share of the predictions, confidence and accuracy of a bin that has any."""
    columns = ("low", "count", "confidence", "accuracy")
    low, count, *means = (np.concatenate([run.curves[f"reliability_{name}"] for run in runs]) for name in columns)
    rows, low = [], low.round(5)  # records hold seven digits
    for edge in np.unique(low):
        here = low == edge
        rows.append([count[here].sum() / count.sum(), *(np.average(mean[here], weights=count[here]) for mean in means)])
    return np.array(rows)


def floor(record: Record) -> float:
    r"""The expected calibration error, in [0, 1], of a network that is as often right as it is sure.

    It is not 0: of $n$ predictions of confidence $p$ a share is right that is off $p$ by chance, on average by
    $2 v (1 - p)\, b(v; n, p) / n$ with $v = \lfloor n p \rfloor + 1$ and $b$ the binomial probability (de Moivre).
    """
    n, p = (np.array(record.curves[f"reliability_{name}"]) for name in ("count", "confidence"))
    v = np.floor(n * p) + 1
    return float((2 * v * (1 - p) * binom.pmf(v, n, p)).sum() / n.sum())


@styled
def reliability(found: Sequence[Record]) -> Picture:
    """Accuracy over confidence by bin, predictions of all seeds together, a panel a method.

    The title of a panel has the expected calibration error, and the gap by which mean confidence exceeds accuracy.
    """
    blocks = _common(_measured(found, "ece", "mean_confidence", "reliability_low"))
    figure, panels = _multiples(blocks)
    for title, study in blocks.items():
        for axes, (name, runs) in zip(panels[title], study.items(), strict=True):
            share, confidence, right = bins(runs).T
            axes.plot([0, 1], [0, 1], color=GREY, linewidth=1)
            axes.plot(confidence, right, color=_colour(name), linewidth=1)
            axes.scatter(confidence, right, s=4 + 120 * share, color=_colour(name), linewidths=0)
            error = summary(map(percent("ece"), runs))
            over = summary(100 * (run.metrics["mean_confidence"] - run.metrics["test_accuracy"]) for run in runs)
            axes.set_title(f"{name}\nECE {error.text()}\ngap {over.text('+.1f')}", fontsize=8)
            axes.set_aspect("equal")
            axes.set_xticks((0, 0.5, 1), ("0", "0.5", "1"))
            axes.set_yticks((0, 0.5, 1), ("0", "0.5", "1"))
        panels[title][0].set_ylabel("accuracy")
        panels[title][0].figure.supxlabel("confidence", fontsize=9)
    text = "Below the line: too sure. Area of a mark: share of the predictions. ECE in percent; gap: mean confidence"
    caption(figure, runs_of(blocks.values()), f"{text} less accuracy, in points; both with 95% intervals of the mean.")
    return figure


@styled
def fgsm(found: Sequence[Record]) -> Picture:
    """Accuracy under FGSM over its size, a panel a method; cross-entropy black in each, all others grey."""
    blocks = _common(_measured(found, "fgsm_epsilon", "fgsm_accuracy"))
    figure, panels = _multiples(blocks)
    for title, study in blocks.items():
        table = {
            name: 100 * np.array([[run.metrics["test_accuracy"], *run.curves["fgsm_accuracy"]] for run in runs])
            for name, runs in study.items()
        }
        sizes = [0, *(255 * epsilon for epsilon in study[BASELINE][0].curves["fgsm_epsilon"])]
        for axes, name in zip(panels[title], study, strict=True):
            for values in table.values():
                axes.plot(values.mean(0), color="#CCCCCC", linewidth=0.8)
            axes.plot(table[BASELINE].mean(0), color="black", linewidth=1.4)
            band(axes, np.arange(len(sizes)), table[name], name, color=_colour(name), linewidth=1.4)
            axes.set_ylim(bottom=0)
            axes.set_title(name, fontsize=9)
            axes.set_xticks(range(len(sizes)), [f"{size:.3g}" for size in sizes], fontsize=8)
        panels[title][0].set_ylabel("accuracy (%)")
        panels[title][0].figure.supxlabel(r"$\epsilon$ (1/255, not to scale)", fontsize=9)
    text = "Black: mean of cross-entropy; grey: of the others. Bands: 95% intervals of the mean."
    caption(figure, runs_of(blocks.values()), text)
    return figure


def corruption(found: Sequence[Record]) -> Picture:
    """Gain over cross-entropy in accuracy under corruptions, mean over their severities."""
    blocks = _measured(found, *(f"{name}_accuracy" for name in CORRUPTIONS))
    lines: dict[str, dict[str, dict[str, list[float]]]] = {}
    for title, study in blocks.items():
        for kind, names in KINDS.items():
            score = _corrupted(names)
            reached = summary(map(score, study[BASELINE])).mean
            lines.setdefault(title, {})[f"{kind}: {reached:.0f}%"] = {
                name: gains(runs, study[BASELINE], score) for name, runs in plain(study).items() if name != BASELINE
            }
    text = f"{TITLE} Each panel has its own scale."
    figure = forest(lines, "points", runs_of(map(plain, blocks.values())), text, _colour)
    for axes in figure.axes:
        axes.xaxis.set_major_locator(MaxNLocator(3))
        axes.tick_params(axis="x", labelsize=8)
    return figure


# ---------------------------------------------------------------------------------------------------------------------
# AutoMix with one thing changed


def ablations(study: Study) -> Study:
    """AutoMix and AutoMix with something changed, alpha and stage aside; empty without either."""
    changed = {
        name: runs
        for name, runs in study.items()
        if name.startswith("AutoMix, ") and not {"alpha", "stage"} & set(changes(runs[0]))
    }
    changed = {name: runs for name, runs in changed.items() if name not in longer(study)}
    return {"AutoMix": study["AutoMix"], **changed} if "AutoMix" in study and changed else {}


def ablation(found: Sequence[Record]) -> Picture:
    """AutoMix with something changed: gain over AutoMix, a row a change, with its passes for one of cross-entropy's."""
    blocks = {
        title: varied
        for title, study in studies(found, lambda s: bool(ablations(s))).items()
        if (varied := ablations(study))
    }
    if not blocks:
        raise NothingToDraw("AutoMix, and AutoMix with one thing changed, on the same seeds as cross-entropy")
    lines = {}
    for title, varied in blocks.items():
        usual = varied["AutoMix"]
        words = {name: f"{name.removeprefix('AutoMix, ')} ({passes(runs[0]):.3g})" for name, runs in varied.items()}
        values = {words[name]: gains(runs, usual) for name, runs in varied.items() if name != "AutoMix"}
        lines[title] = {
            f"AutoMix: {summary(map(percent('test_accuracy'), usual)).mean:.1f}%, {passes(usual[0]):.3g} passes": values
        }
    text = "In brackets: passes for one of cross-entropy's; those of fewer passes are cheaper, not equal."
    return forest(lines, "gain over AutoMix (points)", runs_of(blocks.values()), text)


DRIVEN = r"AutoMix, $\gamma$ 0.1, block at the classifier's rate"

SPREADS = {"AutoMix": RED, DRIVEN: "black", "AutoMix, stage 2": BLUE, "AutoMix, no pipeline": GREEN}

SPREADS |= {"AutoMix, no attention": YELLOW}

"""Whose masks are followed over training, and in which colour."""


@styled
def mask_spread(found: Sequence[Record]) -> Picture:
    """Spread of the masks over epochs: the standard deviation of the pixels of a mask, a line a seed; 0: no shape."""
    blocks = studies(found, lambda study: sum(name in study for name in SPREADS) > 1)
    needed(blocks, f"AutoMix and one of {', '.join(list(SPREADS)[1:])}, on the same seeds as cross-entropy")
    figure = Picture(figsize=(7.5, 0.4 + 2.6 * len(blocks)))
    shown = []
    for axes, (title, study) in zip(figure.subplots(len(blocks), 1, squeeze=False)[:, 0], blocks.items(), strict=True):
        for name in filter(study.get, SPREADS):
            for number, run in enumerate(study[name]):
                values, label = run.curves["mask_spread"], None if number else f"{name} (n = {len(study[name])})"
                axes.plot(range(1, len(values) + 1), values, color=SPREADS[name], linewidth=1.2, label=label)
            shown += study[name]
        axes.set(ylim=(0, None), xlabel="epoch", ylabel="spread of the masks")
        axes.set_title(title, fontsize=8.5)
        axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=8)
    caption(figure, shown, "A line a seed. Mean over an epoch's steps. 0: one gray, as mixup's, or one image alone.")
    return figure


def _over(study: Study, setting: str) -> dict[Any, list[Record]]:
    """AutoMix by the values of one setting, in their order, on the seeds that all have; empty with one value alone."""
    runs: dict[Any, list[Record]] = {}
    for name, group in study.items():
        if name.split(",")[0] == "AutoMix" and name not in longer(study) and set(changes(group[0])) <= {setting}:
            runs[{**usual(group[0]), **group[0].config["settings"]}[setting]] = group
    seeds = set.intersection(*({run.seed for run in each} for each in runs.values())) if len(runs) > 1 else set()
    return {value: [run for run in runs[value] if run.seed in seeds] for value in sorted(runs)} if seeds else {}


@styled
def alpha_and_stage(found: Sequence[Record]) -> Picture:
    r"""Accuracy of AutoMix over alpha of its ratios' distribution, and over the stage that its block sees.

    On the validation images: settings are chosen there, if anywhere. Thin lines are seeds; the dashed line is the mean
    of cross-entropy.
    """
    settings = {"alpha": r"$\alpha$", "stage": "stage"}
    blocks = studies(found, lambda study: any(_over(study, setting) for setting in settings))
    needed(blocks, "AutoMix at two values of alpha or of stage, on the same seeds")
    figure = Picture(figsize=(7.5, 0.4 + 2.7 * len(blocks)))
    grid = figure.subplots(len(blocks), 2, squeeze=False, sharey="row")
    shown = []
    for line, (title, study) in zip(grid, blocks.items(), strict=True):
        for axes, (setting, label) in zip(line, settings.items(), strict=True):
            runs = _over(study, setting)
            if not runs:
                axes.remove()
                continue
            table = 100 * np.array([[run.metrics["validation_accuracy"] for run in each] for each in runs.values()]).T
            x = np.arange(len(runs))
            axes.plot(x, table.T, color=RED, linewidth=0.8, alpha=0.4)
            band(axes, x, table, "AutoMix", color=RED, marker="o")
            seeds = {run.seed for each in runs.values() for run in each}
            base = [run for run in study[BASELINE] if run.seed in seeds]
            level = summary(map(percent("validation_accuracy"), base)).mean
            axes.axhline(level, color="black", linestyle="--", linewidth=1)
            axes.set_xticks(x, [f"{value:g}" for value in runs])
            axes.set(xlabel=f"{label} (not to scale)" if setting == "alpha" else label)
            axes.set_title("\n".join([*textwrap.wrap(title, 44), f"n = {len(table)}"]), fontsize=8.5)
            axes.yaxis.set_tick_params(labelleft=True)
            axes.set_ylabel("validation accuracy (%)", fontsize=9)
            shown += [*base, *(run for each in runs.values() for run in each)]
    text = "Thin: seeds; band: 95% interval of the mean; dashed: mean of cross-entropy."
    caption(figure, shown, text)
    return figure


# ---------------------------------------------------------------------------------------------------------------------
# The table


def table(found: Sequence[Record]) -> str:
    """The widest study of every data set as a table in Markdown, methods with more epochs below: accuracy, ECE,
    accuracy under FGSM of 4/255 and under corruptions in percent, passes over cross-entropy's.

    Brightness and contrast stand apart from the other corruptions: mixing with a dark image changes both.
    """
    needs = ("ece", "fgsm_epsilon", "fgsm_accuracy", *(f"{name}_accuracy" for name in CORRUPTIONS))
    parts = []
    blocks = _measured(found, *needs)
    for title, study in _common(blocks).items():
        seeds = {run.seed for run in study[BASELINE]}
        more = {name: [r for r in runs if r.seed in seeds] for name, runs in longer(blocks[title]).items()}
        more = {name: runs for name, runs in more.items() if len(runs) == len(seeds)}
        first = study[BASELINE][0]
        where = f"profile {first.profile}, {first.environment.get('device', 'unknown device')}"
        spread = "mean ± 95% interval" if len(seeds) > 2 else "mean"
        lines = [f"**{title}**: {spread}, n = {len(seeds)}; {where}.", ""]
        columns = ("accuracy", "ECE", "FGSM 4/255", "noise, blur, pixels, JPEG (7)", "brightness, contrast (2)")
        lines += [f"| method | {' | '.join(f'{column} (%)' for column in columns)} | passes |", "|---" * 7 + "|"]
        light = ("brightness", "contrast")
        rest = [name for name in CORRUPTIONS if name not in light]
        scores = (percent("test_accuracy"), percent("ece"), _attacked, _corrupted(rest), _corrupted(light))
        for name, runs in {**study, **more}.items():
            cells = [summary(map(score, runs)).text() for score in scores]
            lines.append(f"| {' | '.join([name, *cells])} | {cost(runs[0], study[BASELINE]):.3g} |")
        parts.append("\n".join(lines))
    return "\n\n".join(parts) + "\n"


def _corrupted(names: Sequence[str]) -> Callable[[Record], float]:
    """Accuracy in percent, mean over these corruptions."""
    return lambda record: 100 * sum(record.metrics[f"{name}_accuracy"] for name in names) / len(names)


def _attacked(record: Record) -> float:
    """Accuracy under FGSM of 4/255 in percent; NothingToDraw where it was not measured."""
    for epsilon, value in zip(record.curves["fgsm_epsilon"], record.curves["fgsm_accuracy"], strict=True):
        if math.isclose(255 * epsilon, 4, rel_tol=1e-5):  # records hold seven digits
            return 100 * value
    raise NothingToDraw("accuracy under FGSM of 4/255")


FIGURES: dict[str, dict[str, Callable[[Sequence[Record]], Picture]]] = {
    "3_automix": {
        "accuracy": accuracy,
        "equal_passes": equal_passes,
        "networks": networks,
        "reliability": reliability,
        "fgsm": fgsm,
        "corruption": corruption,
        "ablation": ablation,
        "mask_spread": mask_spread,
        "alpha_and_stage": alpha_and_stage,
    },
}
