"""Operations on pixels that several methods share: Cutout, and reflected padding for random crops."""

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
    top, left = cy - height // 2, cx - width // 2
    inside = _inside((top, top + height, left, left + width), images)
    return images.masked_fill(inside, 0)


def _inside(box: tuple[Tensor, Tensor, Tensor, Tensor], images: Tensor) -> Tensor:
    """(1, H, W) or (N, 1, H, W): whether a pixel is in the box."""
    top, bottom, left, right = (end[..., None] for end in box)
    y, x = (torch.arange(side, device=images.device) for side in images.shape[2:])
    rows, columns = (y >= top) & (y < bottom), (x >= left) & (x < right)
    return (rows[..., :, None] & columns[..., None, :]).unsqueeze(-3)


def _reflected(side: int, padding: int, device: torch.device) -> Int64[Tensor, " padded"]:
    """Pixel numbers of one axis padded on both ends by reflection."""
    if padding >= side:
        raise ValueError(f"Recipe.padding: got {padding}, takes less than the image's side of {side} to reflect it")
    distance = torch.arange(-padding, side + padding, device=device).abs()
    return (side - 1) - (side - 1 - distance).abs()
