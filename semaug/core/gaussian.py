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
of $j = y_i$ gains nothing. This room holds (1), the form of (2) in which every sample has a variance of its own along
each axis (G-VAE), and what a diagonal covariance makes of the quadratic form; room ``isda`` holds (2) with a
covariance for each class. $\Sigma$ bounds nothing about the true augmentation: the bound is loose where
$\lambda w^\top\Sigma w$ is large.

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

from semaug._checks import check_batch, check_covariance, check_reduction, check_strength
from semaug.core.tensors import Covariance, Factored, Reduction, at_least_float32, tracing


def kl_standard_normal(mean: Float[Tensor, "N K"], log_variance: Float[Tensor, "N K"]) -> Float[Tensor, " N"]:
    r"""Kullback-Leibler divergence from the standard normal, in nats, summed over the latent axis.

    $\mathrm{KL}(\mathcal N(\mu, \mathrm{diag}\,\sigma^2)\,\|\,\mathcal N(0, I))
    = \frac12\sum_k (\sigma_k^2 - 1 - \log\sigma_k^2 + \mu_k^2)$. ``log_variance`` is $\log\sigma^2$. Raises
    ValueError where the two differ in shape.
    """
    if mean.ndim != 2 or mean.shape != log_variance.shape:
        raise ValueError(
            f"mean and log_variance must both be (N, K), got {tuple(mean.shape)} and {tuple(log_variance.shape)}"
        )
    return 0.5 * (log_variance.expm1() - log_variance + mean.square()).sum(1)  # expm1: exact near the prior


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
    joins the features, so that two products of (N, A) by (A, C) do it all,
    $z_{ij} = (a_i - \lambda v_i w_{y_i})^\top w_j + b_j + \frac\lambda2 v_i^\top (w_j^2 + w_{y_i}^2)$.
    That is accurate in float32 once an offset common to all rows of W is taken out of the form, which depends on
    differences only (so the centre is constant for every derivative). ``relative`` leaves out what all logits of a
    sample have in common, as a softmax does.
    """
    centre = weight.detach().mean(0)
    centred = weight - centre
    own = centred.index_select(0, target)
    scaled = strength * variance
    mixed = scaled * own
    logits = F.linear(features - mixed, centred, bias) + 0.5 * (scaled @ centred.square().T)
    return logits if relative else logits + (features @ centre + 0.5 * (mixed * own).sum(1))[:, None]


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

    In nats. ``strength`` is $\lambda \ge 0$; 0 gives the cross-entropy at the mean. Computed in float32 at least,
    also under autocast. Raises ValueError or TypeError for shapes, dtypes or devices that do not fit, a target
    outside [0, C), and mean or log_variance that are not finite.
    """
    check_batch(mean, target, weight, bias, name="mean")
    check_strength(strength)
    check_reduction(reduction)
    if log_variance.shape != mean.shape or log_variance.device != mean.device:
        raise ValueError(
            f"log_variance must have the shape and device of mean, {tuple(mean.shape)} on {mean.device}, "
            f"got {tuple(log_variance.shape)} on {log_variance.device}"
        )
    if not tracing(mean) and not bool(log_variance.isfinite().all()):
        raise ValueError("log_variance has values that are not finite")
    with torch.autocast(mean.device.type, enabled=False):
        weight, variance = at_least_float32(weight), at_least_float32(log_variance).exp()
        bias = None if bias is None else bias.to(weight.dtype)
        mean, variance = mean.to(weight.dtype), variance.to(weight.dtype)
        logits = diagonal_logits(mean, variance, target, weight, bias, strength, relative=True)
        return F.cross_entropy(logits, target, reduction=reduction)


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
    r"""The explicit loss (1): every feature augmented ``samples`` ($M$) times by $\mathcal N(0, \lambda\Sigma_{y_i})$.

    In nats. ``covariance`` is per class, (C, A, A), (C, A) or Factored, positive semi-definite: one of low rank is
    sampled inside its range. Gradients reach features, weight and bias; the covariance is a constant here. A chunk of
    samples is drawn, and on the way back drawn again, from a seed that ``generator`` (on the features' device; None:
    the global one) gave it: memory does not grow with ``samples``.

    Raises ValueError or TypeError as :func:`gaussian_cross_entropy`, and for a covariance that has a negative
    eigenvalue beyond rounding or does not fit (C, A).
    """
    check_batch(features, target, weight, bias)
    check_covariance(covariance, weight)
    check_strength(strength)
    check_reduction(reduction)
    if not isinstance(samples, int) or isinstance(samples, bool) or samples < 1:
        raise ValueError(f"samples must be an integer from 1, got {samples!r}")
    if generator is not None and generator.device.type != features.device.type:
        raise ValueError(f"generator must be on the features' device, {features.device}, got {generator.device}")

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
        losses = total / samples
    return losses if reduction == "none" else losses.mean() if reduction == "mean" else losses.sum()


_CHUNK = 2**22  # numbers in the largest tensor of one chunk of samples: 16 MB


def _roots(covariance: Covariance, present: Tensor) -> list[Tensor]:
    """Matrices (U, A, r), or scales (U, A), whose independent normal draws add up to the covariance of each class."""
    if isinstance(covariance, Factored):
        return [covariance.factor.detach()[present], _scale(covariance.diagonal.detach()[present])]
    chosen = covariance.detach()[present]
    if covariance.ndim == 2:
        return [_scale(chosen)]
    values, vectors = torch.linalg.eigh(chosen.double())  # eigh, not Cholesky: a class of few samples has low rank
    return [vectors * _scale(values, values.abs().amax(1, keepdim=True))[:, None]]


def _scale(variance: Tensor, largest: Tensor | float = 1.0) -> Tensor:
    """Square roots; a negative variance is rounding up to 1e-4 of the largest (a float32 covariance), else an error."""
    if bool((variance < -1e-4 * largest).any()):
        raise ValueError(f"covariance must be positive semi-definite, its least eigenvalue is {variance.min():.3g}")
    return variance.clamp_min(0).sqrt()


def _by_class(normal: Tensor, root: Tensor, index: Tensor) -> Tensor:
    """normal (k, N, r) times the root (A, r) of each sample's class: (k, N, A)."""
    noise = normal.new_empty(*normal.shape[:2], root.shape[1])
    for number, matrix in enumerate(root):
        rows = (index == number).nonzero().squeeze(1)
        noise[:, rows] = normal[:, rows] @ matrix.T
    return noise
