"""G-VAE (notebook 2): a VAE whose posterior is trained by ISDA's loss, beside a VAE and a conditional VAE.

Wu Tianyang, "ML algorithm exploration", 2023, code: https://github.com/wty-yy/KataCV. Compared are codes (a linear
probe), decoded images (class consistency over movement, squared error), one setting of G-VAE changed at a time, and
what the source proposes the method for: images that a classifier is trained on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from torch import Tensor

from companion import plots
from companion.plots import COLOURS, CYAN, GREEN, GREY, PURPLE, RED, YELLOW, Picture, finish, styled, titled
from companion.records import ByArm, Index, Pictured, gained, markdown, metric, needed, pictured, pictures, runs_of
from companion.stats import Summary, gains, summary
from companion.studies import Arm, Measured, NothingToDraw, Setting, Study
from semaug.data import shapes, sources
from semaug.data.sets import Data
from semaug.data.split import Split
from semaug.measures import codes
from semaug.measures.codes import STEPS, Posterior
from semaug.methods.gvae import kept
from semaug.training.recipe import Recipe
from semaug.training.record import Record

NOTEBOOK = "2_gvae"

# ---------------------------------------------------------------------------------------------------------------------
# Arms and studies

USUAL: dict[str, Setting] = {"deviation": 0.27}
VAE = Arm("VAE", "VAE", USUAL, "black")
CONDITIONAL = Arm("conditional VAE", "ConditionalVAE", USUAL, GREEN)


def gvae(class_weight: float) -> Arm:
    """G-VAE with the usual deviation of the decoder; the class weight is c of the loss."""
    return Arm("G-VAE", "GVAE", {**USUAL, "class_weight": float(class_weight)}, RED)


def changed(what: str, **settings: Setting) -> Arm:
    """G-VAE on fashion-mini with one setting changed, or two."""
    merged = {**USUAL, "class_weight": 30.0, **settings}
    return Arm(f"G-VAE, {what}", "GVAE", merged, CYAN, seeds=3, variant=True)


CHANGES = (
    changed("s = 0.035", deviation=0.035),
    changed("s = 0.1", deviation=0.1),
    changed("s = 0.5", deviation=0.5),
    changed("c = 1", class_weight=1.0),
    changed("c = 100", class_weight=100.0),
    changed("s = 0.0079, c = 400", deviation=0.0079, class_weight=400.0),  # the author's note
    changed("s = 0.035, c = 400", deviation=0.035, class_weight=400.0),  # the author's code on digits
    changed("learned s, c", balance="learned"),
    changed("L1", reconstruction="l1"),
)


def augmented_by(name: str, color: str, method: str, **settings: Setting) -> Arm:
    """A classifier trained on images of a generator trained beside it."""
    cost = 1.0 if method in ("none", "noise") else 3.0
    return Arm(name, "Augmented", {"method": method, **settings}, color, cost=cost)


AUGMENTED = (
    augmented_by("none", GREY, "none"),
    augmented_by("Gaussian noise", YELLOW, "noise", strength=0.1),
    augmented_by("VAE", "black", "vae", deviation=0.27),
    augmented_by("conditional VAE", GREEN, "cvae", deviation=0.27),
    augmented_by("G-VAE", RED, "gvae", deviation=0.27, class_weight=30.0),
    augmented_by("G-VAE, difference", PURPLE, "gvae", deviation=0.27, class_weight=30.0, residual=True),
)

ADAM = Recipe(epochs=30, batch_size=64, optimizer="adam", lr=3e-3, schedule="linear", weight_decay=0.0)
FINE = replace(ADAM, batch_size=32)  # steps, not images, are what larger images lack


def _measure(objective: Any, dataset: Data, device: torch.device) -> Measured:
    return codes.measures(objective, dataset, device), {}


@torch.no_grad()
def sheets(model: Any, dataset: Data, clip: float = 0.1, rows: int = 10) -> dict[str, np.ndarray]:
    """What the source's figures 2 to 6 show, of test images; images are uint8 with last axes (channels, H, W).

    Returns:
        images (R, ...), as many of each class as there are rows for; clipped (R, 13, ...): traversals from -3 to 3
        deviations of the fraction ``clip`` of coordinates of largest deviation; all: of all coordinates; noise
        (R, ...): codes mu + N(0, I). Then one image (:func:`_sharpest`), moved. grid (7, 9, ...): along mean deviations
        of a class, each cut to its largest 5%, across those of classes 1 and 0 and down those of classes 2 and 3, as
        the author's code has it (of faces he calls smiling women 2 and men 1, we call them 1 and 2). ways (7, 13, ...):
        from -3 to 3 of the largest, then the smallest ``clip`` of deviations, of all, of a standard deviation of its
        class's codes along their two leading eigenvectors, and of 2/3 of the differences of two class means from that
        of class 0. plane (M, 2): mean codes of 1,000 training images of each of four classes in their two principal
        components; author (M, 2): the same codes, each class projected on the first two rows of its own eigenvector
        matrix; labels (M,).
    """
    test, device = dataset.test, next(model.parameters()).device
    each = -(-rows // min(rows, dataset.num_classes))
    by_class = [(test.target == label).nonzero().ravel()[:each] for label in range(min(rows, dataset.num_classes))]
    few = test.take(torch.stack(by_class, 1).ravel()[:rows]).to(device)
    mean, deviation = model.posterior(few.floats())
    normal = torch.randn(mean.shape, generator=torch.Generator().manual_seed(0)).to(mean)
    trained = codes.posterior(model, dataset.train.to(device))
    first = [(trained.target == label).nonzero().ravel()[:1000] for label in range(min(4, dataset.num_classes))]
    moments = codes.class_codes(trained, dataset.num_classes)
    cut = (moments.deviation * kept(moments.deviation, 0.05)).to(mean)
    down, across = torch.arange(-3, 4), 0.75 * torch.arange(-4, 5)
    sharp = test.take([_sharpest(model, test.take(slice(0, 500)).to(device))]).to(device)
    centre, own = model.posterior(sharp.floats())

    shifts = [i * (cut[2] if i < 0 else cut[3]) - j * (cut[1] if j < 0 else cut[0]) for i in down for j in across]
    grid = model.decode(centre + torch.stack(shifts), sharp.target.expand(len(shifts)))
    sex, smile = (2 / 3 * (moments.mean[c] - moments.mean[0]) for c in (2, 1))
    values, vectors = torch.linalg.eigh(moments.covariance[sharp.target[0]])  # in rising order
    axes = (values[-2:].clamp_min(0).sqrt() * vectors[:, -2:]).T.flip(0).to(mean)
    largest, smallest = kept(own, clip), kept(1 / own, clip)
    directions = torch.cat([own * largest, own * smallest, own, axes, smile[None], sex[None]]).to(mean)
    starts = centre.expand(len(directions), -1), directions, codes.STEPS, sharp.target.expand(len(directions))
    z = trained.mean[torch.cat(first)]
    points, _ = codes.plane(Posterior(z, z, trained.target[torch.cat(first)]))
    author = []
    for part in z.double().split([*map(len, first)]):
        vectors = torch.linalg.eigh(part.T @ part).eigenvectors
        vectors *= vectors.gather(0, vectors.abs().argmax(0)[None]).sign()  # the sign of an eigenvector is arbitrary
        author.append(part @ vectors[:2].T)
    return {
        "images": few.images.cpu().numpy(),
        "clipped": _bytes(model.along(mean, deviation * kept(deviation, clip), codes.STEPS, few.target)),
        "all": _bytes(model.along(mean, deviation, codes.STEPS, few.target)),
        "noise": _bytes(model.decode(mean + normal, few.target)),
        "grid": _bytes(grid).reshape(len(down), len(across), *grid.shape[1:]),
        "ways": _bytes(model.along(*starts)),
        "plane": points.float().cpu().numpy(),
        "author": torch.cat(author).float().cpu().numpy(),
        "labels": trained.target[torch.cat(first)].cpu().numpy(),
    }


def _sharpest(model: Any, some: Split) -> int:
    """Of the half of these images that is drawn best, the one whose m(mu) has the steepest differences of pixels.

    Drawn best: of the smallest squared error, as a share of the image's own variance.
    """
    true = some.floats()
    drawn = torch.cat(
        [
            model.decode(part, label)
            for part, label in zip(
                torch.cat([model.posterior(images)[0] for images in true.split(100)]).split(100),
                some.target.split(100),
                strict=True,
            )
        ]
    )
    error = (drawn - true).square().flatten(1).mean(1) / true.flatten(1).var(1)
    steep = torch.stack([drawn.diff(dim=dim).abs().flatten(1).mean(1) for dim in (2, 3)]).sum(0)
    return int(steep.where(error <= error.median(), 0).argmax())


def _bytes(images: Tensor) -> np.ndarray:
    return (255 * images).round().byte().cpu().numpy()


TRAVERSED = (-6, -3, 0, 3, 6)

"""Of the traversals that are kept as pictures, in half deviations."""


@torch.no_grad()
def keep(model: Any, data: Data, rows: int = 4, count: int = codes.PLANE) -> dict[str, np.ndarray]:
    """What the figures of traversals and codes need of a trained model, and the numbers of a record cannot hold.

    All of it is of test images; R <= ``rows`` of them, the first of each of the first classes that are there. Images
    are uint8, their last axes (channels, H, W).

    Args:
        model: in evaluation mode.
        data: what it was trained on.
        rows: images that are traversed.
        count: test images, the first ones, whose codes are in the plane.

    Returns:
        Nothing for what is no :class:`semaug.measures.codes.Coder`. Else images (R, ...); all (R, 5, ...): traversals
        at ``TRAVERSED``, of all coordinates. plane (N, 2) float32: mean codes in their first two principal components;
        share (2,): their shares of the variance; labels (N,): their classes. alignment (7, K), for the set ``shapes``
        alone: (2) on 300 images, and deviation (K,) the mean of its coordinates: which factor each direction moves.
    """
    device = next(model.parameters()).device
    if not isinstance(model, codes.Coder):
        return {}
    test = data.test.to(device)
    chosen = test.take([int((test.target == c).nonzero()[0]) for c in test.target.unique()[:rows]])
    mean, deviation, target = codes.posterior(model, chosen)
    step = TRAVERSED[1] - TRAVERSED[0]  # columns of ``along`` are half a direction apart
    first = codes.posterior(model, test.take(slice(0, count)))
    points, share = codes.plane(first)
    tensors: dict[str, Any] = {
        "images": chosen.images,
        "all": _bytes(model.along(mean, step * deviation, TRAVERSED[-1] // step, target)),
        "plane": points.float(),
        "share": share[:2].float(),
        "labels": first.target,
    }
    if shapes.RANGES.keys() <= test.factors.keys():
        few = test.take(slice(0, 300))
        tensors["alignment"] = torch.stack(list(codes.alignment(model, few).values()))
        tensors["deviation"] = codes.posterior(model, few).deviation.mean(0)
    return {name: torch.as_tensor(tensor).cpu().numpy() for name, tensor in tensors.items()}


_autoencoders = partial(Study, NOTEBOOK, measure=_measure, pictures=keep)


def _part(name: str, images: int) -> dict[str, Any]:
    return {"name": name, "validation": 0.1, "train_size": images}


def _full(name: str, title: str, network: str, weight: float, **changes: Any) -> Study:
    """As in the author's code: 30 epochs x 20 repeats of digits, 5 x 20 of photographs, 10 of faces."""
    # weights 1 of the squares and 2.5e-3 of KL; c is 1, or 20
    code = {"deviation": 0.035, "class_weight": float(weight)}
    author = Arm(f"G-VAE, s = 0.035, c = {weight:g}", "GVAE", code, CYAN, variant=True)
    arms, recipe = (VAE, CONDITIONAL, gvae(30.0), author), replace(ADAM, lr=5e-4, **changes)
    data, title = {"name": name.removesuffix("-full")}, f"{title}, all images"
    return _autoencoders(name, title, data, f"autoencoder{network}", recipe, arms, 3, 3600, "paper")


