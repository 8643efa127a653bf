"""From records to figures: which records belong together, and the figures of notebook 1, first part.

The other notebooks have rooms of their own, with a table ``FIGURES`` as here; room ``redraw`` draws them all.
"""

from __future__ import annotations

import dataclasses
import json
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np

from companion.plots import COLOURS, GREY, Picture, band, caption, comparison, curves, styled
from companion.stats import summary
from semaug.training.recipe import Recipe
from semaug.training.record import Record

G = TypeVar("G")

S = TypeVar("S")


class NothingToDraw(LookupError):
    """The records do not hold what a figure needs; the message says what that is."""


def needed(studies: Mapping[str, S], what: str) -> Mapping[str, S]:
    """What there is to draw; raises NothingToDraw, saying what is missing, where there is nothing."""
    if not studies:
        raise NothingToDraw(what)
    return studies


def runs_of(studies: Iterable[Mapping[str, Sequence[Record]]]) -> list[Record]:
    """All records of studies, which are records by method."""
    return [record for study in studies for runs in study.values() for record in runs]


def without_stand_ins(groups: Iterable[G], of: Callable[[G], Record]) -> list[G]:
    """Groups of records but for quick ones of data sets of which there are longer ones. of: a record of a group."""
    groups = list(groups)
    longer = {of(group).config["data"]["name"] for group in groups if of(group).profile != "quick"}
    return [g for g in groups if of(g).profile != "quick" or of(g).config["data"]["name"] not in longer]


def experiments(found: Sequence[Record], enough: Callable[[list[Record]], bool]) -> dict[str, list[Record]]:
    """Records by experiment (data, network, recipe, profile, device), titled.

    Of those that hold ``enough`` for a figure; quick ones only of data sets without longer ones.
    """
    groups: dict[str, list[Record]] = {}
    for record in found:
        key = {"data": _given(record.config["data"]), "network": record.config["network"], "profile": record.profile}
        key["device"] = record.environment.get("device")  # draws differ between devices: seeds are not paired across
        key["recipe"] = dataclasses.asdict(Recipe(**record.config["recipe"]))  # a field that came later: its default
        groups.setdefault(json.dumps(key, sort_keys=True), []).append(record)
    kept = [group for _, group in sorted(groups.items()) if enough(group)]
    return titled(without_stand_ins(kept, lambda group: group[0]), lambda group: group[0], _title)


def _title(group: Sequence[Record]) -> str:
    """Set and subset, network, epochs and augmentation of pixels."""
    config = group[0].config
    words = [f"{key.replace('_', ' ')} {config['data'][key]}" for key in SUBSETS if config["data"].get(key)]
    words += [str(config["network"]), f"{config['recipe']['epochs']} epochs"]
    return ", ".join([_set(group), *words, *(["+".join(_augments(group))] if _augments(group) else [])])


def titled(groups: Iterable[G], of: Callable[[G], Record], title: Callable[[G], str]) -> dict[str, G]:
    """Groups of records by title, in order; to titles that are equal is added what differs among them.

    That is network, profile and device, and the hash of the configuration where these are the same. of: a record of a
    group.
    """

    def traits(group: G) -> tuple[str, str, str]:
        record = of(group)
        return str(record.config["network"]), record.profile, str(record.environment.get("device"))

    groups, result = list(groups), {}
    for group in groups:
        alike = [traits(other) for other in groups if title(other) == title(group)]
        told = zip(traits(group), zip(*alike, strict=True), strict=True)
        more = [own for own, all_of_them in told if len(set(all_of_them)) > 1]
        more += [of(group).hash] if alike.count(traits(group)) > 1 else []
        result[", ".join([title(group), *more])] = group
    return result


def trained_on(record: Record) -> str:
    """Its set and the number of training images, for a title."""
    return f"{record.config['data']['name']}, {sum(record.train_counts)} images"


def budget(record: Record, apart: Sequence[str] = ("epochs", "evaluate_every")) -> str:
    """All that runs share but their method and what of the recipe stands apart: what may be compared."""
    config = record.config
    recipe = dataclasses.asdict(Recipe(**config["recipe"]))
    recipe = {name: value for name, value in recipe.items() if name not in apart}
    where = [record.profile, record.environment.get("device")]
    return json.dumps([_given(config["data"]), config["network"], recipe, where], sort_keys=True)


SUBSETS = ("train_size", "per_class", "imbalance")

WHOLE = {"embedded": 8000, "shapes": 8000, "mnist": 60000, "fashion": 60000, "cifar10": 50000, "cifar100": 50000}

"""Training images of the whole sets, before a validation split is taken out."""


