r"""The loss of module ``isda`` with gradients written by hand: faster than the plain line, and tested equal to it.

$q$ belongs to a class, not to a sample: with $D_y = W - 1 w_y^\top$ it is the row sums of $(D_y \Sigma_y) \circ D_y$,
and $\partial q_{yj} / \partial D_{yj} = 2 (D_y \Sigma_y)_j$ needs no second product. So :func:`_full` goes through
the classes of the batch once, takes the loss of their samples and adds up the gradients while $D_y \Sigma_y$ is in
the cache; neither N x C x A nor N x C x C numbers are ever held. At C = 100, A = 640 a step takes a third of the time.

All of it is right for symmetric covariances only, $2 D \Sigma$ in place of $D (\Sigma + \Sigma^\top)$ at half the
price, and differentiable once.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn import functional as F

from semaug.core.tensors import Covariance, Reduction, capturing, refuse_second_order, tracing, with_gradients

Rows = slice | Tensor

Inputs = tuple[Tensor, Tensor, Tensor | None, Tensor]
"""Features, weight, bias and covariance."""

Gradients = tuple[Tensor | None, ...]

_REFUSAL = "isda_loss differentiates once; use isda_logits with F.cross_entropy"

_CHUNK, _CHUNK_GPU = 2**20, 2**26  # numbers of Sigma, D and D Sigma held at once


def covers(
    target: Tensor, weight: Tensor, covariance: Covariance, strength: float | Tensor, reduction: Reduction
) -> bool:
    """Whether :func:`fast_loss` takes these arguments."""
    constant = not (isinstance(strength, Tensor) and strength.requires_grad)
    if not (constant and isinstance(covariance, Tensor) and reduction != "none"):
        return False
    full, plain = covariance.ndim == 3, not covariance.requires_grad
    if capturing(weight):  # through all classes at once, where they fit and most are needed
        return full and plain and len(weight) <= min(_chunk(weight), len(target))
    return not tracing(weight) and (full or plain)


def fast_loss(
    features: Float[Tensor, "N A"],
    target: Int64[Tensor, " N"],
    weight: Float[Tensor, "C A"],
    bias: Float[Tensor, " C"] | None,
    covariance: Tensor,
    strength: float | Float[Tensor, ""],
    reduction: Reduction,
    class_weight: Float[Tensor, " C"] | None,
) -> Float[Tensor, ""]:
    """``isda_loss`` of arguments known to be good, in float32 at least, also under autocast."""
    dtype = torch.promote_types(weight.dtype, torch.float32)
    features, weight, covariance = features.to(dtype), weight.to(dtype), covariance.to(dtype)
    bias, class_weight = (None if each is None else each.to(dtype) for each in (bias, class_weight))
    inputs = features, weight, bias, covariance
    with torch.autocast(features.device.type, enabled=False):
        if capturing(weight):
            if not (isinstance(strength, Tensor) and strength.device == weight.device):
                strength = weight.new_full((), float(strength))
            logits = _CapturedLogits.apply(*inputs, target, strength)
            return F.cross_entropy(logits, target, class_weight, reduction=reduction)
        with torch.no_grad():
            share = torch.ones_like(features[:, 0]) if class_weight is None else class_weight.index_select(0, target)
            share = share / share.sum() if reduction == "mean" else share
            loss, gradients = (_full if covariance.ndim == 3 else _diagonal)(inputs, target, strength, share)
        return with_gradients(loss, inputs, gradients, _REFUSAL)


def _cross_entropy(logits: Tensor, target: Tensor, share: Tensor) -> tuple[Tensor, Tensor]:
    """sum_i share_i CE(z_i, y_i) and its derivative by the logits z."""
    y, share = target[:, None], share[:, None]
    slope = logits.log_softmax(1)
    loss = -(slope.gather(1, y) * share).sum()
    return loss, slope.exp_().mul_(share).scatter_add_(1, y, -share)


def _full(inputs: Inputs, target: Tensor, strength: float | Tensor, share: Tensor) -> tuple[Tensor, Gradients]:
    """sum_i share_i CE(z_i, y_i) and its gradients, with one product D Sigma for each class of the batch."""
    features, weight, bias, covariance = inputs
    half, total = 0.5 * strength, weight.new_zeros(())
    logits, for_weight = F.linear(features, weight, bias), torch.zeros_like(weight)
    for_covariance = torch.zeros_like(covariance) if covariance.requires_grad else None
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
    return total, (logits @ weight, for_weight, None if bias is None else logits.sum(0), for_covariance)


def _diagonal(inputs: Inputs, target: Tensor, strength: float | Tensor, share: Tensor) -> tuple[Tensor, Gradients]:
    """The same for diagonal covariances, which are constants; the logits are those of diagonal_logits.

    Five products, of which a plain linear layer has three.
    """
    features, weight, bias, variance = inputs
    centred = weight - weight.mean(0)
    scaled = strength * variance.index_select(0, target)
    mixed = features - scaled * centred.index_select(0, target)
    logits = F.linear(mixed, centred, bias).addmm_(scaled, centred.square().T, alpha=0.5)
    loss, slope = _cross_entropy(logits, target, share)
    for_features = slope @ centred  # = slope @ weight: a row of slope sums to 0
    for_weight = (slope.T @ mixed).addcmul_(centred, slope.T @ scaled)
    for_weight.index_add_(0, target, scaled.mul_(for_features), alpha=-1)  # through the row of the own class
    return loss, (for_features, for_weight, None if bias is None else slope.sum(0), None)


class _CapturedLogits(torch.autograd.Function):
    """isda_logits of full covariances, which are constants, through all classes at once, for a captured step.

    There no class can be chosen by value, and the number of kernels decides: thirteen beside those of cross-entropy,
    half as many as by autograd.
    """

    @staticmethod
    def forward(
        ctx: Any,
        features: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        covariance: Tensor,
        target: Tensor,
        strength: Tensor,
    ) -> Tensor:
        """D Sigma is saved, so that the covariance may change before the backward pass."""
        difference = weight - weight[:, None]  # D, (C, C, A)
        product = difference @ covariance  # D Sigma
        own = (product * difference).sum(2).index_select(0, target)  # q of each sample's class
        ctx.save_for_backward(features, weight, target, product, strength)
        ctx.bias = bias is not None
        return F.linear(features, weight, bias).addcmul_(own, strength, value=0.5)

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor | None, ...]:
        """From ``slope``, d loss / d z."""
        refuse_second_order(_REFUSAL)
        features, weight, target, product, strength = ctx.saved_tensors
        with torch.autocast(slope.device.type, enabled=False):
            for_forms = slope.new_zeros(len(weight), len(weight)).index_add_(0, target, slope) * strength
            product = product * for_forms[:, :, None]  # half of dq_j = 2 (D Sigma)_j (dw_j - dw_y) is in the strength
            for_weight = torch.addmm(product.sum(0) - product.sum(1), slope.T, features)
            return slope @ weight, for_weight, slope.sum(0) if ctx.bias else None, None, None, None


def _chunks(target: Tensor, weight: Tensor) -> Iterator[tuple[Rows, Rows, Tensor]]:
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


def _take(x: Tensor, rows: Rows) -> Tensor:
    """Rows of x: a view for a slice, else index_select, several times faster than x[rows] on a CPU."""
    return x[rows] if isinstance(rows, slice) else x.index_select(0, rows)
