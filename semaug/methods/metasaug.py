r"""MetaSAug: covariances of rare classes are learned, so that a step on them helps a small balanced set.

On a long tail the moments of a rare class say little of it. MetaSAug keeps the loss of room ``isda`` on class-weighted
samples (room ``imbalance``), with the margins of LDAM where asked,

$$\mathcal L(\theta, \Sigma) = \frac{\sum_i c_{y_i}\,\mathrm{CE}(z_i, y_i)}{\sum_i c_{y_i}},$$

and lets a meta batch correct $\Sigma$ before every step, one slice after the other of random permutations of a small
set with as many images of every class: what would the parameters be after one plain gradient step at the optimiser's
learning rate $\eta$, how well would they do on the meta batch, and which $\Sigma'$ would have made that better?

$$\theta'(\Sigma) = \theta - \eta\,\nabla_\theta \mathcal L(\theta, \Sigma), \tag{16}$$
$$\Sigma' = \Sigma - \alpha\,\nabla_\Sigma \mathcal L_{\mathrm{meta}}(\theta'(\Sigma)). \tag{17}$$

The optimiser then steps on $\mathcal L(\theta, \Sigma')$, $\Sigma'$ a constant. Taken literally, (17) differentiates
through the gradient of (16), a second backward pass through the network's first. But with the one vector
$v = \nabla_\theta \mathcal L_{\mathrm{meta}}(\theta')$, a constant too, the chain rule leaves

$$\nabla_\Sigma \mathcal L_{\mathrm{meta}}(\theta'(\Sigma)) = -\eta\,\nabla_\Sigma \big[ v^\top
  \nabla_\theta \mathcal L(\theta, \Sigma) \big], \tag{18}$$

and $\Sigma$ enters after the features $a_i$ alone. Let a dot be the derivative along $v$, $\dot a_i$ by forward mode,
one pass without a graph, $\dot W$ and $\dot b$ parts of $v$ itself. Then

$$v^\top \nabla_\theta \mathcal L = \sum_i \frac{\partial \mathcal L}{\partial a_i} \cdot \dot a_i
  + \frac{\partial \mathcal L}{\partial W} \cdot \dot W
  + \frac{\partial \mathcal L}{\partial b} \cdot \dot b: \tag{19}$$

the gradient of (18) goes twice through the last layer, and never through the others.

Li et al., "MetaSAug: Meta Semantic Augmentation for Long-Tailed Visual Recognition", CVPR 2021,
https://arxiv.org/abs/2103.12579.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, cast

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.autograd import forward_ad, grad
from torch.func import functional_call
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from semaug._checks import check_features
from semaug.methods.isda import ISDA, unchecked_logits
from semaug.methods.long_tail import (
    check_counts,
    check_flag,
    check_fraction,
    check_positive,
    class_balanced_weights,
    ldam_logits,
    ldam_margins,
    shares,
)
from semaug.training.objective import Batch, Step, linear_head

ClassCovariance = Float[Tensor, "C A A"] | Float[Tensor, "C A"]

LastLayer = Callable[[Tensor, Tensor, Tensor | None, Tensor], Tensor]


class _Features(nn.Module):
    """``network.features`` as the forward of a module, which is what functional_call calls."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network: Any = network

    def forward(self, images: Tensor) -> Tensor:
        return self.network.features(images)


class _BatchNorm(TorchFunctionMode):
    r"""Forward mode through BatchNorm in four passes over the maps; torch's own rule takes about twenty.

    With $\hat x = (x - \mu) / \sigma$ of the batch, $y = \gamma \hat x + \beta$ has the derivative
    $\dot y = J \dot x + \dot\gamma \hat x + \dot\beta$. $J$ is symmetric, so torch's backward pass gives $J \dot x$.
    """

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return (_batch_norm if function is F.batch_norm else function)(*args, **(kwargs or {}))


