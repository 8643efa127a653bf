"""Oracles: numpy's pooled, biased covariance of everything seen; the released code's golden state; two processes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st

from semaug.moments import ClassMoments

GOLDEN = json.loads((Path(__file__).parent / "golden" / "isda.json").read_text())


def pooled(features, target, classes):
    """count, mean and covariance of each class by numpy, in float64."""
    width = features.shape[1]
    count, mean, covariance = np.zeros(classes), np.zeros((classes, width)), np.zeros((classes, width, width))
    for c in range(classes):
        rows = features.double().numpy()[target.numpy() == c]
        count[c] = len(rows)
        if len(rows):
            mean[c], covariance[c] = rows.mean(0), np.cov(rows.T, bias=True).reshape(width, width)
    return torch.tensor(count), torch.tensor(mean), torch.tensor(covariance)


def assert_state(moments, expected, **tolerance):
    count, mean, covariance = expected
    if moments.form == "diagonal":
        covariance = covariance.diagonal(dim1=1, dim2=2)
    assert torch.equal(moments.count, count)
    torch.testing.assert_close(moments.mean, mean.to(moments.mean.dtype), **tolerance)
    torch.testing.assert_close(moments.covariance, covariance.to(moments.mean.dtype), **tolerance)


FORMS = pytest.mark.parametrize("form", ["full", "diagonal"])


@FORMS
def test_golden(form):
    moments = ClassMoments(GOLDEN["C"], GOLDEN["A"], form).double()
    i, k = torch.arange(GOLDEN["N"], dtype=torch.float64)[:, None], torch.arange(GOLDEN["A"], dtype=torch.float64)
    for t in range(3):
        moments.update((0.1 * i + 0.3 * k + 0.7 * t).sin(), torch.arange(GOLDEN["N"]) % GOLDEN["C"])
    state = GOLDEN["state_after_3"]
    close = {"rtol": 1e-12, "atol": 1e-14}
    torch.testing.assert_close(moments.count, torch.tensor(state["count"], dtype=torch.float64), **close)
    torch.testing.assert_close(moments.mean, torch.tensor(state["mean"], dtype=torch.float64), **close)
    key = "covariance" if form == "full" else "diag_covariance"
    torch.testing.assert_close(moments.covariance, torch.tensor(state[key], dtype=torch.float64), **close)


@given(
    st.sampled_from(["full", "diagonal"]),
    st.integers(1, 5),
    st.integers(1, 5),
    st.lists(st.integers(1, 9), min_size=1, max_size=6),
    st.floats(0.1, 3),
    st.integers(0, 999),
)
def test_any_split_of_the_stream_gives_the_pooled_moments(form, classes, width, sizes, imbalance, seed):
    """Batches of any sizes, classes that are missing, rare or come late, and a mean far from zero."""
    torch.manual_seed(seed)
    share = torch.arange(1, classes + 1).double() ** -imbalance
    target = torch.multinomial(share, sum(sizes), replacement=True)
    features = 100 + torch.randn(sum(sizes), width, dtype=torch.float64) * (1 + target[:, None])
    moments = ClassMoments(classes, width, form).double()
    for x, y in zip(features.split(sizes), target.split(sizes), strict=True):
        moments.update(x, y)
    assert_state(moments, pooled(features, target, classes), rtol=1e-10, atol=1e-10)


@FORMS
def test_float32_keeps_precision_under_an_offset_over_many_steps(form):
    """Features of mean 1000, standard deviation 1: E a^2 - mu^2 in float32 would have no digit left."""
    moments, features, target = ClassMoments(3, 8, form), [], []
    for _ in range(300):
        y = torch.randint(0, 3, (16,))
        x = 1000 + torch.randn(16, 8)
        moments.update(x, y)
        features.append(x), target.append(y)
    expected = pooled(torch.cat(features), torch.cat(target), 3)
    # float32 holds 1000 to 6e-5, so the mean; variances come out to about 300 steps of such roundings, averaged.
    assert_state(moments, expected, rtol=2e-4, atol=2e-4)


@FORMS
def test_every_path_agrees(form):
    """The compiled path (all classes) and the eager one (classes present) are one computation."""
    one, other = ClassMoments(5, 4, form).double(), ClassMoments(5, 4, form).double()
    for seed in range(3):
        torch.manual_seed(seed)
        x, y = torch.randn(7, 4, dtype=torch.float64), torch.randint(0, 4, (7,))
        one._update_all(x, y)
        other._update_present(x, y)
    for mine, theirs in zip(one.buffers(), other.buffers(), strict=True):
        torch.testing.assert_close(mine, theirs)


@FORMS
def test_merge_is_pooling(form):
    x, y = torch.randn(40, 4, dtype=torch.float64), torch.randint(0, 3, (40,))
    one, other = ClassMoments(5, 4, form).double(), ClassMoments(5, 4, form).double()
    one.update(x[:13], y[:13])
    other.update(x[13:], (y[13:] + 1) % 4)
    one.merge(other)
    assert_state(one, pooled(x, torch.cat([y[:13], (y[13:] + 1) % 4]), 5))
    one.merge(ClassMoments(5, 4, form).double())  # nothing seen: nothing changes
    assert_state(one, pooled(x, torch.cat([y[:13], (y[13:] + 1) % 4]), 5))


@FORMS
def test_decay_weights_features_by_age(form):
    decay, batches = 0.7, [(torch.randn(6, 3).double(), torch.randint(0, 2, (6,))) for _ in range(4)]
    moments = ClassMoments(2, 3, form, decay=decay).double()
    for x, y in batches:
        moments.update(x, y)
    for c in range(2):
        rows = torch.cat([x[y == c] for x, y in batches])
        weights = torch.cat(
            [torch.full(((y == c).sum(),), decay ** (3 - t)) for t, (_, y) in enumerate(batches)]
        ).numpy()
        mean = np.average(rows, axis=0, weights=weights)
        covariance = torch.tensor(np.cov(rows.T, aweights=weights, bias=True))
        assert moments.count[c].item() == pytest.approx(weights.sum())
        torch.testing.assert_close(moments.mean[c], torch.tensor(mean))
        expected = covariance if form == "full" else covariance.diagonal()
        torch.testing.assert_close(moments.covariance[c], expected)


@FORMS
def test_half_precision_features_and_autocast_are_taken_in_float32(form):
    x, y = torch.randn(32, 8).bfloat16(), torch.randint(0, 3, (32,))
    plain, cast = ClassMoments(3, 8, form), ClassMoments(3, 8, form)
    plain.update(x.float(), y)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast.update(x, y)
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(plain.buffers(), cast.buffers(), strict=True))
    assert cast.covariance.dtype == cast.mean.dtype == torch.float32


def test_counts_pass_two_to_the_24():
    moments = ClassMoments(1, 1)
    moments.count += 2**24
    moments.update(torch.ones(1, 1), torch.zeros(1, dtype=torch.long))
    assert moments.count.item() == 2**24 + 1


@FORMS
def test_state_dict_and_no_gradient(form):
    moments = ClassMoments(3, 4, form)
    x = torch.randn(5, 4, requires_grad=True)
    moments.update(x, torch.tensor([0, 1, 1, 0, 0]))
    assert not any(buffer.requires_grad for buffer in moments.buffers())
    other = ClassMoments(3, 4, form)
    other.load_state_dict(moments.state_dict())
    assert list(moments.state_dict()) == ["count", "mean", "covariance"]
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(moments.buffers(), other.buffers(), strict=True))


def shares(rank, world, address, folder):
    """One process of two: uneven shares of three batches, some classes seen by one process only."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{address}", rank=rank, world_size=world)
    moments = {form: ClassMoments(4, 3, form).double() for form in ("full", "diagonal")}
    for x, y in batches():
        mine = slice(0, 5) if rank == 0 else slice(5, None)
        for each in moments.values():
            each.update(x[mine], y[mine])
    torch.save({form: each.state_dict() for form, each in moments.items()}, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def batches():
    generator = torch.Generator().manual_seed(5)
    for t in range(3):
        x = torch.randn(12, 3, generator=generator, dtype=torch.float64)
        yield x, torch.tensor([0, 1, 0, 2, 1, 2, 1, 2, 2, 2, 1, 1]) * (t != 1)


def test_two_processes_are_one(tmp_path):
    torch.multiprocessing.spawn(shares, (2, tmp_path / "rendezvous", tmp_path), nprocs=2)
    states = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1)]
    for form in ("full", "diagonal"):
        alone = ClassMoments(4, 3, form).double()
        for x, y in batches():
            alone.update(x, y)
        for key, value in alone.state_dict().items():
            assert torch.equal(states[0][form][key], states[1][form][key])
            torch.testing.assert_close(states[0][form][key], value, rtol=1e-12, atol=1e-14)


