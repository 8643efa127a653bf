r"""ISDA: augment every feature along its class's covariance, infinitely often, at the price of a cross-entropy.

The bound (2) of room ``gaussian`` with the covariance $\Sigma_{y}$ of each class, kept online by room ``moments``:

$$\overline{\mathcal L}_\infty = \frac1N \sum_i \mathrm{CE}(z_i, y_i), \qquad
  z_{ij} = w_j^\top a_i + b_j + \frac\lambda2\, q_{y_i j}, \qquad
  q_{yj} = (w_j - w_y)^\top \Sigma_y (w_j - w_y). \tag{12}$$

$q_{yy} = 0$, and where a class was never seen $\Sigma_y = 0$: then this is the plain cross-entropy. The strength grows
with training, $\lambda_t = \frac tT \lambda_0$, because early covariances mean little.

$q$ belongs to a class, not to a sample: with $D_y = W - 1 w_y^\top$ it is the row sums of $(D_y \Sigma_y) \circ D_y$,
and $\partial q_{yj} / \partial D_{yj} = 2 (D_y \Sigma_y)_j$ needs no second product. :func:`isda_loss` therefore goes
through the classes of the batch once, takes the loss of their samples and adds up the gradients while $D_y \Sigma_y$
is at hand; neither N x C x A nor N x C x C numbers are ever held.

Wang et al., "Implicit Semantic Data Augmentation for Deep Networks", NeurIPS 2019, https://arxiv.org/abs/1909.12220,
and "Regularizing Deep Networks with Semantic Data Augmentation", TPAMI 2021, https://arxiv.org/abs/2007.10538.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, Literal, cast

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn import functional as F

from semaug._checks import check_batch, check_covariance, check_features, check_reduction, check_strength
from semaug.core.gaussian import diagonal_logits
from semaug.core.moments import ClassMoments, Form
from semaug.core.tensors import Covariance, Factored, Reduction, at_least_float32, capturing, tracing
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

    ``covariance`` is per class: (C, A, A), symmetric, or (C, A) for a diagonal one, or Factored. Differentiable any
    number of times, in either mode, in everything float, the covariance included; a full covariance keeps two tensors
    of (classes of the batch, C, A) for that, which :func:`isda_loss` does without. Computed in float32 at least, also
    under autocast.

    Raises ValueError or TypeError for shapes, dtypes or devices that do not fit, a target outside [0, C), features,
    weight or a covariance of a class of the batch that are not finite, a strength that is negative or not finite, and
    a full covariance that is not symmetric: to spare a pass over all of it, only the two diagonals next to the main
    one are compared, which a triangular factor or a product in the wrong order does not pass. These checks of values
    are left out where values may not be looked at: under torch.compile, torch.func and while a CUDA graph is captured.
    """
    _check(features, target, weight, bias, covariance, strength)
    return _finite(_logits(features, target, weight, bias, covariance, strength), covariance)


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
    r"""The loss (12) in nats: cross-entropy of :func:`isda_logits`, ``class_weight`` as in F.cross_entropy.

    "mean" and "sum" take gradients on the way forward, so they can be differentiated once (an error says so under
    create_graph); "none" and :func:`isda_logits` any number of times. Those on the way forward are right for
    symmetric covariances only, $2 D \Sigma$ in place of $D (\Sigma + \Sigma^\top)$, at half the price. The covariance
    may be updated in place before the way back. Raises as :func:`isda_logits`, and for another reduction or class
    weights that are not (C,) or negative.
    """
    _check(features, target, weight, bias, covariance, strength)
    check_reduction(reduction)
    if class_weight is not None:
        if class_weight.shape != weight.shape[:1] or class_weight.device != weight.device:
            raise ValueError(
                f"class_weight must be (C,) = ({len(weight)},) on {weight.device}, "
                f"got {tuple(class_weight.shape)} on {class_weight.device}"
            )
        if not tracing(class_weight) and not bool(((class_weight >= 0) & class_weight.isfinite()).all()):
            raise ValueError("class_weight must be finite and not negative")
    return _finite(_loss(features, target, weight, bias, covariance, strength, reduction, class_weight), covariance)