def _three(weight: float) -> tuple[Arm, ...]:
    return VAE, CONDITIONAL, gvae(weight)


FASHION, DIGITS, FACES, SHAPES, PHOTOS = LEARNING = tuple(
    _autoencoders(name, f"{title}, {images:,} images", _part(data, images), network, recipe, arms, seeds, seconds)
    for name, title, data, images, network, recipe, arms, seeds, seconds in (
        ("fashion-mini", "fashion-mini", "fashion-mini", 2000, "autoencoder16", ADAM, (*_three(30), *CHANGES), 5, 70),
        ("mnist", "MNIST", "mnist", 2000, "autoencoder16", ADAM, _three(30), 3, 70),
        # without a conditional VAE: faces cost most
        ("faces", "LFW faces", "lfw64", 1500, "autoencoder64", replace(FINE, epochs=25), (VAE, gvae(300)), 3, 280),
        ("shapes", "shapes", "shapes", 2000, "autoencoder16", FINE, _three(100), 3, 90),
        ("cifar10", "CIFAR-10", "cifar10", 3000, "autoencoder64", replace(FINE, epochs=20), _three(100), 3, 110),
    )
)
PLANE = _autoencoders(
    "fashion-mini-plane",
    "fashion-mini, 5,000 images, K = 2",
    _part("fashion-mini", 5000),
    "autoencoder2",
    replace(ADAM, lr=1e-2),
    (VAE, gvae(30)),
    3,
    130,
)
"""Codes that can be drawn as they are."""

