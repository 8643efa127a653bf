r"""Training on mixed images: mixup, CutMix, ResizeMix, SaliencyMix, Manifold Mixup, Cutout, MixStyle.

Each draws a ratio $\lambda$ and a partner for every image of the batch, mixes images and labels by a function of room
``mixing``, and minimises the cross-entropy with the mixed labels, which is the mixture of two:

$$\mathcal L = \mathrm{CE}(f(\tilde x), \tilde y)
  = \lambda\, \mathrm{CE}(f(\tilde x), y) + (1 - \lambda)\, \mathrm{CE}(f(\tilde x), y_\pi). \tag{32}$$

That is vicinal risk: of a distribution around every pair of training images in place of the images themselves.
Manifold Mixup mixes the maps after a stage drawn anew for every batch. Cutout and MixStyle leave the labels.

Papers: see room ``mixing``; Manifold Mixup: Verma et al., ICML 2019, https://arxiv.org/abs/1806.05236. Its released
code minimises the binary cross-entropy of the softmax; this is the paper's (32).
"""

from __future__ import annotations

import math
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn import functional as F

from semaug.core.pixels import cutout
from semaug.core.tensors import at_least_float32
from semaug.methods import mixing
from semaug.methods.mixing import Mixed
from semaug.training.objective import Objective, Setting, Step, linear_head


