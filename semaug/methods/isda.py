r"""ISDA: augment every feature along its class's covariance, infinitely often, without drawing a copy.

Wang et al., "Implicit Semantic Data Augmentation for Deep Networks", NeurIPS 2019, https://arxiv.org/abs/1909.12220,
and "Regularizing Deep Networks with Semantic Data Augmentation", TPAMI 2021, https://arxiv.org/abs/2007.10538.

Each feature $a_i$ of class $y_i$ stands for infinitely many, $\mathcal N(a_i, \lambda \Sigma_{y_i})$ with a strength
$\lambda$. The linear head has rows $w_j$ and biases $b_j$. The expectation of the cross-entropy over them is at most,
by Jensen's inequality and the Gaussian's moment-generating function (module ``semaug.core.gaussian``),

$$\overline{\mathcal L}_\infty = \frac1N \sum_i \mathrm{CE}(z_i, y_i), \qquad
  z_{ij} = w_j^\top a_i + b_j + \frac\lambda2\, q_{y_i j}, \qquad
  q_{yj} = (w_j - w_y)^\top \Sigma_y (w_j - w_y). \tag{12}$$

The count, mean and covariance $\Sigma_y$ of each class, over all features so far, are what is kept between steps
(module ``semaug.core.moments``); the covariance may be full, diagonal, or factored, $FF^\top$ plus a diagonal.
$q_{yy} = 0$, and where a class was never seen $\Sigma_y = 0$: this is then the plain cross-entropy. The strength grows
with training, $\lambda_t = \frac tT \lambda_0$: early covariances mean little.

:func:`isda_logits` is $z$ and :func:`isda_loss` the loss. :class:`ISDALoss` adds the moments, for a training loop of
one's own; :class:`ISDA` is the objective for ``semaug.fit``.
"""

from __future__ import annotations

from typing import Literal, cast

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn import functional as F

from semaug._checks import (
    all_finite,
    check_batch,
    check_choice,
    check_class_weight,
    check_covariance,
    check_finite,
    check_number,
    check_result,
    check_shape,
    check_strength,
    require,
)
from semaug.core.gaussian import diagonal_logits
from semaug.core.moments import ClassMoments, Form
from semaug.core.tensors import REDUCTIONS, Covariance, Factored, Reduction, at_least_float32, tracing
from semaug.methods._isda_fast import covers, fast_loss
from semaug.networks import Network
from semaug.training.objective import Objective, Step, linear_head

Control = Literal["identity", "diagonal", "shared", "random"]

CONTROLS = ("identity", "diagonal", "shared", "random")


def isda_logits(
    features: Float[Tensor, "N A"],
    target: Int64[Tensor, " N"],
    weight: Float[Tensor, "C A"],
    bias: Float[Tensor, " C"] | None,
    covariance: Covariance,
    strength: float | Float[Tensor, ""],
) -> Float[Tensor, "N C"]:
    r"""The augmented logits $z$ of (12), on which a margin, class weights or any loss of logits can stand.

    Differentiable any number of times, by backward and by forward mode, in every float argument, the covariance
    included. A full covariance keeps two tensors of (classes of the batch, C, A) for that; :func:`isda_loss` does not.

    Args:
        features: (N, A).
        target: (N,) int64 class numbers.
        weight, bias: the linear head, (C, A) and (C,).
        covariance: per class; (C, A, A) symmetric, (C, A) for a diagonal one, or Factored.
        strength: $\lambda \ge 0$; 0 gives the plain logits.

    Returns:
        The logits (N, C), in float32 at least, also under autocast.

    Raises:
        ValueError, TypeError: for arguments that do not fit each other, a target outside [0, C), values that are not
            finite, logits that overflow, and a full covariance that is not symmetric (of it
            only the two diagonals next to the main one are compared). No value is read under torch.compile, torch.func
            and the capture of a CUDA graph.
    """
    check_batch(features, target, weight, bias)
    check_covariance(covariance, weight)
    strength = check_strength(strength)
    return _result(unchecked_logits(features, target, weight, bias, covariance, strength), covariance)