def _batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """F.batch_norm, by the same arguments; the short way where the batch normalises and all three have tangents."""
    duals = [forward_ad.unpack_dual(tensor) for tensor in (input, weight, bias) if tensor is not None]
    if not training or len(duals) < 3 or any(dual.tangent is None for dual in duals):
        return F.batch_norm(input, running_mean, running_var, weight, bias, training, momentum, eps)
    (x, x_dot), (gamma, gamma_dot), (beta, beta_dot) = duals
    native = cast(Any, torch.native_batch_norm)
    y, mean, inverse = native(x, gamma, beta, running_mean, running_var, True, momentum, eps)
    arguments = (x_dot, x, gamma, None, None, mean, inverse, True, eps, [True, False, False])
    y_dot = torch.ops.aten.native_batch_norm_backward(*arguments)[0]
    slope, shape = gamma_dot * inverse, (-1, *(1 for _ in x.shape[2:]))
    y_dot.addcmul_(x, slope.view(shape)).add_((beta_dot - slope * mean).view(shape))
    return forward_ad.make_dual(y, y_dot)


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

    network: has ``features`` and a Linear ``head``. features: ``network.features(images)`` with its graph, which serves
    again afterwards. loss: (features, weight, bias, covariance) -> the 0-d loss of the batch, differentiable twice. The
    inner step moves all parameters of the network that require gradients by ``step.lr``, without momentum or decay;
    those of the head that do not, and those that the features do not depend on, stay.

    Nothing of the network changes: BatchNorm normalises the meta batch, and the features once more on the way to
    $\dot a$, by the batch as in training, but its running statistics are those of the first pass alone. Dropout draws
    another mask in each of these passes. In a data-parallel run every process calls this with its shares and gets the
    gradient of the whole.
    """
    body, head = _Features(network), cast(nn.Linear, network.head)
    classifier = [head.weight, *([] if head.bias is None else [head.bias])]
    ids = {id(parameter) for parameter in classifier}
    free = {name: p for name, p in body.named_parameters() if p.requires_grad and id(p) not in ids}
    backbone = free if features.requires_grad else {}  # or else none of them reaches the features

    def features_at(values: Sequence[Tensor], images: Tensor) -> Tensor:
        buffers = {name: buffer.clone() for name, buffer in body.named_buffers()}
        return functional_call(body, {**buffers, **dict(zip(backbone, values, strict=True))}, (images,))

    last = [tensor.detach().requires_grad_() for tensor in (features, *classifier)]
    sigma = covariance.detach().requires_grad_()
    slopes = grad(loss(last[0], last[1], last[2] if len(last) > 2 else None, sigma), last, create_graph=True)
    of_head = [slope * p.requires_grad for slope, p in zip(slopes[1:], classifier, strict=True)]  # 0: it stays
    inner: list[Tensor] = []
    if backbone:
        inner += grad(features, list(backbone.values()), slopes[0].detach(), retain_graph=True, materialize_grads=True)
    inner = step.mean(*inner, *(slope.detach() for slope in of_head))

    parameters = [*backbone.values(), *classifier]
    stepped = [(p.detach() - step.lr * slope).requires_grad_() for p, slope in zip(parameters, inner, strict=True)]
    logits = F.linear(features_at(stepped[: len(backbone)], meta.images), *stepped[len(backbone) :])
    v = step.mean(*grad(F.cross_entropy(logits, meta.target), stepped, materialize_grads=True))

    parts = [(slope * dot).sum() for slope, dot in zip(of_head, v[len(backbone) :], strict=True)]
    if backbone:
        with forward_ad.dual_level(), _BatchNorm():
            duals = [forward_ad.make_dual(p.detach(), dot) for p, dot in zip(backbone.values(), v, strict=False)]
            parts.append((slopes[0] * forward_ad.unpack_dual(features_at(duals, images)).tangent).sum())
    (gradient,) = step.mean(*grad(torch.stack(parts).sum(), sigma))
    return -step.lr * gradient


def nearest_psd(covariance: ClassCovariance) -> ClassCovariance:
    """The nearest positive semi-definite covariances in Frobenius norm: negative eigenvalues become 0."""
    if covariance.ndim == 2:
        return covariance.clamp_min(0)
    values, vectors = torch.linalg.eigh(covariance)
    with torch.autocast(covariance.device.type, enabled=False):
        # only what is negative is put together again: rounding is in proportion to it, far below the meta step
        return covariance - (vectors * values.clamp_max(0)[:, None]) @ vectors.mT


class MetaSAug(ISDA):
    r"""ISDA on a long tail, its covariances corrected by a meta step before every step.

    network, strength: as for :class:`semaug.isda.ISDA`; covariance: "full" or "diagonal".
    counts: training images of each class (``Data.counts``).
    loss: "ldam" or "ce". beta: of the class weights, 0 for none. max_margin: of LDAM, without a scale, as released.
    meta_lr: $\alpha$ of (17). meta_steps: such steps before every step of the optimiser; 0: the moments as they are.
    stage: the fraction of training after which all this begins. Before it, the plain cross-entropy; the moments are
        empty until then, and the strength of ISDA is from there on $\frac tT \lambda_0$, as released.
    psd: project $\Sigma'$ on the positive semi-definite matrices; the meta step can leave them.
    keep: write $\Sigma'$ back to the moments; as released, it serves its one step and is forgotten.

    The meta loss is the plain mean over the meta batch: a class with more meta images than another counts for more.
    As in ISDA the batch's features enter the moments before its loss is taken; in the released code after it. With a
    frozen backbone (``network.stages.requires_grad_(False)``) only the last layer is differentiated at all.
    """

    streams = ("train", "meta")
    static = True
    class_weight: Tensor
    margins: Tensor

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
        for name, value, allowed in (("covariance", covariance, ("full", "diagonal")), ("loss", loss, ("ce", "ldam"))):
            if value not in allowed:
                raise ValueError(f"{name} must be one of {', '.join(allowed)}, got {value!r}")
        check_positive("meta_lr", meta_lr)
        if not isinstance(meta_steps, int) or isinstance(meta_steps, bool) or meta_steps < 0:
            raise ValueError(f"meta_steps must be an integer from 0, got {meta_steps!r}")
        check_fraction("stage", stage)
        check_flag("psd", psd)
        check_flag("keep", keep)
        check_counts(counts)
        if type(head := linear_head(network)).forward is not nn.Linear.forward:  # the loss below is F.linear's
            raise TypeError(
                f"network: got a head of type {type(head).__name__}; MetaSAug takes one that is nn.Linear's"
            )
        super().__init__(network, strength, covariance)
        if len(counts) != self.moments.shape[0]:
            raise ValueError(f"counts must be (C,) = ({self.moments.shape[0]},), got {tuple(counts.shape)}")
        self.settings |= {"loss": loss, "beta": beta, "meta_lr": meta_lr, "meta_steps": meta_steps, "stage": stage}
        self.settings |= {"psd": psd, "keep": keep} | ({"max_margin": max_margin} if loss == "ldam" else {})
        self.loss, self.meta_lr, self.meta_steps, self.stage = loss, meta_lr, meta_steps, stage
        self.psd, self.keep = psd, keep
        # Given again at every construction: no part of a checkpoint.
        self.register_buffer("class_weight", class_balanced_weights(counts, beta), persistent=False)
        self.register_buffer("margins", ldam_margins(counts, max_margin), persistent=False)

    def phase(self, progress: float) -> str | None:
        """One on either side of ``stage``; eigenvalues cannot be captured."""
        if progress < self.stage:
            return "plain"
        return None if self.psd else "meta"

    def forward(self, images: Tensor, target: Tensor, step: Step) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of a batch at the covariances that the meta step gives.

        Logs the strength and how far the meta step went, |Sigma' - Sigma| / |Sigma|. Raises as
        :meth:`semaug.isda.ISDA.forward`, for the meta batch too, and ValueError without one.
        """
        if target.ndim != 1:
            raise ValueError(
                f"target must be class numbers (N,), MetaSAug takes no soft ones; got {tuple(target.shape)}"
            )
        if step.meta is None:
            raise ValueError("step.meta: got None; MetaSAug takes a batch of the balanced meta set (Data.meta)")
        network, zero = self.network, torch.zeros_like(step.progress)
        pixels = step.meta.images.flatten(1)
        check_features(
            pixels, step.meta.target, len(self.margins), pixels.shape[1], "step.meta.images", "step.meta.target"
        )
        features = network.features(images)
        check_features(features, target, *self.moments.shape)
        if step.phase == "plain" if step.phase else bool(step.progress < self.stage):
            logits = network.head(features)
            return F.cross_entropy(logits, target), {"strength": zero, "covariance_shift": zero}

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
        for _ in range(self.meta_steps):
            covariance -= self.meta_lr * meta_gradient(network, images, features, covariance, loss, step.meta, step)
            if self.psd:
                covariance = nearest_psd(covariance)
        shift = (covariance - before).norm() / before.norm().clamp_min(1e-30)
        if self.keep:
            before.copy_(covariance)
        value = loss(features, network.head.weight, network.head.bias, covariance)
        return value, {"strength": strength.detach(), "covariance_shift": shift}
