r"""Mixing and cutting images, maps and labels: pure functions of explicit draws.

Of a batch $x$ with soft labels $y$, a ratio $\lambda$ and a partner $\pi(i)$ of every image make

$$\tilde y_i = \lambda\, y_i + (1 - \lambda)\, y_{\pi(i)}, \qquad
  \tilde x_i = M \odot x_i + (1 - M) \odot x_{\pi(i)}. \tag{30}$$

mixup takes $M = \lambda$. CutMix takes $M = 0$ in a box of the area $(1 - \lambda) H W$ and 1 outside; the box may hang
over the edge, so the ratio of the labels is what is left of the image, $\lambda \leftarrow 1 - \text{area} / (H W)$.
ResizeMix fills the same box with the whole partner, shrunk, SaliencyMix puts it where the partner is most salient.
MixStyle mixes the mean and standard deviation of maps over their pixels, and no labels:

$$\tilde a = \frac{a - \mu}{\sigma}\,\bigl(\lambda \sigma + (1 - \lambda) \sigma_{\pi}\bigr)
  + \lambda \mu + (1 - \lambda) \mu_{\pi}. \tag{31}$$

* mixup: Zhang, Cisse, Dauphin, Lopez-Paz, ICLR 2018, https://arxiv.org/abs/1710.09412
* CutMix: Yun et al., ICCV 2019, https://arxiv.org/abs/1905.04899
* ResizeMix: Qin et al., 2020, https://arxiv.org/abs/2012.11101
* SaliencyMix: Uddin et al., ICLR 2021, https://arxiv.org/abs/2006.01791; its saliency: Montabone, Soto, "Human
  detection using a mobile platform and novel features derived from a visual saliency mechanism", Image and Vision
  Computing 2010
* MixStyle: Zhou, Yang, Qiao, Xiang, ICLR 2021, https://arxiv.org/abs/2104.02008
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn import functional as F

from semaug._checks import Centre, Ratio, check_classes, check_draws, check_finite, check_floats, check_shape
from semaug.core.pixels import Images, _inside
from semaug.core.tensors import at_least_float32

Labels = Int64[Tensor, " N"] | Float[Tensor, "N C"]

Box = tuple[Tensor, Tensor, Tensor, Tensor]


class Mixed(NamedTuple):
    """Images, their soft labels, and the ratio in these: one, or one an image."""

    images: Images
    target: Float[Tensor, "N C"]
    lam: Float[Tensor, ""] | Float[Tensor, " N"]


def mixup(
    images: Float[Tensor, "N channels H W"],
    target: Labels,
    lam: Ratio,
    permutation: Int64[Tensor, " N"],
    num_classes: int | None = None,
) -> Mixed:
    r"""Images and labels by (30) with $M = \lambda$; differentiable in images, soft labels and lam.

    Args:
        images: (N, channels, H, W).
        target: class numbers (N,), which take ``num_classes``, or labels that are soft already (N, C).
        lam: weight of the image itself in [0, 1], one for all or one an image; 1 - lam is that of its partner.
        permutation: the partner of every image is ``images[permutation]``.
        num_classes: C.

    Raises:
        TypeError: for images that are no floats.
        ValueError: for a lam outside [0, 1], partners that are not (N,) int64 in [0, N), labels that are not one an
            image, class numbers without num_classes or outside of them, and soft labels of other classes. Values are
            not checked where they may not be looked at (torch.compile, torch.func, the capture of a CUDA graph).
    """
    check_floats(images)
    lam = check_draws(images, lam, permutation)
    return Mixed(blend(images, lam, permutation), blend_labels(target, lam, permutation, num_classes), lam)


def cutmix(
    images: Images,
    target: Labels,
    lam: Ratio,
    permutation: Int64[Tensor, " N"],
    cy: Centre,
    cx: Centre,
    num_classes: int | None = None,
) -> Mixed:
    r"""A box of the partner in each image, by (30); arguments and errors of :func:`mixup`, images may be bytes.

    The box has $\lfloor \lfloor H \sqrt{1 - \lambda} \rfloor / 2 \rfloor$ rows on either side of the middle of row and
    column (cy, cx), where an odd side loses a pixel, as in the released code; likewise columns. What lies outside the
    image is clipped.

    Args:
        cy: row of the centre, like the column cx one for all or one an image.

    Returns:
        lam is exactly 1 - the clipped area / (H W).
    """
    lam = check_draws(images, lam, permutation, cy=cy, cx=cx)
    box = cut_box(lam, cy, cx, images.shape[2], images.shape[3])
    mixed, lam = _filled(images, images.index_select(0, permutation), box, lam.dtype)
    return Mixed(mixed, blend_labels(target, lam, permutation, num_classes), lam)


def resizemix(
    images: Images,
    target: Labels,
    lam: Ratio,
    permutation: Int64[Tensor, " N"],
    cy: Centre,
    cx: Centre,
    num_classes: int | None = None,
) -> Mixed:
    """The whole partner, shrunk by nearest pixels into the clipped box of :func:`cutmix`; its arguments and errors."""
    lam = check_draws(images, lam, permutation, cy=cy, cx=cx)
    (N, channels, H, W), device = images.shape, images.device
    box = top, bottom, left, right = cut_box(lam, cy, cx, H, W)
    y, x = _nearest(top, bottom, H, device).expand(N, -1), _nearest(left, right, W, device).expand(N, -1)
    channel = torch.arange(channels, device=device)[None, :, None, None]
    shrunk = images[permutation[:, None, None, None], channel, y[:, None, :, None], x[:, None, None, :]]
    mixed, lam = _filled(images, shrunk, box, lam.dtype)
    return Mixed(mixed, blend_labels(target, lam, permutation, num_classes), lam)


def saliencymix(
    images: Images,
    target: Labels,
    lam: Ratio,
    permutation: Int64[Tensor, " N"],
    saliency: Float[Tensor, "N H W"],
    num_classes: int | None = None,
) -> Mixed:
    """The box of :func:`cutmix` around the most salient pixel of each partner; its arguments and errors.

    Args:
        saliency: of every image, finite, as :func:`fine_grained_saliency` has it, or any other.
    """
    check_shape("saliency", saliency, (len(images), *images.shape[2:]), " = (N, H, W)")
    check_finite("saliency", saliency)
    check_draws(images, lam, permutation)
    peak = saliency.flatten(1).argmax(1).index_select(0, permutation)
    width = images.shape[3]
    return cutmix(images, target, lam, permutation, peak // width, peak % width, num_classes)


def mixstyle(
    features: Float[Tensor, "N A H W"], lam: Ratio, permutation: Int64[Tensor, " N"]
) -> Float[Tensor, "N A H W"]:
    """Maps with the mixed statistics (31), which are constants; lam and errors as for :func:`mixup`.

    The variance is unbiased, with 1e-6 under the root, as released; so maps have to have two pixels at least.
    """
    check_floats(features, "features")
    lam = check_draws(features, lam, permutation, "features")
    if features.shape[2] * features.shape[3] < 2:
        raise ValueError(f"features: got maps of {features.shape[2]} x {features.shape[3]}; takes two pixels at least")
    if len(features) == 0:
        return features.clone()
    maps = at_least_float32(features)
    mean = maps.mean((2, 3), keepdim=True).detach()
    std = (maps.var((2, 3), keepdim=True) + 1e-6).sqrt().detach()
    mixed = (maps - mean) / std * blend(std, lam, permutation) + blend(mean, lam, permutation)
    return mixed.to(features.dtype)


def by_mask(
    images: Float[Tensor, "N channels H W"],
    target: Labels,
    mask: Float[Tensor, "N 1 H W"] | Float[Tensor, ""],
    lam: Ratio,
    permutation: Int64[Tensor, " N"],
    num_classes: int | None = None,
) -> Mixed:
    """Images by (30) with any mask, labels by lam, whatever the mask; arguments and errors of :func:`mixup`.

    Raises:
        ValueError: for a mask of another shape too.
    """
    check_floats(images)
    lam = check_draws(images, lam, permutation)
    if mask.ndim:
        check_shape("mask", mask, (len(images), 1, *images.shape[2:]), " = (N, 1, H, W), or one number")
    return Mixed(blend(images, mask, permutation), blend_labels(target, lam, permutation, num_classes), lam)


def blend(values: Tensor, lam: Tensor, permutation: Int64[Tensor, " N"]) -> Tensor:
    """``lam * values + (1 - lam) * values[permutation]`` of anything (N, ...), computed in float32 at least.

    Args:
        lam: one for all, one an image, or a mask of as many axes as values.
    """
    wide = at_least_float32(values)
    lam = lam.to(wide.dtype).reshape(lam.shape + (1,) * (values.ndim - lam.ndim))
    return (lam * wide + (1 - lam) * wide.index_select(0, permutation)).to(values.dtype)


def blend_labels(
    target: Labels, lam: Tensor, permutation: Int64[Tensor, " N"], num_classes: int | None = None
) -> Float[Tensor, "N C"]:
    """Labels by (30), soft already or class numbers; raises ValueError as :func:`mixup`."""
    soft = soft_labels(target, num_classes)
    if len(soft) != len(permutation):
        raise ValueError(f"target: got {len(soft)} labels; takes {len(permutation)}, one an image")
    return blend(soft, lam, permutation)


def soft_labels(target: Labels, num_classes: int | None = None) -> Float[Tensor, "N C"]:
    """One-hot float32 rows of class numbers; labels that are soft already stay. Raises ValueError as :func:`mixup`."""
    if target.is_floating_point():
        if target.ndim != 2 or num_classes not in (None, target.shape[1]):
            takes = "(N, C)" if num_classes is None else f"(N, C) with C = {num_classes}"
            raise ValueError(f"target: got soft labels of shape {tuple(target.shape)}; takes {takes}")
        return target
    if target.dtype != torch.int64 or target.ndim != 1:
        got = f"{target.dtype} {tuple(target.shape)}"
        raise ValueError(f"target: got {got}; takes class numbers, int64 (N,), or soft labels, floats (N, C)")
    if num_classes is None:
        raise ValueError("num_classes: got None; takes the number of classes where target holds class numbers")
    check_classes(target, num_classes)
    return F.one_hot(target, num_classes).float()


def cut_box(lam: Tensor, cy: Centre, cx: Centre, height: int, width: int) -> Box:
    """Top, bottom, left and right of the box of :func:`cutmix`, int64, half open and clipped; see there."""
    root, ends = (1 - lam.double()).sqrt(), []
    for centre, side in ((cy, height), (cx, width)):
        half = (side * root).long() // 2
        ends += [(centre - half).clamp(0, side), (centre + half).clamp(0, side)]
    top, bottom, left, right = torch.broadcast_tensors(*ends)
    return top, bottom, left, right


def fine_grained_saliency(images: Images) -> Float[Tensor, "N H W"]:
    r"""How far each pixel's brightness is from the mean of its surround, added up over windows of several sides.

    Montabone and Soto's centre-surround differences, on and off together, $\sum_s |I - \mathrm{mean}_s I|$, for sides
    of a quarter, a half and all of the image. Costs no pass through a network.

    This is not the map of OpenCV's StaticSaliencyFineGrained, which the released code calls and whose sides are fixed.
    In two comparisons on bytes the two maps had correlations of .05 and -.10, and their peaks never coincided. The
    release passes normalised floats, for which OpenCV's map does not correlate with its own on bytes either.
    """
    gray = at_least_float32(images).mean(1, keepdim=True)
    side, total = min(images.shape[2:]), torch.zeros_like(gray)
    for window in {max(1, side // part) // 2 * 2 + 1 for part in (4, 2, 1)}:
        total += (gray - F.avg_pool2d(gray, window, 1, window // 2, count_include_pad=False)).abs()
    return total[:, 0]


def _filled(images: Tensor, partner: Tensor, box: Box, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Images with the box taken from partner, and what is left of each image, in float32 at least."""
    top, bottom, left, right = box
    left_over = 1 - ((bottom - top) * (right - left)).double() / (images.shape[2] * images.shape[3])
    mixed = torch.where(_inside(box, images), partner, images)
    return mixed, left_over.to(torch.promote_types(dtype, torch.float32))


def _nearest(first: Tensor, end: Tensor, side: int, device: torch.device) -> Tensor:
    """(..., side): the source pixel that each pixel of [first, end) shows of an axis shrunk into it."""
    place = torch.arange(side, device=device) - first[..., None]
    return (place * side // (end - first).clamp_min(1)[..., None]).clamp(0, side - 1)
