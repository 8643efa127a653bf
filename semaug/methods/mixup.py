r"""Training on mixed images: mixup, CutMix, ResizeMix, SaliencyMix, Manifold Mixup, Cutout, MixStyle.

Each draws a ratio $\lambda$ and a partner for every image of the batch, mixes images and labels by a function of module
``mixing``, and minimises the cross-entropy with the mixed labels, which is the mixture of two:

$$\mathcal L = \mathrm{CE}(f(\tilde x), \tilde y)
  = \lambda\, \mathrm{CE}(f(\tilde x), y) + (1 - \lambda)\, \mathrm{CE}(f(\tilde x), y_\pi). \tag{32}$$

That is vicinal risk: of a distribution around every pair of training images in place of the images themselves.
Manifold Mixup mixes the maps after a stage drawn anew for every batch. Cutout and MixStyle leave the labels.

Papers: see module ``mixing``; Cutout: DeVries, Taylor, 2017, https://arxiv.org/abs/1708.04552; Manifold Mixup: Verma
et al., ICML 2019, https://arxiv.org/abs/1806.05236. The released code of Manifold Mixup minimises the binary
cross-entropy of the softmax; this is the paper's (32).
"""

from __future__ import annotations

from abc import abstractmethod
from typing import cast

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from semaug._checks import check_choice, check_count, check_number, require
from semaug.core.pixels import cutout
from semaug.methods import mixing
from semaug.methods.mixing import Mixed
from semaug.networks import Network
from semaug.training.objective import Objective, Setting, Step, cross_entropy, linear_head