def draw_beta(alpha: float, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Ratios from Beta(alpha, alpha), float32, on the generator's device.

    By torch's Dirichlet sampler itself: torch.distributions, which calls it, takes no generator.
    """
    concentration = torch.full((*shape, 2), alpha, dtype=torch.float64, device=generator.device)
    return torch._sample_dirichlet(concentration, generator)[..., 0].float()


def draw_partners(images: Tensor, step: Step) -> Int64[Tensor, " N"]:
    """A random permutation of the batch; in a data-parallel run of this process's share of it."""
    return step.share(len(images), lambda n: _uniform((n,), step)).argsort()


class Mixing(Objective):
    r"""Cross-entropy of mixed images with mixed labels, (32); a subclass says in ``mix`` how they are mixed.

    network: its ``head`` is a Linear (room ``networks``). alpha: of Beta(alpha, alpha), from which one ratio a batch is
    drawn. probability: of mixing a batch at all; the others are left as they are, by a ratio of 1.

    Labels may be soft already. Logs ``lam``, the mean ratio in the labels. In a data-parallel run the ratio is one for
    all processes, and partners are drawn inside each one's share of the batch: the same method, other pairs.
    """

    def __init__(self, network: nn.Module, alpha: float = 1.0, probability: float = 1.0, **settings: Setting) -> None:
        _check_positive("alpha", alpha)
        _check_fraction("probability", probability)
        self.num_classes = linear_head(network).out_features
        super().__init__(network, alpha=alpha, probability=probability, **settings)
        self.alpha, self.probability = alpha, probability

    def forward(self, images: Tensor, target: Tensor, step: Step) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss (32) in nats; raises ValueError for targets that are no labels of these classes."""
        mixed = self.mix(images, mixing.soft_labels(target, self.num_classes), step)
        loss = F.cross_entropy(at_least_float32(self.network(mixed.images)), mixed.target)
        return loss, {"lam": mixed.lam.detach().float().mean()}

    def mix(self, images: Tensor, target: Tensor, step: Step) -> Mixed:
        """Images and soft labels of a batch, mixed by what is drawn from ``step.generator``."""
        raise NotImplementedError(f"{type(self).__name__} has to define mix(images, target, step)")

    def ratio(self, step: Step) -> Float[Tensor, ""]:
        """The batch's ratio: drawn, or 1 where it is not to be mixed."""
        return self._or_one(draw_beta(self.alpha, (), step.generator), step)

    def _or_one(self, lam: Tensor, step: Step) -> Tensor:
        if self.probability == 1:
            return lam
        return torch.where(_uniform((), step) < self.probability, lam, 1)


class Mixup(Mixing):
    """mixup: the whole images, in one ratio. The paper takes alpha = 1 on CIFAR, 0.2 on ImageNet."""

    static = True

    def mix(self, images: Tensor, target: Tensor, step: Step) -> Mixed:
        """By :func:`mixing.mixup`."""
        return mixing.mixup(images, target, self.ratio(step), draw_partners(images, step))


class CutMix(Mixing):
    """CutMix: a box of the partner, around one centre a batch. The paper mixes half of the batches on CIFAR."""

    static = True

    def __init__(self, network: nn.Module, alpha: float = 1.0, probability: float = 0.5) -> None:
        super().__init__(network, alpha, probability)

    def mix(self, images: Tensor, target: Tensor, step: Step) -> Mixed:
        """By :func:`mixing.cutmix`."""
        lam, partners = self.ratio(step), draw_partners(images, step)
        return mixing.cutmix(images, target, lam, partners, *draw_centre(images, step))


class ResizeMix(Mixing):
    r"""ResizeMix: the whole partner shrunk into a box, to a side of $\tau \sim U(\text{low}, \text{high})$ of its own.

    So $\lambda = 1 - \tau^2$ before clipping. The paper's range is 0.1 to 0.8.
    """

    static = True

    def __init__(self, network: nn.Module, low: float = 0.1, high: float = 0.8, probability: float = 1.0) -> None:
        if not 0 <= low <= high <= 1:
            raise ValueError(f"low and high: got {low} and {high}; takes 0 <= low <= high <= 1")
        super().__init__(network, probability=probability, low=low, high=high)
        self.low, self.high = low, high
        del self.settings["alpha"]  # its ratio comes from another distribution

    def ratio(self, step: Step) -> Float[Tensor, ""]:
        """One minus the square of the side."""
        side = self.low + (self.high - self.low) * _uniform((), step)
        return self._or_one(1 - side.square(), step)

    def mix(self, images: Tensor, target: Tensor, step: Step) -> Mixed:
        """By :func:`mixing.resizemix`."""
        lam, partners = self.ratio(step), draw_partners(images, step)
        return mixing.resizemix(images, target, lam, partners, *draw_centre(images, step))


class SaliencyMix(Mixing):
    """SaliencyMix: the box of CutMix around the most salient pixel of the partner, of each image its own.

    The saliency is :func:`mixing.fine_grained_saliency`, the kind that the paper chose; it needs no network.
    """

    static = True

    def __init__(self, network: nn.Module, alpha: float = 1.0, probability: float = 0.5) -> None:
        super().__init__(network, alpha, probability)

    def mix(self, images: Tensor, target: Tensor, step: Step) -> Mixed:
        """By :func:`mixing.saliencymix`."""
        lam, partners = self.ratio(step), draw_partners(images, step)
        return mixing.saliencymix(images, target, lam, partners, mixing.fine_grained_saliency(images))


class ManifoldMixup(Mixing):
    """Manifold Mixup: mixup of the images or of the maps after one of the first stages, drawn anew for every batch.

    last: the last of these; 0 stands for the images, k for the maps after ``network.stages[k]`` (0 is the stem). The
    paper draws from 0, 1 and 2 with alpha = 2.
    """

    static = True
    network: Any

    def __init__(self, network: nn.Module, alpha: float = 2.0, last: int = 2, probability: float = 1.0) -> None:
        check_stages(network, last)
        super().__init__(network, alpha, probability, last=last)
        self.last = last

    def forward(self, images: Tensor, target: Tensor, step: Step) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss (32). Where a layer was not drawn it is mixed in the ratio 1: no Python looks at the draw."""
        soft, lam = mixing.soft_labels(target, self.num_classes), self.ratio(step)
        partners, layer = draw_partners(images, step), _integers(self.last + 1, (), step)

        def mixed(maps: Tensor, number: int) -> Tensor:
            return mixing.blend(maps, torch.where(layer == number, lam, 1), partners)

        maps = mixed(images, 0)
        for number, stage in enumerate(self.network.stages):
            maps = stage(maps)
            if 1 <= number <= self.last:
                maps = mixed(maps, number)
        logits = self.network.head(self.network.pool(maps))
        loss = F.cross_entropy(at_least_float32(logits), mixing.blend_labels(soft, lam, partners))
        return loss, {"lam": lam.detach()}


class Cutout(Objective):
    """Cutout: a black window of ``size`` pixels a side in every image, at a centre of its own; labels stay.

    The paper takes 16 for CIFAR-10 and 8 for CIFAR-100. The same as ``augment="cutout16"`` of a recipe, as an objective
    of its own, so that it stands beside the others.
    """

    static = True

    def __init__(self, network: nn.Module, size: int = 16) -> None:
        if not isinstance(size, int) or isinstance(size, bool) or size < 0:
            raise ValueError(f"size: got {size!r}; takes a whole number of pixels from 0")
        super().__init__(network, size=size)
        self.size = size

    def forward(self, images: Tensor, target: Tensor, step: Step) -> tuple[Tensor, dict[str, Tensor]]:
        """Cross-entropy of the images with their windows; takes int64 or soft targets."""
        cy, cx = (
            step.share(len(images), lambda n, side=side: _integers(side, (n,), step))  # type: ignore[misc]
            for side in images.shape[2:]
        )
        logits = self.network(cutout(images, cy, cx, self.size))
        return F.cross_entropy(at_least_float32(logits), target), {}


class MixStyle(Objective):
    """MixStyle: statistics of maps mixed after stages 1 to ``last``, for half of the batches each; labels stay.

    alpha: of Beta(alpha, alpha), one ratio an image. probability: of mixing after a stage, drawn for each. As the paper
    has it, never after the last stage, whose statistics tell the class. Only in training; predict leaves maps alone.
    """

    static = True
    network: Any

    def __init__(self, network: nn.Module, alpha: float = 0.1, probability: float = 0.5, last: int = 2) -> None:
        _check_positive("alpha", alpha)
        _check_fraction("probability", probability)
        check_stages(network, last, least=1)
        super().__init__(network, alpha=alpha, probability=probability, last=last)
        self.alpha, self.probability, self.last = alpha, probability, last

    def forward(self, images: Tensor, target: Tensor, step: Step) -> tuple[Tensor, dict[str, Tensor]]:
        """Cross-entropy with the styles of maps mixed; takes int64 or soft targets."""
        maps = images
        for number, stage in enumerate(self.network.stages):
            maps = stage(maps)
            if 1 <= number <= self.last:
                drawn = _uniform((), step) < self.probability
                lam = step.share(len(images), lambda n: draw_beta(self.alpha, (n,), step.generator))
                maps = torch.where(drawn, mixing.mixstyle(maps, lam, draw_partners(images, step)), maps)
        logits = self.network.head(self.network.pool(maps))
        return F.cross_entropy(at_least_float32(logits), target), {}


def draw_centre(images: Tensor, step: Step) -> tuple[Int64[Tensor, ""], Int64[Tensor, ""]]:
    """Row and column, uniform over the pixels, one for all images."""
    cy, cx = (_integers(side, (), step) for side in images.shape[2:])
    return cy, cx


def check_stages(network: nn.Module, last: int, least: int = 0) -> None:
    """Raise unless the network has stages, pool and head, and ``last`` is one of those before its last stage."""
    linear_head(network)
    stages = getattr(network, "stages", None)
    if not isinstance(stages, nn.ModuleList) or not callable(getattr(network, "pool", None)):
        raise TypeError(f"network: got {type(network).__name__}; takes one with stages, pool and head")
    if not isinstance(last, int) or isinstance(last, bool) or not least <= last < len(stages) - 1:
        raise ValueError(f"last: got {last!r}; takes {least} to {len(stages) - 2}, a stage before the last")


def _uniform(shape: tuple[int, ...], step: Step) -> Tensor:
    return torch.rand(shape, generator=step.generator, device=step.generator.device)


def _integers(high: int, shape: tuple[int, ...], step: Step) -> Tensor:
    return torch.randint(high, shape, generator=step.generator, device=step.generator.device)


def _check_positive(name: str, value: float) -> None:
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"{name}: got {value!r}; takes a finite number above 0")


def _check_fraction(name: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise ValueError(f"{name}: got {value!r}; takes a fraction in [0, 1]")
