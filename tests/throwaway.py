"""Objectives nobody needs, of the shapes the papers to come will have; every objective at its smallest; small sets.

Run as a script it is one process of a data-parallel run: ``torchrun --nproc-per-node 2 throwaway.py FOLDER NAME ...``.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable
from dataclasses import replace
from inspect import signature
from typing import get_type_hints

import torch
import torch.distributed as dist
from torch import nn
from torch.nn import functional as F

from semaug import networks
from semaug.data.sets import Data, Split
from semaug.methods import objectives
from semaug.methods.gvae import AutoEncoder
from semaug.training import loop as training
from semaug.training.objective import Objective

CLASSES = 4


class Teacher(Objective):
    """An EMA copy, and a block with its own learning rate that is reached only through the frozen copy (AutoMix)."""

    def __init__(self, network, block_lr=0.01):
        super().__init__(network, block_lr=block_lr)
        self.copy = copy.deepcopy(network).requires_grad_(False)
        self.block = nn.Conv2d(1, 1, 3, padding=1)

    def forward(self, images, target, step):
        dtype = self.block.weight.dtype
        student = F.cross_entropy(self.network(images), target)
        through = F.cross_entropy(self.copy(self.block(images.to(dtype)).sigmoid()), target)
        return student + through, {"through": through.detach()}

    def parameter_groups(self, recipe):
        return [
            {"params": self.network.parameters()},
            {"params": self.block.parameters(), "lr": self.settings["block_lr"]},
        ]

    def after_step(self, step):
        momentum = 0.9 + 0.1 * step.progress.double()
        for mine, theirs in zip(self.copy.parameters(), self.network.parameters(), strict=True):
            mine.lerp_(theirs, (1 - momentum).to(mine.dtype))


class Noise(Objective):
    """Adds noise of its own to every feature, the same whatever the number of processes (explicit augmentation)."""

    def forward(self, images, target, step):
        features = self.network.features(images)

        def draw(n):
            return torch.randn(n, features.shape[1], generator=step.generator, device=images.device)

        return F.cross_entropy(self.network.head(features + 0.1 * step.share(len(images), draw)), target), {}


class Mixer(Objective):
    """Mixes maps between two stages, by a ratio drawn from the step's generator (Manifold Mixup)."""

    def forward(self, images, target, step):
        lam = torch.rand((), generator=step.generator, device=images.device)
        partner = torch.arange(len(images), device=images.device) ^ 1  # pairs lie within one process's share
        maps = images
        for number, stage in enumerate(self.network.stages):
            maps = stage(maps)
            if number == 1:
                maps = lam * maps + (1 - lam) * maps[partner]
        logits = self.network.head(self.network.pool(maps))
        soft = F.one_hot(target, CLASSES).to(logits.dtype)
        return F.cross_entropy(logits, lam * soft + (1 - lam) * soft[partner]), {}


class Reweighter(Objective):
    """A second stream, a gradient taken inside forward, and a buffer that this step changes and uses (MetaSAug)."""

    streams = ("train", "meta")

    def __init__(self, network):
        super().__init__(network)
        self.register_buffer("weights", torch.ones(CLASSES))

    def forward(self, images, target, step):
        head = [part for part in self.network.parameters() if part.requires_grad and part.ndim > 1][-1]
        meta_loss = F.cross_entropy(self.network(step.meta.images), step.meta.target)
        (towards,) = step.mean(*torch.autograd.grad(meta_loss, head))
        features = self.network.features(images)
        losses = F.cross_entropy(self.network.head(features), target, reduction="none")
        along = []
        for label in range(CLASSES):  # how far a step on one class would help the meta batch
            of_class = (losses * (target == label)).sum() / len(target)
            along.append((torch.autograd.grad(of_class, head, retain_graph=True)[0] * towards).sum())
        (gradient,) = step.mean(torch.stack(along))
        self.weights.add_(step.lr * gradient).clamp_(min=0.1)
        return (losses * self.weights.clone()[target]).mean(), {"weight": self.weights.mean()}


RECIPE = training.Recipe(epochs=2, batch_size=16, meta_batch_size=8, lr=0.05, augment="crop+flip", evaluate_every=1)

