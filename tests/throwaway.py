"""Objectives nobody needs, of the shapes the papers to come will have: what the contract has to carry.

Run as a script it is one process of a data-parallel run: ``torchrun --nproc-per-node 2 throwaway.py NAME OUT``.
"""

from __future__ import annotations

import copy
import sys
from dataclasses import replace
from functools import partial

import torch
import torch.distributed as dist
from torch import nn
from torch.nn import functional as F

from semaug import networks
from semaug.data.sets import Data, Split
from semaug.methods.augmented import Augmented
from semaug.methods.automix import AutoMix
from semaug.methods.gvae import GVAE, VAE, AutoEncoder, ConditionalVAE
from semaug.methods.isda import ISDA
from semaug.methods.learned import FeatureAugmentation, FixedAugmentation, TeachAugment
from semaug.methods.long_tail import LongTailed
from semaug.methods.metasaug import MetaSAug
from semaug.methods.mixup import CutMix, Cutout, ManifoldMixup, MixStyle, Mixup, ResizeMix, SaliencyMix
from semaug.methods.puzzlemix import PuzzleMix
from semaug.methods.sla import SLA, DataAugmentation, LongTailedSLA, MultiTask
from semaug.training import loop as training
from semaug.training.objective import CrossEntropy, Objective, Smoothed

CLASSES = 4


class Teacher(Objective):
    """An EMA copy, and a block with its own learning rate that is reached only through the frozen copy (AutoMix)."""

    def __init__(self, network):
        super().__init__(network, block_lr=0.01)
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
        head = self.network.head.weight
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


OBJECTIVES = {
    "Teacher": Teacher,
    "Mixer": Mixer,
    "Noise": Noise,
    "Reweighter": Reweighter,
    "CrossEntropy": CrossEntropy,
}
OBJECTIVES["ISDA"] = lambda network: ISDA(network, strength=0.5)
COUNTS = torch.tensor([40, 12, 8, 4])  # what the long-tailed ones are told; the data have 16 of each
OBJECTIVES["LongTailed"] = lambda network: LongTailed(network, COUNTS, "ldam", beta=0.99, defer=0.3)
OBJECTIVES["MetaSAug"] = lambda network: MetaSAug(network, COUNTS, beta=0.99, stage=0.3, psd=True, keep=True)
OBJECTIVES["SLA"] = SLA
OBJECTIVES["LongTailedSLA"] = lambda network: LongTailedSLA(  # with all that it can
    network, COUNTS, temperature=1.0, accumulate=True, loss="ldam", beta=0.99, defer=0.3
)


class Drawn(Augmented):
    """With the generator that is trained beside it, at a rate that SGD takes for a loss in nats an image."""

    def parameter_groups(self, recipe):
        return [{"params": self.network.parameters()}, {"params": self.generator.parameters(), "lr": 1e-4}]


def _norm(network):
    return "group" if any(isinstance(part, nn.GroupNorm) for part in network.modules()) else "batch"


def _drawn(network):
    return Drawn(network, (1, 12, 12), "gvae", latent=4, width=4, residual=True, norm=_norm(network))


def _autoencoder(kind, **settings):
    """An objective of an autoencoder, at a rate that SGD takes for nats an image."""

    class Coded(kind):
        def parameter_groups(self, recipe):
            return [group | {"lr": 1e-4} for group in super().parameter_groups(recipe)]

    Coded.__name__ = kind.__name__
    make = partial(AutoEncoder, CLASSES, 1, (12, 12), latent=4, width=4)
    return lambda network: Coded(make(norm=_norm(network)), **settings)


OBJECTIVES["Drawn"] = _drawn
OBJECTIVES["FixedAugmentation"] = lambda network: FixedAugmentation(network, "translation")
OBJECTIVES["FeatureAugmentation"] = lambda network: FeatureAugmentation(network, scale=0.1)
OBJECTIVES["TeachAugment"] = lambda network: TeachAugment(network, (1, 12, 12), every=1, ema=0.9)
OBJECTIVES["Cutout"] = lambda network: Cutout(network, 4)
PAIRED = {  # pairs lie inside a process's share of the batch: two processes agree, but are not one
    "Mixup": Mixup,
    "MixStyle": MixStyle,
    "CutMix": CutMix,
    "ResizeMix": ResizeMix,
    "SaliencyMix": SaliencyMix,
    "ManifoldMixup": ManifoldMixup,
    "PuzzleMix": PuzzleMix,  # and Co-Mixup is too slow: seconds a step
    "AutoMix": lambda network: AutoMix(network, stage=2, momentum=0.9),
}
OBJECTIVES |= PAIRED
TURNED = {"DataAugmentation": DataAugmentation, "MultiTask": MultiTask}  # a turn makes one class here another
SLOW = {  # whose accuracy is not above chance after eight epochs
    "Smoothed": Smoothed,
    "VAE": _autoencoder(VAE),
    "ConditionalVAE": _autoencoder(ConditionalVAE, reconstruction="l1"),
    "GVAE": _autoencoder(GVAE, balance="learned"),
}
RECIPE = training.Recipe(epochs=2, batch_size=16, meta_batch_size=8, lr=0.05, augment="crop+flip", evaluate_every=1)


def data(train: int = 64) -> Data:
    """Noise with a bright quadrant, the class: learnable in a few steps, made in a millisecond."""
    generator = torch.Generator().manual_seed(0)
    target = torch.arange(train + 48) % CLASSES
    images = torch.randint(0, 128, (len(target), 1, 12, 12), generator=generator, dtype=torch.uint8)
    for row, label in enumerate(target.tolist()):
        images[row, 0, 6 * (label // 2) :, 6 * (label % 2) :][:6, :6] += 100
    parts = (slice(0, train), slice(train, train + 32), slice(train + 32, None))
    train_split, test, meta = (Split(images[part], target[part]) for part in parts)
    return Data("quadrants", train_split, test, validation=None, meta=meta, classes=tuple("abcd"), settings={})


def build(name: str, norm: str = "batch") -> Objective:
    """One of the objectives with its network, from a fixed seed."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return (OBJECTIVES | TURNED | SLOW)[name](networks.small(CLASSES, channels=1, norm=norm))


def train_exactly(name: str) -> dict[str, torch.Tensor]:
    """State after training in float64 with GroupNorm, in which two processes must equal one."""
    objective = build(name, norm="group").double()
    record = training.fit(objective, data(), replace(RECIPE, epochs=3), progress=False)
    return {**objective.state_dict(), "curve": torch.tensor(record.curves["train_loss"], dtype=torch.float64)}


if __name__ == "__main__":
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    states = {name: train_exactly(name) for name in sys.argv[2:]}
    torch.save(states, f"{sys.argv[1]}/rank{dist.get_rank()}.pt")
    dist.destroy_process_group()
