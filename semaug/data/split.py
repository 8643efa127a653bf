"""A split: images with what is known of each of them. ``sets``, ``sources`` and ``shapes`` all stand on it.

Images are kept as uint8, a quarter of what float32 takes, so that a whole set fits on a GPU and is augmented there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float, Int64, UInt8
from torch import Tensor

from semaug._checks import check_within

Index = slice | Sequence[int] | Tensor


@dataclass(frozen=True, eq=False)
class Split:
    """Images with what is known of each of them, all on one device.

    Attributes:
        images: (N, channels, H, W) uint8, 0 black, 255 full.
        target: (N,) int64, the class.
        factors: values known of each image, by name, each (N,).
        masks: (N, H, W) bool, True on the object.
        boxes: (N, 4) int64, (y0, x0, y1, x1) in pixels, half open.

    Raises:
        TypeError: for any other dtype.
        ValueError: for any other shape.
    """

    images: UInt8[Tensor, "N channels H W"]
    target: Int64[Tensor, " N"]
    factors: Mapping[str, Tensor] = field(default_factory=dict)
    masks: Bool[Tensor, "N H W"] | None = None
    boxes: Int64[Tensor, "N 4"] | None = None

    def __post_init__(self) -> None:
        """Hold every part to its dtype and shape; no values are read, so slicing on a GPU never waits for it."""
        hint = "; Split.from_float takes floating-point images in [0, 1]"
        _expect("images", self.images, torch.uint8, (None, None, None, None), hint)
        n, _, height, width = self.images.shape
        _expect("target", self.target, torch.int64, (n,))
        for name, values in self.factors.items():
            _expect(f"factors[{name!r}]", values, None, (n,))
        if self.masks is not None:
            _expect("masks", self.masks, torch.bool, (n, height, width))
        if self.boxes is not None:
            _expect("boxes", self.boxes, torch.int64, (n, 4))
        for name, part in {"target": self.target, "masks": self.masks, "boxes": self.boxes, **self.factors}.items():
            if part is not None and part.device != self.images.device:
                raise ValueError(f"{name}: lies on {part.device}, images on {self.images.device}; takes one device")

    @classmethod
    def from_float(
        cls,
        images: Float[Tensor, "N channels H W"],
        target: Int64[Tensor, " N"],
        factors: Mapping[str, Tensor] | None = None,
        masks: Bool[Tensor, "N H W"] | None = None,
        boxes: Int64[Tensor, "N 4"] | None = None,
    ) -> Split:
        """From floating-point images in [0, 1], rounded to 256 levels.

        Args:
            images: a few units in the last place below 0 or above 1, as interpolation leaves them, count as 0 or 1.
            target: the classes.
            factors, masks, boxes: as of :class:`Split`.

        Raises:
            TypeError: for other dtypes.
            ValueError: for NaN or values outside [0, 1].
        """
        if not isinstance(images, Tensor) or not images.is_floating_point():
            raise TypeError(f"images: got {_describe(images)}; takes a floating-point tensor, Split(...) takes uint8")
        images = check_within("images", images)
        return cls((images.float() * 255).round().to(torch.uint8), target, factors or {}, masks, boxes)

    def __len__(self) -> int:
        return len(self.images)

    def take(self, index: Index) -> Split:
        """The images at ``index`` (slice, list, int64 or bool tensor), with all that is known of them."""
        if not isinstance(index, slice):
            index = torch.as_tensor(index, device=self.images.device)
            index = index if index.numel() else index.long()  # torch reads [] as float
            if index.dim() != 1 or index.dtype not in (torch.int64, torch.bool):
                raise TypeError(f"index: got {_describe(index)}; takes a slice, a list, or (n,) int64 or bool")
        return self._each(lambda part: part[index])

    def batches(self, size: int = 500) -> Iterator[Split]:
        """The split in parts of ``size`` images, in its order; raises ValueError where it has none."""
        if len(self) == 0:
            raise ValueError("split: got 0 images; takes at least one")
        for start in range(0, len(self), size):
            yield self.take(slice(start, start + size))

    def to(self, device: torch.device | str) -> Split:
        """The split on a device."""
        return self._each(lambda part: part.to(device))

    def floats(self, index: Index | None = None) -> Float[Tensor, "n channels H W"]:
        """Images (all, or those at ``index``) as float32 in [0, 1], as networks take them."""
        images = self.images if index is None else self.images[index]
        return images.float().div_(255)

    def _each(self, change: Callable[[Tensor], Tensor]) -> Split:
        masks, boxes = (part if part is None else change(part) for part in (self.masks, self.boxes))
        factors = {name: change(values) for name, values in self.factors.items()}
        return Split(change(self.images), change(self.target), factors, masks, boxes)


def _expect(name: str, got: object, dtype: torch.dtype | None, shape: tuple[int | None, ...], hint: str = "") -> None:
    takes = f"{str(dtype).removeprefix('torch.') if dtype else 'a tensor'} {_shape(shape)}{hint}"
    if not isinstance(got, Tensor) or dtype not in (None, got.dtype):
        raise TypeError(f"{name}: got {_describe(got)}; takes {takes}")
    if got.dim() != len(shape) or any(want not in (None, have) for want, have in zip(shape, got.shape, strict=True)):
        raise ValueError(f"{name}: got {_describe(got)}; takes {takes}")


def _describe(got: object) -> str:
    if not isinstance(got, Tensor):
        return f"a {type(got).__name__}"
    return f"{str(got.dtype).removeprefix('torch.')} {_shape(got.shape)}"


def _shape(sizes: Sequence[int | None]) -> str:
    names = ("N", "channels", "H", "W")
    inner = ", ".join(axis if size is None else str(size) for axis, size in zip(names, sizes, strict=False))
    return f"({inner},)" if len(sizes) == 1 else f"({inner})"