def _given(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings but for those that are None: an older record may not know of them."""
    return {name: value for name, value in settings.items() if value is not None}


def _by_seed(runs: Iterable[Record]) -> dict[int, Record]:
    """The records of one method under one experiment; raises ValueError where a seed was run twice."""
    result: dict[int, Record] = {}
    for record in runs:
        if record.seed in result:
            raise ValueError(f"records: got {method(record.config)}, seed {record.seed}, twice; takes each seed once")
        result[record.seed] = record
    return result


def _set(group: Sequence[Record]) -> str:
    return str(group[0].config["data"]["name"])


def _images(group: Sequence[Record]) -> int:
    """Training images of a group of one configuration; 0 where its set is not in ``WHOLE``."""
    of = group[0].config["data"]
    return int(of.get("train_size") or round(WHOLE.get(str(of["name"]), 0) * (1 - (of.get("validation") or 0))))


def _augments(group: Sequence[Record]) -> list[str]:
    """The parts of the recipe's augmentation of pixels."""
    return [part for part in str(group[0].config["recipe"].get("augment", "none")).split("+") if part != "none"]


def method(config: Mapping[str, Any]) -> str:
    """What a method is called in a legend: its name and settings."""
    settings = _given(config["settings"])
    words = ["cross-entropy" if config["objective"] == "CrossEntropy" else str(config["objective"])]
    if "covariance" in settings:
        words.append(str(settings.pop("covariance")))
    if "strength" in settings:
        words.append(rf"$\lambda_0$ = {settings.pop('strength'):g}")
    words += [f"{key.replace('_', ' ')} {value}" for key, value in settings.items() if value is not False]
    return ", ".join(words)


def methods(found: Iterable[Record]) -> dict[str, list[Record]]:
    """Records by method, in order of seed; plain cross-entropy is the first method."""
    groups: dict[str, list[Record]] = {}
    for record in sorted(found, key=lambda r: (r.config["objective"] != "CrossEntropy", method(r.config), r.seed)):
        groups.setdefault(method(record.config), []).append(record)
    return groups


def chosen(found: Iterable[Record]) -> dict[str, list[Record]]:
    """Of each method the strength with the best mean validation accuracy; all strengths where none was measured."""
    result: dict[str, list[Record]] = {}
    for family in _over_strength(found):
        if all("validation_accuracy" in record.metrics for group in family.values() for record in group):
            mean = {
                name: summary(r.metrics["validation_accuracy"] for r in group).mean for name, group in family.items()
            }
            best = max(mean, key=mean.__getitem__)
            result[best] = family[best]
        else:
            result |= family
    return result


def _over_strength(found: Iterable[Record]) -> list[dict[str, list[Record]]]:
    """Methods in families that differ in nothing but the strength."""
    families: dict[str, dict[str, list[Record]]] = {}
    for name, group in methods(found).items():
        settings = {key: value for key, value in _given(group[0].config["settings"]).items() if key != "strength"}
        families.setdefault(json.dumps([group[0].config["objective"], settings], sort_keys=True), {})[name] = group
    return list(families.values())


def on_common_seeds(block: dict[str, list[Record]]) -> dict[str, list[Record]]:
    """A block of methods on the seeds that all of them have; as it is where there are none."""
    seeds = set.intersection(*({record.seed for record in runs} for runs in block.values()))
    return {name: [record for record in runs if record.seed in seeds or not seeds] for name, runs in block.items()}


PUBLISHED = {"CrossEntropy": set[str](), "ISDA": {"covariance", "strength"}}


def as_published(found: Iterable[Record]) -> list[Record]:
    """Cross-entropy and ISDA as its paper has it: without control, decay or rank, on sets that are not long-tailed."""
    return [
        record
        for record in found
        if PUBLISHED.get(record.config["objective"]) == set(_given(record.config["settings"]))
        and not record.config["data"].get("imbalance")
    ]


def isda_accuracy(found: Sequence[Record]) -> Picture:
    """Notebook 1: test accuracy of cross-entropy and ISDA on their common seeds, a block a data set.

    Where a form was run at several strengths, the one chosen on validation data is drawn, and the caption says so.
    Of each set and network the experiment with the most images and the least augmentation of pixels: the others have
    their own figures, :func:`isda_size` and :func:`isda_augmentation`.
    """
    panels = experiments(as_published(found), lambda group: len(chosen(group)) > 1)
    if not panels:
        raise NothingToDraw("two methods under one recipe")
    order = sorted(panels, key=lambda title: (_images(panels[title]), -len(_augments(panels[title]))))
    last = {(_set(panels[title]), panels[title][0].config["network"]): title for title in order}
    panels = {title: group for title, group in panels.items() if title in last.values()}
    blocks = {title: on_common_seeds(chosen(group)) for title, group in panels.items()}
    families = [family for group in panels.values() for family in _over_strength(group) if len(family) > 1]
    validated = all("validation_accuracy" in r.metrics for family in families for runs in family.values() for r in runs)
    note = "Of several strengths, the best on validation data." if validated else ""
    return comparison(blocks, note=note if families else r"$\lambda_0$ fixed in advance.")


def isda_curves(found: Sequence[Record]) -> Picture:
    """Notebook 1: training loss and held-out accuracy by epoch, of the experiment with most records."""
    name = "validation_accuracy"
    panels = experiments(as_published(found), lambda group: all(name in record.curves for record in group))
    if not panels:
        raise NothingToDraw("accuracies on a validation split during training (Recipe.evaluate_every)")
    title, group = max(panels.items(), key=lambda entry: len(entry[1]))
    figure = curves(on_common_seeds(chosen(group)), "train_loss", name)
    figure.axes[0].set_yscale("log")  # the losses at the end, which differ most, are thousandths
    figure.suptitle(title, x=0.01, ha="left")
    return figure


@styled
def isda_strength(found: Sequence[Record]) -> Picture:
    """Notebook 1: gain over cross-entropy, seed by seed, over the strength; a panel a data set, a line a covariance."""
    panels = experiments(as_published(found), lambda group: bool(gains(group)))
    if not panels:
        raise NothingToDraw("cross-entropy and ISDA at two strengths or more, on the same seeds")
    rows = (len(panels) + 1) // 2
    figure = Picture(figsize=(7.5, 0.3 + 3.1 * rows))
    grid = figure.subplots(rows, min(2, len(panels)), squeeze=False).ravel()
    for unused in grid[len(panels) :]:
        unused.remove()
    forms = sorted({form for group in panels.values() for form in gains(group)}, reverse=True)  # full, diagonal
    for axes, (title, group) in zip(grid, panels.items(), strict=False):
        gained = gains(group)
        ticks = sorted({strength for strengths, _ in gained.values() for strength in strengths})
        for form, (strengths, values) in gained.items():  # at equal steps, as a logarithm has no 0
            at = [ticks.index(strength) for strength in strengths]
            band(axes, at, values, form, color=COLOURS[forms.index(form)], marker="o")
        axes.axhline(0, color=GREY, linewidth=1)
        axes.set_xticks(range(len(ticks)), [f"{tick:g}" for tick in ticks])
        axes.set(xlabel=r"strength $\lambda_0$ (not to scale)", title="\n".join(textwrap.wrap(title, 40)))
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.18), ncols=len(gained))
    grid[0].set_ylabel("gain over cross-entropy\n(points of test accuracy)")
    caption(
        figure,
        [record for group in panels.values() for record in group],
        "Bands: 95% intervals of the mean difference.",
    )
    return figure


