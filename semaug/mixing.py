r"""Mixing and cutting images: pure functions of explicit draws.

Cutout sets a window of every image to zero, at a centre drawn anywhere in the image, so that the window may hang over
its edge: T. DeVries, G. W. Taylor, "Improved regularization of convolutional neural networks with Cutout",
https://arxiv.org/abs/1708.04552.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor

Images = Float[Tensor, "N channels H W"] | UInt8[Tensor, "N channels H W"]


def cutout(images: Images, cy: Int64[Tensor, " N"], cx: Int64[Tensor, " N"], size: int | tuple[int, int]) -> Images:
    r"""Zero a window of each image: rows $c_y - \lfloor s/2 \rfloor$ and the next $s - 1$, columns likewise.

    images: (N, channels, H, W); differentiable in them. cy, cx: centres, one an image. size: $s$ in pixels, or
    (height, width). What lies outside the image is clipped. Raises ValueError for a size below 0, images that are
    not (N, channels, H, W) and centres that are not (N,) int64.
    """
    height, width = (size, size) if isinstance(size, int) else size
    if height < 0 or width < 0:
        raise ValueError(f"size: got {size}; takes whole numbers from 0")
    if images.ndim != 4:
        raise ValueError(f"images: got shape {tuple(images.shape)}; takes (N, channels, H, W)")
    for name, centre in (("cy", cy), ("cx", cx)):
        if centre.shape != images.shape[:1] or centre.dtype != torch.int64:
            got = f"{centre.dtype} {tuple(centre.shape)}"
            raise ValueError(f"{name}: got {got}; takes int64 ({len(images)},), one centre an image")
    rows = _window(cy, height, images.shape[2])
    columns = _window(cx, width, images.shape[3])
    return images.masked_fill((rows[:, :, None] & columns[:, None, :])[:, None], 0)


def _window(centre: Tensor, size: int, side: int) -> Tensor:
    """(N, side): whether each pixel of an axis is inside the window."""
    distance = torch.arange(side, device=centre.device) - (centre[:, None] - size // 2)
    return (distance >= 0) & (distance < size)
