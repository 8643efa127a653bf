"""Streams: a split as uint8 on the device, shuffled, cropped and flipped there, and the generators that decide how.

The order of the data is drawn on the CPU, so that it is the same on every device; crops and flips are drawn on the
device, for the whole global batch on every rank, so that two processes see exactly what one would.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import torch
from jaxtyping import Int64, UInt8
from torch import Tensor
from torch.nn import functional as F

from semaug.core.pixels import _reflected, crop_flip, cutout
from semaug.data.sets import Split
from semaug.training.objective import Batch
from semaug.training.recipe import Recipe


def generator_for(seed: int, name: str, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator for one named purpose of one seed: independent streams, the same on every machine of a kind."""
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(digest[:8], "little") >> 1)


def _policies(recipe: Recipe) -> list[Callable[[Tensor], Tensor]]:
    """The torchvision transforms a recipe asks for."""
    if not {"randaugment", "autoaugment"} & set(recipe.augments):
        return []
    from torchvision.transforms import v2  # here, not at the top: torchvision takes a second to load

    known = {"randaugment": v2.RandAugment, "autoaugment": lambda: v2.AutoAugment(v2.AutoAugmentPolicy.CIFAR10)}
    return [build() for name, build in known.items() if name in recipe.augments]


class Stream:
    """A split on the device and its batches, augmented there, as uint8 until the last step."""

    def __init__(
        self, split: Split, name: str, batch_size: int, recipe: Recipe, seed: int, device: torch.device
    ) -> None:
        self.name, self.batch_size, self.recipe = name, batch_size, recipe
        self.target = split.target.to(device)
        images = split.images.to(device)
        self.height, self.width = images.shape[-2:]
        self.padding = recipe.padding if "crop" in recipe.augments else 0
        if self.padding and recipe.padding_mode == "zeros":
            images = F.pad(images, (self.padding,) * 4)
        elif self.padding:  # by index: F.pad does not reflect bytes
            y, x = (_reflected(side, self.padding, device) for side in (self.height, self.width))
            images = images[..., y, :][..., x]
        self.images: UInt8[Tensor, "N channels H W"] = images
        self.policies = _policies(recipe)
        # Orders on the CPU: the same data order on every device. Draws on the device: no copy at every step.
        self.order = generator_for(seed, f"order/{name}")
        self.draws = generator_for(seed, f"augment/{name}", device)

    def epoch(self, steps: int) -> Int64[Tensor, "steps batch"]:
        """Row numbers of the next ``steps`` batches: permutations of the split, one after the other."""
        passes = -(-steps * self.batch_size // len(self.target))
        order = torch.cat([torch.randperm(len(self.target), generator=self.order) for _ in range(passes)])
        return order[: steps * self.batch_size].view(steps, self.batch_size).to(self.target.device)

    def batch(self, rows: Int64[Tensor, " batch"], share: slice) -> Batch:
        """This rank's share of one batch, augmented, in [0, 1]."""
        images, rows = self.images[rows[share]], rows[share]
        flips = "flip" in self.recipe.augments
        if flips or self.padding:
            none = torch.zeros_like(rows)
            flip = self._draw(2)[share] if flips else none
            top, left = (self._draw(2 * self.padding + 1)[share] if self.padding else none for _ in range(2))
            images = crop_flip(images, top, left, flip.bool(), (self.height, self.width))
        if self.policies:
            images = self._by_policy(images, self._draw(2**63 - 1)[share].tolist())
        if self.recipe.cutout:
            images = cutout(images, self._draw(self.height)[share], self._draw(self.width)[share], self.recipe.cutout)
        # Channels last on a GPU: the layout of its convolutions, a third faster for a ResNet-32 than the other.
        layout = torch.channels_last if images.is_cuda else torch.contiguous_format
        return Batch(images.float().div_(255).contiguous(memory_format=layout), self.target[rows])

    def _by_policy(self, images: Tensor, seeds: list[int]) -> Tensor:
        """torchvision's policies, an image at a time from a seed of its own: they draw from the global generator."""
        with torch.random.fork_rng(devices=[]):
            changed = []
            for image, seed in zip(images, seeds, strict=True):
                torch.default_generator.manual_seed(seed)
                for policy in self.policies:
                    image = policy(image)
                changed.append(image)
        return torch.stack(changed)

    def _draw(self, high: int) -> Int64[Tensor, " batch"]:
        """One whole number in [0, high) for each image of the global batch."""
        return torch.randint(high, (self.batch_size,), generator=self.draws, device=self.draws.device)
