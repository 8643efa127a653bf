r"""Transfer: a trained network fine-tuned to another set, and as the body of a small detector on generated scenes.

A classifier trained with mixtures is said to have better features for other tasks too. Fine-tuning puts a new head on
a copy of the network and trains all of it by ``fit``. Detection asks where things are: a scene is two by two images of
the set ``shapes`` on one background, some of them empty, so every object's box and class are known. On the last maps,
of stride $s$, stands a head of one stage: at each place $p$ a logit for every class and the distances $s\, e^{o}$ from
$p$ to the four sides of a box. The place in which an object's centre lies answers for it,

$$\mathcal L = \frac1n \sum_{p, c} \mathrm{focal}(z_{pc}, y_{pc})
  + \frac1n \sum_{i=1}^n \bigl(1 - \mathrm{GIoU}(b_{p(i)}, b_i)\bigr). \tag{43}$$

Average precision is the area under precision over recall, where precision is first made to fall (its envelope), as VOC
has it from 2010 on; a detection is right if it overlaps an object of its class that no detection of a higher score has
taken. COCO's figure is its mean over overlaps of 0.5 to 0.95, but reads the curve at 101 places.

* Tian, Shen, Chen, He, "FCOS: Fully Convolutional One-Stage Object Detection", ICCV 2019,
  https://arxiv.org/abs/1904.01355 (distances from a place; here without levels and centreness)
* Lin, Goyal, Girshick, He, Dollár, "Focal Loss for Dense Object Detection", ICCV 2017, https://arxiv.org/abs/1708.02002
* Rezatofighi et al., "Generalized Intersection over Union", CVPR 2019, https://arxiv.org/abs/1902.09630
* Everingham et al., "The Pascal Visual Object Classes Challenge: A Retrospective", IJCV 2015
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import NamedTuple, cast

import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor, nn

from semaug._checks import check_count, check_finite, check_number, require
from semaug.core.metrics import evaluating
from semaug.data import shapes
from semaug.data.sets import Data
from semaug.networks import Network
from semaug.training.loop import fit
from semaug.training.objective import CrossEntropy, linear_head
from semaug.training.recipe import Recipe
from semaug.training.record import Record
from semaug.training.streams import generator_for

OVERLAPS = tuple(0.5 + 0.05 * k for k in range(10))

"""The overlaps of COCO's mean."""


def fine_tune(
    network: nn.Module, origin: str, dataset: Data, recipe: Recipe, seed: int = 0, progress: bool = True
) -> tuple[Record, CrossEntropy]:
    """Train a copy of a network on, with a new head, by cross-entropy on another set.

    Args:
        network: has a linear ``head``; it is left alone.
        origin: how records say where the network comes from (``"CIFAR-10, AutoMix, seed 0"``); it becomes part of the
            network's name there.
        dataset: what it is trained on.
        recipe: how.
        seed: also of the new head.
        progress: of :func:`training.fit`.

    Returns:
        The record of the run, and the objective with the trained copy.

    Raises:
        TypeError: for a network without a linear head.
        ValueError: for an empty origin.
        Exception: what :func:`training.fit` raises.
    """
    head = linear_head(network)
    require(bool(origin), "origin", origin, "what the network was trained on, for the record")
    body = cast(Network, copy.deepcopy(network))
    body.name = f"{getattr(network, 'name', type(network).__name__)} from {origin}"
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        body.head = nn.Linear(head.in_features, dataset.num_classes).to(head.weight)
    body.num_classes = dataset.num_classes
    objective = CrossEntropy(body)
    return fit(objective, dataset, recipe, seed, progress=progress), objective


class Scenes(NamedTuple):
    """Scenes of up to four objects: their classes, -1 where there is none, and boxes (y0, x0, y1, x1), half open."""

    images: UInt8[Tensor, "N 3 H W"]
    target: Int64[Tensor, "N 4"]
    boxes: Int64[Tensor, "N 4 4"]


def scenes(n: int, seed: int = 0, side: int = 32) -> Scenes:
    """Scenes of one background, with an object in each quarter or, half of the time, none; one object at least.

    Classes and factors are drawn independently, as in :func:`shapes.draw`, whose errors these are.

    Args:
        n: how many.
        seed: decides all draws.
        side: of a quarter, in pixels.
    """
    factors = dict(shapes.draw(4 * n, seed, side).factors)
    for name in ("background_hue", "brightness"):
        factors[name] = factors[name][::4].repeat_interleave(4)
    generator = generator_for(seed, "scenes")
    target = torch.randint(len(shapes.CLASSES), (4 * n,), generator=generator)
    present = torch.rand(n, 4, generator=generator) < 0.5
    present[torch.arange(n), torch.randint(4, (n,), generator=generator)] = True
    quarters = shapes.render(target, factors, side)
    assert quarters.boxes is not None
    ground = quarters.images[:, :, :1, :1]  # no shape reaches the corner
    images = quarters.images.where(present.view(-1, 1, 1, 1), ground).view(n, 2, 2, 3, side, side)
    corner = side * torch.tensor([[0, 0, 0, 0], [0, 1, 0, 1], [1, 0, 1, 0], [1, 1, 1, 1]])
    return Scenes(
        images.permute(0, 3, 1, 4, 2, 5).reshape(n, 3, 2 * side, 2 * side),
        target.view(n, 4).where(present, -1),
        (quarters.boxes.view(n, 4, 4) + corner).where(present[..., None], 0),
    )


