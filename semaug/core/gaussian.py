r"""Cross-entropy under Gaussian features: sampled, and bounded in closed form.

A classifier with weight rows $w_j$ and biases $b_j$ sees the feature $\tilde a \sim \mathcal N(a, \lambda\Sigma)$ in
place of $a$. Sampling it $M$ times gives the explicit loss

$$\mathcal L_M = \frac1N \sum_i \frac1M \sum_{k=1}^M
  -\log\frac{e^{w_{y_i}^\top \tilde a_i^k + b_{y_i}}}{\sum_j e^{w_j^\top \tilde a_i^k + b_j}}. \tag{1}$$

As $M \to \infty$ it becomes an expectation. Jensen's inequality, $\mathbb E \log X \le \log \mathbb E X$, moves the
expectation inside, where the moment-generating function $\mathbb E\, e^X = e^{m + s^2/2}$ of
$X \sim \mathcal N(m, s^2)$ takes it:

$$\mathcal L_\infty \le \overline{\mathcal L}_\infty = \frac1N \sum_i
  \log \sum_j e^{(w_j - w_{y_i})^\top a_i + (b_j - b_{y_i})
  + \frac\lambda2 (w_j - w_{y_i})^\top \Sigma_{y_i} (w_j - w_{y_i})}. \tag{2}$$

So the bound is a plain cross-entropy: every logit $j \ne y_i$ gains $\frac\lambda2$ times a quadratic form, and that
of $j = y_i$ gains nothing. The bound is loose where $\lambda w^\top\Sigma w$ is large.

:func:`sampled_cross_entropy` is (1). :func:`gaussian_cross_entropy` is (2) where every sample has a variance of its
own along each axis, as in G-VAE; :func:`diagonal_logits` are its logits. Module ``semaug.methods.isda`` has (2) with a
covariance for each class.

Wang et al., "Implicit Semantic Data Augmentation for Deep Networks", NeurIPS 2019, https://arxiv.org/abs/1909.12220;
TPAMI version: https://arxiv.org/abs/2007.10538.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from semaug._checks import (
    check_batch,
    check_choice,
    check_count,
    check_covariance,
    check_device,
    check_finite,
    check_result,
    check_shape,
    check_strength,
)
from semaug.core.tensors import REDUCTIONS, Covariance, Factored, Reduction, at_least_float32

_CHUNK = 2**22  # numbers in the largest tensor of one chunk of samples: 16 MB


def sampled_cross_entropy(
    features: Float[Tensor, "N A"],
    covariance: Covariance,
    target: Int64[Tensor, " N"],
    weight: Float[Tensor, "C A"],
    bias: Float[Tensor, " C"] | None = None,
    strength: float = 1.0,
    samples: int = 1,
    generator: torch.Generator | None = None,
    reduction: Reduction = "mean",
) -> Float[Tensor, ""] | Float[Tensor, " N"]:
    r"""The explicit loss (1): every feature is augmented $M$ times by $\mathcal N(0, \lambda\Sigma_{y_i})$.

    A chunk of samples is drawn, and drawn again on the backward pass, so that memory does not grow with ``samples``.

    Args:
        features: (N, A).
        covariance: per class, (C, A, A), (C, A) for a diagonal one, or Factored; positive semi-definite, of any rank.
            It is a constant: gradients reach the features, the weight and the bias.
        target: (N,) int64 class numbers.
        weight, bias: the linear head, (C, A) and (C,).
        strength: $\lambda \ge 0$.
        samples: $M$.
        generator: seeds the draws, on the features' device; None takes the global one.
        reduction: "mean", "sum" or "none", over the batch.

    Returns:
        The loss in nats, 0-d or (N,), in float32 at least, also under autocast.

    Raises:
        ValueError, TypeError: for arguments that do not fit each other, a target outside [0, C), values that are not
            finite, a loss that overflows, and a covariance that is not symmetric or has a negative eigenvalue beyond
            rounding.
    """
    check_batch(features, target, weight, bias)
    check_covariance(covariance, weight)
    strength = float(check_strength(strength))
    samples = check_count("samples", samples)
    check_choice("reduction", reduction, REDUCTIONS)
    if generator is not None and generator.device.type != features.device.type:
        raise ValueError(f"generator: got one on {generator.device}; takes one on {features.device}, as the features")

    with torch.autocast(features.device.type, enabled=False):
        weight = at_least_float32(weight)
        features, bias = features.to(weight.dtype), None if bias is None else bias.to(weight.dtype)
        present, index = target.unique(return_inverse=True)
        roots = [root.to(weight.dtype) for root in _roots(covariance, present)]

        def chunk(features: Tensor, weight: Tensor, bias: Tensor | None, count: int, seed: int) -> Tensor:
            source = torch.Generator(features.device).manual_seed(seed)
            noise = torch.zeros(())
            for root in roots:  # one (U, A, r) each, or (U, A) for a diagonal: independent parts of the covariance
                shape = (count, len(features), root.shape[-1])
                normal = torch.randn(shape, generator=source, dtype=weight.dtype, device=features.device)
                noise = noise + (normal * root[index] if root.ndim == 2 else _by_class(normal, root, index))
            logits = F.linear(features + math.sqrt(strength) * noise, weight, bias)
            losses = F.cross_entropy(logits.flatten(0, 1), target.repeat(count), reduction="none")
            return losses.view(count, -1).sum(0)

        total = torch.zeros(())
        size = max(1, _CHUNK // (len(features) * max(weight.shape)))
        for start in range(0, samples, size):
            seed = int(torch.empty((), dtype=torch.int64, device=features.device).random_(generator=generator))
            arguments = (features, weight, bias, min(size, samples - start), seed)
            total = total + checkpoint(chunk, *arguments, use_reentrant=False, preserve_rng_state=False)
        losses = check_result(total / samples, "features, covariance, weight, strength")
    return losses if reduction == "none" else losses.mean() if reduction == "mean" else losses.sum()


def _roots(covariance: Covariance, present: Tensor) -> list[Tensor]:
    """Matrices (U, A, r), or scales (U, A), whose independent normal draws add up to the covariance of each class."""
    parts = covariance if isinstance(covariance, Factored) else (covariance,)
    chosen = [part.detach()[present] for part in parts]
    for part in chosen:
        check_finite("covariance", part)
    if isinstance(covariance, Factored):
        return [chosen[0], _scale(chosen[1])]
    if covariance.ndim == 2:
        return [_scale(chosen[0])]
    values, vectors = torch.linalg.eigh(chosen[0].double())  # eigh, not Cholesky: a class of few samples has low rank
    rounding = max(1.0, 4e4 * torch.finfo(chosen[0].dtype).eps)  # half precision leaves more than float32
    return [vectors * _scale(values, rounding * values.abs().amax(1, keepdim=True))[:, None]]


def _scale(variance: Tensor, largest: Tensor | float = 1.0) -> Tensor:
    """Square roots; a negative variance is rounding up to 1e-4 of the largest (a float32 covariance), else an error."""
    if bool((variance < -1e-4 * largest).any()):
        raise ValueError(
            f"covariance: got an eigenvalue {variance.min():.3g}; takes matrices that are positive semi-definite"
        )
    return variance.clamp_min(0).sqrt()


def _by_class(normal: Tensor, root: Tensor, index: Tensor) -> Tensor:
    """normal (k, N, r) times the root (A, r) of each sample's class: (k, N, A)."""
    noise = normal.new_empty(*normal.shape[:2], root.shape[1])
    for number, matrix in enumerate(root):
        rows = (index == number).nonzero().squeeze(1)
        noise[:, rows] = normal[:, rows] @ matrix.T
    return noise


