r"""DiffAugment: GANs by the place where a transformation T stands, and a classifier by what augments it.

Zhao et al., *Differentiable Augmentation for Data-Efficient GAN Training*, NeurIPS 2020
(https://arxiv.org/abs/2006.10738).

GANs are trained for as many steps at every number of images. Their records say more than their losses
(``semaug.measures.gans.Quality``), at several steps: FID and KID of features of a classifier trained here, what the
discriminator remembers, how near samples are to training images, and whether T leaks into them. Pictures of seed 0 lie
beside the records. A classifier is trained under no, fixed and learned augmentation of images and of features, and with
MixStyle, which mixes the styles of images, across two domains.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator

from companion import plots, records
from companion.plots import BLUE, CYAN, GREEN, GREY, PURPLE, RED, YELLOW, Picture, finish, styled, titled
from companion.records import Blocks, ByArm, Index, gained, metric, needed, over_first, pictures, runs_of
from companion.stats import gains, summary
from companion.studies import Arm, NothingToDraw, Setting, Study
from semaug.methods.diffaugment import DiffAugment
from semaug.training.recipe import Recipe
from semaug.training.record import Record

NOTEBOOK = "4_diffaugment"

# ---------------------------------------------------------------------------------------------------------------------
# GANs by where T stands

_SLOWER: dict[str, Setting] = {"generator_lr": 5e-4}


def _gan(name: str, color: str, **settings: Setting) -> Arm:
    return Arm(name, "GAN", {**_SLOWER, **settings}, color)


BASELINE = "no augmentation"

NOWHERE = _gan(BASELINE, "black", where="nowhere")
REALS = _gan("reals only", RED, where="reals")
DISCRIMINATOR = _gan("discriminator only", YELLOW, where="discriminator")
EVERYWHERE = _gan("DiffAugment", BLUE, where="everywhere")

PLACES = (NOWHERE, REALS, DISCRIMINATOR, EVERYWHERE)

ADAPTIVE = replace(_gan("DiffAugment, adaptive", CYAN, ada_span=10000.0), seeds=3)
PENALISED = replace(_gan("no augmentation, R1 penalty", PURPLE, where="nowhere", r1=1.0), seeds=3)

_ADAM = Recipe(batch_size=32, optimizer="adam", lr=1e-3, momentum=0.5, schedule="constant", weight_decay=0.0)

_CLOTHES: dict[str, Any] = {"name": "fashion-mini", "validation": 0.1}
_PHOTOS: dict[str, Any] = {"name": "cifar10", "validation": 0.1, "train_size": 10000, "test_size": 2000}
_SETS = {
    "fashion-mini": (_CLOTHES, _CLOTHES, 80.0),
    "portraits": ({"name": "portraits", "size": 32}, {"name": "strangers", "size": 32, "train_size": 3000}, 110.0),
    "CIFAR-10": (_PHOTOS, _PHOTOS, 110.0),
    "cars": ({"name": "cifar10", "only": "automobile"}, _PHOTOS, 110.0),
}
"""Images, those whose classifier's features FID and KID are of (of a hundred images none can be made), and seconds."""