BAD = {
    "width": (torch.randn(2, 3), torch.tensor([0, 1]), ValueError, "features must be .* A = 4"),
    "high": (torch.randn(2, 4), torch.tensor([0, 3]), ValueError, r"target must lie in \[0, 3\)"),
    "negative": (torch.randn(2, 4), torch.tensor([0, -1]), ValueError, "from -1"),
    "nan": (torch.full((2, 4), torch.inf), torch.tensor([0, 1]), ValueError, "not finite"),
    "soft": (torch.randn(2, 4), torch.rand(2, 3), TypeError, "int64"),
    "integer": (torch.ones(2, 4, dtype=torch.long), torch.tensor([0, 1]), TypeError, "floating"),
    "empty": (torch.randn(0, 4), torch.zeros(0, dtype=torch.long), ValueError, "N > 0"),
    "device": (torch.randn(2, 4, device="meta"), torch.zeros(2, dtype=torch.long), ValueError, "one device"),
}


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("name", BAD)
def test_bad_batch_leaves_the_state_alone(name):
    x, y, error, message = BAD[name]
    moments = ClassMoments(3, 4)
    moments.update(torch.randn(3, 4), torch.tensor([0, 1, 2]))
    before = [buffer.clone() for buffer in moments.buffers()]
    with pytest.raises(error, match=message):
        moments.update(x, y)
    assert all(torch.equal(now, then) for now, then in zip(moments.buffers(), before, strict=True))


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, 4), "num_classes must be an integer from 1, got 0"),
        ((3, 2.0), "num_features must be an integer"),
        ((3, 4, "banded"), "covariance must be one of full, diagonal"),
        ((3, 4, "full", None, 0.0), r"decay must lie in \(0, 1\]"),
        ((3, 4, "full", None, 1.5), "decay"),
    ],
)
def test_bad_construction(arguments, message):
    with pytest.raises(ValueError, match=message):
        ClassMoments(*arguments)


@pytest.mark.usefixtures("unchecked")
def test_merge_of_other_moments_is_refused():
    for other in (ClassMoments(4, 4), ClassMoments(3, 5), ClassMoments(3, 4, "diagonal")):
        with pytest.raises(ValueError, match="other must be moments of the same"):
            ClassMoments(3, 4).merge(other)
    with pytest.raises(ValueError, match="other is on meta"):
        ClassMoments(3, 4).merge(ClassMoments(3, 4).to("meta"))