def _check(
    features: Tensor,
    target: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    covariance: Covariance,
    strength: float | Tensor,
) -> None:
    """What both functions ask of their arguments; of the values no more than is cheap beside the loss."""
    check_batch(features, target, weight, bias)
    if not isinstance(covariance, Tensor | Factored):
        kind = f"{type(covariance).__module__}.{type(covariance).__qualname__}"
        raise TypeError(f"covariance must be a tensor (C, A, A) or (C, A), or Factored; got {kind}")
    check_covariance(covariance, weight)
    check_strength(strength)
    if tracing(features):
        return
    if not (math.isfinite(weight.sum().item()) or bool(weight.isfinite().all())):  # as check_features does it
        raise ValueError("weight has values that are not finite")
    if isinstance(covariance, Tensor) and covariance.ndim == 3 and weight.shape[1] > 1:
        upper, lower, main = (covariance.detach().diagonal(offset, 1, 2) for offset in (1, -1, 0))
        # Sums taken in another order round differently; 1e-4 of the largest variance is far above that.
        if torch.dist(upper, lower, math.inf).item() > 1e-4 * max(map(abs, torch.stack(main.aminmax()).tolist())):
            raise ValueError("covariance must be symmetric, the diagonals above and below its main one differ")


def _finite(result: Tensor, covariance: Covariance) -> Tensor:
    """The result; where it is not finite because the covariance is not, an error. Costs no look at the covariance."""
    if not tracing(result) and not math.isfinite(result.detach().sum().item()):
        parts = covariance if isinstance(covariance, Factored) else (covariance,)
        if not all(bool(part.isfinite().all()) for part in parts):
            raise ValueError("covariance has values that are not finite")
    return result


def _loss(
    features: Tensor,
    target: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    covariance: Covariance,
    strength: float | Tensor,
    reduction: Reduction = "mean",
    class_weight: Tensor | None = None,
) -> Tensor:
    """isda_loss of arguments known to be good."""
    fixed = not (isinstance(strength, Tensor) and strength.requires_grad)
    if isinstance(covariance, Tensor) and fixed and reduction != "none" and not tracing(features):
        dtype = torch.promote_types(weight.dtype, torch.float32)
        share = torch.full_like(target, 1 / len(target) if reduction == "mean" else 1, dtype=dtype)
        if class_weight is not None:
            share = class_weight.to(dtype).index_select(0, target)
            share = share / share.sum() if reduction == "mean" else share
        loss = _FullLoss if covariance.ndim == 3 else _DiagonalLoss
        if covariance.ndim == 3 or not covariance.requires_grad:
            return _by_hand(loss, features, weight, bias, covariance, target, strength, share)
    once = fixed and reduction != "none" and capturing(features)
    if once and isinstance(covariance, Tensor) and _all_fit(covariance, weight, target):
        logits = _by_hand(_CapturedLogits, features, weight, bias, covariance, target, strength)
    else:
        logits = _logits(features, target, weight, bias, covariance, strength, relative=True)
    class_weight = None if class_weight is None else class_weight.to(logits.dtype)
    return F.cross_entropy(logits, target, class_weight, reduction=reduction)


def _by_hand(
    function: type[torch.autograd.Function],
    features: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    covariance: Tensor,
    *rest: Any,
) -> Tensor:
    """A function with gradients of its own, in float32 at least, also under autocast."""
    dtype = torch.promote_types(weight.dtype, torch.float32)
    tensors = (None if each is None else each.to(dtype) for each in (features, weight, bias, covariance))
    with torch.autocast(features.device.type, enabled=False):
        return function.apply(*tensors, *rest)


