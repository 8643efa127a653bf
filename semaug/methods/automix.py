r"""AutoMix: the mask by which two images are mixed is learned, by the classifier that learns from the mixtures.

A Mix Block $M_\phi$ makes of the maps $z$ of two images at one stage the mask of their pixels. The ratio goes in as one
more channel, $z_\lambda = [z, \lambda 1]$. Every place of the image attends to the places of its partner, query and key
by one and the same projection $W_P$ to $d$ channels, and the value $W_Z$ has one channel:

$$P = \mathrm{softmax}_j \Bigl( \frac{(W_P z_{i,\lambda})^\top W_P z_{j,1-\lambda}}{\sqrt d} \Bigr), \tag{33}$$
$$s_{1-\lambda} = \sigma\bigl(\mathrm{upsample}(P\, W_Z z_{j,1-\lambda})\bigr), \qquad s_\lambda = 1 - s_{1-\lambda},
  \tag{34}$$
$$\tilde x = s_\lambda \odot x_i + s_{1-\lambda} \odot x_j, \qquad
  \tilde y = \lambda y_i + (1 - \lambda) y_j. \tag{35}$$

So that the share of the image is about its ratio while the block knows nothing yet, with $\gamma$ falling to 0,

$$\mathcal L_{mask} = \gamma \max\bigl( | \lambda - \overline{s_\lambda} | - \epsilon, 0 \bigr). \tag{36}$$

Trained through one network, the paper finds, the block falls to the trivial mask $\lambda$. The momentum pipeline
separates the two: a copy $k$ of the classifier $q$, whose parameters are an average over the steps, gives the maps and
judges the block's mixtures. Its parameters take no gradient, but let it through to the mask:

$$\mathcal L = \underbrace{\mathrm{CE}(q(x), y) + \mathrm{CE}(q(\tilde x), \tilde y)}_{\theta_q}
  + \underbrace{\mathrm{CE}(k(\tilde x'), \tilde y') + \mathcal L_{mask}}_{\phi}, \qquad
  \theta_k \leftarrow m \theta_k + (1 - m) \theta_q. \tag{37}$$

$\tilde x'$ is another mixture, of another ratio and other pairs, than the $\tilde x$ that $q$ learns from.

Liu et al., "AutoMix: Unveiling the Power of Mixup for Stronger Classifiers", ECCV 2022,
https://arxiv.org/abs/2103.13027; where the paper leaves it open, as in the released code (Westlake-AI/openmixup).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any, Literal

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn import functional as F

from semaug._checks import Ratio, check_choice, check_count, check_draws, check_flag, check_number, require
from semaug.core.metrics import evaluating
from semaug.core.tensors import at_least_float32, follow
from semaug.data.sets import Data
from semaug.methods import mixing
from semaug.methods.mixing import Mixed
from semaug.methods.mixup import draw_beta, draw_centre, draw_partners, staged
from semaug.networks import Network
from semaug.training.objective import Objective, Setting, Step, accuracies, cross_entropy, grouped
from semaug.training.recipe import Recipe

Policy = Literal["block", "mixup", "cutmix"]

Inference = Literal["mixed", "one_hot", "momentum"]

POLICIES = ("block", "mixup", "cutmix")

INFERENCES = ("mixed", "one_hot", "momentum")

EDGE = 0.08

"""A ratio nearer than this to 0 or 1 is mixed by itself, not by the block, for the classifier (released code)."""


class MixBlock(nn.Module):
    r"""The masks (34) of the maps of a batch and of their partners.

    Args:
        channels: of the maps.
        inner: $d$, channels of query and key; by default half of channels.
        lambda_channel: whether the ratio goes in as one more channel.
        attention: (33); without it every place takes the value of the partner's same place.
        std: of the weights at first. At the released 0.01 all places attend to all alike, and the mask has no shape
            until the block has learned one; a short training does not get there.
    """

    def __init__(
        self,
        channels: int,
        inner: int | None = None,
        lambda_channel: bool = True,
        attention: bool = True,
        std: float = 0.01,
    ) -> None:
        super().__init__()
        self.channels = check_count("channels", channels)
        self.lambda_channel = check_flag("lambda_channel", lambda_channel)
        inner = None if inner is None else check_count("inner", inner)
        std = check_number("std", std, 0, without=(0,))
        self.settings = {"inner": inner, "lambda_channel": lambda_channel, "attention": attention, "std": std}
        inputs = self.channels + self.lambda_channel
        self.key = nn.Linear(inputs, inner or max(1, channels // 2)) if check_flag("attention", attention) else None
        self.value = nn.Linear(inputs, 1)
        for layer in (self.key, self.value):
            if layer is not None:
                nn.init.normal_(layer.weight, std=std)
                nn.init.zeros_(layer.bias)

    def forward(
        self,
        features: Float[Tensor, "N A h w"],
        lam: Ratio,
        permutation: Int64[Tensor, " N"],
        size: tuple[int, int],
    ) -> Float[Tensor, "N 1 H W"]:
        """The mask of the images themselves, in (0, 1); their partners' is 1 - mask.

        Args:
            features: maps of the images, (N, A, h, w).
            lam: ratio of the images, one for all or one an image.
            permutation: the partner of every image.
            size: H and W of the mask, in pixels.

        Returns:
            (N, 1, H, W), computed in float32 at least, also under autocast.

        Raises:
            ValueError: for maps of other channels, a lam outside [0, 1], partners that are not (N,) int64 in [0, N).
        """
        lam = check_draws(features, lam, permutation, "features")
        if features.shape[1] != self.channels:
            raise ValueError(f"features: got {features.shape[1]} channels; takes {self.channels}")
        N, _, h, w = features.shape
        with torch.autocast(features.device.type, enabled=False):
            own = at_least_float32(features).flatten(2).mT
            partner = own.index_select(0, permutation)
            if self.lambda_channel:
                ratio = lam.to(own.dtype).reshape(-1, 1, 1).expand(N, h * w, 1)
                own, partner = torch.cat([own, ratio], 2), torch.cat([partner, 1 - ratio], 2)
            value = self.value(partner)
            if self.key is not None:
                value = F.scaled_dot_product_attention(self.key(own), self.key(partner), value)
            logits = F.interpolate(value.mT.reshape(N, 1, h, w), size, mode="nearest")
        return 1 - logits.sigmoid()


def mask_loss(mask: Float[Tensor, "N 1 H W"], lam: float | Float[Tensor, ""], margin: float = 0.1) -> Float[Tensor, ""]:
    r"""(36) without $\gamma$: by how much more than ``margin``, $\epsilon$, the mean mask of the batch misses lam."""
    return ((mask.mean() - lam).abs() - margin).clamp_min(0)


def ema_momentum(
    fraction: float | Float[Tensor, ""], base: float = 0.999, end: float = 0.999999, warmup: float = 0.1
) -> Float[Tensor, ""]:
    """The momentum $m$ of (37) at a fraction of training: base during ``warmup``, then by a cosine to end; float64.

    As released, the cosine is one of the fraction of all training, so that m jumps a little where the warm-up ends.
    """
    fraction = torch.as_tensor(fraction, dtype=torch.float64)
    rising = end - (end - base) * (torch.cos(math.pi * fraction) + 1) / 2
    return torch.where(fraction < warmup, base, rising)


class AutoMix(Objective):
    r"""The loss (37).

    BatchNorm: the copy normalises by the batch in hand, as the classifier does, and its running statistics are of what
    it sees itself, not averaged like its parameters; under a fixed policy, where it sees nothing, they are the
    classifier's. (torch's AveragedModel would overwrite them with the classifier's at every step, and looks at a value
    each time, so that no step could be captured as a CUDA graph.) The released code runs the whole copy on the images;
    here it runs up to ``stage``, so the running statistics of later stages are of the mixtures alone, not of images and
    mixtures. Only the inference "momentum" depends on them.

    The second mask, that of $\tilde x$, is built without a graph. Logs ``generation_loss``, ``mask_loss`` without
    $\gamma$ (0 where the block is not trained) and ``mask_spread``, the mean standard deviation of the pixels of a
    mask, 0 for the trivial one. In a data-parallel run pairs lie inside each process's share, as in module ``mixup``,
    and (36) is of its masks.

    Args:
        network: has ``stages``, ``pool`` and ``head`` (module ``networks``); its head learns from the mixtures, the
            one-hot images have a head of their own.
        alpha: of Beta(alpha, alpha), from which both ratios of a batch are drawn.
        stage: the maps are those after ``network.stages[stage]`` (0 is the stem). The paper's is the third after the
            stem of a ResNet-18, maps of 8 x 8 pixels; the attention costs with the fourth power of their side.
        inner: as lambda_channel, attention and std those of the :class:`MixBlock`.
        mask_weight: $\gamma$ at first, linearly to 0 (the released configurations: by a cosine, or constant).
        margin: $\epsilon$.
        momentum: $m$ at first, see :func:`ema_momentum`; 0: the copy is the classifier as of the last step.
        policy: "block", or "mixup" or "cutmix" in the block's place, as in the source's second ablation; then the copy
            trains nothing, and is there to be measured.
        one_hot: whether $q$ sees the images themselves too.
        pipeline: False trains block and classifier through one network, by one mixture.
        every: the block is trained at every so many-th step; the others spare the pass of its mixture forward and back
            (not in a data-parallel run, where every parameter has to take part in every step).
        block_rate: the block's learning rate over the recipe's.
        inference: of ``predict``: "mixed", the network with its head, "one_hot" with the other, or "momentum", the
            copy.
    """

    static = True
    pairs = True
    network: Network
    momentum_network: Network | None
    steps: Tensor

    def __init__(
        self,
        network: nn.Module,
        alpha: float = 2.0,
        stage: int = 3,
        inner: int | None = None,
        lambda_channel: bool = True,
        attention: bool = True,
        std: float = 0.01,
        mask_weight: float = 0.1,
        margin: float = 0.1,
        momentum: float = 0.999,
        policy: Policy = "block",
        one_hot: bool = True,
        pipeline: bool = True,
        every: int = 1,
        block_rate: float = 1.0,
        inference: Inference = "mixed",
    ) -> None:
        network = staged(network)
        last = len(network.stages) - 1
        self.stage = check_count("stage", stage, 0)
        require(self.stage <= last, "stage", stage, f"0 to {last}, a stage of the network")
        self.alpha = check_number("alpha", alpha, 0, without=(0,))
        self.mask_weight = check_number("mask_weight", mask_weight, 0)
        self.margin = check_number("margin", margin, 0, 1)
        self.momentum = check_number("momentum", momentum, 0, 1, without=(1,))
        self.every = check_count("every", every)
        self.block_rate = check_number("block_rate", block_rate, 0, without=(0,))
        with_network = {"one_hot": check_flag("one_hot", one_hot), "momentum": check_flag("pipeline", pipeline)}
        inferences = [name for name in INFERENCES if with_network.get(name, True)]
        self.inference = check_choice("inference", inference, inferences)
        self.policy = check_choice("policy", policy, POLICIES if pipeline else POLICIES[:1])
        settings: dict[str, Setting] = {"alpha": self.alpha, "momentum": self.momentum, "policy": policy}
        settings |= {"one_hot": one_hot, "pipeline": pipeline, "inference": inference}
        block = None
        if policy == "block":
            block = MixBlock(_channels(network, self.stage), inner, lambda_channel, attention, std)
            settings |= {"stage": self.stage, **block.settings, "mask_weight": self.mask_weight, "margin": self.margin}
            settings |= {"every": self.every, "block_rate": self.block_rate}
        super().__init__(network, **settings)
        self.num_classes = network.head.out_features
        self.one_hot_head = copy.deepcopy(network.head) if one_hot else None
        self.momentum_network = copy.deepcopy(network).requires_grad_(False) if pipeline else None
        self.block = block
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))  # read only where every > 1

    def forward(self, images: Tensor, target: Tensor, step: Step) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of a batch in nats; raises ValueError for targets that are no labels of these classes."""
        require(self.every == 1 or step.world == 1, "every", self.every, "1 in a data-parallel run")
        soft, zero = mixing.soft_labels(target, self.num_classes), torch.zeros_like(step.progress)
        terms, parts = {"generation_loss": zero, "mask_loss": zero, "mask_spread": zero}, []
        if self.one_hot_head is not None:
            parts.append(cross_entropy(self.one_hot_head(self.network.features(images)), soft))
        if self.momentum_network is None:  # one network, one mixture, one graph
            maps = stage_maps(self.network, images, self.stage)
            parts.append(self._generation(self.network, maps, images, soft, step, terms))
            return torch.stack(parts).sum(), terms
        maps = images
        if self.block is not None:
            with torch.no_grad():
                maps = stage_maps(self.momentum_network, images, self.stage)
            if self.every == 1 or int(self.steps) % self.every == 0:
                parts.append(self._generation(self.momentum_network, maps, images, soft, step, terms))
        mixed = self._mixed(maps, images, soft, step)
        parts.append(cross_entropy(self.network(mixed.images), mixed.target))
        return torch.stack(parts).sum(), terms

    def _generation(
        self, judge: nn.Module, maps: Tensor, images: Tensor, soft: Tensor, step: Step, terms: dict[str, Tensor]
    ) -> Tensor:
        """What the block learns from: the judge's cross-entropy of its mixtures, and the mask loss; adds to terms."""
        assert self.block is not None
        lam, partners = draw_beta(self.alpha, (), step.generator), draw_partners(images, step)
        mask = self.block(maps, lam, partners, (images.shape[2], images.shape[3]))
        mixed = mixing.by_mask(images, soft, mask, lam, partners)
        loss, excess = cross_entropy(judge(mixed.images), mixed.target), mask_loss(mask, lam, self.margin)
        spread = mask.detach().flatten(1).std(1).mean()
        terms |= {"generation_loss": loss.detach(), "mask_loss": excess.detach(), "mask_spread": spread}
        return loss + self.mask_weight * (1 - step.progress) * excess

    @torch.no_grad()
    def _mixed(self, maps: Tensor, images: Tensor, soft: Tensor, step: Step) -> Mixed:
        """What the classifier learns from: the block's mixtures as they are, or those of a fixed policy."""
        lam, partners = draw_beta(self.alpha, (), step.generator), draw_partners(images, step)
        if self.policy == "mixup":
            return mixing.mixup(images, soft, lam, partners)
        if self.block is None:
            return mixing.cutmix(images, soft, lam, partners, *draw_centre(images, step))
        mask = self.block(maps, lam, partners, (images.shape[2], images.shape[3]))
        mask = torch.where((lam <= EDGE) | (lam >= 1 - EDGE), lam, mask)
        return mixing.by_mask(images, soft, mask, lam, partners)

    @torch.no_grad()
    def masks(
        self, images: Float[Tensor, "N channels H W"], lam: Ratio, permutation: Int64[Tensor, " N"]
    ) -> Float[Tensor, "N 1 H W"]:
        """The masks of images and partners as the block has them now, to look at; as :class:`MixBlock`.

        In training mode the copy normalises by these images, as it does in a step, and counts them.
        """
        if self.block is None:
            raise ValueError(f"policy: got {self.policy!r}; masks are of the policy 'block'")
        network = self.network if self.momentum_network is None else self.momentum_network
        maps = stage_maps(network, images, self.stage)
        return self.block(maps, lam, permutation, (images.shape[2], images.shape[3]))

    def predict(self, images: Float[Tensor, "N channels H W"]) -> Float[Tensor, "N C"]:
        """Logits by the chosen inference."""
        return self._inferences()[self.inference](images)

    def _inferences(self) -> dict[str, Callable[[Tensor], Tensor]]:
        """All there are here; modules, or methods of one, so that evaluation can switch their mode."""
        there: dict[str, Callable[[Tensor], Tensor]] = {"mixed": self.network}
        there |= {} if self.one_hot_head is None else {"one_hot": self.one_hot}
        return there | ({} if self.momentum_network is None else {"momentum": self.momentum_network})

    def one_hot(self, images: Float[Tensor, "N channels H W"]) -> Float[Tensor, "N C"]:
        """Logits of the head that learned from the images themselves."""
        assert self.one_hot_head is not None
        return self.one_hot_head(self.network.features(images))

    def parameter_groups(self, recipe: Recipe) -> list[dict[str, Any]]:
        """Classifier and heads; the block, at ``block_rate`` of the recipe's learning rate."""
        classifier = nn.ModuleList([part for part in (self.network, self.one_hot_head) if part is not None])
        return grouped((classifier, None), *([] if self.block is None else [(self.block, self.block_rate * recipe.lr)]))

    def phase(self, progress: float) -> str | None:
        """Always the same, or, where the block is trained at some steps alone, not static."""
        return "all" if self.every == 1 else None

    def after_step(self, step: Step) -> None:
        """The average over the steps in (37)."""
        self.steps.add_(1)
        if self.momentum_network is None:
            return
        rate = 1 - ema_momentum(step.progress, self.momentum) if self.momentum else torch.ones_like(step.progress)
        follow(self.momentum_network, self.network, rate, buffers=self.block is None)

    def metrics(self, data: Data) -> dict[str, float]:
        """Accuracy of every inference on the test split, and on the validation split where there is one."""
        return accuracies(data, self._inferences(), next(self.parameters()).device)


def stage_maps(network: Network, images: Float[Tensor, "N channels H W"], stage: int) -> Float[Tensor, "N A h w"]:
    """The maps after ``network.stages[stage]``."""
    maps = images
    for part in network.stages[: stage + 1]:
        maps = part(maps)
    return maps


def _channels(network: Network, stage: int) -> int:
    """Of the maps after a stage, by a pass of one black image; BatchNorm does not count it."""
    first = next((module for module in network.stages.modules() if isinstance(module, nn.Conv2d)), None)
    if first is None:
        name = type(network).__name__
        raise TypeError(f"network: got {name} without an nn.Conv2d in its stages; takes one with maps of pixels")
    side = 16 * first.stride[0]  # as many whole patches where the stem makes patches
    black = torch.zeros(1, first.in_channels, side, side, dtype=first.weight.dtype, device=first.weight.device)
    with torch.no_grad(), evaluating(network):
        return stage_maps(network, black, stage).shape[1]