def isda_loss(
    features: Float[Tensor, "N A"],
    target: Int64[Tensor, " N"],
    weight: Float[Tensor, "C A"],
    bias: Float[Tensor, " C"] | None,
    covariance: Covariance,
    strength: float | Float[Tensor, ""],
    reduction: Reduction = "mean",
    class_weight: Float[Tensor, " C"] | None = None,
) -> Float[Tensor, ""] | Float[Tensor, " N"]:
    r"""The loss (12): cross-entropy of :func:`isda_logits`.

    "mean" and "sum" compute their gradients on the forward pass and can be differentiated once; for higher orders use
    "none" or :func:`isda_logits`. The covariance may be updated in place before the backward pass.

    Args:
        features, target, weight, bias, covariance, strength: as for :func:`isda_logits`.
        reduction: "mean", "sum" or "none", over the batch.
        class_weight: (C,), as in ``F.cross_entropy``.

    Returns:
        The loss in nats, 0-d or (N,), in float32 at least, also under autocast.

    Raises:
        ValueError, TypeError: as :func:`isda_logits`, and for class weights below 0, or 0 for a whole batch.
    """
    check_batch(features, target, weight, bias)
    check_covariance(covariance, weight)
    strength = check_strength(strength)
    check_choice("reduction", reduction, REDUCTIONS)
    if class_weight is not None:
        check_class_weight(class_weight, target, len(weight), reduction)
    if covers(target, weight, covariance, strength, reduction):  # gradients by hand; tested equal to the lines below
        loss = fast_loss(features, target, weight, bias, cast(Tensor, covariance), strength, reduction, class_weight)
    else:
        logits = unchecked_logits(features, target, weight, bias, covariance, strength, relative=True)
        class_weight = None if class_weight is None else class_weight.to(logits.dtype)
        loss = F.cross_entropy(logits, target, class_weight, reduction=reduction)
    return _result(loss, covariance)


def unchecked_logits(
    features: Tensor,
    target: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    covariance: Covariance,
    strength: float | Tensor,
    relative: bool = False,
) -> Tensor:
    """isda_logits of arguments known to be good, where a full covariance need not be symmetric.

    Every covariance is taken as a copy, by index: the moments may change in place before the backward pass.

    Args:
        features, target, weight, bias, covariance, strength: as for :func:`isda_logits`.
        relative: leave out what all logits of a sample have in common, where that spares time: no softmax sees it.
    """
    with torch.autocast(features.device.type, enabled=False):
        weight = at_least_float32(weight)
        features, bias = features.to(weight.dtype), None if bias is None else bias.to(weight.dtype)
        if isinstance(covariance, Tensor) and covariance.ndim == 2:
            variance = covariance.index_select(0, target).to(weight.dtype)
            return diagonal_logits(features, variance, target, weight, bias, strength, relative)
        present, index = _present(target, len(weight))
        if isinstance(covariance, Factored):
            variance = covariance.diagonal.index_select(0, target).to(weight.dtype)
            logits = diagonal_logits(features, variance, target, weight, bias, strength, relative)
            q = _low_rank(covariance.factor.mT.index_select(0, present).to(weight.dtype), present, weight)
        else:
            logits = F.linear(features, weight, bias)
            difference = weight - weight.index_select(0, present)[:, None]  # (U, C, A), U classes in the batch
            q = (difference @ covariance.index_select(0, present).to(weight.dtype) * difference).sum(2)
        return logits + 0.5 * strength * q.index_select(0, index)


def _low_rank(factor: Float[Tensor, "U r A"], present: Tensor, weight: Float[Tensor, "C A"]) -> Float[Tensor, "U C"]:
    r"""$q_{uj} = |F_u^\top (w_j - w_u)|^2$ of $\Sigma_u = F_u F_u^\top$, for the U classes of the batch.

    One product of (C, A) by (A, U r) gives $F_u^\top w_j$; the rows of the classes u are then taken off.
    """
    U, r, A = factor.shape
    centred = weight - weight.detach().mean(0)  # as in diagonal_logits: a common offset costs digits, changes nothing
    projected = (centred @ factor.reshape(U * r, A).T).view(len(weight), U, r)
    own = projected[present, torch.arange(U, device=present.device)]
    return (projected - own).square().sum(2).T