def _logits(
    features: Tensor,
    target: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    covariance: Covariance,
    strength: float | Tensor,
    relative: bool = False,
) -> Tensor:
    """isda_logits of arguments known to be good; ``relative``: up to a number for each sample.

    Every covariance is taken as a copy, by index: moments change in place, perhaps before the way back.
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
            forms = _low_rank(covariance.factor.mT.index_select(0, present).to(weight.dtype), present, weight)
        else:
            logits = F.linear(features, weight, bias)
            difference = weight - weight.index_select(0, present)[:, None]  # (U, C, A)
            forms = (difference @ covariance.index_select(0, present).to(weight.dtype) * difference).sum(2)
        return logits + 0.5 * strength * forms.index_select(0, index)


def _low_rank(factor: Float[Tensor, "U r A"], present: Tensor, weight: Float[Tensor, "C A"]) -> Float[Tensor, "U C"]:
    r"""$q_{uj} = |F_u^\top (w_j - w_u)|^2$ by one product of (C, A) by (A, U r), less the rows of the classes u."""
    U, r, A = factor.shape
    centred = weight - weight.detach().mean(0)  # as in diagonal_logits: a common offset costs digits, changes nothing
    projected = (centred @ factor.reshape(U * r, A).T).view(len(weight), U, r)
    own = projected[present, torch.arange(U, device=present.device)]
    return (projected - own).square().sum(2).T


def _present(target: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """The classes whose quadratic forms are needed, and the place of every sample's among them.

    All classes or one for every sample, whichever is fewer, where values may not be looked at.
    """
    if not tracing(target):
        return target.unique(return_inverse=True)
    everything = torch.arange(min(classes, len(target)), device=target.device)
    return (everything, target) if classes <= len(target) else (target, everything)


def _cross_entropy(logits: Tensor, target: Tensor, share: Tensor) -> tuple[Tensor, Tensor]:
    """sum_i share_i CE(z_i, y_i) and its derivative by the logits z."""
    y, share = target[:, None], share[:, None]
    slope = logits.log_softmax(1)
    loss = -(slope.gather(1, y) * share).sum()
    return loss, slope.exp_().mul_(share).scatter_add_(1, y, -share)


def _once() -> None:
    """Under create_graph=True an error: gradients taken by hand have no graph."""
    if torch.is_grad_enabled():
        raise RuntimeError("isda_loss differentiates once; use isda_logits with F.cross_entropy")


class _Loss(torch.autograd.Function):
    """A loss that takes its gradients on the way forward: ``ctx.gradients``, one for each input."""

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor | None, ...]:
        """The gradients, times that of what follows."""
        _once()
        return tuple(None if gradient is None else slope * gradient for gradient in ctx.gradients)


class _FullLoss(_Loss):
    """sum_i share_i CE(z_i, y_i) for full covariances; gradients are taken while D Sigma is in the cache."""

    @staticmethod
    def forward(
        ctx: Any,
        features: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        covariance: Tensor,
        target: Tensor,
        strength: float | Tensor,
        share: Tensor,
    ) -> Tensor:
        """One product D Sigma for each class of the batch."""
        half, total = 0.5 * strength, weight.new_zeros(())
        logits, for_weight = F.linear(features, weight, bias), torch.zeros_like(weight)
        for_covariance = torch.zeros_like(covariance) if ctx.needs_input_grad[3] else None
        for classes, samples, index in _chunks(target, weight):
            difference = weight - _take(weight, classes)[:, None]  # D, (k, C, A)
            product = difference @ _take(covariance, classes)  # D Sigma
            forms = (product * difference).sum(2)  # q
            augmented = _take(logits, samples) + half * forms.index_select(0, index)
            loss, slope = _cross_entropy(augmented, _take(target, samples), _take(share, samples))
            total += loss
            logits[samples] = slope  # from here on d loss / d z
            slope = half * torch.zeros_like(forms).index_add_(0, index, slope)  # d loss / d q
            if for_covariance is not None:
                for_covariance[classes] = difference.mT @ (slope[:, :, None] * difference)
            product *= 2 * slope[:, :, None]  # dq_j = 2 (D Sigma)_j (dw_j - dw_y)
            for_weight += product.sum(0)
            for_weight[classes] -= product.sum(1)
        for_weight.addmm_(logits.T, features)
        for_bias = None if bias is None else logits.sum(0)
        ctx.gradients = logits @ weight, for_weight, for_bias, for_covariance, None, None, None
        return total


class _DiagonalLoss(_Loss):
    """The same for diagonal covariances, from the features: see diagonal_logits."""

    @staticmethod
    def forward(
        ctx: Any,
        features: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        covariance: Tensor,
        target: Tensor,
        strength: float | Tensor,
        share: Tensor,
    ) -> Tensor:
        """Five products, of which a plain linear layer has three."""
        centred = weight - weight.mean(0)
        scaled = strength * covariance.index_select(0, target)
        mixed = features - scaled * centred.index_select(0, target)
        logits = F.linear(mixed, centred, bias).addmm_(scaled, centred.square().T, alpha=0.5)
        loss, slope = _cross_entropy(logits, target, share)
        for_features = slope @ centred  # = slope @ weight: a row of slope sums to 0
        for_weight = (slope.T @ mixed).addcmul_(centred, slope.T @ scaled)
        for_weight.index_add_(0, target, scaled.mul_(for_features), alpha=-1)  # through the row of the own class
        for_bias = None if bias is None else slope.sum(0)
        ctx.gradients = for_features, for_weight, for_bias, None, None, None, None
        return loss


class _CapturedLogits(torch.autograd.Function):
    """isda_logits of full symmetric covariances, constants, through all classes at once.

    Where nothing can be chosen by value and every kernel costs, in a captured step: thirteen beside cross-entropy's
    own, of which autograd makes twice as many. Differentiable once, as _Loss is.
    """

    @staticmethod
    def forward(
        ctx: Any,
        features: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        covariance: Tensor,
        target: Tensor,
        strength: float | Tensor,
    ) -> Tensor:
        """D Sigma is kept, so that the covariance may change before the way back."""
        difference = weight - weight[:, None]  # D, (C, C, A)
        product = difference @ covariance  # D Sigma
        own = (product * difference).sum(2).index_select(0, target)  # q of each sample's class
        scale = strength if isinstance(strength, Tensor) else None
        ctx.save_for_backward(features, weight, target, product, scale)
        ctx.strength, ctx.bias = strength, bias is not None
        logits = F.linear(features, weight, bias)
        if isinstance(strength, Tensor) and strength.device == own.device:
            return logits.addcmul_(own, strength, value=0.5)
        return logits.add_(own * strength, alpha=0.5)

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor | None, ...]:
        """From d loss / d z."""
        _once()
        features, weight, target, product, scale = ctx.saved_tensors
        with torch.autocast(slope.device.type, enabled=False):
            scale = ctx.strength if scale is None else scale
            for_forms = slope.new_zeros(len(weight), len(weight)).index_add_(0, target, slope) * scale
            product = product * for_forms[:, :, None]  # half of dq_j = 2 (D Sigma)_j (dw_j - dw_y) is in the strength
            for_weight = torch.addmm(product.sum(0) - product.sum(1), slope.T, features)
            return slope @ weight, for_weight, slope.sum(0) if ctx.bias else None, None, None, None


def _all_fit(covariance: Tensor, weight: Tensor, target: Tensor) -> bool:
    """Whether a full covariance without a gradient is to be taken for all classes at once: they fit, and are few."""
    full = covariance.ndim == 3 and not covariance.requires_grad
    return full and len(weight) <= min(_chunk(weight), len(target))


def _chunks(target: Tensor, weight: Tensor) -> Iterator[tuple[Any, Any, Tensor]]:
    """Classes, the samples of these classes, and the place of each sample's class among them, a chunk at a time.

    A chunk is so small that its D Sigma stays in a CPU's cache; a GPU wants larger ones.
    """
    size = _chunk(weight)
    if size >= len(weight):
        yield slice(None), slice(None), target
        return
    target, order = target.sort()
    present, index, counts = target.unique_consecutive(return_inverse=True, return_counts=True)
    ends, numbers = [0, *counts.cumsum(0).tolist()], present.tolist()
    for first in range(0, len(numbers), size):
        last = min(first + size, len(numbers))
        span = slice(numbers[first], numbers[last - 1] + 1)  # where no class is missing: then nothing is copied
        classes = span if span.stop - span.start == last - first else present[first:last]
        samples = slice(ends[first], ends[last])
        yield classes, order[samples], index[samples] - first


def _chunk(weight: Tensor) -> int:
    """The number of classes in a chunk."""
    C, A = weight.shape
    return max(1, (_CHUNK_GPU if weight.is_cuda else _CHUNK) // (A * (A + 2 * C)))


_CHUNK, _CHUNK_GPU = 2**20, 2**26  # numbers of Sigma, D and D Sigma held at once


def _take(x: Tensor, rows: slice | Tensor) -> Tensor:
    """Rows of x: a view for a slice, else index_select, several times faster than x[rows] on a CPU."""
    return x[rows] if isinstance(rows, slice) else x.index_select(0, rows)


def control_covariance(
    covariance: Float[Tensor, "C A A"],
    kind: Control,
    count: Float[Tensor, " C"] | None = None,
    rotation: Float[Tensor, "A A"] | None = None,
) -> Float[Tensor, "C A A"] | Float[Tensor, "C A"]:
    r"""What to hold class covariances against: others, of equal trace in each class, so of equally long perturbations.

    "identity": $\frac1A \mathrm{tr}(\Sigma_c) I$, every direction alike. "diagonal": the diagonal of $\Sigma_c$.
    "shared": the mean of all classes weighted by ``count``, scaled to the trace of each. "random":
    $R \Sigma_c R^\top$, the same spectrum along other directions, with the orthogonal matrix ``rotation``. (C, A) where
    the result is diagonal.

    Raises ValueError for another kind, a covariance that is not (C, A, A), or "shared" and "random" without theirs.
    """
    if kind not in CONTROLS:
        raise ValueError(f"kind must be one of {', '.join(CONTROLS)}, got {kind!r}")
    if covariance.ndim != 3 or covariance.shape[1] != covariance.shape[2]:
        raise ValueError(f"covariance must be (C, A, A), got {tuple(covariance.shape)}")
    variance = covariance.diagonal(dim1=1, dim2=2)
    if kind == "diagonal":
        return variance.clone()
    if kind == "identity":
        return variance.mean(1, keepdim=True).expand_as(variance).clone()
    if kind == "random":
        if rotation is None or rotation.shape != covariance.shape[1:]:
            raise ValueError(f"rotation must be (A, A) = {tuple(covariance.shape[1:])} for 'random'")
        return rotation @ covariance @ rotation.T
    if count is None or count.shape != covariance.shape[:1]:
        raise ValueError(f"count must be (C,) = ({len(covariance)},) for 'shared'")
    shared = torch.einsum("c,cab->ab", (count / count.sum().clamp_min(1)).to(covariance.dtype), covariance)
    return variance.sum(1)[:, None, None] / shared.trace().clamp_min(1e-30) * shared


class ISDA(Objective):
    r"""Cross-entropy under class-wise Gaussian augmentation of the features, eq. (12).

    network: gives ``features(images)`` (N, A) and has ``head``, a Linear from A to C (room ``networks``).
    strength: $\lambda_0$; at progress $t/T$ the strength is $\frac tT \lambda_0$. To be chosen on
        validation; the papers' values are 0.25 or 0.5 with full covariances on CIFAR, and with diagonal ones on
        ImageNet 7.5, 5 or 1, by network: other data, so the two forms are not to be compared by them.
    covariance, rank, decay: see :class:`semaug.moments.ClassMoments`.
    control: augment along another covariance of equal trace than the class's: see :func:`control_covariance`; the
        rotation of "random" is drawn here, from the global generator.

    One step: the batch's features enter the statistics, detached; then the loss is taken with them. The covariance is
    a constant there; the weights of the head have gradients through the quadratic form as well.
    """

    static = True
    network: Any
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
        check_strength(strength)
        head = linear_head(network)
        if control is not None and (control not in CONTROLS or covariance != "full"):
            raise ValueError(
                f"control must be None, or with covariance='full' one of {', '.join(CONTROLS)}; "
                f"got {control!r} with {covariance!r}"
            )
        settings = {"covariance": covariance, "rank": rank, "decay": decay, "control": control}
        super().__init__(network, strength=strength, **settings)
        self.strength, self.control = strength, control
        self.moments = ClassMoments(head.out_features, head.in_features, covariance, rank, decay)
        if control == "random":
            normal = torch.randn(head.in_features, head.in_features)
            self.register_buffer("rotation", torch.linalg.qr(normal).Q)

    def phase(self, progress: float) -> str | None:
        """One, but for the factored form, whose update goes through the classes of the batch."""
        return None if self.moments.form == "factored" else "all"

    def forward(self, images: Tensor, target: Tensor, step: Step) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss (12) of a batch, after its features entered the moments; logs the strength.

        Raises ValueError or TypeError for a target that is not class numbers in [0, C) and for features that are not
        finite, before anything changes: one NaN would stay in the moments for ever. On a GPU this look costs a wait
        for the device; it is left out where values may not be looked at, as in :func:`isda_loss`.
        """
        if target.ndim != 1:
            raise ValueError(f"target must be class numbers (N,), ISDA takes no soft ones; got {tuple(target.shape)}")
        network = self.network
        features = network.features(images)
        check_features(features, target, *self.moments.shape)
        if self.training:
            self.moments._update(features.detach(), target)
        covariance = self.moments.covariance
        if self.control is not None:
            rotation = self.rotation if self.control == "random" else None
            with torch.autocast(features.device.type, enabled=False):
                covariance = control_covariance(cast(Tensor, covariance), self.control, self.moments.count, rotation)
        strength = step.progress * self.strength
        loss = _loss(features, target, network.head.weight, network.head.bias, covariance, strength)
        return loss, {"strength": strength.detach()}
