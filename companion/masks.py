"""Two kinds of runs for pictures: AutoMix's masks while it trains, and where classifiers look on photographs.

For the masks a training is watched: after each epoch the masks of some pairs of test photographs are kept, at eleven
ratios. For localisation photographs are pasted into larger canvases, so that the box of every object is known.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn import functional as F

from semaug.data.sets import Data, load
from semaug.data.split import Split
from semaug.measures.localisation import activation_maps, boxes, localisation
from semaug.methods import puzzlemix
from semaug.methods.automix import AutoMix, stage_maps
from semaug.training.loop import fit, resolve_device
from semaug.training.objective import Step
from semaug.training.record import Record

if TYPE_CHECKING:
    from companion.runs import Run

LAMS = tuple(k / 10 for k in range(11))
"""Ratios at which masks are kept."""

PUZZLES = (0.1, 0.3, 0.5, 0.7, 0.9)
"""Ratios of the mixtures by PuzzleMix that are kept."""

COMPANY = 500
"""Test images that the pairs stand among: BatchNorm takes its statistics from them, as from a batch of training."""

Pairs = Sequence[tuple[int, int]]

# ---------------------------------------------------------------------------------------------------------------------
# Masks


def partners_of(pairs: Pairs, count: int) -> Int64[Tensor, " count"]:
    """A permutation of so many images that exchanges the images of each pair, and turns the others by one place."""
    partners, paired = torch.arange(count), {place for pair in pairs for place in pair}
    others = torch.tensor([place for place in range(count) if place not in paired], dtype=torch.int64)
    partners[others] = others.roll(1)
    for one, two in pairs:
        partners[one], partners[two] = two, one
    return partners


def masks_at(
    model: AutoMix, images: Float[Tensor, "N channels H W"], partners: Int64[Tensor, " N"]
) -> Float[Tensor, "L N h w"]:
    """The masks at ``LAMS`` as the block makes them in a step of training, a value a place of its maps.

    The network that gives the maps normalises by these images. A copy of it does, so that looking changes nothing.
    """
    assert model.block is not None
    network = copy.deepcopy(model.network if model.momentum_network is None else model.momentum_network).train()
    with torch.no_grad():
        maps = stage_maps(network, images, model.stage)
        size = (maps.shape[2], maps.shape[3])
        return torch.stack([model.block(maps, lam, partners, size)[:, 0] for lam in LAMS])


def keep_masks(model: AutoMix, dataset: Data, pairs: Pairs, epochs: int, steps: int) -> None:
    """Make a model keep, in buffers that its checkpoints hold, the masks after every epoch of so many steps.

    ``kept_masks``: (epochs, pairs, L, h, w) uint8. ``kept_means``, ``kept_spreads``: (epochs, L), over all images.
    """
    images, usual = dataset.test.floats(slice(0, COMPANY)), model.after_step
    partners, first = partners_of(pairs, len(images)), torch.tensor([pair[0] for pair in pairs])
    side = masks_at(model, images[:2], torch.tensor([1, 0])).shape[-1]
    model.register_buffer("kept_masks", torch.zeros(epochs, len(pairs), len(LAMS), side, side, dtype=torch.uint8))
    for name in ("kept_means", "kept_spreads"):
        model.register_buffer(name, torch.zeros(epochs, len(LAMS)))

    def after_step(step: Step) -> None:
        usual(step)
        done = int(model.steps)
        if done % steps == 0 and 0 < done <= epochs * steps:
            masks, at = masks_at(model, images, partners), done // steps - 1
            model.get_buffer("kept_masks")[at] = (255 * masks[:, first]).round().byte().transpose(0, 1)
            model.get_buffer("kept_means")[at] = masks.mean((1, 2, 3))
            model.get_buffer("kept_spreads")[at] = masks.flatten(2).std(2).mean(1)

    cast(Any, model).after_step = after_step


def watch(run: Run, root: str | None, pairs: Pairs) -> tuple[Record, dict[str, np.ndarray]]:
    """Train an AutoMix on the CPU and keep its masks after every epoch, and PuzzleMix's mixtures by its classifier.

    Returns:
        Its record, with curves ``mask_mean_0.3`` and ``mask_spread_0.3`` of every ratio of ``LAMS``, one value an
        epoch; and arrays: ``masks`` (epochs, pairs, L, h, w) uint8, ``pairs`` (pairs, 2, channels, H, W) uint8,
        ``puzzles`` (pairs, P, channels, H, W) uint8 and ``puzzle_lams`` (pairs, P), the ratios of their labels.
    """
    dataset = load(**run.study.data, root=root)
    model = cast(AutoMix, run.build(dataset))
    steps = len(dataset.train) // run.recipe.batch_size
    keep_masks(model, dataset, pairs, run.recipe.epochs, steps)
    record = fit(model, dataset, run.recipe, seed=run.seed, resume=run.checkpoint, progress=False)
    for name in ("mean", "spread"):
        for lam, values in zip(LAMS, model.get_buffer(f"kept_{name}s").T.tolist(), strict=True):
            record.curves[f"mask_{name}_{lam:g}"] = values
    shown = torch.tensor(pairs)
    puzzles = [_puzzle(model.network, dataset, pair) for pair in pairs]
    return record, {
        "masks": model.get_buffer("kept_masks").numpy(),
        "pairs": dataset.test.images[shown].numpy(),
        "names": np.array(dataset.classes)[dataset.test.target[shown].numpy()],
        "puzzles": torch.stack([images for images, _ in puzzles]).numpy(),
        "puzzle_lams": torch.stack([lams for _, lams in puzzles]).numpy(),
    }


def _puzzle(network: nn.Module, dataset: Data, pair: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """The first image of a pair as PuzzleMix mixes it at ``PUZZLES``, uint8, and the ratios of its labels."""
    images, target = dataset.test.floats(list(pair)), dataset.test.target[list(pair)]
    soft, swap = F.one_hot(target, dataset.num_classes).float(), torch.tensor([1, 0])
    salient = puzzlemix.saliency(network, images, soft)
    mixed = [puzzlemix.puzzlemix(images, soft, lam, swap, salient, 8) for lam in PUZZLES]
    pixels = torch.stack([(255 * each.images[0].clamp(0, 1)).round().byte() for each in mixed])
    return pixels, torch.stack([each.target[0, target[0]] for each in mixed])


# ---------------------------------------------------------------------------------------------------------------------
# Localisation

SMALLEST, LARGEST = 18, 28
"""Sides of the photographs on a canvas, in pixels."""


def pasted(split: Split, side: int, seed: int) -> Split:
    """Photographs of random size at random places of larger canvases, with their boxes.

    The ground is a piece of another photograph, 8 pixels wide and enlarged to the whole canvas: its colours without
    its object.
    """
    generator = torch.Generator().manual_seed(seed)
    count, images = len(split), split.floats()
    sizes = torch.randint(SMALLEST, LARGEST + 1, (count,), generator=generator)
    corners = (torch.rand(count, 2, generator=generator) * (side - sizes[:, None] + 1)).long()
    others, at = (
        torch.randperm(count, generator=generator),
        torch.randint(0, images.shape[2] - 7, (2, count), generator=generator),
    )
    canvases, around = torch.empty(count, images.shape[1], side, side, dtype=torch.uint8), []
    for i, (size, (top, left)) in enumerate(zip(sizes.tolist(), corners.tolist(), strict=True)):
        y, x = at[:, i].tolist()
        piece = images[others[i] : others[i] + 1, :, y : y + 8, x : x + 8]
        canvas = F.interpolate(piece, (side, side), mode="bilinear", align_corners=False)[0]
        small = F.interpolate(images[i : i + 1], (size, size), mode="bilinear", antialias=True)[0]
        canvas[:, top : top + size, left : left + size] = small
        canvases[i] = (255 * canvas.clamp(0, 1)).round().byte()
        around.append([top, left, top + size, left + size])
    ends = torch.tensor(around)
    return Split(canvases, split.target, masks=inside(ends, side), boxes=ends)


def inside(ends: Int64[Tensor, "N 4"], side: int) -> Tensor:
    """Which pixels lie in boxes (y0, x0, y1, x1), half open: (N, side, side) bool."""
    line = torch.arange(side)
    rows, columns = ((line >= ends[:, k, None]) & (line < ends[:, k + 2, None]) for k in (0, 1))
    return rows[:, :, None] & columns[:, None, :]


THRESHOLDS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6)


def localise(run: Run, root: str | None, shown: int) -> tuple[Record, dict[str, np.ndarray]]:
    """Train a classifier on pasted photographs, and measure how well its class activation maps find them.

    The threshold of the maps is the one that finds most boxes of the validation split.

    Returns:
        Its record, with metrics ``box``, ``pointing``, ``overlap`` of the test split, ``threshold``, and ``box_guess``:
        the share of boxes that one box in the middle finds, of the side that is best on the training images. And
        arrays of the first test images: ``canvases`` (shown, channels, H, W) uint8, ``maps`` (shown, H, W) uint8,
        ``boxes`` (shown, 2, 4), the true box and that of the map.
    """
    said = dict(run.study.data)
    side = int(said.pop("pasted on"))
    plain = load(**said, root=root)
    assert plain.validation is not None
    parts = plain.train, plain.validation, plain.test
    train, validation, test = (pasted(part, side, number) for number, part in enumerate(parts))
    settings = {**plain.settings, "pasted on": side}
    dataset = replace(plain, train=train, validation=validation, test=test, settings=settings)
    model: Any = run.build(dataset).to(resolve_device("cpu"))
    record = fit(model, dataset, run.recipe, seed=run.seed, resume=run.checkpoint, progress=False)
    threshold = max(THRESHOLDS, key=lambda value: localisation(model.network, validation, value).box)
    found = localisation(model.network, test, threshold)
    record.metrics |= {"threshold": threshold, "box": found.box, "pointing": found.pointing, "overlap": found.overlap}
    record.metrics["box_guess"] = guess(train, test, side)
    maps, _ = activation_maps(model.network, test.floats(slice(0, shown)), test.target[:shown])
    large = F.interpolate(maps[:, None], (side, side), mode="bilinear", align_corners=False)[:, 0]
    low, high = large.amin((1, 2), keepdim=True), large.amax((1, 2), keepdim=True)
    assert test.boxes is not None
    return record, {
        "canvases": test.images[:shown].numpy(),
        "maps": (255 * (large - low) / (high - low)).round().byte().numpy(),
        "boxes": torch.stack([test.boxes[:shown], boxes(large, threshold)], 1).numpy(),
    }


def guess(train: Split, test: Split, side: int) -> float:
    """The share of boxes of test that one box in the middle overlaps by a half, of the side best on train."""
    from torchvision.ops import box_iou

    def share(split: Split, width: int) -> float:
        assert split.boxes is not None
        low = (side - width) // 2
        box = torch.tensor([[low, low, low + width, low + width]], dtype=torch.float64)
        return float((box_iou(split.boxes.double(), box)[:, 0] >= 0.5).double().mean())

    return share(test, max(range(8, side + 1, 2), key=lambda width: share(train, width)))