def gaussian_cross_entropy(
    mean: Float[Tensor, "N A"],
    log_variance: Float[Tensor, "N A"],
    target: Int64[Tensor, " N"],
    weight: Float[Tensor, "C A"],
    bias: Float[Tensor, " C"] | None = None,
    strength: float | Float[Tensor, ""] = 1.0,
    reduction: Reduction = "mean",
) -> Float[Tensor, ""] | Float[Tensor, " N"]:
    r"""The bound (2) where every sample has a diagonal covariance of its own, $\mathrm{diag}(e^{\text{log variance}})$.

    Args:
        mean: (N, A), the features.
        log_variance: (N, A), the natural logarithm of their variances.
        target: (N,) int64 class numbers.
        weight, bias: the linear head, (C, A) and (C,).
        strength: $\lambda \ge 0$; 0 gives the cross-entropy at the mean.
        reduction: "mean", "sum" or "none", over the batch.

    Returns:
        The loss in nats, 0-d or (N,), in float32 at least, also under autocast.

    Raises:
        ValueError, TypeError: for arguments that do not fit each other, a target outside [0, C), values that are not
            finite, and a loss that overflows, as for a log variance of 89 in float32.
    """
    check_batch(mean, target, weight, bias, name="mean")
    strength = check_strength(strength)
    check_choice("reduction", reduction, REDUCTIONS)
    check_shape("log_variance", log_variance, mean.shape, ", as mean")
    check_device("log_variance", log_variance, mean, "mean")
    check_finite("log_variance", log_variance)
    with torch.autocast(mean.device.type, enabled=False):
        weight, variance = at_least_float32(weight), at_least_float32(log_variance).exp()
        bias = None if bias is None else bias.to(weight.dtype)
        mean, variance = mean.to(weight.dtype), variance.to(weight.dtype)
        logits = diagonal_logits(mean, variance, target, weight, bias, strength, relative=True)
        loss = F.cross_entropy(logits, target, reduction=reduction)
    return check_result(loss, "mean, log_variance, weight, strength")