class Found(NamedTuple):
    """What was detected in one image, in falling order of the scores."""

    boxes: Float[Tensor, "n 4"]
    target: Int64[Tensor, " n"]
    scores: Float[Tensor, " n"]


class Detector(nn.Module):
    """A network's stages with a head of one stage on their last maps; the network itself is trained on with it.

    The head starts with its classes at a probability of 0.01 everywhere (Lin et al.), its boxes at two strides a side.

    Args:
        network: has ``stages`` and ``num_features`` (module ``networks``).
        num_classes: of the objects.
        width: channels of the head.
        seed: of the head.

    Raises:
        TypeError: for another network.
        ValueError: for counts below 1.
    """

    def __init__(self, network: nn.Module, num_classes: int, width: int = 64, seed: int = 0) -> None:
        super().__init__()
        num_classes, width = check_count("num_classes", num_classes), check_count("width", width)
        if not isinstance(getattr(network, "stages", None), nn.ModuleList) or not hasattr(network, "num_features"):
            raise TypeError(f"network: got {type(network).__name__}; takes one with stages and num_features")
        body = cast(Network, network)
        self.stages = nn.Sequential(*body.stages)
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            self.neck = nn.Sequential(nn.Conv2d(body.num_features, width, 3, padding=1), nn.ReLU())
            self.classes, self.distances = nn.Conv2d(width, num_classes, 1), nn.Conv2d(width, 4, 1)
        nn.init.constant_(self.classes.bias, -math.log(99))  # type: ignore[arg-type]

    def forward(
        self, images: Float[Tensor, "N channels H W"]
    ) -> tuple[Float[Tensor, "N C h w"], Float[Tensor, "N h w 4"]]:
        """Logits of the classes and boxes (y0, x0, y1, x1) in pixels, at every place of the last maps."""
        maps = self.stages(images)
        hidden = self.neck(maps)
        (h, w), (H, W) = maps.shape[2:], images.shape[2:]
        stride = torch.tensor([H / h, W / w], dtype=maps.dtype, device=maps.device)
        y, x = (torch.arange(side, dtype=maps.dtype, device=maps.device) + 0.5 for side in (h, w))
        middle = torch.stack(torch.meshgrid(y, x, indexing="ij"), -1)
        before, after = self.distances(hidden).exp().permute(0, 2, 3, 1).split(2, 3)
        return self.classes(hidden), torch.cat([(middle - before) * stride, (middle + after) * stride], 3)

    def loss(self, images: Float[Tensor, "N channels H W"], truth: Scenes) -> Float[Tensor, ""]:
        """(43) of the objects of scenes, whose images come as floats. Boxes are (y, x): their overlap is the same."""
        from torchvision.ops import generalized_box_iou_loss, sigmoid_focal_loss

        logits, boxes = self(images)
        scene, slot = (truth.target >= 0).nonzero(as_tuple=True)
        objects = truth.boxes[scene, slot].to(boxes)
        (H, W), (h, w) = images.shape[2:], logits.shape[2:]
        y = ((objects[:, 0] + objects[:, 2]) * h / (2 * H)).long()
        x = ((objects[:, 1] + objects[:, 3]) * w / (2 * W)).long()
        present = torch.zeros_like(logits)
        present[scene, truth.target[scene, slot], y, x] = 1
        class_loss = sigmoid_focal_loss(logits, present, reduction="sum") / len(scene)
        return class_loss + generalized_box_iou_loss(boxes[scene, y, x], objects, reduction="mean")

    @torch.no_grad()
    def detect(self, images: Float[Tensor, "N channels H W"], score: float = 0.05, overlap: float = 0.5) -> list[Found]:
        """What is detected, without boxes that overlap a better one of their class.

        Args:
            images: (N, channels, H, W) in [0, 1].
            score: the least probability of a detection.
            overlap: the largest intersection over union of two detections of a class.
        """
        detections = []
        with evaluating(self):
            maps = self(images)
        for logits, boxes in zip(*maps, strict=True):
            probabilities = logits.sigmoid().flatten(1)
            label, place = (probabilities > score).nonzero(as_tuple=True)
            candidates, scores = boxes.flatten(0, 1)[place], probabilities[label, place]
            kept = surest(candidates, label, scores, overlap)
            detections.append(Found(candidates[kept], label[kept], scores[kept]))
        return detections