CLASSIFIERS = tuple(
    Study(
        NOTEBOOK, name, f"fashion-mini, {n:,} images", _part("fashion-mini", n), "small", recipe, AUGMENTED, 5, seconds
    )
    for name, n, recipe, seconds in (
        ("fashion-mini-augmented", 2000, ADAM, 27),
        ("fashion-mini-500-augmented", 500, replace(ADAM, epochs=60), 13),
    )
)
MNIST_FULL = _full("mnist-full", "MNIST", "128", 400, epochs=600, batch_size=128, schedule="constant")
CIFAR10_FULL = _full("cifar10-full", "CIFAR-10", "2048", 8000, epochs=100, batch_size=128, schedule="cosine")
CELEBA = _full("celeba", "CelebA", "2048-faces", 8000, epochs=10, batch_size=32, schedule="cosine")
FULL_SETS = (MNIST_FULL, CIFAR10_FULL, CELEBA)


def _sheets(name: str, title: str, network: str, c: float, seconds: float, clip: float, **changes: Any) -> Study:
    """VAE and G-VAE on all images of a set, at the source's K, long enough for pictures: one seed.

    The decoder's deviation is 0.1; of faces there is G-VAE at 0.2 too, where traversals go further.
    """
    sharp: dict[str, Setting] = {"deviation": 0.1}
    vae = Arm("VAE", "VAE", sharp, "black")
    gvae = replace(vae, name="G-VAE", objective="GVAE", settings={**sharp, "class_weight": c}, color=RED)
    arms: tuple[Arm, ...] = (vae, gvae)
    if name == "lfw64-whole":
        wide = {"deviation": 0.2, "class_weight": c}
        arms = *arms, Arm("G-VAE, s = 0.2", "GVAE", wide, CYAN, recipe={"epochs": 4}, variant=True)
    recipe = Recipe(batch_size=64, optimizer="adam", lr=1e-3, schedule="linear", weight_decay=0.0, **changes)
    data, drawn = {"name": name.removesuffix("-whole")}, partial(sheets, clip=clip)
    return Study(NOTEBOOK, name, title, data, f"autoencoder{network}", recipe, arms, 1, seconds, pictures=drawn)


SHEETS = (
    _sheets("lfw64-whole", "LFW faces, 10,444 images", "256-faces", 100.0, 1100, 0.05, epochs=12, augment="flip"),
    _sheets("mnist-whole", "MNIST, 60,000 images", "512-plain", 100.0, 300, 0.1, epochs=2),
    _sheets("cifar10-whole", "CIFAR-10, 50,000 images", "2048-plain", 100.0, 600, 0.1, epochs=2, augment="flip"),
)
STUDIES = (*LEARNING, PLANE, *CLASSIFIERS, *SHEETS, *FULL_SETS)
PAPER = ()  # the source reports no number

# ---------------------------------------------------------------------------------------------------------------------
# Numbers

COLOUR = {arm.name: arm.color for arm in FASHION.arms}
CONSISTENCY = "class consistency"


def compared(index: Index) -> dict[str, ByArm]:
    """VAE, conditional VAE and G-VAE by set of images; raises NothingToDraw where no set has the first and the last."""
    found = {study.title: index.by_arm(study, _usual(study)) for study in (*LEARNING, *FULL_SETS)}
    found = {title: by_arm for title, by_arm in found.items() if "G-VAE" in by_arm}
    return needed(found, "VAE and G-VAE on one set of images")


def _usual(study: Study) -> list[str]:
    return [arm.name for arm in study.arms if not arm.variant]


