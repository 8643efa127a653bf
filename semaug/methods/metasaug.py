r"""MetaSAug: covariances of rare classes are learned, so that a step on them helps a small balanced set.

On a long tail the moments of a rare class say little of it. MetaSAug keeps the loss of module ``isda`` on
class-weighted samples (module ``long_tail``), with the margins of LDAM where asked,

$$\mathcal L(\theta, \Sigma) = \frac{\sum_i c_{y_i}\,\mathrm{CE}(z_i, y_i)}{\sum_i c_{y_i}},$$

and a meta batch corrects $\Sigma$ before every step. Meta batches are slices of random permutations of a small set
that has as many images of every class. The parameters would be $\theta'$ after one plain gradient step at the
optimiser's learning rate $\eta$, and $\Sigma'$ lowers their loss on the meta batch:

$$\theta'(\Sigma) = \theta - \eta\,\nabla_\theta \mathcal L(\theta, \Sigma), \tag{16}$$
$$\Sigma' = \Sigma - \alpha\,\nabla_\Sigma \mathcal L_{\mathrm{meta}}(\theta'(\Sigma)). \tag{17}$$

The optimiser then steps on $\mathcal L(\theta, \Sigma')$, where $\Sigma'$ is a constant. Taken literally, (17)
differentiates through the gradient of (16): a second backward pass through the network's first. With
$v = \nabla_\theta \mathcal L_{\mathrm{meta}}(\theta')$, a constant too, the chain rule gives

$$\nabla_\Sigma \mathcal L_{\mathrm{meta}}(\theta'(\Sigma)) = -\eta\,\nabla_\Sigma \big[ v^\top
  \nabla_\theta \mathcal L(\theta, \Sigma) \big], \tag{18}$$

and $\Sigma$ enters only after the features $a_i$. Let a dot be the derivative along $v$: $\dot a_i$ comes from forward
mode in one pass without a graph (module ``_metasaug_forward``), $\dot W$ and $\dot b$ are parts of $v$ itself. Then

$$v^\top \nabla_\theta \mathcal L = \sum_i \frac{\partial \mathcal L}{\partial a_i} \cdot \dot a_i
  + \frac{\partial \mathcal L}{\partial W} \cdot \dot W
  + \frac{\partial \mathcal L}{\partial b} \cdot \dot b: \tag{19}$$

the gradient of (18) goes twice through the last layer, and never through the others.

Li et al., "MetaSAug: Meta Semantic Augmentation for Long-Tailed Visual Recognition", CVPR 2021,
https://arxiv.org/abs/2103.12579.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, cast

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.autograd import grad
from torch.func import functional_call
from torch.nn import functional as F

from semaug._checks import check_choice, check_count, check_features, check_finite, check_flag, check_number, require
from semaug.methods._metasaug_forward import derivative
from semaug.methods.isda import ISDA, unchecked_logits
from semaug.methods.long_tail import _ClassBalanced, check_counts, ldam_logits, shares
from semaug.networks import Network
from semaug.training.objective import Batch, Step, linear_head

ClassCovariance = Float[Tensor, "C A A"] | Float[Tensor, "C A"]

LastLayer = Callable[[Tensor, Tensor, Tensor | None, Tensor], Tensor]
"""(features, weight, bias, covariance) -> the 0-d loss of a batch, twice differentiable."""


class _Features(nn.Module):
    """``network.features`` as the forward of a module, which is what functional_call calls."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = cast(Network, network)

    def forward(self, images: Tensor) -> Tensor:
        return self.network.features(images)