def surest(
    boxes: Float[Tensor, "n 4"], target: Int64[Tensor, " n"], scores: Float[Tensor, " n"], overlap: float
) -> Int64[Tensor, " kept"]:
    """Non-maximum suppression in plain operations: torchvision's wants its compiled part.

    Args:
        boxes: (n, 4).
        target: their classes, (n,).
        scores: (n,).
        overlap: the largest intersection over union of two boxes of a class.

    Returns:
        Rows of the boxes in falling order of the scores, without those that overlap a kept one of their class by more.

    Raises:
        ValueError: for boxes or scores that are not finite.
    """
    check_finite("boxes", boxes)
    check_finite("scores", scores)
    from torchvision.ops import box_iou

    order = scores.argsort(descending=True, stable=True)
    double = (box_iou(boxes[order], boxes[order]) > overlap) & (target[order, None] == target[order])
    kept = torch.ones(len(order), dtype=torch.bool)
    for row, doubles in enumerate(double.cpu().triu(1)):
        if kept[row]:
            kept &= ~doubles
    return order[kept.to(order.device)]


def fit_detector(
    detector: Detector, truth: Scenes, epochs: int, batch_size: int = 32, lr: float = 1e-3, seed: int = 0
) -> list[float]:
    """Train a detector in place, on the device it is on, by Adam with a cosine schedule.

    A loop of its own: ``fit`` trains what predicts one class an image. The last, smaller batch of an epoch is dropped.

    Args:
        detector: what is trained.
        truth: scenes, and what is in them.
        epochs: their number.
        batch_size: scenes at a time.
        lr: the first learning rate.
        seed: of the order.

    Returns:
        The mean loss (43) of every epoch.

    Raises:
        ValueError: for numbers of epochs or scenes below 1, and a learning rate that is not above 0.
    """
    epochs, batch_size = check_count("epochs", epochs), check_count("batch_size", batch_size)
    lr = check_number("lr", lr, 0, without=(0,))
    require(batch_size <= len(truth.images), "batch_size", batch_size, f"at most the {len(truth.images)} scenes")
    device, order = next(detector.parameters()).device, generator_for(seed, "order/scenes")
    truth, steps = Scenes(*(part.to(device) for part in truth)), len(truth.images) // batch_size
    optimizer = torch.optim.Adam([p for p in detector.parameters() if p.requires_grad], lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * steps)
    curve = []
    detector.train()
    for _ in range(epochs):
        total = torch.zeros((), device=device)
        drawn = torch.randperm(len(truth.images), generator=order)[: steps * batch_size].to(device)
        for rows in drawn.split(batch_size):
            batch = Scenes(*(part[rows] for part in truth))
            loss = detector.loss(batch.images.float() / 255, batch)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.detach()
        curve.append(float(total) / steps)
    return curve


def average_precision(found: Sequence[Found], truth: Scenes, overlap: float = 0.5) -> float:
    """Mean over the classes present of the average precision of detections.

    A detection takes, in falling order of the scores, the object of its class that it overlaps most of those not taken
    yet; it is right if that is at least ``overlap``.

    Args:
        found: detections, one :class:`Found` a scene.
        truth: the scenes.
        overlap: the least intersection over union, in (0, 1].

    Raises:
        ValueError: for another number of detections than of scenes, scenes without an object, another overlap.
    """
    from torchvision.ops import box_iou

    require(len(found) == len(truth.images), "found", len(found), f"{len(truth.images)}, one a scene")
    overlap = check_number("overlap", overlap, 0, 1, without=(0,))
    present = truth.target[truth.target >= 0].unique().tolist()
    require(len(present) > 0, "truth", present, "scenes with at least one object")
    means = []
    for label in present:
        scores, right = [torch.zeros(0)], []
        for detected, target, boxes in zip(found, truth.target, truth.boxes, strict=True):
            own = (detected.target == label).nonzero()[:, 0]
            own = own[detected.scores[own].argsort(descending=True, stable=True)]
            overlaps = box_iou(detected.boxes[own].double(), boxes[target == label].double())
            for row in overlaps:
                best = int(row.argmax()) if len(row) else 0
                right.append(len(row) > 0 and float(row[best]) >= overlap)
                if right[-1]:
                    overlaps[:, best] = -1  # taken; `row` is a view of it
            scores.append(detected.scores[own].cpu())
        order = torch.cat(scores).argsort(descending=True, stable=True)
        hits = torch.tensor(right, dtype=torch.float64)[order]
        precision = hits.cumsum(0) / torch.arange(1, len(hits) + 1)
        envelope = precision.flip(0).cummax(0).values.flip(0)
        means.append(float((envelope * hits).sum() / (truth.target == label).sum()))
    return sum(means) / len(means)


def detection(detector: Detector, truth: Scenes, batch_size: int = 250) -> dict[str, float]:
    """``ap50``, the average precision at an overlap of 0.5, and ``ap``, its mean over ``OVERLAPS``."""
    device = next(detector.parameters()).device
    batches = (detector.detect(images.to(device).float() / 255) for images in truth.images.split(batch_size))
    found = [Found(*(part.cpu() for part in detected)) for batch in batches for detected in batch]
    truth = Scenes(*(part.cpu() for part in truth))
    values = [average_precision(found, truth, overlap) for overlap in OVERLAPS]
    return {"ap50": values[0], "ap": sum(values) / len(values)}