def diagonal_logits(
    features: Float[Tensor, "N A"],
    variance: Float[Tensor, "N A"],
    target: Int64[Tensor, " N"],
    weight: Float[Tensor, "C A"],
    bias: Float[Tensor, " C"] | None,
    strength: float | Float[Tensor, ""],
    relative: bool = False,
) -> Float[Tensor, "N C"]:
    r"""The logits of the bound (2) for diagonal covariances: sample $i$ has the variances $v_i$.

    The quadratic form $\sum_a v_{ia} (w_{ja} - w_{y_i a})^2$ is multiplied out. Its mixed term is linear in $w_j$ and
    joins the features, so that two products of (N, A) by (A, C) give all logits,
    $z_{ij} = (a_i - \lambda v_i w_{y_i})^\top w_j + b_j + \frac\lambda2 v_i^\top (w_j^2 + w_{y_i}^2)$.
    The mean row of W is subtracted first, which keeps float32 accurate: the form depends on differences of rows only.

    Args:
        features, variance: (N, A).
        target: (N,) int64 class numbers.
        weight, bias: the linear head, (C, A) and (C,).
        strength: $\lambda$.
        relative: leave out what all logits of a sample have in common, as a softmax does.

    Returns:
        The logits (N, C), differentiable any number of times.
    """
    centre = weight.detach().mean(0)  # constant for every derivative, since the logits do not depend on it
    centred = weight - centre
    own = centred.index_select(0, target)
    scaled = strength * variance
    mixed = scaled * own
    logits = F.linear(features - mixed, centred, bias) + 0.5 * (scaled @ centred.square().T)
    return logits if relative else logits + (features @ centre + 0.5 * (mixed * own).sum(1))[:, None]


def kl_standard_normal(mean: Float[Tensor, "N K"], log_variance: Float[Tensor, "N K"]) -> Float[Tensor, " N"]:
    r"""Kullback-Leibler divergence from the standard normal, summed over the latent axis.

    $\mathrm{KL}(\mathcal N(\mu, \mathrm{diag}\,\sigma^2)\,\|\,\mathcal N(0, I))
    = \frac12\sum_k (\sigma_k^2 - 1 - \log\sigma_k^2 + \mu_k^2)$.

    Args:
        mean: $\mu$, (N, K).
        log_variance: $\log\sigma^2$, (N, K).

    Returns:
        The divergence of each sample in nats, (N,).

    Raises:
        ValueError: where the two differ in shape, for values that are not finite, and where the divergence overflows.
    """
    if mean.ndim != 2 or mean.shape != log_variance.shape:
        got = f"{tuple(mean.shape)} and {tuple(log_variance.shape)}"
        raise ValueError(f"mean and log_variance: got shapes {got}; takes (N, K) for both")
    check_finite("mean", mean)
    check_finite("log_variance", log_variance)
    divergence = 0.5 * (log_variance.expm1() - log_variance + mean.square()).sum(1)  # expm1: exact near the prior
    return check_result(divergence, "mean, log_variance")