def sweeps(index: Index) -> ByArm:
    """G-VAE on fashion-mini by what is changed, the usual settings first; raises NothingToDraw without a change."""
    arms = [arm for arm in FASHION.arms if arm.objective == "GVAE"]
    found = {arm.name.removeprefix("G-VAE, "): runs for arm in arms if (runs := index.of(FASHION, arm))}
    return needed(found if len(found) > 1 and "G-VAE" in found else {}, "G-VAE with two settings on fashion-mini")


def reach(by_arm: ByArm) -> float:
    """A movement that every run arrives at: 0.9 of the smallest at 3 sigma, all coordinates moved."""
    return 0.9 * min(record.metrics[f"movement_{STEPS}"] for runs in by_arm.values() for record in runs)


def consistency_at(record: Record, movement: float) -> float:
    """Class consistency of a run's traversals where they have moved so far; linear between half deviations.

    Raises ValueError for a movement that the run does not arrive at.
    """
    moved, share = (_course(record, name) for name in ("movement", "consistency"))
    if not 0 <= movement <= moved[-1]:
        raise ValueError(f"movement: got {movement:.4g}; takes 0 to {moved[-1]:.4g}, where the run's traversals end")
    return float(np.interp(movement, moved, share))


def _course(record: Record, name: str) -> np.ndarray:
    """A measure from 0 to 3 deviations, by half deviations."""
    return np.array([record.metrics[f"{name}_{i}"] for i in range(STEPS + 1)])


def recognised(by_arm: ByArm) -> bool:
    """Whether the judge recognises the VAE's m(mu) at least half as often as real images."""
    at_mean, real = (summary(map(metric(name), by_arm["VAE"])).mean for name in ("consistency_0", "judge_accuracy"))
    return at_mean >= 0.5 * real


def differences(by_arm: ByArm, arm: str, baseline: str) -> dict[str, list[float]]:
    """Differences arm - baseline by measure, on the seeds of both; in points and thousandths, as the names say.

    Equal movement is that of :func:`reach`.
    """
    at = reach(by_arm)
    measured: dict[str, Callable[[Record], float]] = {
        "linear probe (points)": metric("probe_accuracy"),
        f"{CONSISTENCY} at μ (points)": metric("consistency_0"),
        f"{CONSISTENCY} at equal movement": lambda r: 100 * consistency_at(r, at),
        f"{CONSISTENCY} at equal movement − at μ": lambda r: 100 * (consistency_at(r, at) - r.metrics["consistency_0"]),
        f"{CONSISTENCY} at 3σ": metric(f"consistency_{STEPS}"),
        f"{CONSISTENCY} at 3σ, largest tenth": metric(f"tenth_consistency_{STEPS}"),
        "movement at 3σ (thousandths)": metric(f"movement_{STEPS}", 1000),
        "squared error (thousandths)": metric("reconstruction_error", 1000),
    }
    return {name: gains(by_arm[arm], by_arm[baseline], score) for name, score in measured.items()}


TABLE = "Autoencoders, mean ± 95% interval over seeds"


def table(index: Index) -> str:
    """G-VAE - VAE and G-VAE - conditional VAE in Markdown: a row a measure, a column a set of images.

    Bold: an interval without zero. No class consistency stands there for sets whose decoded means the judge does not
    recognise (:func:`recognised`).
    """
    blocks, parts = compared(index), []
    for baseline in ("VAE", "conditional VAE"):
        columns = {title: differences(b, "G-VAE", baseline) for title, b in blocks.items() if baseline in b}
        head, rows = [f"G-VAE − {baseline}"], dict[str, list[str]]()
        for title, values in columns.items():
            head.append(f"{title} (n = {len(next(iter(values.values())))})")
            for measure, seeds in values.items():
                shown = recognised(blocks[title]) or not measure.startswith(CONSISTENCY)
                rows.setdefault(measure, [measure]).append(_cell(seeds) if shown else "")
        parts.append(markdown(head, rows.values()))
    return "\n\n".join(parts) + "\n"


def _cell(values: Sequence[float]) -> str:
    result = summary(values) if values else None
    text = result.text("+.1f") if result else ""
    return f"**{text}**" if result and result.side else text


def settings_table(index: Index) -> str:
    """Settings of what :func:`compared` has, and how often the judge is right: a row a set of images, in Markdown."""
    head = ["", "training images", "K", "s", "c", "judge, real images (%)", "judge, m(μ) of the VAE (%)"]
    rows = []
    for title, by_arm in compared(index).items():
        run = by_arm["G-VAE"][0]
        latent = run.config["network"].split("latent=")[1].split(",")[0]
        s, c = (f"{run.config['settings'][name]:g}" for name in ("deviation", "class_weight"))
        judged = (summary(map(metric(name), by_arm["VAE"])).mean for name in ("judge_accuracy", "consistency_0"))
        size = f"{sum(run.train_counts):,}"
        rows.append([title.split(",")[0], size, latent, s, c, *(f"{share:.0f}" for share in judged)])
    return markdown(head, rows)


def results(index: Index) -> dict[str, tuple[Study, ByArm]]:
    """The classifiers by title: of autoencoders accuracy is not what is compared."""
    return {study.title: (study, found) for study in CLASSIFIERS if len(found := index.by_arm(study)) > 1}


# ---------------------------------------------------------------------------------------------------------------------
# Figures of measures


def _names(titles: Sequence[str]) -> str:
    """Sets of images in a sentence, without their sizes."""
    return " and ".join(title.split(",")[0] for title in titles)