def gains(group: Sequence[Record]) -> dict[str, tuple[list[float], np.ndarray]]:
    """By covariance form: strengths, and test accuracy less cross-entropy's in points (seeds, strengths).

    Raises ValueError where a seed was run twice.
    """
    runs: dict[tuple[str, float], list[Record]] = {}
    for record in as_published(group):
        settings = _given(record.config["settings"])
        if record.config["objective"] == "CrossEntropy":
            runs.setdefault(("", 0.0), []).append(record)
        else:
            runs.setdefault((settings["covariance"], settings["strength"]), []).append(record)
    score = {
        (key, seed): 100 * record.metrics["test_accuracy"]
        for key, records in runs.items()
        for seed, record in _by_seed(records).items()
    }
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


def _families(found: Sequence[Record], blank: Callable[[dict[str, Any]], None]) -> list[list[list[Record]]]:
    """Experiments of one profile and device, with two methods or more, in families that are equal once ``blank`` has
    been at their settings.
    """
    families: dict[str, list[list[Record]]] = {}
    for group in experiments(found, lambda group: len(methods(group)) > 1).values():
        config = group[0].config
        settings = {"data": _given(config["data"]), "recipe": dataclasses.asdict(Recipe(**config["recipe"]))}
        blank(settings)
        where = [config["network"], group[0].profile, group[0].environment.get("device")]
        families.setdefault(json.dumps([settings, where], sort_keys=True), []).append(group)
    return [family for family in families.values() if len(family) > 1]


