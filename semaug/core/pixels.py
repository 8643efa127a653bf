"""Operations on pixels, as functions of explicit draws: Cutout, crops and mirror images.

Cutout: DeVries, Taylor, "Improved Regularization of Convolutional Neural Networks with Cutout", 2017,
https://arxiv.org/abs/1708.04552.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int64, UInt8
from torch import Tensor

from semaug._checks import check_count, check_images, check_one_each

Images = Float[Tensor, "N channels H W"] | UInt8[Tensor, "N channels H W"]

Windows = Float[Tensor, "N channels height width"] | UInt8[Tensor, "N channels height width"]


def cutout(images: Images, cy: Int64[Tensor, " N"], cx: Int64[Tensor, " N"], size: int | tuple[int, int]) -> Images:
    r"""Zero a window of each image: rows $c_y - \lfloor s/2 \rfloor$ and the next $s - 1$, columns likewise.

    A window of odd size has that size; the released code makes it one pixel smaller.

    Args:
        images: (N, channels, H, W), floats or bytes; differentiable in them.
        cy, cx: (N,) int64, the centres. What lies outside the image is clipped.
        size: $s$ in pixels, or (height, width).

    Raises:
        ValueError: for a size below 0, images that are not (N, channels, H, W) and centres that are not (N,) int64.
    """
    height, width = (check_count("size", side, low=0) for side in (size if isinstance(size, tuple) else (size, size)))
    check_images(images)
    check_one_each(images, cy=cy, cx=cx)
    top, left = cy - height // 2, cx - width // 2
    inside = _inside((top, top + height, left, left + width), images)
    return images.masked_fill(inside, 0)


def crop_flip(
    images: Images,
    top: Int64[Tensor, " N"],
    left: Int64[Tensor, " N"],
    flip: Bool[Tensor, " N"],
    size: tuple[int, int],
) -> Windows:
    """A window of each image, and the mirror image of it where asked, by one gather.

    Args:
        images: (N, channels, H, W), floats or bytes, padded as the crop needs it.
        top, left: (N,) int64, the first row and column of the window, which must lie in the image.
        flip: (N,) bool, whether the window is mirrored left to right.
        size: (height, width) of the window.

    Returns:
        (N, channels, height, width).

    Raises:
        ValueError: for images that are not (N, channels, H, W) and draws that are not (N,) int64.
    """
    check_images(images)
    check_one_each(images, top=top, left=left)
    height, width = size
    y, x = torch.arange(height, device=images.device), torch.arange(width, device=images.device)
    rows, columns = top[:, None] + y, left[:, None] + torch.where(flip[:, None], width - 1 - x, x)
    image, channel = (torch.arange(n, device=images.device) for n in images.shape[:2])
    return images[image[:, None, None, None], channel[:, None, None], rows[:, None, :, None], columns[:, None, None, :]]


def _inside(box: tuple[Tensor, Tensor, Tensor, Tensor], images: Tensor) -> Tensor:
    """(1, H, W) or (N, 1, H, W): whether a pixel is in the box."""
    top, bottom, left, right = (end[..., None] for end in box)
    y, x = (torch.arange(side, device=images.device) for side in images.shape[2:])
    rows, columns = (y >= top) & (y < bottom), (x >= left) & (x < right)
    return (rows[..., :, None] & columns[..., None, :]).unsqueeze(-3)


def _reflected(side: int, padding: int, device: torch.device) -> Int64[Tensor, " padded"]:
    """Pixel numbers of one axis padded on both ends by reflection."""
    if padding >= side:
        raise ValueError(f"Recipe.padding: got {padding}; takes less than the image's side of {side} to reflect it")
    distance = torch.arange(-padding, side + padding, device=device).abs()
    return (side - 1) - (side - 1 - distance).abs()