def meta_gradient(
    network: nn.Module,
    images: Float[Tensor, "N channels H W"],
    features: Float[Tensor, "N A"],
    covariance: ClassCovariance,
    loss: LastLayer,
    meta: Batch,
    step: Step,
) -> ClassCovariance:
    r"""The gradient (18) of the meta batch's cross-entropy after the inner step (16), by the covariance.

    Nothing of the network changes. BatchNorm normalises the meta batch by the batch, as in training, and so it does the
    features once more on the way to $\dot a$; its running statistics are those of the first pass alone. Dropout draws
    another mask in each of these passes. In a data-parallel run every process calls this with its shares and gets the
    gradient of the whole.

    Args:
        network: with ``features`` and a linear ``head``. The inner step moves all its parameters that require
            gradients by ``step.lr``, without momentum or decay.
        images: the batch, (N, channels, H, W).
        features: ``network.features(images)``, (N, A), with its graph, which can be used again afterwards.
        covariance: $\Sigma$, (C, A, A) or (C, A).
        loss: of the batch, as a function of features, weight, bias and covariance.
        meta: the meta batch.
        step: where training stands.

    Returns:
        The gradient, of the covariance's shape.
    """
    body, head = _Features(network), linear_head(network)
    last = [head.weight] if head.bias is None else [head.weight, head.bias]
    backbone = {name: p for name, p in body.named_parameters() if p.requires_grad and not any(p is q for q in last)}
    if not features.requires_grad:  # none of them reaches the features
        backbone = {}

    def features_at(values: Sequence[Tensor], images: Tensor) -> Tensor:
        buffers = {name: buffer.clone() for name, buffer in body.named_buffers()}
        return functional_call(body, {**buffers, **dict(zip(backbone, values, strict=True))}, (images,))

    # (16): through the last layer with a graph, for (19), and from the features on without
    inputs = [tensor.detach().requires_grad_() for tensor in (features, *last)]
    sigma = covariance.detach().requires_grad_()
    value = loss(inputs[0], inputs[1], inputs[2] if len(inputs) > 2 else None, sigma)
    with torch.autocast(features.device.type, enabled=False):  # gradients of quadratic forms in float32
        by_features, *by_last = grad(value, inputs, create_graph=True)
    by_last = [slope * p.requires_grad for slope, p in zip(by_last, last, strict=True)]  # 0: a frozen one stays
    inner: list[Tensor] = []
    if backbone:
        inner += grad(features, [*backbone.values()], by_features.detach(), retain_graph=True, materialize_grads=True)
    inner = step.mean(*inner, *(slope.detach() for slope in by_last))
    theta = [*backbone.values(), *last]
    stepped = [(p.detach() - step.lr * slope).requires_grad_() for p, slope in zip(theta, inner, strict=True)]

    # v of (18)
    logits = F.linear(features_at(stepped[: len(backbone)], meta.images), *stepped[len(backbone) :])
    v = step.mean(*grad(F.cross_entropy(logits, meta.target), stepped, materialize_grads=True))

    # (19), and its gradient (18)
    parts = [(slope * dot).sum() for slope, dot in zip(by_last, v[len(backbone) :], strict=True)]
    if backbone:
        point, direction = [*backbone.values()], v[: len(backbone)]
        parts.append((by_features * derivative(lambda values: features_at(values, images), point, direction)).sum())
    with torch.autocast(features.device.type, enabled=False):
        (gradient,) = step.mean(*grad(torch.stack(parts).sum(), sigma))
    return -step.lr * gradient


def nearest_psd(covariance: ClassCovariance) -> ClassCovariance:
    """The nearest positive semi-definite covariances in Frobenius norm: negative eigenvalues become 0.

    Raises:
        ValueError: for values that are not finite.
    """
    check_finite("covariance", covariance)
    if covariance.ndim == 2:
        return covariance.clamp_min(0)
    values, vectors = torch.linalg.eigh(covariance)
    with torch.autocast(covariance.device.type, enabled=False):
        # only the negative part is recomposed: its rounding is in proportion to it, far below the meta step
        return covariance - (vectors * values.clamp_max(0)[:, None]) @ vectors.mT