def isda_controls(found: Sequence[Record]) -> Picture:
    """Notebook 1: ISDA along other covariances of equal trace, and with decay, beside the published form."""
    options = {"control", "decay"}
    panels = experiments(found, lambda group: any(options & _given(r.config["settings"]).keys() for r in group))
    if not panels:
        raise NothingToDraw("ISDA with a control or with decay")
    blocks = {}
    for title, group in panels.items():
        varied = [record for record in group if options & _given(record.config["settings"]).keys()]
        ways = {(r.config["settings"]["covariance"], r.config["settings"]["strength"]) for r in varied}
        plain = [
            record
            for record in as_published(group)
            if record.config["objective"] != "ISDA"
            or (record.config["settings"]["covariance"], record.config["settings"]["strength"]) in ways
        ]
        blocks[title] = on_common_seeds(methods(plain + varied))
    return comparison(blocks)


@styled
def isda_size(found: Sequence[Record]) -> Picture:
    """Notebook 1: accuracy, and gain over cross-entropy seed by seed, over the number of training images.

    Of the data set with most records at two sizes or more under one recipe; the methods that were run at all of these
    sizes, with one strength throughout.
    """
    published = [record for record in as_published(found) if _images([record])]
    families = _families(published, lambda s: s["data"].update(train_size=None))
    if not families:
        raise NothingToDraw("two methods at two sizes of one training set")
    groups = sorted(max(families, key=lambda family: sum(map(len, family))), key=_images)
    sizes, named = [_images(group) for group in groups], [methods(group) for group in groups]
    plain, shown = next(iter(named[0])), []
    figure = Picture(figsize=(7.5, 3.7))
    left, right = figure.subplots(1, 2)
    names = [name for name in named[0] if all(name in each for each in named)]
    for colour, name in zip(COLOURS, names, strict=False):
        seeds = sorted(set.intersection(*({r.seed for r in each[one]} for each in named for one in (plain, name))))
        if not seeds:
            continue
        score = {
            (seed, at, one): record
            for at, each in enumerate(named)
            for one in (plain, name)
            for seed, record in _by_seed(each[one]).items()
        }
        accuracy, reference = (
            100 * np.array([[score[s, i, n].metrics["test_accuracy"] for i in range(len(sizes))] for s in seeds])
            for n in (name, plain)
        )
        band(left, sizes, accuracy, name, color=colour, marker="o")
        if name != plain:
            band(right, sizes, accuracy - reference, name, color=colour, marker="o")
        shown += [score[s, i, name] for s in seeds for i in range(len(sizes))]
    right.axhline(0, color=GREY, linewidth=1)
    for axes, label in ((left, "test accuracy (%)"), (right, f"gain over {plain} (points)")):
        axes.set(xlabel="training images", xscale="log", ylabel=label)
        axes.set_xticks(sizes, [str(size) for size in sizes])
        axes.minorticks_off()
    config = groups[0][0].config
    left.set_title(f"{_set(groups[0])}, {config['network']}, {config['recipe']['epochs']} epochs")
    left.legend(loc="upper center", bbox_to_anchor=(0.5, -0.18))
    caption(figure, shown, "Bands: 95% intervals of the mean (difference).")
    return figure


def isda_augmentation(found: Sequence[Record]) -> Picture:
    """Notebook 1: ISDA beside augmentations of pixels and with them, against cross-entropy with the least of them."""
    families = _families(as_published(found), lambda settings: settings["recipe"].update(augment=""))
    if not families:
        raise NothingToDraw("two methods with two augmentations of pixels under one recipe")
    blocks = {}
    for family in families:
        groups = sorted(family, key=lambda group: (len(_augments(group)), _augments(group)))
        common = set.intersection(*(set(methods(group)) for group in groups))
        shared = [part for part in _augments(groups[0]) if all(part in _augments(group) for group in groups)]
        title = ", ".join([_set(groups[0]), f"{_images(groups[0])} images", str(groups[0][0].config["network"])])
        title += f", {'+'.join(shared)} and:" if shared else ""
        blocks[title] = {
            f"{' + '.join(part for part in _augments(group) if part not in shared) or 'no more'}: {name}": runs
            for group in groups
            for name, runs in methods(group).items()
            if name in common
        }
    return comparison(blocks)


FIGURES: dict[str, dict[str, Callable[[Sequence[Record]], Picture]]] = {
    "1_isda": {
        "accuracy": isda_accuracy,
        "curves": isda_curves,
        "strength": isda_strength,
        "size": isda_size,
        "augmentation": isda_augmentation,
        "controls": isda_controls,
    },
}

"""The figures of notebook 1 that are drawn from records; of its second part, see room ``longtail_figures``."""