def _present(target: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """The classes whose quadratic forms are needed, and the place of every sample's class among them.

    Of the target [5, 2, 5]: [2, 5] and [1, 0, 1]. Where no value may be read: all classes, or one for every sample,
    whichever is fewer.
    """
    if not tracing(target):
        return target.unique(return_inverse=True)
    everything = torch.arange(min(classes, len(target)), device=target.device)
    return (everything, target) if classes <= len(target) else (target, everything)


def _result(result: Tensor, covariance: Covariance) -> Tensor:
    """The result; an error where it is not finite. A covariance, being large, is looked at only then."""
    if not all_finite(result):
        for part in covariance if isinstance(covariance, Factored) else (covariance,):
            check_finite("covariance", part)
    return check_result(result, "features, weight, covariance, strength")


class ISDALoss(nn.Module):
    r"""The loss (12) with its moments inside, for a training loop of one's own.

    In training mode a call first updates the moments with the batch's features, then takes the loss with them; the
    covariance is a constant there: the gradient reaches features and head only. In evaluation mode, after
    ``criterion.eval()``, the moments stay as they are, and the loss is still (12). The strength is the $\lambda$ of
    the moment: set the attribute ``strength`` to $\frac tT \lambda_0$ in every epoch $t$ of $T$::

        criterion = ISDALoss(num_classes=10, num_features=64).to(device)
        for epoch in range(epochs):
            criterion.strength = 0.5 * epoch / epochs
            for images, target in loader:
                features = network.features(images)
                loss = criterion(features, target, network.head)
                ...

    The moments live in buffers: save ``criterion.state_dict()`` with a checkpoint (the strength is not in it). In
    data-parallel training every process calls its criterion at every step, as
    :meth:`semaug.core.moments.ClassMoments.update` says. Under torch.compile set ``strength`` to a 0-d tensor: for
    another number it would compile anew.

    Args:
        num_classes: C.
        num_features: A.
        strength: $\lambda$ until it is set.
        covariance, rank, decay: see :class:`semaug.core.moments.ClassMoments`.

    Raises:
        ValueError: for values outside these.
    """

    def __init__(
        self,
        num_classes: int,
        num_features: int,
        strength: float = 0.5,
        covariance: Form = "full",
        rank: int | None = None,
        decay: float | None = None,
    ) -> None:
        super().__init__()
        self.strength = check_strength(strength)
        self.moments = ClassMoments(num_classes, num_features, covariance, rank, decay)

    def forward(
        self, features: Float[Tensor, "N A"], target: Int64[Tensor, " N"], head: nn.Linear
    ) -> Float[Tensor, ""]:
        """The loss of a batch, mean over it, in nats.

        Args:
            features: (N, A), what the head sees.
            target: (N,) int64 class numbers.
            head: the network's last layer, from A to C.

        Raises:
            ValueError, TypeError: as :func:`isda_loss`; a batch that the moments refuse leaves them as they are.
        """
        require(isinstance(head, nn.Linear), "head", type(head).__name__, "an nn.Linear", TypeError)
        if self.training:
            self.moments.update(features.detach(), target)
        return isda_loss(features, target, head.weight, head.bias, self.moments.covariance, self.strength)


class ISDA(Objective):
    r"""Cross-entropy under class-wise Gaussian augmentation of the features, eq. (12).

    One step: the batch's features enter the moments, detached; then the loss is taken with them. The covariance is a
    constant there; the weights of the head have gradients through the quadratic form as well.

    Args:
        network: gives ``features(images)`` (N, A) and has ``head``, a Linear from A to C (module ``semaug.networks``).
        strength: $\lambda_0$; at progress $t/T$ the strength is $\frac tT \lambda_0$. To be chosen on
            validation. The papers' values are 0.25 or 0.5 with full covariances on CIFAR, and 7.5, 5 or 1, by network,
            with diagonal ones on ImageNet; the data differ, so the two forms cannot be compared by these.
        covariance, rank, decay: see :class:`semaug.core.moments.ClassMoments`.
        control: for ablations, with full covariances: augment along another covariance of equal trace, see
            :func:`control_covariance`. The rotation of "random" is drawn here, from the global generator.

    Raises:
        ValueError, TypeError: for settings outside these and a network without features or head.
    """

    static = True  # fit may capture the step as a CUDA graph
    network: Network
    rotation: Tensor

    def __init__(
        self,
        network: nn.Module,
        strength: float = 0.5,
        covariance: Form = "full",
        rank: int | None = None,
        decay: float | None = None,
        control: Control | None = None,
    ) -> None:
        self.strength = check_number("strength", strength, low=0)
        head = linear_head(network)
        moments = ClassMoments(head.out_features, head.in_features, covariance, rank, decay)
        if control is not None:
            check_choice("control", control, CONTROLS)
            require(covariance == "full", "control", control, f"None with covariance={covariance!r}")
        settings = {"covariance": covariance, "rank": moments.rank, "decay": moments.decay, "control": control}
        super().__init__(network, strength=self.strength, **settings)
        self.moments, self.control = moments, control
        if control == "random":
            normal = torch.randn(head.in_features, head.in_features)
            self.register_buffer("rotation", torch.linalg.qr(normal).Q)

    def phase(self, progress: float) -> str | None:
        """One captured step serves all of training; none can of the factored form, which goes through the classes."""
        return None if self.moments.form == "factored" else "all"

    def forward(self, images: Tensor, target: Tensor, step: Step) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss (12) of a batch, after its features entered the moments; logs the strength.

        Raises:
            ValueError, TypeError: as :func:`isda_loss`. Features that are not finite raise before the moments change: a
                NaN would stay in them for ever. Values that are not finite raise NotFiniteError, which is also a
                FloatingPointError. On a GPU these checks wait for the device; a captured step leaves them out.
        """
        features = self.network.features(images)
        if self.training:
            self.moments.update(features.detach(), target)
        covariance = self.moments.covariance
        if self.control is not None:
            rotation = self.rotation if self.control == "random" else None
            with torch.autocast(features.device.type, enabled=False):
                covariance = control_covariance(cast(Tensor, covariance), self.control, self.moments.count, rotation)
        strength, head = step.progress * self.strength, self.network.head
        loss = isda_loss(features, target, head.weight, head.bias, covariance, strength)
        return loss, {"strength": strength.detach()}


def control_covariance(
    covariance: Float[Tensor, "C A A"],
    kind: Control,
    count: Float[Tensor, " C"] | None = None,
    rotation: Float[Tensor, "A A"] | None = None,
) -> Float[Tensor, "C A A"] | Float[Tensor, "C A"]:
    r"""Controls: other covariances of equal trace in each class, so that only the directions of the moves differ.

    "identity": $\frac1A \mathrm{tr}(\Sigma_c) I$, all directions alike. "diagonal": the diagonal of $\Sigma_c$.
    "shared": the mean of all classes weighted by ``count``, scaled to the trace of each. "random":
    $R \Sigma_c R^\top$, the same spectrum along other directions.

    Args:
        covariance: $\Sigma$, (C, A, A).
        kind: one of ``CONTROLS``.
        count: (C,), the number of features of each class, for "shared".
        rotation: $R$, (A, A) orthogonal, for "random".

    Returns:
        (C, A, A), or (C, A) where the result is diagonal.

    Raises:
        ValueError: for another kind, a covariance that is not (C, A, A), "shared" and "random" without theirs, and
            values that are not finite.
    """
    check_choice("kind", kind, CONTROLS)
    if covariance.ndim != 3 or covariance.shape[1] != covariance.shape[2]:
        raise ValueError(f"covariance: got shape {tuple(covariance.shape)}; takes (C, A, A)")
    check_finite("covariance", covariance)
    variance = covariance.diagonal(dim1=1, dim2=2)
    if kind == "diagonal":
        return variance.clone()
    if kind == "identity":
        return variance.mean(1, keepdim=True).expand_as(variance).clone()
    if kind == "random":
        rotation = check_shape("rotation", rotation, covariance.shape[1:], " for 'random'")
        check_finite("rotation", rotation)
        return rotation @ covariance @ rotation.T
    count = check_shape("count", count, covariance.shape[:1], " for 'shared'")
    check_finite("count", count)
    shared = torch.einsum("c,cab->ab", (count / count.sum().clamp_min(1)).to(covariance.dtype), covariance)
    return variance.sum(1)[:, None, None] / shared.trace().clamp_min(1e-30) * shared