class MetaSAug(_ClassBalanced, ISDA):
    r"""ISDA on a long tail, its covariances corrected by a meta step before every step.

    The meta loss is the plain mean over the meta batch: a class with more meta images than another counts for more. As
    in ISDA the batch's features enter the moments before its loss is taken; in the released code after it. With a
    frozen backbone (``network.stages.requires_grad_(False)``) only the last layer is differentiated at all.

    Args:
        network: as for :class:`semaug.ISDA`; its head is nn.Linear's.
        counts: training images of each class, (C,) (``Data.counts``).
        strength: $\lambda_0$, as for :class:`semaug.ISDA`.
        covariance: "full" or "diagonal".
        loss: "ldam" or "ce".
        beta: of the class weights, in [0, 1); 0 for none.
        max_margin: of LDAM, above 0; without a scale, as released.
        meta_lr: $\alpha$ of (17), above 0.
        meta_steps: meta steps before every step of the optimiser; 0: the moments as they are.
        stage: the fraction of training after which all this begins. Before it the loss is the plain cross-entropy and
            the moments are empty; from there on the strength of ISDA is $\frac tT \lambda_0$, as released.
        psd: project $\Sigma'$ on the positive semi-definite matrices, which the meta step can leave.
        keep: write $\Sigma'$ back to the moments; as released, it serves its one step and is forgotten.

    Raises:
        TypeError, ValueError: for arguments that are not so.
    """

    streams = ("train", "meta")
    static = True

    def __init__(
        self,
        network: nn.Module,
        counts: Int64[Tensor, " C"],
        strength: float = 0.75,
        covariance: Literal["full", "diagonal"] = "full",
        loss: Literal["ce", "ldam"] = "ldam",
        beta: float = 0.9999,
        max_margin: float = 0.5,
        meta_lr: float = 0.1,
        meta_steps: int = 1,
        stage: float = 0.8,
        psd: bool = False,
        keep: bool = False,
    ) -> None:
        check_choice("covariance", covariance, ("full", "diagonal"))
        head = linear_head(network)
        if type(head).forward is not nn.Linear.forward:  # the loss below is F.linear's
            raise TypeError(f"network: got a head of type {type(head).__name__}; takes one that is nn.Linear's")
        check_counts(counts, head.out_features)
        super().__init__(network, strength, covariance)
        self.loss = check_choice("loss", loss, ("ce", "ldam"))
        self.balance(counts, loss, beta, max_margin)
        self.meta_lr = check_number("meta_lr", meta_lr, 0, without=(0,))
        self.meta_steps = check_count("meta_steps", meta_steps, 0)
        self.stage = check_number("stage", stage, 0, 1)
        self.psd, self.keep = check_flag("psd", psd), check_flag("keep", keep)
        self.settings |= {"meta_lr": self.meta_lr, "meta_steps": self.meta_steps, "stage": self.stage}
        self.settings |= {"psd": psd, "keep": keep}

    def phase(self, progress: float) -> str | None:
        """One on either side of ``stage``; eigenvalues cannot be captured."""
        if progress < self.stage:
            return "plain"
        return None if self.psd else "meta"

    def forward(self, images: Tensor, target: Tensor, step: Step) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of a batch at the covariances that the meta step gives.

        Logs the strength and how far the meta step went, |Sigma' - Sigma| / |Sigma|.

        Raises:
            TypeError, ValueError: as :meth:`semaug.ISDA.forward`, for the meta batch too, and without one.
        """
        require(target.ndim == 1, "target", tuple(target.shape), "class numbers (N,)")
        require(step.meta is not None, "step.meta", step.meta, "a batch of the balanced meta set (Data.meta)")
        network, meta = self.network, cast(Batch, step.meta)
        pixels, classes = meta.images.flatten(1), len(self.margins)
        check_features(pixels, meta.target, classes, pixels.shape[1], "step.meta.images", "step.meta.target")
        features = network.features(images)
        check_features(features, target, *self.moments.shape)
        plain = bool(step.progress < self.stage) if step.phase is None else step.phase == "plain"
        if plain:
            zero = torch.zeros_like(step.progress)
            return F.cross_entropy(network.head(features), target), {"strength": zero, "covariance_shift": zero}

        if self.training:
            self.moments.update(features.detach(), target)
        strength, share = step.progress * self.strength, shares(self.class_weight, target, step)

        def loss(features: Tensor, weight: Tensor, bias: Tensor | None, covariance: Tensor) -> Tensor:
            logits = unchecked_logits(features, target, weight, bias, covariance, strength, relative=True)
            if self.loss == "ldam":
                logits = ldam_logits(logits, target, self.margins)
            return (share.to(logits.dtype) * F.cross_entropy(logits, target, reduction="none")).sum()

        before = cast(Tensor, self.moments.covariance)
        covariance = before.clone()
        for _ in range(self.meta_steps):  # (17)
            covariance -= self.meta_lr * meta_gradient(network, images, features, covariance, loss, meta, step)
            if self.psd:
                covariance = nearest_psd(covariance)
        shift = (covariance - before).norm() / before.norm().clamp_min(1e-30)
        value = loss(features, network.head.weight, network.head.bias, covariance)  # finite, or an error
        if self.keep:
            before.copy_(covariance)
        return value, {"strength": strength.detach(), "covariance_shift": shift}
