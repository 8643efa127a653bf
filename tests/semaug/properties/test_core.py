"""semaug.core on generated input."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from torch import Tensor

from generated import DATA, Draw, examples, holds, same, wide
from semaug.core import metrics
from semaug.core.gaussian import diagonal_logits, gaussian_cross_entropy, kl_standard_normal, sampled_cross_entropy
from semaug.core.moments import ClassMoments
from semaug.core.pixels import crop_flip, cutout
from semaug.core.tensors import Factored


def cross_entropy(logits: Tensor, target: int) -> Tensor:
    largest = logits.max()
    return largest + (logits - largest).exp().sum().log() - logits[target]


def reduced(losses: Tensor, reduction: str) -> Tensor:
    return {"none": losses, "sum": losses.sum(), "mean": losses.mean()}[reduction]


# -- bounds under Gaussian features ------------------------------------------------------------------------------------


def bounded(mean, log_variance, target, weight, bias, strength, reduction):
    losses = []
    for a, v, y in zip(mean, log_variance.exp(), target.tolist(), strict=True):
        z = [
            weight[j] @ a + bias[j] + strength / 2 * (v * (weight[j] - weight[y]) ** 2).sum() for j in range(len(bias))
        ]
        losses.append(cross_entropy(torch.stack(z), y))
    return reduced(torch.stack(losses) if losses else mean.new_zeros(0), reduction)


@examples
@given(DATA)
def test_gaussian_cross_entropy(data):
    draw = Draw(data)
    N, C, A = draw.size(low=0), draw.size(), draw.size()
    arguments = {
        "mean": draw.normal(N, A),
        "log_variance": draw.normal(N, A),
        "target": draw.whole(C, N),
        "weight": draw.normal(C, A),
        "bias": draw.normal(C),
        "strength": draw.number(0, 4),
        "reduction": draw.one_of(("mean", "sum", "none")),
    }
    holds(draw, gaussian_cross_entropy, bounded, arguments, empty=N == 0)


@examples
@given(DATA)
def test_diagonal_logits(data):
    draw = Draw(data, (torch.float32, torch.float64))
    N, C, A = draw.size(), draw.size(), draw.size()
    arguments = {
        "features": draw.normal(N, A),
        "variance": draw.uniform(N, A, high=4),
        "target": draw.whole(C, N),
        "weight": draw.normal(C, A),
        "bias": draw.normal(C),
        "strength": draw.number(0, 4),
    }

    def definition(features, variance, target, weight, bias, strength):
        form = (variance[:, None] * (weight - weight[target][:, None]) ** 2).sum(2)
        return features @ weight.T + bias + strength / 2 * form

    holds(draw, diagonal_logits, definition, arguments, damage=())


@examples
@given(DATA)
def test_kl_standard_normal(data):
    draw = Draw(data, (torch.float32, torch.float64))
    N, K = draw.size(low=0), draw.size()
    arguments = {"mean": draw.normal(N, K), "log_variance": draw.normal(N, K, scale=3)}

    def definition(mean, log_variance):
        wanted = mean.new_zeros(N)
        for n in range(N):
            for m, v in zip(mean[n], log_variance[n].exp(), strict=True):
                wanted[n] += 0.5 * (v - 1 - v.log() + m**2)
        return wanted

    holds(draw, kl_standard_normal, definition, arguments)


@examples
@given(DATA)
def test_sampled_cross_entropy_without_spread_is_the_cross_entropy(data):
    draw = Draw(data)
    N, C, A = draw.size(low=0), draw.size(), draw.size()
    form = draw.one_of(("full", "diagonal", "factored"))
    covariance = {
        "full": lambda: draw.covariances(C, A),
        "diagonal": lambda: draw.uniform(C, A),
        "factored": lambda: Factored(draw.normal(C, A, 2), draw.uniform(C, A)),
    }[form]()
    arguments = {
        "features": draw.normal(N, A),
        "covariance": covariance,
        "target": draw.whole(C, N),
        "weight": draw.normal(C, A),
        "bias": draw.normal(C),
        "samples": draw.size(5),
        "strength": 0.0,
        "reduction": draw.one_of(("mean", "sum", "none")),
    }

    def definition(features, target, weight, bias, reduction, **_):
        zero = torch.full_like(features, -math.inf)
        return bounded(features, zero, target, weight, bias, 0.0, reduction)

    holds(draw, sampled_cross_entropy, definition, arguments, empty=N == 0)
    if N:
        seeds = (torch.Generator().manual_seed(3) for _ in range(2))
        one, two = (sampled_cross_entropy(**{**arguments, "strength": 1.0, "generator": seed}) for seed in seeds)
        assert torch.equal(one, two)
        assert bool((one >= 0).all())


# -- moments -----------------------------------------------------------------------------------------------------------


def pooled(x: Tensor, target: Tensor, weight: Tensor, C: int) -> tuple[Tensor, Tensor, Tensor]:
    """Count, mean and covariance of every class of weighted rows."""
    A = x.shape[1]
    count, mean, covariance = torch.zeros(C).double(), torch.zeros(C, A).double(), torch.zeros(C, A, A).double()
    for c in range(C):
        rows = [i for i in range(len(x)) if int(target[i]) == c]
        count[c] = sum(weight[i] for i in rows) if rows else 0.0
        if rows:
            mean[c] = sum(weight[i] * x[i] for i in rows) / count[c]
            covariance[c] = sum(weight[i] * torch.outer(x[i] - mean[c], x[i] - mean[c]) for i in rows) / count[c]
    return count, mean, covariance


def state(moments: ClassMoments) -> list[Tensor]:
    return [moments.count, moments.mean, *(moments.covariance if moments.form == "factored" else [moments.covariance])]


def full(moments: ClassMoments) -> Tensor:
    form, covariance = moments.form, moments.covariance
    if form == "factored":
        return covariance.factor.double() @ covariance.factor.double().mT + covariance.diagonal.double().diag_embed()
    return covariance.double().diag_embed() if form == "diagonal" else covariance.double()


def compare(moments: ClassMoments, count: Tensor, mean: Tensor, covariance: Tensor, exact: bool = True) -> None:
    """Of a factored covariance of lower rank the variances along the axes alone are exact."""
    got = full(moments).float()
    if moments.form == "diagonal" or not exact or moments.rank not in (None, moments.shape[1]):
        got, covariance = (each.diagonal(dim1=1, dim2=2) for each in (got, covariance))
    same(moments.count, count)
    same(moments.mean, mean)
    same(got, covariance, tolerance=1e-3)


@examples
@given(DATA)
@pytest.mark.parametrize("form", ["full", "diagonal", "factored"])
def test_moments_are_those_of_all_features_however_they_came(form, data):
    draw = Draw(data)
    C, A, decay = draw.size(4), draw.size(5), draw.one_of((None, 1.0, 0.5))
    rank = draw.one_of((A, draw.size(A))) if form == "factored" else None
    moments = ClassMoments(C, A, form, rank, decay)
    shift = draw.one_of((0.0, 30.0))
    seen, labels, weights = [], [], []
    for _ in range(draw.size(3)):
        N = draw.size(6, low=0)
        arguments, kind = draw.damaged({"features": draw.normal(N, A) + shift, "target": draw.whole(C, N)})
        before = [each.clone() for each in state(moments)]
        try:
            moments.update(**arguments)
        except ValueError as error:
            message = str(error)
            assert kind or N == 0
            assert "features: got" in message
            assert all(map(torch.equal, before, state(moments)))
            continue
        assert kind in ("", "huge")
        if kind:  # a float16 is never too large
            return
        weights = [weight * (decay or 1.0) for weight in weights] + [1.0] * N
        seen.append(arguments["features"].double())
        labels.append(arguments["target"])
    if seen:
        compare(moments, *pooled(torch.cat(seen), torch.cat(labels), torch.tensor(weights).double(), C))


@examples
@given(DATA)
@pytest.mark.parametrize("form", ["full", "diagonal", "factored"])
def test_merged_moments_are_those_of_all_features(form, data):
    draw = Draw(data, (torch.float32,))
    C, A = draw.size(4), draw.size(5)
    parts = [(draw.normal(draw.size(9), A) + 3 * k, k) for k in range(2)]
    parts = [(x, draw.whole(C, len(x))) for x, _ in parts]
    ranks = [draw.one_of((A, draw.size(A))) if form == "factored" else None for _ in parts]
    moments = [ClassMoments(C, A, form, rank) for rank in ranks]
    for each, part in zip(moments, parts, strict=True):
        each.update(*part)
    if draw.one_of((True, False)):  # nothing of one side
        moments[1], parts = ClassMoments(C, A, form, ranks[1]), parts[:1]
    moments[0].merge(moments[1])
    x, target = torch.cat([x for x, _ in parts]).double(), torch.cat([y for _, y in parts])
    compare(moments[0], *pooled(x, target, torch.ones(len(x)).double(), C), exact=None in ranks or ranks == [A, A])


# -- pixels ------------------------------------------------------------------------------------------------------------


@examples
@given(DATA)
def test_cutout(data):
    draw = Draw(data)
    N, channels, H, W = draw.size(4, low=0), draw.size(4), draw.size(), draw.size()
    far = draw.one_of((10, 10**12))
    arguments = {
        "images": draw.bytes(N, channels, H, W) if draw.one_of((True, False)) else draw.normal(N, channels, H, W),
        "cy": draw.whole(far, N, low=-far),
        "cx": draw.whole(far, N, low=-far),
        "size": draw.one_of((draw.size(9, low=0), (draw.size(9, low=0), draw.size(9, low=0)))),
    }

    def definition(images, cy, cx, size):
        height, width = size if isinstance(size, tuple) else (size, size)
        wanted = images.clone()
        for n in range(N):
            for y in range(H):
                for x in range(W):
                    top, left = int(cy[n]) - height // 2, int(cx[n]) - width // 2
                    if top <= y < top + height and left <= x < left + width:
                        wanted[n, :, y, x] = 0
        return wanted

    holds(draw, cutout, definition, arguments, through=True)


@examples
@given(DATA)
def test_crop_flip(data):
    draw = Draw(data)
    N, channels, H, W = draw.size(4, low=0), draw.size(4), draw.size(), draw.size()
    size = draw.size(H), draw.size(W)
    arguments = {
        "images": draw.bytes(N, channels, H, W) if draw.one_of((True, False)) else draw.normal(N, channels, H, W),
        "top": draw.whole(H - size[0] + 1, N),
        "left": draw.whole(W - size[1] + 1, N),
        "flip": draw.whole(2, N).bool(),
        "size": size,
    }

    def definition(images, top, left, flip, size):
        wanted = images.new_zeros(N, channels, *size)
        for n in range(N):
            y, x = int(top[n]), int(left[n])
            window = images[n, :, y : y + size[0], x : x + size[1]]
            wanted[n] = window.flip(2) if flip[n] else window
        return wanted

    holds(draw, crop_flip, definition, arguments, through=True)


# -- predictions -------------------------------------------------------------------------------------------------------


@examples
@given(DATA)
def test_confusion_and_class_accuracy(data):
    draw = Draw(data)
    N, C = draw.size(low=0), draw.size()
    arguments = {"logits": draw.normal(N, C), "target": draw.whole(C, N)}

    def definition(logits, target):
        counts = torch.zeros(C, C, dtype=torch.int64)
        for row, y in zip(logits.tolist(), target.tolist(), strict=True):
            counts[y, row.index(max(row))] += 1
        return counts

    holds(draw, metrics.confusion, definition, arguments)
    counts = metrics.confusion(**arguments)
    for c, value in enumerate(metrics.class_accuracy(counts).tolist()):
        total = int(counts[c].sum())
        assert value == counts[c, c] / total if total else math.isnan(value)


class Labelled:
    def __init__(self, images: Tensor, target: Tensor) -> None:
        self.images, self.target = images, target

    def __len__(self) -> int:
        return len(self.images)

    def floats(self, index: slice) -> Tensor:
        return self.images[index]


@examples
@given(DATA)
def test_predictions_and_accuracy(data):
    draw = Draw(data)
    N, C, batch_size = draw.size(low=0), draw.size(), draw.size()
    logits, target = draw.normal(N, C), draw.whole(C, N)
    logits = draw.damaged({"predict": logits})[0]["predict"]
    split = Labelled(logits[:, None, None], target)
    try:
        result = metrics.predictions(lambda images: images[:, 0, 0], split, batch_size)
    except ValueError as error:
        message = str(error)
        assert "split: got 0" in message if N == 0 else "predict: got" in message
        assert N == 0 or bool(logits.isnan().any())
        return
    assert torch.equal(result, logits)
    right = sum(row.index(max(row)) == y for row, y in zip(logits.tolist(), target.tolist(), strict=True))
    assert metrics.accuracy(lambda images: images[:, 0, 0], split, batch_size) == right / N


def test_wide_keeps_the_form_of_a_covariance():
    assert isinstance(wide(Factored(torch.ones(1, 2, 1), torch.ones(1, 2))), Factored)