SMALL = {
    "Augmented": {"method": "gvae", "latent": 4, "width": 4, "residual": True},
    "AutoMix": {"stage": 2, "momentum": 0.9},
    "CoMixup": {"probability": 0.15, "blocks": 2, "part": 4, "rounds": 1},
    "ConditionalVAE": {"reconstruction": "l1"},
    "Cutout": {"size": 4},
    "FeatureAugmentation": {"scale": 0.1},
    "FixedAugmentation": {"policy": "translation"},
    "GVAE": {"balance": "learned"},
    "LongTailed": {"loss": "ldam", "beta": 0.99, "defer": 0.3},
    "LongTailedSLA": {"temperature": 1.0, "accumulate": True, "loss": "ldam", "beta": 0.99, "defer": 0.3},
    "MetaSAug": {"beta": 0.99, "stage": 0.3, "keep": True},
    "PuzzleMix": {"probability": 0.5},
    "TeachAugment": {"every": 1, "ema": 0.9, "reach": 0.1, "augmentation_lr": 1e-3},
    "VAE": {"deviation": 0.2},
}
"""Settings that a data set of 12 x 12 pixels, or a run of a few steps, asks for; without: the defaults."""


def classes() -> dict[str, type[Objective]]:
    """Every objective of the package, and those of this module."""
    own = (Teacher, Noise, Mixer, Reweighter)
    return objectives() | {kind.__name__: kind for kind in own}


def data(train: int = 64) -> Data:
    """Noise with a bright quadrant, the class: learnable in a few steps, made in a millisecond."""

    def draw(images, target):
        for row, label in enumerate(target.tolist()):
            images[row, 0, 6 * (label // 2) :, 6 * (label % 2) :][:6, :6] += 100

    return _set("quadrants", draw, torch.arange(train + 48) % CLASSES, train)


def patterns() -> Data:
    """Noise with a bright centre, ring, border or nothing: a class stays itself when an image is turned or mirrored."""
    distance = (torch.arange(12) - 5.5).abs()
    distance = torch.maximum(distance[:, None], distance[None, :])  # 0.5 in the centre, 5.5 at the border

    def draw(images, target):
        for row, label in enumerate(target.tolist()):
            images[row, 0, ((distance > 2 * label) & (distance < 2 * label + 2)) if label < 3 else distance < 0] += 100

    uneven = [0] * 24 + [1] * 16 + [2] * 16 + [3] * 8
    return _set("patterns", draw, torch.tensor(uneven + [*range(CLASSES)] * 12), len(uneven))


def _set(name: str, draw: Callable, target: torch.Tensor, train: int) -> Data:
    images = torch.randint(0, 128, (len(target), 1, 12, 12), generator=torch.Generator().manual_seed(0)).byte()
    draw(images, target)
    parts = (slice(0, train), slice(train, train + 32), slice(train + 32, None))
    splits = [Split(images[part], target[part]) for part in parts]
    return Data(name, splits[0], splits[1], validation=None, meta=splits[2], classes=tuple("abcd"), settings={})


def network(name: str, norm: str = "batch", dataset: Data | None = None, seed: int = 0) -> nn.Module:
    """A small network for one of the objectives: an autoencoder where the class asks for one in its type hints."""
    channels, *size = (dataset or data()).image_shape
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        if get_type_hints(classes()[name]).get("network") is AutoEncoder:
            return AutoEncoder(CLASSES, channels, tuple(size), latent=4, width=4, norm=norm)
        width = 8 if size == [12, 12] else 16
        return networks.small((dataset or data()).num_classes, channels, width=width, norm=norm)


def build(name: str, norm: str = "batch", dataset: Data | None = None, seed: int = 0, **settings) -> Objective:
    """One of the objectives, for a data set (the quadrants), by its small settings. Two of one seed are equal."""
    body = settings.pop("network", None) or network(name, norm, dataset, seed)
    dataset = dataset or data()
    small = SMALL.get(name, {}) if dataset.image_shape == (1, 12, 12) else {}
    norms = {"norm": norm} if "norm" in signature(classes()[name].__init__).parameters else {}
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed + 1)  # other numbers than the network's
        return classes()[name].build(body, dataset, **(small | norms | settings))


def train_exactly(name: str) -> dict[str, torch.Tensor]:
    """State after training in float64 with GroupNorm, in which two processes must equal one."""
    objective = build(name, "group", patterns()).double()
    record = training.fit(objective, patterns(), replace(RECIPE, batch_size=32, lr=1e-4), progress=False)
    return {**objective.state_dict(), "curve": torch.tensor(record.curves["train_loss"], dtype=torch.float64)}


if __name__ == "__main__":
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    states = {name: train_exactly(name) for name in sys.argv[2:]}
    torch.save(states, f"{sys.argv[1]}/rank{dist.get_rank()}.pt")
    dist.destroy_process_group()