def draw_beta(alpha: float, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Ratios from Beta(alpha, alpha), float32, on the generator's device.

    By torch's Dirichlet sampler itself: torch.distributions, which calls it, takes no generator.
    """
    concentration = torch.full((*shape, 2), alpha, dtype=torch.float64, device=generator.device)
    return torch._sample_dirichlet(concentration, generator)[..., 0].float()


def draw_uniform(shape: tuple[int, ...], step: Step) -> Tensor:
    """Numbers uniform in [0, 1), float32."""
    return torch.rand(shape, generator=step.generator, device=step.generator.device)


def draw_integers(high: int, shape: tuple[int, ...], step: Step) -> Tensor:
    """Whole numbers uniform from 0 to high - 1, int64."""
    return torch.randint(high, shape, generator=step.generator, device=step.generator.device)


def draw_partners(images: Tensor, step: Step) -> Int64[Tensor, " N"]:
    """A random permutation of the batch; in a data-parallel run of this process's share of it."""
    return step.share(len(images), lambda n: draw_uniform((n,), step)).argsort()


def draw_across(images: Tensor, step: Step) -> Int64[Tensor, " N"]:
    """A partner in the other half of the batch for every image, in a random order; ValueError for an odd batch."""
    half, odd = divmod(len(images), 2)
    require(
        not odd, "the batch", len(images), "an even number of images, each half of one domain, for mix='crossdomain'"
    )
    first, second = (step.share(half, lambda n: draw_uniform((n,), step)).argsort() for _ in range(2))
    return torch.cat([first + half, second])


def draw_centre(images: Tensor, step: Step) -> tuple[Int64[Tensor, ""], Int64[Tensor, ""]]:
    """Row and column, uniform over the pixels, one for all images."""
    cy, cx = (draw_integers(side, (), step) for side in images.shape[2:])
    return cy, cx


def staged(network: nn.Module) -> Network:
    """The network itself; TypeError unless it has ``stages``, ``pool`` and a linear ``head``."""
    linear_head(network)
    if not isinstance(getattr(network, "stages", None), nn.ModuleList) or not callable(getattr(network, "pool", None)):
        raise TypeError(f"network: got {type(network).__name__}; takes one with stages, pool and head")
    return cast(Network, network)


class Mixing(Objective):
    r"""Cross-entropy of mixed images with mixed labels, (32); a subclass says in ``mix`` how they are mixed.

    Labels may be soft already. Logs ``lam``, the mean ratio in the labels. In a data-parallel run the ratio is one for
    all processes, and partners are drawn inside each one's share of the batch: the same method, other pairs.

    Args:
        network: its ``head`` is a Linear (module ``networks``).
        alpha: of Beta(alpha, alpha), from which one ratio a batch is drawn.
        probability: of mixing a batch at all; the others are left as they are, by a ratio of 1.
        settings: of the subclass, for the record of a run.
    """

    pairs = True

    def __init__(self, network: nn.Module, alpha: float = 1.0, probability: float = 1.0, **settings: Setting) -> None:
        self.alpha = check_number("alpha", alpha, 0, without=(0,))
        self.probability = check_number("probability", probability, 0, 1)
        super().__init__(network, alpha=self.alpha, probability=self.probability, **settings)
        self.num_classes = linear_head(network).out_features

    def forward(self, images: Tensor, target: Tensor, step: Step) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss (32) in nats; raises ValueError for targets that are no labels of these classes."""
        mixed = self.mix(images, mixing.soft_labels(target, self.num_classes), step)
        loss = cross_entropy(self.network(mixed.images), mixed.target)
        return loss, {"lam": mixed.lam.detach().float().mean()}

    @abstractmethod
    def mix(self, images: Tensor, target: Tensor, step: Step) -> Mixed:
        """Images and soft labels of a batch, mixed by what is drawn from ``step.generator``."""
        raise NotImplementedError(f"{type(self).__name__} has to define mix(images, target, step)")

    def ratio(self, step: Step) -> Float[Tensor, ""]:
        """The batch's ratio: drawn, or 1 where it is not to be mixed."""
        return self._or_one(draw_beta(self.alpha, (), step.generator), step)

    def _or_one(self, lam: Tensor, step: Step) -> Tensor:
        return lam if self.probability == 1 else torch.where(draw_uniform((), step) < self.probability, lam, 1)


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
        self.low = check_number("low", low, 0, 1)
        self.high = check_number("high", high, self.low, 1)
        super().__init__(network, probability=probability, low=self.low, high=self.high)
        del self.settings["alpha"]  # its ratio comes from another distribution

    def ratio(self, step: Step) -> Float[Tensor, ""]:
        """One minus the square of the side."""
        side = self.low + (self.high - self.low) * draw_uniform((), step)
        return self._or_one(1 - side.square(), step)

    def mix(self, images: Tensor, target: Tensor, step: Step) -> Mixed:
        """By :func:`mixing.resizemix`."""
        lam, partners = self.ratio(step), draw_partners(images, step)
        return mixing.resizemix(images, target, lam, partners, *draw_centre(images, step))


class SaliencyMix(CutMix):
    """SaliencyMix: the box of CutMix around the most salient pixel of the partner, of each image its own.

    It differs from the released code in two points. The release cuts one box for the whole batch, at the peak of the
    first image's partner. And the saliency is :func:`mixing.fine_grained_saliency`, of the kind that the paper chose,
    but not OpenCV's map, with which it hardly correlates.
    """

    static = True

    def mix(self, images: Tensor, target: Tensor, step: Step) -> Mixed:
        """By :func:`mixing.saliencymix`."""
        lam, partners = self.ratio(step), draw_partners(images, step)
        return mixing.saliencymix(images, target, lam, partners, mixing.fine_grained_saliency(images))


class ManifoldMixup(Mixing):
    """Manifold Mixup: mixup of the images or of the maps after one of the first stages, drawn anew for every batch.

    Args:
        network: has ``stages``, ``pool`` and ``head``.
        alpha: as in :class:`Mixing`, like probability. The paper's is 2.
        last: the last place to mix: 0 stands for the images, k for the maps after ``network.stages[k]`` (0 is the
            stem). The paper draws from 0, 1 and 2.
    """

    static = True
    network: Network

    def __init__(self, network: nn.Module, alpha: float = 2.0, last: int = 2, probability: float = 1.0) -> None:
        self.last = _check_last(network, last, 0)
        super().__init__(network, alpha, probability, last=self.last)

    def forward(self, images: Tensor, target: Tensor, step: Step) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss (32). Where a layer was not drawn it is mixed in the ratio 1: no Python looks at the draw."""
        soft, lam = mixing.soft_labels(target, self.num_classes), self.ratio(step)
        partners, layer = draw_partners(images, step), draw_integers(self.last + 1, (), step)

        def mixed(maps: Tensor, number: int) -> Tensor:
            return mixing.blend(maps, torch.where(layer == number, lam, 1), partners)

        maps = mixed(images, 0)
        for number, stage in enumerate(self.network.stages):
            maps = stage(maps)
            if 1 <= number <= self.last:
                maps = mixed(maps, number)
        logits = self.network.head(self.network.pool(maps))
        loss = cross_entropy(logits, mixing.blend_labels(soft, lam, partners))
        return loss, {"lam": lam.detach()}


PARTNERS = {"random": draw_partners, "crossdomain": draw_across}


def mix_styles(maps: Tensor, step: Step, alpha: float, probability: float, mix: str) -> Tensor:
    """Maps with their styles mixed, or left, by what is drawn: :func:`mixing.mixstyle` with :class:`MixStyle`'s draws.

    Raises:
        ValueError: for maps of less than two pixels, and an odd batch for "crossdomain".
    """
    drawn = draw_uniform((), step) < probability
    lam = step.share(len(maps), lambda n: draw_beta(alpha, (n,), step.generator))
    return torch.where(drawn, mixing.mixstyle(maps, lam, PARTNERS[mix](maps, step)), maps)


class MixStyle(Objective):
    """MixStyle: statistics of maps mixed after stages 1 to ``last``; labels stay. Predictions leave the maps alone.

    Args:
        network: has ``stages``, ``pool`` and ``head``.
        alpha: of Beta(alpha, alpha), one ratio an image.
        probability: of mixing a batch after a stage, drawn for each stage.
        last: as the paper has it, never the last stage, whose statistics show the class.
        mix: "random", partners by a permutation of the batch, or "crossdomain", each in the other half of it, for
            batches whose halves are of two domains. ``fit`` shuffles, so that there halves are of no domain. An odd
            batch is then an error, as in the released code, where its shapes do not fit.
    """

    static = True
    pairs = True
    network: Network

    def __init__(
        self, network: nn.Module, alpha: float = 0.1, probability: float = 0.5, last: int = 2, mix: str = "random"
    ) -> None:
        self.alpha = check_number("alpha", alpha, 0, without=(0,))
        self.probability = check_number("probability", probability, 0, 1)
        self.last, self.mix = _check_last(network, last, 1), check_choice("mix", mix, tuple(PARTNERS))
        unusual = None if mix == "random" else mix  # an option that came later leaves older records as they are
        super().__init__(network, alpha=self.alpha, probability=self.probability, last=self.last, mix=unusual)

    def forward(self, images: Tensor, target: Tensor, step: Step) -> tuple[Tensor, dict[str, Tensor]]:
        """Cross-entropy with the styles of maps mixed; takes int64 or soft targets."""
        maps = images
        for number, stage in enumerate(self.network.stages):
            maps = stage(maps)
            if 1 <= number <= self.last:
                maps = mix_styles(maps, step, self.alpha, self.probability, self.mix)
        logits = self.network.head(self.network.pool(maps))
        return cross_entropy(logits, target), {}


class Cutout(Objective):
    """Cutout: black windows in every image, at centres of its own; labels stay.

    One window is the same as ``augment="cutout16"`` of a recipe, as an objective of its own, so that it stands beside
    the others.

    Args:
        network: images to logits.
        size: pixels a side of a window. The paper takes 16 for CIFAR-10 and 8 for CIFAR-100.
        holes: windows in an image, which may overlap; the released code's ``n_holes``, 1 in the paper.
    """

    static = True

    def __init__(self, network: nn.Module, size: int = 16, holes: int = 1) -> None:
        self.size, self.holes = check_count("size", size, low=0), check_count("holes", holes)
        super().__init__(network, size=self.size)
        self.settings |= {} if self.holes == 1 else {"holes": self.holes}

    def forward(self, images: Tensor, target: Tensor, step: Step) -> tuple[Tensor, dict[str, Tensor]]:
        """Cross-entropy of the images with their windows; takes int64 or soft targets."""
        return cross_entropy(self.network(self.cut(images, step)), target), {}

    def cut(self, images: Tensor, step: Step) -> Tensor:
        """The images with windows drawn from ``step.generator``, by :func:`pixels.cutout`."""
        N, _, H, W = images.shape
        for _ in range(self.holes):
            cy = step.share(N, lambda n: draw_integers(H, (n,), step))
            cx = step.share(N, lambda n: draw_integers(W, (n,), step))
            images = cutout(images, cy, cx, self.size)
        return images


def _check_last(network: nn.Module, last: int, low: int) -> int:
    end = len(staged(network).stages) - 1
    whole = check_count("last", last, low)
    require(whole < end, "last", last, f"{low} to {end - 1}, a stage before the last")
    return whole
