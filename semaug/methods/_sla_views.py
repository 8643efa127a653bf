"""The transformations of SLA: quarter turns and orders of the colours, and the views of an image by sets of them."""

from __future__ import annotations

from itertools import product, starmap
from typing import NamedTuple

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from semaug._checks import check_choice, check_images
from semaug.core.pixels import Images

Views = Float[Tensor, "N M channels H W"] | UInt8[Tensor, "N M channels H W"]

Order = tuple[int, int, int]


class Transform(NamedTuple):
    """Quarter turns, counter-clockwise, then an order of the three channels (None: left as they are)."""

    turns: int = 0
    order: Order | None = None

    def __call__(self, images: Images) -> Images:
        """The batch transformed: values move, none is computed. Raises ValueError for images it does not fit."""
        check_images(images)
        channels, height, width = images.shape[1:]
        if self.turns % 2 and height != width:
            raise ValueError(f"images: got {height} x {width} pixels; takes square ones to turn by 90 degrees")
        if self.order is not None and channels != 3:
            raise ValueError(f"images: got {channels} channel(s); takes 3 to permute colours")
        turned = torch.rot90(images, self.turns, (2, 3))
        # A list as an index would be copied to the GPU, which waits for it.
        return turned if self.order is None else torch.stack([turned[:, channel] for channel in self.order], 1)


_QUARTERS, _HALVES = (0, 1, 2, 3), (0, 2)

_ORDERS: tuple[Order, ...] = ((0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0))

_CYCLES: tuple[Order, ...] = ((0, 1, 2), (1, 2, 0), (2, 0, 1))

_SETS: dict[str, tuple[tuple[int, ...], tuple[Order | None, ...]]] = {
    "none": ((0,), (None,)),
    "rotation": (_QUARTERS, (None,)),
    "rotation2": (_HALVES, (None,)),
    "color_perm": ((0,), _ORDERS),
    "color_perm3": ((0,), _CYCLES),
    "rotation2+color_perm3": (_HALVES, _CYCLES),
    "rotation+color_perm3": (_QUARTERS, _CYCLES),
    "rotation+color_perm": (_QUARTERS, _ORDERS),
}

TRANSFORMS = {name: tuple(starmap(Transform, product(*parts))) for name, parts in _SETS.items()}
"""Sets of M = 1, 4, 2, 6, 3, 6, 12 and 24; the identity is the first of each. In a product turns come before orders."""


def views(images: Images, transforms: str) -> Views:
    """Every image through every transformation of a set, in its order; exact and differentiable.

    Args:
        images: (N, channels, H, W), bytes or floats.
        transforms: a set of ``TRANSFORMS``.

    Returns:
        (N, M, channels, H, W).

    Raises:
        ValueError: for another set, images that are not square where the set turns them by 90 degrees, and images that
            have not three channels where it permutes them.
    """
    chosen = TRANSFORMS[check_choice("transforms", transforms, TRANSFORMS)]
    return torch.stack([transform(images) for transform in chosen], 1)


def rotations(images: Images) -> Views:
    """Views by 0, 90, 180 and 270 degrees, counter-clockwise; raises as :func:`views`."""
    return views(images, "rotation")
