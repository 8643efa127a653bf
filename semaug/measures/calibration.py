r"""Calibration: whether the confidence of predictions is deserved.

Of $N$ predictions, those whose confidence is in one of $B$ bins give

$$\text{ECE} = \sum_b \frac{n_b}{N} \, |\text{accuracy}_b - \text{confidence}_b|, \qquad
  \text{MCE} = \max_b |\text{accuracy}_b - \text{confidence}_b|.$$

A temperature $T$, chosen on validation images, makes confidences $\mathrm{softmax}(z / T)$ of logits $z$ that deserve
them more; the predictions stay. :func:`temperature` minimises the negative log-likelihood.

C. Guo, G. Pleiss, Y. Sun, K. Q. Weinberger, "On calibration of modern neural networks", ICML 2017, arXiv:1706.04599.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from semaug._checks import check_count, check_features, check_within, require


class Calibration(NamedTuple):
    """Expected and maximal calibration error, and the reliability diagram behind them.

    table: float64, a row for every bin that holds a prediction: its ends (low, high], the predictions in it, their
    accuracy and their mean confidence.
    """

    ece: float
    mce: float
    table: Float[Tensor, "rows 5"]


def calibration(confidence: Float[Tensor, " N"], correct: Bool[Tensor, " N"], bins: int = 15) -> Calibration:
    r"""Calibration of predictions made with a confidence, of which some are correct.

    The bins are $(k/B, (k + 1)/B]$, the first with its lower end, in float64: a confidence of exactly 0.2 is in the
    lower of two bins that meet there, 1 in the last one. Edges in float32, or of numpy.linspace (0.6 + 1e-16), would
    sort it otherwise, and a few samples on an edge can move the error by a third.

    Args:
        confidence: (N,), in [0, 1].
        correct: (N,) bool, whether the prediction is right.
        bins: $B$.

    Raises:
        TypeError: for ``correct`` that is no bool, as class numbers are.
        ValueError: for lengths that differ, no predictions, a confidence outside [0, 1] and bins below 1.
    """
    if confidence.ndim != 1 or confidence.shape != correct.shape or len(confidence) == 0:
        got = f"{tuple(confidence.shape)} and {tuple(correct.shape)}"
        raise ValueError(f"confidence and correct: got shapes {got}; takes (N,) and (N,), at least one")
    require(correct.dtype == torch.bool, "correct", correct.dtype, "torch.bool, predictions == target", TypeError)
    bins = check_count("bins", bins)
    confidence, right = check_within("confidence", confidence).double(), correct.double()
    edges = torch.arange(bins + 1, dtype=torch.float64, device=confidence.device) / bins
    place = torch.bucketize(confidence, edges[1:])  # the first edge that is not below
    count, hits, total = (torch.bincount(place, each, bins) for each in (torch.ones_like(right), right, confidence))
    there = count > 0
    count, hits, total = count[there], hits[there], total[there]
    gap = (hits - total).abs() / count
    table = torch.stack([edges[:-1][there], edges[1:][there], count, hits / count, total / count], 1)
    return Calibration(float((gap * count).sum() / len(confidence)), float(gap.max()), table)


def temperature(logits: Float[Tensor, "N C"], target: Int64[Tensor, " N"]) -> float:
    r"""The temperature $T$ in [0.01, 100] at which the cross-entropy of logits / T is least.

    The cross-entropy is convex in $1 / T$, with the slope $\mathbb E[\sum_j p_j z_j - z_y]$: halving finds its zero.

    Args:
        logits: of images that the network was not trained on, (N, C), finite; divide those of the test images by T.
        target: their classes, (N,) int64.

    Raises:
        ValueError, TypeError: for arguments that are not so.
    """
    if logits.ndim != 2:
        raise ValueError(f"logits: got shape {tuple(logits.shape)}; takes (N, C)")
    check_features(logits, target, logits.shape[1], logits.shape[1], "logits")
    z = logits.detach().double()
    own, (low, high) = z.gather(1, target[:, None]).mean(), (0.01, 100.0)
    for _ in range(60):  # the larger 1 / T, the larger the slope; in 1 / T
        middle = (low * high) ** 0.5
        above = bool(((middle * z).softmax(1) * z).sum(1).mean() > own)
        low, high = (low, middle) if above else (middle, high)
    return 1 / high