@styled
def movement(index: Index) -> Picture:
    """Class consistency over the movement of the pixels, from 0 to 3σ, a line a run, a panel a set of images.

    Traversals that do not move keep every class. Panels have their own scales; one legend stands in the last place.
    """
    blocks = {title: by_arm for title, by_arm in compared(index).items() if recognised(by_arm)}
    needed(blocks, "sets whose decoded means the judge recognises")
    rows = -(-len(blocks) // 3)
    figure, grid = plots.panels(1.1 + 2.1 * rows, rows, min(3, len(blocks) + 1))
    panels = list(grid.ravel())
    for axes, (title, by_arm) in zip(panels, blocks.items(), strict=False):
        for name, runs in by_arm.items():
            for number, run in enumerate(runs):
                for prefix, style in (("", "-"), ("tenth_", ":"), ("each_", "s"), ("noise_", "x")):
                    moved, share = (_measured(run, prefix, part) for part in ("movement", "consistency"))
                    label = name if number == 0 and not prefix else None
                    axes.plot(moved, 100 * share, style, label=label, color=COLOUR[name], alpha=0.7, markersize=4)
        axes.set_title(f"{title}\n{plots.counts(by_arm)}", fontsize=9)
        axes.set_xlabel("movement", fontsize=9)
    for axes in panels[: len(blocks) : 3]:
        axes.set_ylabel(f"{CONSISTENCY} (%)")
    lines = {str(line.get_label()): line for axes in panels for line in axes.lines}
    lines = {label: line for label, line in lines.items() if not label.startswith("_")}
    panels[-1].legend(lines.values(), list(lines), loc="center")
    for unused in panels[len(blocks) :]:
        unused.axis("off")
    key = f"{CONSISTENCY} at equal movement"
    ahead = [title for title, b in blocks.items() if summary(differences(b, "G-VAE", "VAE")[key]).side > 0]
    message = f"At equal movement class consistency of G-VAE is above the VAE's on {_names(ahead)}"
    text = (
        "A line a run, from 0 to 3σ; movement: root mean square change of a pixel. Solid: all coordinates; dotted "
        "lines: the largest tenth; squares: one at a time, 3σ; crosses: unit noise on codes. Chance is 10%."
    )
    return finish(figure, message if ahead else "Class consistency over movement", runs_of(blocks), text)


def _measured(run: Record, prefix: str, part: str) -> np.ndarray:
    """From 0 to 3 deviations, or the one value that a run has of single coordinates and of noise."""
    names = {"each_": f"each_{part}_{STEPS}", "noise_": f"noise_{part}"}
    return np.array([run.metrics[names[prefix]]]) if prefix in names else _course(run, prefix + part)


def augmented(index: Index) -> Picture:
    """Test accuracy of classifiers trained on augmented images: differences from none."""
    blocks = index.blocks(CLASSIFIERS, "classifiers trained with and without augmented images")
    columns, colours = gained(blocks), {arm.name: arm.color for arm in AUGMENTED}
    columns = {  # the difference is a row of the appendix
        title: {name: gain for name, gain in panel.items() if name != "G-VAE, difference"}
        for title, panel in columns.items()
    }
    text = "In titles: accuracy without. Half of the images of a batch are replaced, from 30% of training on."
    shown = runs_of(blocks)
    figure = plots.forest({"": columns}, "gain (points)", shown, text, lambda name, _: colours[name], shared=True)
    significant = any(summary(values).side for panel in columns.values() for values in panel.values())
    message = "No augmentation changes the accuracy significantly"
    return titled(figure, "Classifiers trained on augmented images" if significant else message)


# ---------------------------------------------------------------------------------------------------------------------
# Figures of what lies beside the records of seed 0


def _first(index: Index, studies: Sequence[Study]) -> Pictured:
    """Of the first of these studies that has pictures of VAE and G-VAE."""
    for study in studies:
        shown = pictured(NOTEBOOK, index.by_arm(study, _usual(study)))
        if {"VAE", "G-VAE"} <= shown.keys():
            return shown
    raise NothingToDraw(f"traversals of VAE and G-VAE on {' or '.join(study.title for study in studies)}")


def scales(index: Index) -> str:
    """The scale of the codes that lie beside records, of VAE and G-VAE: a row a set of images, in Markdown.

    Means over the coordinates: variance of mu over images plus squared mean sigma, 1 where KL has fixed the scale (a
    little less, since the mean square of sigma is larger); and mean sigma over the standard deviation of mu.
    """
    head, rows = ["", *(f"{what}, {name}" for what in ("scale", "σ over spread") for name in ("VAE", "G-VAE"))], []
    for study in LEARNING:
        shown, found = pictured(NOTEBOOK, index.by_arm(study, ["VAE", "G-VAE"])), []
        for run, arrays in shown.values():
            latent = int(run.config["network"].split("latent=")[1].split(",")[0])
            spread = float(arrays["plane"][:, 0].var() / arrays["share"][0]) / latent
            sigma = run.metrics["posterior_deviation"]
            found.append((spread + sigma**2, sigma / spread**0.5))
        if len(found) == 2:
            columns = zip(*found, strict=True)
            rows.append([study.title.split(",")[0], *(f"{value:.2f}" for column in columns for value in column)])
    return markdown(head, needed(rows, "codes of VAE and G-VAE"))


GROUPS: dict[str, tuple[str, Callable[[np.ndarray], np.ndarray], Sequence[str]]] = {
    "gender": ("plane_male_separation", lambda label: label // 2, ("woman", "man")),
    "smile": ("plane_smiling_separation", lambda label: label % 2, ("not smiling", "smiling")),
    "all four": ("plane_separation", lambda label: label, sources.FACES),
}
"""What the labels of faces, 2 male + smiling, say: the measure of how far they lie apart, the groups, their names."""


def separations(index: Index) -> dict[str, dict[str, dict[int, float]]]:
    """How far faces lie apart in the plane by gender, smile and all four: by group, arm and seed, a share.

    From the record, or from the codes beside it where an older record does not say it.
    """
    by_arm = next((found for study in (FACES, CELEBA) if "G-VAE" in (found := index.by_arm(study, _usual(study)))), {})
    result: dict[str, dict[str, dict[int, float]]] = {}
    for name, runs in by_arm.items():
        for run in runs:
            beside = {} if "plane_separation" in run.metrics else pictures(NOTEBOOK, run)
            for title, (key, group, _) in GROUPS.items():
                value = run.metrics.get(key)
                if beside:
                    labels = torch.from_numpy(group(beside["labels"])).long()
                    value = codes.separation(torch.from_numpy(beside["plane"]), labels)
                if value is not None:
                    result.setdefault(title, {}).setdefault(name, {})[run.seed] = value
    return needed(result, "VAE and G-VAE on faces")


@styled
def plane(index: Index) -> Picture:
    """Mean codes of unseen faces in their first two principal components: by gender, by smile, all four classes."""
    shown = _first(index, (FACES, CELEBA))
    figure, grid = plots.panels(5.2, 2, 3, sharex="row", sharey="row")
    for line, name in zip(grid, ("G-VAE", "VAE"), strict=True):
        arrays = shown[name][1]
        for axes, (title, (_, group, words)) in zip(line, GROUPS.items(), strict=True):
            label = group(arrays["labels"])
            for value, word in enumerate(words):
                style = {"color": COLOURS[value], "markersize": 2.5, "alpha": 0.5, "label": word}
                axes.plot(*arrays["plane"][label == value].T, "o", **style)
            axes.set_title(f"{name}, {title}", fontsize=9)
            if name == "VAE":
                axes.legend(fontsize=8, markerscale=1.5, loc="upper left", bbox_to_anchor=(0, -0.3), labelspacing=0.2)
        line[0].set_ylabel("second component")
        line[0].set_xlabel(f"first ({arrays['share'][0]:.0%} and {arrays['share'][1]:.0%} of variance)", fontsize=8)
    by_arm = separations(index)["smile"]
    apart = [by_arm["G-VAE"][seed] - value for seed, value in by_arm["VAE"].items() if seed in by_arm["G-VAE"]]
    message = "Smiles lie apart in the plane of G-VAE's codes, more than in the VAE's"
    plain = "Mean codes of faces in the plane of their first two components"
    text = "Unseen faces, seed 0. The classes enter colours only."
    return finish(figure, message if summary(apart).side > 0 else plain, [run for run, _ in shown.values()], text)


@styled
def factors(index: Index) -> Picture:
    """Which known factor of the generated shapes each coordinate moves: mean cosine, the largest deviation first."""
    shown = _first(index, (SHAPES,))
    figure, grid = plots.panels(0.8 + 1.7 * len(shown), len(shown), 1)
    for axes, (name, (_, arrays)) in zip(grid[:, 0], shown.items(), strict=True):
        order = np.argsort(-arrays["deviation"])
        drawn = axes.imshow(arrays["alignment"][:, order], vmin=0, vmax=1, cmap="Blues", aspect="auto")
        axes.set_yticks(range(len(shapes.RANGES)), [factor.replace("_", " ") for factor in shapes.RANGES], fontsize=7)
        axes.set_xticks(range(len(order)), [f"{value:.2f}" for value in arrays["deviation"][order]], fontsize=6)
        axes.set_title(name, fontsize=9)
        axes.grid(visible=False)
    grid[-1, 0].set_xlabel("coordinates, by mean σ")
    figure.colorbar(drawn, ax=list(grid[:, 0]), label="mean cosine")
    row = list(shapes.RANGES).index("brightness")
    last = [arrays["alignment"][row].argmax() == arrays["deviation"].argmin() for _, arrays in shown.values()]
    message = "Which factor of the shapes each coordinate moves"
    if all(last):
        message = "In all methods the coordinate of smallest σ moves the brightness most"
    return finish(figure, message, [run for run, _ in shown.values()], "300 unseen images, seed 0.")


SHEET = [f"{number / 2:+g}σ" if number else "μ" for number in range(-STEPS, STEPS + 1)]
"""Columns of a sheet."""

WIDE = "G-VAE, s = 0.2"
"""The arm whose face is moved along seven ways and in grids."""


def whole(index: Index, name: str, arm: str) -> Record:
    """The run of an arm on all images of a set."""
    study = next(study for study in SHEETS if study.data["name"] == name)
    return needed(index.of(study, arm), f"{arm} on {study.title}")[0]


def _beside(index: Index, name: str, arm: str) -> tuple[Record, dict[str, np.ndarray]]:
    """:func:`whole`, and the arrays beside it."""
    run = whole(index, name, arm)
    return run, pictures(NOTEBOOK, run)


def far(tiles: np.ndarray) -> float:
    """Root mean square change of a pixel from the middle of traversals (..., columns, channels, H, W) to both ends."""
    values = tiles.astype(float) / 255
    middle = values.shape[-4] // 2
    return float(np.sqrt(((values[..., [0, -1], :, :, :] - values[..., [middle], :, :, :]) ** 2).mean()))


def _drawn(rows: Sequence[np.ndarray], names: Sequence[str], columns: Sequence[str], size: float, text: str) -> Picture:
    """Rows of tiles under a headline; columns in small letters."""
    figure = plots.sheet(torch.from_numpy(np.stack(rows)), names, columns, size=size)
    figure.axes[0].tick_params(labelsize=7)
    return titled(figure, text)


@styled
def opening(index: Index) -> Picture:
    """Codes of two coordinates of unseen garments of six classes; below them four garments moved by ±3σ."""
    by_arm = needed(index.by_arm(PLANE, ["VAE", "G-VAE"]), f"the study {PLANE.name}")
    shown = pictured(NOTEBOOK, by_arm)
    figure, grid = plots.panels(6.2, 2, 2, height_ratios=(2.9, 2.5))
    for axes, below, (name, (run, arrays)) in zip(*grid, shown.items(), strict=True):
        for label, colour in enumerate(COLOURS[:6]):  # one colour a class, chosen by number
            style: dict[str, Any] = {"color": colour, "markersize": 3.5, "alpha": 0.8}
            points = arrays["plane"][arrays["labels"] == label]
            if len(points):
                axes.plot(*points.T, "o", label=sources.FASHION[label], **style)
        axes.set(title=f"{name}, seed 0: {run.metrics['test_accuracy']:.0%} right", aspect="equal")
        tiles = np.concatenate([arrays["images"][:, None], arrays["all"]], 1)
        _mosaic(below, tiles, ["image", "−3σ", "−1.5σ", "μ", "+1.5σ", "+3σ"])
    lines = {str(line.get_label()): line for line in grid[0, 0].lines}
    figure.legend(lines.values(), list(lines), loc="outside lower center", ncols=6, fontsize=8, markerscale=1.5)
    read = [summary(map(metric("test_accuracy"), by_arm[name])).mean for name in ("G-VAE", "VAE")]
    gain = gains(by_arm["G-VAE"], by_arm["VAE"], metric("test_accuracy"))
    message = f"With the class term a head is right for {read[0]:.0f}% of the codes, without for {read[1]:.0f}%"
    return titled(figure, message if min(gain) > 0 else "Codes of garments, and garments moved along σ")


def _mosaic(axes: Axes, tiles: np.ndarray, columns: Sequence[str]) -> None:
    """Grey tiles (rows, columns, 1, H, W) side by side with white between them; ``columns``: their titles."""
    side = tiles.shape[-1] + 2
    padded = np.pad(tiles[:, :, 0], ((0, 0), (0, 0), (0, 2), (0, 2)), constant_values=255)
    mosaic = padded.swapaxes(1, 2).reshape(len(tiles) * side, len(columns) * side)
    axes.imshow(mosaic, cmap="gray", vmin=0, vmax=255)
    axes.set_xticks([side * column + side / 2 - 1.5 for column in range(len(columns))], columns, fontsize=7)
    axes.set_yticks([])
    plots.bare(axes)


@styled
def diagram() -> Picture:
    """G-VAE: encoder, code and decoder of a VAE, and in red what it adds, a classifier of the code's Gaussian."""
    label = "Diagram of G-VAE: a VAE whose Gaussian of codes also goes to a linear classifier; three losses are added"
    figure, axes = plots.canvas(3.3, 33, label)
    grey, red, blue = ("#555555", "#F6F6F6"), (RED, "#FDECEE"), (plots.BLUE, "#EAF0F7")
    for centre, size, text, (edge, face) in (
        ((5, 19), (8, 6), "image\n$x$", grey),
        ((18, 19), (10, 6), "encoder", grey),
        ((33, 19), (11, 7), "Gaussian\n$\\mu$, $\\sigma$", grey),
        ((48, 19), (11, 6), "code\n$z = \\mu + \\sigma\\varepsilon$", grey),
        ((60.5, 19), (9, 6), "decoder", grey),
        ((71, 19), (6.5, 6), "image\n$m(z)$", grey),
        ((33, 29.5), (21, 4.6), "KL to the prior: (2)", blue),
        ((62, 29.5), (23, 4.6), "error of the picture: (3)", blue),
        ((33, 5), (13, 6), "linear classifier\n$w_j$, $b_j$", red),
        ((60, 5), (27, 6), "bound of the expected\ncross-entropy: (6)", red),
        ((11, 5), (9, 4.6), "label $y$", grey),
    ):
        plots.draw_box(axes, centre, size, text, edge, face)
    for start, end, colour in (
        ((9, 19), (13, 19), grey[0]),
        ((23, 19), (27.5, 19), grey[0]),
        ((38.5, 19), (42.5, 19), grey[0]),
        ((53.5, 19), (56, 19), grey[0]),
        ((65, 19), (67.75, 19), grey[0]),
        ((33, 22.5), (33, 27.2), plots.BLUE),
        ((71, 22), (69, 27.2), plots.BLUE),
        ((33, 15.5), (33, 8), RED),
        ((39.5, 5), (46.5, 5), RED),
        ((15.5, 5), (26.5, 5), RED),
    ):
        plots.draw_arrow(axes, start, end, colour)
    return figure


def sheet_of(index: Index, name: str, arm: str) -> Picture:
    """A sheet as the source draws it: image, traversal from -3 to 3 deviations by half ones, noise; a row an image."""
    _, arrays = _beside(index, name, arm)
    moved, share = arrays["clipped"], 5 if name == "lfw64" else 10
    rows = np.concatenate([arrays["images"][:, None], moved, arrays["noise"][:, None]], 1)
    title = next(study.title for study in SHEETS if study.data["name"] == name).split(",")[0]
    text = f"{arm} on {title}: ±3σ along the largest {share}% of σ change a pixel by {far(moved):.3f}, "
    text += f"unit noise by {_root(arrays['noise'], moved[:, STEPS]):.3f}"
    return _drawn([*rows], (), ["image", *SHEET, "noise"], 0.49, text)


def _root(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.sqrt(((one.astype(float) - other) ** 2).mean())) / 255


def _face(index: Index) -> tuple[Record, dict[str, np.ndarray]]:
    """The run whose face is moved along ways and in grids."""
    return _beside(index, "lfw64", WIDE)


def grid_of(index: Index) -> Picture:
    """The source's figure 5: one face moved along the largest 5% of σ of four classes."""
    tiles = _face(index)[1]["grid"]
    away = _root(tiles[[0, 0, -1, -1], [0, -1, 0, -1]], tiles[[3] * 4, [4] * 4])
    text = f"The author's grid along the largest 5% of σ: one face 63 times, the corners differ by only {away:.3f}"
    return titled(plots.sheet(torch.tensor(tiles), size=0.74), text)


WAYS = (
    "13 largest σ (5%)",
    "13 smallest σ (5%)",
    "all 256 σ",
    "class, eigenvector 1",
    "class, eigenvector 2",
    "mean of smiling − not",
    "mean of men − women",
)
"""Rows of :func:`ways`."""


def moved_by(index: Index) -> dict[str, float]:
    """:func:`far` of the rows of :func:`ways`, and of unit noise on the codes of ten faces."""
    arrays = _face(index)[1]
    result = dict(zip(WAYS, map(far, arrays["ways"]), strict=True))
    return result | {"unit noise": _root(arrays["noise"], arrays["all"][:, STEPS])}


def ways(index: Index) -> Picture:
    """One face moved in seven ways."""
    run, arrays = _face(index)
    moved, columns = moved_by(index), [column.removesuffix("σ") for column in SHEET[::3]]
    text = f"3σ change a pixel by {moved[WAYS[0]]:.3f} along the 13 largest σ, by {moved[WAYS[2]]:.3f} along all; "
    text += f"3 deviations of its class by {moved[WAYS[3]]:.3f}"
    figure = _drawn([*arrays["ways"][:, ::3]], WAYS, columns, 0.75, text)
    s = run.config["settings"]["deviation"]
    words = "Numbers: root mean square over the pixels of both ends. One seed."
    plots.caption(figure, [run], f"G-VAE, K = 256, s = {s:g}. {words}")
    return figure


def sides(by_arm: ByArm) -> dict[str, Summary]:
    """What the result figure has of a set: G-VAE - VAE, and class consistency over the conditional VAE."""
    found = {"probe": summary(differences(by_arm, "G-VAE", "VAE")["linear probe (points)"])}
    if recognised(by_arm):
        key = f"{CONSISTENCY} at equal movement"
        for name, rival in (("consistency", "VAE"), ("over conditional", "conditional VAE")):
            if rival in by_arm:
                found[name] = summary(differences(by_arm, "G-VAE", rival)[key])
    return found


@styled
def results_of(index: Index) -> Picture:
    """The linear probe on every set, and class consistency at equal movement where the judge recognises m(μ)."""
    blocks = compared(index)
    figure, ((left, right),) = plots.panels(3.1, 1, 2)
    probes, judged = dict[str, list[float]](), dict[str, list[float]]()
    for title, by_arm in blocks.items():
        name = title.split(",")[0]
        probes[name] = differences(by_arm, "G-VAE", "VAE")["linear probe (points)"]
        for rival in ("VAE", "conditional VAE") if recognised(by_arm) else ():
            if rival in by_arm:
                key = f"{name}\n− {rival}"
                judged[key] = differences(by_arm, "G-VAE", rival)[f"{CONSISTENCY} at equal movement"]
    for axes, values, title in (
        (left, probes, "linear probe, G-VAE − VAE"),
        (right, judged, "class consistency, G-VAE − rival"),
    ):
        rows = {name: (COLOUR["conditional VAE"] if "conditional" in name else "black", True) for name in values}
        plots.differences(axes, values, rows)
        axes.set_yticks(range(len(values)), list(values))
        axes.set_title(f"{title}\n{plots.counts(values)}", fontsize=9)
        axes.set_xlabel("points")
    found = {title.split(",")[0]: sides(by_arm) for title, by_arm in blocks.items()}
    message = "G-VAE beside its rivals"
    if all(each["probe"].side > 0 for each in found.values()):
        message = "A linear classifier reads G-VAE's codes better on every set"
        keeps = [name for name, each in found.items() if "consistency" in each and each["consistency"].side > 0]
        message += f"; images keep their class better than a VAE's on {_names(keeps)}" if keeps else ""
    text = "Dots: seeds. Bars: 95% intervals of the mean difference. Class consistency at equal movement."
    return finish(figure, message, runs_of(blocks), text)


@styled
def author_plane(index: Index) -> Picture:
    """The source's figure 6: codes of four classes by one principal component analysis, and by the author's code."""
    run, arrays = _beside(index, "lfw64", "G-VAE")
    figure, ((left, right),) = plots.panels(3.9, 1, 2)
    for axes, key, title in ((left, "plane", "one PCA of all codes"), (right, "author", "a matrix for each class")):
        points = arrays[key]
        apart = codes.separation(torch.from_numpy(points), torch.from_numpy(arrays["labels"]).long())
        for label, name in enumerate(sources.FACES):
            style = {"color": COLOURS[label], "markersize": 3, "alpha": 0.6, "label": name}
            axes.plot(*points[arrays["labels"] == label][:150].T, "o", **style)
        axes.set(xlabel="first coordinate", ylabel="second coordinate")
        axes.set_title(f"{title}:\n{apart:.0%} nearest to their class", fontsize=9.5)
    lines = {str(line.get_label()): line for line in left.lines}
    message = "Both planes mix the four classes"
    text = "Left by one PCA, right by the author's code. Of 1,000 training faces a class, of which 150 are drawn; "
    text += "K = 256. In %: codes that are nearest to the mean of their own class; a guess has 25%."
    return finish(figure, message, [run], text, lines)


FIGURES: dict[str, Callable[[Index], Picture]] = {
    "opening": opening,
    **{
        f"sheet_{study.data['name']}_{arm.objective.lower()}": partial(sheet_of, name=study.data["name"], arm=arm.name)
        for study in SHEETS
        for arm in study.arms
        if not arm.variant
    },
    "ways": ways,
    "grid": grid_of,
    "results": results_of,
    **{draw.__name__: draw for draw in (movement, augmented, plane, author_plane, factors)},
}
