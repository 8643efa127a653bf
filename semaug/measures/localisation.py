r"""Where a classifier looks: class activation maps, and how well they find objects that nobody showed it.

A network whose head sees the mean of its last maps $a_k(i, j)$ has, for every class, a logit that is itself a mean:

$$z_c = \sum_k w_{ck} \frac{1}{HW} \sum_{ij} a_k(i, j) + b_c = \frac{1}{HW} \sum_{ij} m_c(i, j) + b_c, \qquad
  m_c(i, j) = \sum_k w_{ck}\, a_k(i, j). \tag{39}$$

Scaled to [0, 1] and enlarged to the image, the part of $m_c$ above a threshold is where the class was seen; the box
around its largest connected piece is compared with the true one by intersection over union.

Zhou, Khosla, Lapedriza, Oliva, Torralba, "Learning Deep Features for Discriminative Localization", CVPR 2016,
https://arxiv.org/abs/1512.04150. How much rides on the threshold: Choe et al., "Evaluating Weakly Supervised Object
Localization Methods Right", CVPR 2020, https://arxiv.org/abs/2001.07437.
"""

from __future__ import annotations

from typing import NamedTuple, cast

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn import functional as F

from semaug._checks import check_finite, check_number
from semaug.core.metrics import evaluating
from semaug.data.split import Split
from semaug.networks import Network


class Localisation(NamedTuple):
    """Shares of a split's images: boxes that overlap enough, those of images classified right too, and peaks inside.

    Args:
        box: the box of the map of the true class has an intersection over union with the true box of at least one half.
        classified: and the prediction is right.
        pointing: the map's highest pixel is on the object, by its mask.
        overlap: mean intersection over union.
    """

    box: float
    classified: float
    pointing: float
    overlap: float


def activation_maps(
    network: nn.Module, images: Float[Tensor, "N channels H W"], target: Int64[Tensor, " N"]
) -> tuple[Float[Tensor, "N h w"], Float[Tensor, "N C"]]:
    """The map (39) of the given class of every image, and the logits; in evaluation mode, without gradients.

    Args:
        network: has ``stages``, ``pool`` (the mean) and a linear ``head`` (module ``networks``).
        images: (N, channels, H, W) in [0, 1].
        target: class numbers, (N,) int64.

    Raises:
        TypeError: for another network.
    """
    if not all(hasattr(network, name) for name in ("stages", "pool", "head")):
        raise TypeError(f"network: got {type(network).__name__}; takes one with stages, pool and head")
    parts = cast(Network, network)
    with torch.no_grad(), evaluating(network):
        maps = nn.Sequential(*parts.stages)(images)
        seen = torch.einsum("nahw,na->nhw", maps, parts.head.weight[target])
        return seen, parts.head(parts.pool(maps))


def boxes(maps: Float[Tensor, "N H W"], threshold: float = 0.2) -> Int64[Tensor, "N 4"]:
    """(y0, x0, y1, x1), half open, around the largest connected piece of what is at least ``threshold`` of [0, 1].

    Every map is scaled to [0, 1] by its own ends first; one that is the same everywhere gives the whole image. Pixels
    of a piece are connected by their sides.

    Raises:
        ValueError: for a threshold outside (0, 1] and maps that are not finite.
    """
    check_finite("maps", maps)
    threshold = check_number("threshold", threshold, 0, 1, without=(0,))
    from scipy import ndimage  # here, not at the top: the module has to load without scipy

    low, high = maps.amin((1, 2), keepdim=True), maps.amax((1, 2), keepdim=True)
    inside = (maps - low) >= threshold * (high - low)
    ends = []
    for mask in inside.cpu().numpy():
        pieces, _ = ndimage.label(mask)
        sizes = ndimage.sum_labels(mask, pieces, range(1, pieces.max() + 1))
        rows, columns = ndimage.find_objects(pieces)[int(sizes.argmax())]
        ends.append([rows.start, columns.start, rows.stop, columns.stop])
    return torch.tensor(ends, dtype=torch.int64, device=maps.device).reshape(-1, 4)


def localisation(network: nn.Module, split: Split, threshold: float = 0.2, batch_size: int = 500) -> Localisation:
    """How well the maps of the true classes find the objects of a split.

    Args:
        network: as of :func:`activation_maps`, on the split's device.
        split: has boxes and masks (set ``shapes``).
        threshold: of :func:`boxes`, on maps that are enlarged to the image by linear interpolation.
        batch_size: images at a time.

    Raises:
        ValueError: for a split that is empty or lacks boxes or masks.
    """
    from torchvision.ops import box_iou

    overlaps, corrects, peaks = [], [], []
    for batch in split.batches(batch_size):
        if batch.boxes is None or batch.masks is None:
            raise ValueError("split: got one without boxes or masks; takes one that has them, as load('shapes')")
        images, target = batch.floats(), batch.target
        maps, logits = activation_maps(network, images, target)
        large = F.interpolate(maps[:, None], images.shape[2:], mode="bilinear", align_corners=False)[:, 0]
        # box_iou names the axes in the other order, which changes nothing.
        overlaps.append(box_iou(boxes(large, threshold).double(), batch.boxes.double()).diagonal())
        corrects.append(logits.argmax(1) == target)
        peak = large.flatten(1).argmax(1, keepdim=True)
        peaks.append(batch.masks.flatten(1).gather(1, peak)[:, 0])
    overlap, correct, pointing = torch.cat(overlaps), torch.cat(corrects), torch.cat(peaks)
    box = overlap >= 0.5
    return Localisation(*(float(share.double().mean()) for share in (box, box & correct, pointing, overlap)))