def _players(title: str, images: int, arms: tuple[Arm, ...] = PLACES, seeds: int = 3, times: int = 1) -> Study:
    """1350 steps of the discriminator, or times as many, measured nine times (six, where they are six epochs)."""
    data, judge, seconds = _SETS[title]
    data = {**data, "train_size": images} if images < 7200 else data
    epochs = round(times * 1350 / (images // _ADAM.batch_size))
    recipe = replace(_ADAM, epochs=epochs, evaluate_every=max(1, epochs // 9))
    name, longer = (f"-{times}x", f", {times} times the steps") if times > 1 else ("", "")
    name, title = f"{data['name']}-{images}{name}", f"{title}, {images:,} images{longer}"
    return Study(NOTEBOOK, name, title, data, "dcgan", recipe, arms, seeds, times * seconds, judge=judge)


_BOTH = (NOWHERE, EVERYWHERE)
_AT_100 = (NOWHERE, replace(REALS, seeds=3), replace(DISCRIMINATOR, seeds=3), EVERYWHERE, ADAPTIVE, PENALISED)

GREYS = (_players("fashion-mini", 100, _AT_100, 5), *(_players("fashion-mini", n) for n in (200, 1000, 7200)))
"""Studies of clothing, in order of the number of images."""

COLOURED = (_players("portraits", 100), _players("CIFAR-10", 1000))

LONGER = (_players("fashion-mini", 100, _BOTH, 5, times=4), _players("portraits", 100, _BOTH, times=4))

_SEEN = (NOWHERE, replace(REALS, seeds=1), replace(DISCRIMINATOR, seeds=1), EVERYWHERE)
FACES = replace(
    _players("portraits", 100, _SEEN, times=3),
    name="portraits-100-middle", title="portraits, 100 images, G twice as wide", network="dcgan-middle",
    seconds=400, frames=8,
)  # fmt: skip
"""Faces to look at: a generator twice as wide, and pictures of every run, at every measurement."""

CARS = replace(
    _players("cars", 100, _SEEN, times=4),
    name="cars-100-wide", title="cars of CIFAR-10, 100 images, G four times as wide", network="dcgan-32",
    seconds=400, frames=8,
)  # fmt: skip
"""One class of photographs to look at."""

_BIG = Recipe(batch_size=64, optimizer="adam", lr=2e-4, momentum=0.0, schedule="constant", weight_decay=0.0)


def _large(images: int, policy: str) -> Study:
    """CIFAR-10 by the paper's recipe: 200,000 steps of the discriminator, four for one of the generator."""
    epochs = 200000 // (images // _BIG.batch_size)
    usual: dict[str, Setting] = {"ratio": 4, "ema": 0.999}
    arms = tuple(
        replace(arm, settings={**usual, "where": where, **({} if arm is NOWHERE else {"policy": policy})})
        for arm, where in zip(PLACES, ("nowhere", "reals", "discriminator", "everywhere"), strict=True)
    )
    data = {"name": "cifar10", "validation": 0.1, "train_size": images}
    recipe = replace(_BIG, epochs=epochs, evaluate_every=epochs // 20)
    judge = {**data, "train_size": 45000}
    title, name = f"CIFAR-10, {images:,} images", f"cifar10-{images}-paper"
    return Study(NOTEBOOK, name, title, data, "dcgan-wide", recipe, arms, 3, 2400, "paper", judge)


LARGE = (_large(5000, "translation,cutout"), _large(10000, "translation,cutout"), _large(45000, "cutout"))

# ---------------------------------------------------------------------------------------------------------------------
# Classifiers

PLAIN = Arm("cross-entropy", "CrossEntropy", color="black")

_TAUGHT: dict[str, Setting] = {"ema": 0.99, "augmentation_lr": 1e-3}

SCALES = tuple(
    Arm(f"features, scale {scale:g}", "FeatureAugmentation", {"scale": scale}, CYAN)
    for scale in (0.0, 1e-4, 0.01, 0.1, 1.0, 10.0)
)
"""Learned augmentation of features, by the scale of the reversed gradient."""

_METHODS = (
    PLAIN,
    Arm("crop", "CrossEntropy", color=GREY, recipe={"augment": "crop"}),
    Arm("crop and flip", "CrossEntropy", color=GREY, recipe={"augment": "crop+flip"}),
    Arm("T: color, translation, cutout", "FixedAugmentation", {"policy": "color,translation,cutout"}, GREEN),
    Arm("T: translation, cutout", "FixedAugmentation", {"policy": "translation,cutout"}, GREEN),
    Arm("ISDA, λ₀ = 0.5", "ISDA", {"strength": 0.5, "covariance": "full"}, BLUE),
    *SCALES,
    Arm("TeachAugment, reach 0.2", "TeachAugment", {**_TAUGHT, "reach": 0.2}, RED, passes=1.4, cost=1.5),
    Arm("TeachAugment, reach 0.5", "TeachAugment", _TAUGHT, RED, passes=1.4, cost=1.5),
)
_STYLES = (
    PLAIN,
    Arm("MixStyle, stage 1", "MixStyle", {"last": 1}, CYAN),
    Arm("MixStyle, stages 1 and 2", "MixStyle", color=CYAN),
)
_TRAINED = Recipe(epochs=40, weight_decay=5e-4, evaluate_every=4)
_TAUGHT_BY = replace(_TRAINED, optimizer="adam", lr=2e-3, weight_decay=0.0)  # the generators need Adam

_SMALL, _HUES = {**_CLOTHES, "train_size": 2000}, {"name": "hues", "validation": 0.1, "train_size": 1000}
CLASSIFIERS, DOMAINS = (
    Study(NOTEBOOK, name, title, data, "small", recipe, arms, 5, seconds)
    for name, title, data, recipe, arms, seconds in (
        ("fashion-mini-classifiers", "fashion-mini, 2,000 images", _SMALL, _TAUGHT_BY, _METHODS, 30),
        ("hues", "hues, 1,000 images", _HUES, _TRAINED, _STYLES, 20),
    )
)

STUDIES = (GREYS[0], GREYS[2], CLASSIFIERS, DOMAINS, *COLOURED, GREYS[1], GREYS[3], *LONGER, FACES, CARS, *LARGE)

PAPER: tuple[tuple[str, str, str], ...] = ()
"""The paper reports FIDs, of other features, and no accuracy."""

# ---------------------------------------------------------------------------------------------------------------------
# GANs over their steps

COLOURS = {arm.name: arm.color for study in STUDIES for arm in study.arms}

DIFFAUGMENT = EVERYWHERE.name

FEW = (GREYS[0], GREYS[2], GREYS[3])

PLACE_NAMES = [arm.name for arm in PLACES]

SHORT = {BASELINE: "plain GAN", DISCRIMINATOR.name: "D only", PENALISED.name: "plain GAN, R1 penalty"}
"""Names in text and figures, where they are not those of the arms, under which the records lie."""


def short(arm: str) -> str:
    """The name of an arm in text and figures."""
    return SHORT.get(arm, arm)


CURVES = {
    "fid": "FID",
    "auc": "AUC on\nplain images",
    "copy_ratio": "copy ratio",
    "leak": "with a flat\ngrey window",
}

CHANCE = {"auc": 0.5, "copy_ratio": 1.0, "leak": 0.01}
"""What these would be if nothing were remembered and nothing leaked."""

BOUNDS = {"leak": (-0.05, 1.05), "auc": (0.35, 1.03), "copy_ratio": (0.0, 1.5)}
"""Where these can be, with a margin; the interval of a mean may reach farther."""


def _blocks(index: Index, studies: Sequence[Study], names: Sequence[str] | None = None) -> dict[str, ByArm]:
    """Records of GANs by title and arm, of the studies that have both no augmentation and DiffAugment.

    names: of arms; all by default.
    """
    found = {}
    for study in studies:
        there = [arm.name for arm in study.arms if names is None or arm.name in names]
        found[study.title] = index.by_arm(study, there)
    found = {title: by_arm for title, by_arm in found.items() if {BASELINE, DIFFAUGMENT} <= by_arm.keys()}
    return needed(found, "GANs without augmentation and with DiffAugment")


def _log_fid(record: Record) -> float:
    return math.log2(record.metrics["fid"])


def steps(record: Record) -> Float[np.ndarray, " measured"]:
    """The discriminator's steps at which the curves of a GAN have their values."""
    per_epoch = sum(record.train_counts) // record.config["recipe"]["batch_size"]
    return per_epoch * np.array(record.curves["epoch"], dtype=float)


@styled
def places() -> Picture:
    """Where T stands, a panel each: what D sees when it learns, and what it is asked when G learns.

    The panels have numbers, in the order of ``PLACES``: readers say first what each place leads to. Green: the path of
    G's gradient.
    """
    figure = Picture(figsize=(7.5, 2.5))
    figure.set_layout_engine("none")
    grid = figure.subplots(1, len(PLACES), gridspec_kw={"left": 0.005, "right": 0.995, "bottom": 0.0, "top": 0.9})
    for number, (axes, arm) in enumerate(zip(grid, PLACES, strict=True), 1):
        axes.set(xlim=(0, 18.5), ylim=(0, 22))
        axes.axis("off")
        axes.set_title(f"place {number}", color=arm.color, weight="bold")
        ways = {
            "D learns, real images": (17.0, "$x$", arm is not NOWHERE),
            "and generated ones": (10.5, "$G(z)$", arm in (DISCRIMINATOR, EVERYWHERE)),
            "G learns": (3.5, "$G(z)$", arm is EVERYWHERE),
        }
        for words, (height, start, transformed) in ways.items():
            back = words == "G learns"
            axes.text(0.3, height + 2.2, words, fontsize=8.5, color=GREY)
            axes.text(2.4, height, start, ha="center", va="center")
            ends = [(4.6, 7.4), (10.2, 13.4)] if transformed else [(4.6, 13.4)]
            for one, other in ends:
                plots.draw_arrow(axes, (one, height), (other, height), "#555555")
                if back:  # the path of its gradient
                    plots.draw_arrow(axes, (other, height - 1.2), (one, height - 1.2), GREEN, "--")
            if transformed:
                plots.draw_box(axes, (8.8, height), (2.8, 3.0), "$T$", arm.color, "white")
            plots.draw_box(axes, (15.2, height), (3.4, 3.0), "$D$", "#555555", "#F6F6F6")
    return figure


def _band(axes: Axes, runs: Sequence[Record], curve: str, label: str, labels: dict[str, Any], **style: Any) -> None:
    """A curve of GANs over their steps; ``labels`` takes the first line of a label, for the legend."""
    plots.band(axes, steps(runs[0]), np.array([record.curves[curve] for record in runs]), label, **style)
    labels.setdefault(label, axes.lines[-1])


@styled
def over_steps(index: Index, names: Sequence[str], studies: Sequence[Study], message: str) -> Picture:
    """Curves of GANs over their steps: a row a measure of ``CURVES``, a column a study, a line a place of T."""
    found = _blocks(index, studies, PLACE_NAMES)
    blocks = {title: records.on_common_seeds(by_arm) for title, by_arm in found.items()}
    figure, grid = plots.panels(1.3 + 1.55 * len(names), len(names), len(blocks), sharex=True, sharey="row")
    labels: dict[str, Any] = {}
    for line, name in zip(grid, names, strict=True):
        line[0].set_ylabel(CURVES[name], fontsize=9)
        for axes, by_arm in zip(line, blocks.values(), strict=True):
            for label, runs in by_arm.items():
                _band(axes, runs, name, short(label), labels, color=COLOURS[label])
            if name in CHANCE:
                axes.axhline(CHANCE[name], color=GREY, linewidth=1, linestyle=":")
                axes.set_ylim(*BOUNDS[name])
            if name == "leak":
                aim = summary(map(metric("leak_augmented", 1), runs_of({"": by_arm}))).mean
                axes.axhline(aim, color=GREY, linewidth=1, linestyle="--")
        if name == "fid":  # an interval may reach below 0, which a logarithm has no place for
            line[0].set_yscale("log")
            line[0].yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            line[0].yaxis.set_major_formatter("{x:g}")
            line[0].yaxis.set_minor_formatter("")
            line[0].set_ylim(bottom=0.6 * min(drawn.get_ydata().min() for axes in line for drawn in axes.lines))
    for top, bottom, (title, by_arm) in zip(grid[0], grid[-1], blocks.items(), strict=True):
        top.set_title("\n".join([*title.split(", ")[:2], f"n = {len(by_arm[BASELINE])}"]), fontsize=9)
        bottom.set_xlabel("steps", fontsize=9)
    shown, text = runs_of(blocks), ["Bands: 95% intervals of the mean."]
    text += ["Features of a classifier trained here.", _real(shown)] if "fid" in names else []
    text += ["Dashed: augmented real images."] if "leak" in names else []
    text += ["Dotted: nothing remembered, nothing leaked."] if CHANCE.keys() & set(names) else []
    return finish(figure, message, shown, " ".join(text), labels)


def _real(shown: Sequence[Record]) -> str:
    """The FID that other real images have: far below all others, so in words."""
    values = [record.metrics["real_fid"] for record in shown if "real_fid" in record.metrics]
    if not values:
        return ""
    where = " where there are as many of them as test images" if len(values) < len(shown) else ""
    return f"FID of real images from other real images{where}: {summary(values).mean:.2g}."


def _everywhere(blocks: Blocks, name: str, score: Callable[[Record], float], side: int) -> bool:
    """Whether an arm differs from no augmentation significantly, and to this side, in every study."""
    found = [gains(by_arm.get(name, []), by_arm[BASELINE], score) for by_arm in blocks.values()]
    return all(values and summary(values).side == side for values in found)


def distances(index: Index) -> Picture:
    """FID over the steps, by the number of images."""
    worse = _everywhere(_blocks(index, GREYS), REALS.name, _log_fid, 1)
    message = "T on reals only makes the images worse, whatever their number"
    return over_steps(index, ("fid",), GREYS, message if worse else "FID over the steps")


def overfitting(index: Index) -> Picture:
    """What D remembers of its training images, and whether T leaks into samples, over the steps."""
    blocks = _blocks(index, FEW)
    few = {title: by_arm for title, by_arm in blocks.items() if title == GREYS[0].title}
    less = all(_everywhere(few, arm.name, metric("auc"), -1) for arm in PLACES[1:])
    message = "With any T, D remembers few images less, asked about plain ones; T on reals only leaks into samples"
    shown = less and _everywhere(blocks, REALS.name, metric("leak"), 1)
    return over_steps(index, ("auc", "leak"), FEW, message if shown else "Memory and leak over the steps")


@styled
def longer(index: Index) -> Picture:
    """FID, memory and copies of portraits, trained four times as long: a thin line a seed, a thick one their mean."""
    (found,) = _blocks(index, LONGER[1:]).values()
    by_arm = records.on_common_seeds(found)
    shown = {name: by_arm[name] for name in (BASELINE, DIFFAUGMENT)}
    figure, (panels,) = plots.panels(3.1, 1, 3)
    means, labels = {}, dict[str, Any]()
    for axes, name in zip(panels, ("fid", "auc", "copy_ratio"), strict=True):
        for arm, runs in shown.items():
            values, x = np.array([run.curves[name] for run in runs]), steps(runs[0])
            axes.plot(x, values.T, color=COLOURS[arm], linewidth=0.8, alpha=0.5)
            (line,) = axes.plot(x, values.mean(0), color=COLOURS[arm], linewidth=2.6)
            means[arm, name] = values.mean(0)
            labels.setdefault(short(arm), line)
        if name in CHANCE:
            axes.axhline(CHANCE[name], color=GREY, linewidth=1, linestyle=":")
        axes.set_title(CURVES[name].replace("\n", " "))
        axes.set(xlabel="steps", ylim=BOUNDS.get(name))
    panels[0].set_yscale("log")
    panels[0].yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    panels[0].yaxis.set_major_formatter("{x:g}")
    panels[0].yaxis.set_minor_formatter("")
    plain, ours = means[BASELINE, "fid"], means[DIFFAUGMENT, "fid"]
    best, message = int(plain.argmin()), "Portraits: four times as many steps"
    if all(run.curves["fid"][-1] > run.curves["fid"][best] for run in shown[BASELINE]) and ours[-1] < plain[best]:
        message = f"Portraits: the plain GAN is best after {steps(shown[BASELINE][0])[best]:,.0f} steps, with a mean "
        message += f"FID of {plain[best]:.2f}; it ends at {plain[-1]:.2f}, DiffAugment at {ours[-1]:.2f}"
    text = f"Thin: {len(shown[BASELINE])} seeds each; thick: their mean. Dotted: nothing remembered, nothing copied."
    return finish(figure, message, runs_of({"": shown}), text, labels)


# ---------------------------------------------------------------------------------------------------------------------
# GANs at their end

COLUMNS = {
    "FID": ("fid", ".2f"),
    "FID from T(real)": ("fid_augmented", ".2f"),
    "KID": ("kid", ".3f"),
    "accepted: train (%)": ("accepted_train", ".0f"),
    "held out (%)": ("accepted_held_out", ".0f"),
    "AUC": ("auc", ".2f"),
    "copy ratio": ("copy_ratio", ".2f"),
    "grey windows (%)": ("leak", ".0f"),
}
"""The columns of the table: metric and its form; whole numbers are percents."""

TABLE = "GANs at their end, mean ± 95% interval over seeds"


def table(index: Index) -> str:
    """All GANs at their end, as tables in Markdown: mean ± 95% interval over seeds, of n seeds."""
    parts = []
    for title, by_arm in _blocks(index, (*GREYS, *COLOURED, *LARGE)).items():
        first, rows = by_arm[BASELINE][0], []
        for name, runs in by_arm.items():
            cells = [
                summary(map(metric(key, 100 if form == ".0f" else 1), runs)).text(form)
                for key, form in COLUMNS.values()
            ]
            rows.append([short(name), str(len(runs)), *cells])
        where = f"profile {first.profile}, {first.environment.get('device', 'unknown device')}"
        parts.append(f"**{title}**; {where}\n\n{records.markdown(['T', 'n', *COLUMNS], rows)}")
        real = [f"{first.metrics[of]:{form}}" if of in first.metrics else "" for of, form in REAL.items()]
        if any(real):
            parts[-1] += f"\n| other real images | | {real[0]} | | {real[1]} {'| ' * 5}|"
    return "\n\n".join(parts) + "\n"


REAL = {"real_fid": ".2f", "real_kid": ".3f"}
"""What other real images have: of FID, only where there are as many of them as test images."""


def kept(index: Index, needs: int = 1) -> dict[str, list[tuple[Record, dict[str, np.ndarray]]]]:
    """The runs of ``FACES`` that have pictures, by arm; NothingToDraw unless the first and last arm have ``needs``."""
    found = {
        name: [(run, arrays) for run in runs if (arrays := pictures(NOTEBOOK, run))]
        for name, runs in index.by_arm(FACES).items()
    }
    if min(len(found.get(name, [])) for name in (BASELINE, DIFFAUGMENT)) < needs:
        raise NothingToDraw(f"pictures of {needs} runs of {FACES.title}, without T and with DiffAugment")
    return found


def training_faces(index: Index) -> np.ndarray:
    """Eight of the hundred faces that the runs of ``FACES`` are trained on, uint8 (8, channels, H, W)."""
    _, arrays = kept(index)[BASELINE][0]
    return np.array(arrays["training"])


def _tiles(arrays: dict[str, np.ndarray], each: int) -> np.ndarray:
    """Samples of a run above their nearest training images, (2, each, channels, H, W)."""
    return np.stack([arrays["samples"][:each], arrays["nearest"][:each]])


def faces(index: Index, each: int = 6) -> Picture:
    """Samples of seed 0 of the long runs of faces, each above its nearest training image: plain GAN and DiffAugment."""
    runs = {name: index.of(LONGER[1], name) for name in (BASELINE, DIFFAUGMENT)}
    found = {name: pictures(NOTEBOOK, of[0]) for name, of in runs.items() if of}
    if len(found) < 2 or not all(found.values()):
        raise NothingToDraw(f"pictures of {LONGER[1].title}, without T and with DiffAugment")
    mosaic = torch.from_numpy(np.concatenate([_tiles(arrays, each) for arrays in found.values()]))
    figure = plots.sheet(mosaic, [row for name in found for row in (short(name), "nearest photo")], size=0.85)
    figure.set_figheight(figure.get_figheight() + 0.8)
    firsts = [of[0] for of in runs.values()]
    plain, ours = (np.mean([run.curves["fid"] for run in of], 0) for of in runs.values())
    message = "Samples of GANs trained on a hundred faces"
    if firsts[0].metrics["copy_ratio"] < 0.5 < 0.9 < firsts[1].metrics["copy_ratio"]:
        message = f"Seed 0 of {len(runs[BASELINE])}: the plain GAN ends near a few photographs, DiffAugment does not"
    photos = " and ".join(str(_different(arrays["nearest"][:each])) for arrays in found.values())
    best, measured = int(plain.argmin()), steps(firsts[0])
    text = f"Averaged generator after {measured[-1]:,.0f} steps; both have the same codes. Of {each} nearest photos, "
    text += f"{photos} are different. Mean FID of {len(runs[BASELINE])} seeds: plain GAN {plain[-1]:.2f}, DiffAugment "
    text += f"{ours[-1]:.2f}; the plain GAN had {plain[best]:.2f} after {measured[best]:,.0f} steps."
    return finish(figure, message, firsts, text)


def _different(images: np.ndarray) -> int:
    """How many of these photographs differ: saved with losses, equal ones are a grey level apart, others many."""
    found: list[np.ndarray] = []
    for image in images.astype(float):
        if all(np.abs(image - other).mean() > 5 for other in found):
            found.append(image)
    return len(found)


def four_places(index: Index, each: int = 8) -> Picture:
    """Samples of seed 0 of short runs for every place of T; of those that draw faces also the nearest photographs."""
    firsts = _of_places(index, COLOURED[0])
    if len(firsts) < len(PLACES):
        raise NothingToDraw(f"pictures of {COLOURED[0].title}, with T in every place")
    rows, labels = _above_nearest(firsts, each)
    runs = [run for run, _ in firsts]
    grey = {arm.name: [100 * run.metrics["leak"] for run in index.of(COLOURED[0], arm.name)] for arm in PLACES}
    message, shares = "The same hundred faces, and T in other places", grey.pop(REALS.name)
    if min(shares) > max(map(max, grey.values())):
        low, high = (f"{edge(shares):.0f}" for edge in (min, max))
        message = f"Reals only draws grey windows, in {low}{f' to {high}' if low != high else ''}% of its samples "
        message += f"({len(shares)} seeds); DiffAugment in {max(grey[DIFFAUGMENT]):.0f}%"
    return _places_drawn(runs, rows, labels, message)


def _above_nearest(firsts: Sequence[tuple[Record, dict[str, np.ndarray]]], each: int) -> tuple[np.ndarray, list[str]]:
    """Rows of samples by place, those of the plain GAN and of DiffAugment above their nearest photographs; labels."""
    rows, labels = list[np.ndarray](), list[str]()
    for number, (run, arrays) in enumerate(firsts, 1):
        more = run.arm in (BASELINE, DIFFAUGMENT)
        rows.append(_tiles(arrays, each)[: 1 + more])
        labels += [f"{number}: {short(run.arm)}", *["nearest photo"] * more]
    return np.concatenate(rows), labels


def cars(index: Index, each: int = 8) -> Picture:
    """Samples of seed 0 of ``CARS`` for every place of T, and the FID of all seeds in words."""
    firsts = _of_places(index, CARS)
    if len(firsts) < len(PLACES):
        raise NothingToDraw(f"pictures of {CARS.title}, with T in every place")
    fids = {name: [run.metrics["fid"] for run in index.of(CARS, name)] for name in (BASELINE, DIFFAUGMENT)}
    message = "A hundred cars, and T in four places"
    if min(fids[BASELINE]) > 2 * max(fids[DIFFAUGMENT]):
        low, high = ([f"{edge(values):.2g}" for edge in (min, max)] for values in fids.values())
        message = f"A hundred cars: FID {' to '.join(low)} by the plain GAN, {' to '.join(high)} by DiffAugment"
    rows, labels = _above_nearest(firsts, each)
    ends = [f"{short(name)} {', '.join(f'{fid:.2g}' for fid in values)}" for name, values in fids.items()]
    text = f" FID of the seeds (features of a classifier trained here): {'; '.join(ends)}."
    return _places_drawn([run for run, _ in firsts], rows, labels, message, text)


def places_long(index: Index, each: int = 8) -> Picture:
    """Samples of seed 0 of ``FACES`` for every place of T, and below those of reals only photographs under T."""
    found = _of_places(index, FACES)
    if len(found) < len(PLACES):
        raise NothingToDraw(f"pictures of {FACES.title}, with T in every place")
    rows = [arrays["samples"][:each] for _, arrays in found]
    labels = [f"{number}: {short(run.arm)}" for number, (run, _) in enumerate(found, 1)]
    photographs = torch.tensor(found[0][1]["training"][:each]) / 127.5 - 1
    under = (DiffAugment()(photographs, torch.Generator().manual_seed(0)) / 2 + 0.5).clamp(0, 1)
    rows.insert(2, (255 * under).round().byte().numpy())
    labels.insert(2, "photos under T")
    runs = [run for run, _ in found]
    _, reals, fooled, ours = (run.metrics for run in runs)
    message = "The same hundred faces, and T in other places"
    if reals["leak"] > reals["leak_augmented"] / 2 > ours["leak"] and fooled["logit_fake"] > 2 > ours["logit_fake"]:
        message = "Longer: reals only draws transformed images; D only draws one image that its D takes for real"
    return _places_drawn(runs, np.stack(rows), labels, message)


def _of_places(index: Index, study: Study) -> list[tuple[Record, dict[str, np.ndarray]]]:
    runs = [index.of(study, name)[:1] for name in PLACE_NAMES]
    return [(run, arrays) for found in runs for run in found if (arrays := pictures(NOTEBOOK, run))]


def _places_drawn(
    shown: Sequence[Record], mosaic: np.ndarray, rows: Sequence[str], message: str, more: str = ""
) -> Picture:
    figure = plots.sheet(torch.from_numpy(mosaic), rows, size=0.65)
    figure.axes[0].tick_params(labelsize=9)
    figure.set_figheight(figure.get_figheight() + 0.6)
    text = f"Averaged generator, seed 0, after {steps(shown[0])[-1]:,.0f} steps; all samples of a column have one code."
    return finish(figure, message, shown, text + more)


@styled
def seeds(index: Index, each: int = 4) -> Picture:
    """Samples of three seeds of ``FACES``: plain GAN, and beside it DiffAugment, with their copy ratio and FID."""
    found = kept(index, 3)
    pairs = list(zip(found[BASELINE][:3], found[DIFFAUGMENT][:3], strict=True))
    figure = Picture(figsize=(7.5, 4.4))
    panels = figure.subplots(3, 2, gridspec_kw={"wspace": 0.06})
    for line, pair in zip(panels, pairs, strict=True):
        for axes, (run, arrays) in zip(line, pair, strict=True):
            tiles = np.pad(arrays["samples"][:each], ((0, 0), (0, 0), (0, 0), (0, 2)), constant_values=255)
            axes.imshow(np.concatenate(list(tiles.transpose(0, 2, 3, 1)), 1)[:, :-2])
            axes.axis("off")
            ratio, fid = run.metrics["copy_ratio"], run.metrics["fid"]
            axes.set_title(f"{short(run.arm)}, seed {run.seed}: copy ratio {ratio:.2f}, FID {fid:.2f}", fontsize=9)
    ends = [(plain.metrics, ours.metrics) for (plain, _), (ours, _) in pairs]
    message = "Samples of three seeds, with the same codes"
    if all(one["copy_ratio"] < other["copy_ratio"] and one["fid"] > other["fid"] for one, other in ends):
        message = "In all three seeds the plain GAN ends nearer to its photographs, and with the higher FID"
    shown = [run for pair in pairs for run, _ in pair]
    text = f"Averaged generator after {steps(shown[0])[-1]:,.0f} steps; all from the same four codes."
    return finish(figure, message, shown, text)


def between(index: Index) -> Picture:
    """From one code to another in eight steps, twice: without T and with DiffAugment, of seed 0."""
    found = kept(index)
    rows = [(name, found[name][0]) for name in (BASELINE, DIFFAUGMENT)]
    mosaic = torch.from_numpy(np.concatenate([arrays["between"] for _, (_, arrays) in rows]))
    labels = [f"{short(name)}, {pair}" for name, _ in rows for pair in ("codes 1, 2", "codes 3, 4")]
    figure = plots.sheet(mosaic, labels, size=0.6)
    figure.axes[0].tick_params(labelsize=8)
    figure.set_figheight(figure.get_figheight() + 0.5)
    largest = [100 * largest_step(arrays["between"]) for _, (_, arrays) in rows]
    message = "Both GANs go smoothly from code to code: this test does not tell a generator that copies"
    message = message if max(largest) < 30 else "From code to code in seven steps"
    shown = [run for _, (run, _) in rows]
    text = "From one code to another; the largest of seven steps is {:.0f}% and {:.0f}% of the way. ".format(*largest)
    text += f"Averaged generator, after {steps(shown[0])[-1]:,.0f} steps."
    return finish(figure, message, shown, text)


def largest_step(paths: np.ndarray) -> float:
    """Of images on paths, (paths, images, ...), the largest step as a part of the way, in pixels; mean over paths."""
    moves = np.sqrt(np.square(np.diff(paths.astype(float), axis=1)).mean((2, 3, 4)))
    return float((moves.max(1) / moves.sum(1)).mean())


# ---------------------------------------------------------------------------------------------------------------------
# Classifiers


def learned(index: Index) -> Picture:
    """Test accuracy of a classifier under learned, fixed and no augmentation, paired by seed; of the scales two."""
    names = [arm.name for arm in CLASSIFIERS.arms if arm.settings.get("scale", 0.1) in (0.1, 10.0)]
    blocks = index.blocks([CLASSIFIERS], "cross-entropy and an augmentation", names)
    better = [name for name, values in over_first(blocks[CLASSIFIERS.title]).items() if summary(values).side > 0]
    message = f"Significantly better than no augmentation: {', '.join(better) or 'none'}"
    return titled(plots.comparison(blocks, colours=COLOURS), message)


def domains(index: Index) -> Picture:
    """MixStyle against cross-entropy on the hues that were trained on (validation images) and on the others (test)."""
    (by_arm,) = index.blocks([DOMAINS], "cross-entropy and MixStyle on hues").values()
    columns = gained({"hues trained on": by_arm}, metric("validation_accuracy")) | gained({"other hues": by_arm})
    text = f"{DOMAINS.title}. Baseline: cross-entropy, whose accuracy stands above each panel."
    figure = plots.forest(
        {"": columns}, "gain (points)", runs_of({"": by_arm}), text, lambda name, title: COLOURS[name], shared=True
    )
    old, new = ([summary(values) for values in column.values()] for column in columns.values())
    gain = all(effect.side > 0 for effect in (*old, *new))
    more = gain and all(one.mean > other.mean for one, other in zip(old, new, strict=True))
    message = "MixStyle gains on hues it has not seen, and more on those it was trained on"
    return titled(figure, message if more else "MixStyle over cross-entropy", 2.2)


FIGURES: dict[str, Callable[[Index], Picture]] = {
    **{draw.__name__: draw for draw in (faces, between, longer, overfitting, distances)},
    **{draw.__name__: draw for draw in (four_places, places_long, seeds, cars)},
    **{draw.__name__: draw for draw in (learned, domains)},
}
