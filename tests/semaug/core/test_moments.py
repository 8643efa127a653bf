"""Oracles: numpy's pooled, biased covariance of everything seen; the released code's golden state; two processes."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from hypothesis import given, strategies as st
from torch import nn

from semaug import core
from semaug.core.moments import ClassMoments

GOLDEN = json.loads((Path(__file__).parents[2] / "golden" / "isda.json").read_text())


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


def dense(moments):
    if moments.form == "factored":
        return moments.factor @ moments.factor.mT + torch.diag_embed(moments.diagonal)
    return moments.covariance


def make(form, classes, width, decay=None):
    """Moments in float64; factored ones of full rank, which lose nothing."""
    return ClassMoments(classes, width, form, rank=width if form == "factored" else None, decay=decay).double()


def assert_state(moments, expected, **tolerance):
    count, mean, covariance = expected
    if moments.form == "diagonal":
        covariance = covariance.diagonal(dim1=1, dim2=2)
    assert torch.equal(moments.count, count)
    torch.testing.assert_close(moments.mean, mean.to(moments.mean.dtype), **tolerance)
    torch.testing.assert_close(dense(moments), covariance.to(moments.mean.dtype), **tolerance)


FORMS = pytest.mark.parametrize("form", ["full", "diagonal", "factored"])


@FORMS
def test_golden(form):
    moments = make(form, GOLDEN["C"], GOLDEN["A"])
    i, k = torch.arange(GOLDEN["N"], dtype=torch.float64)[:, None], torch.arange(GOLDEN["A"], dtype=torch.float64)
    for t in range(3):
        moments.update((0.1 * i + 0.3 * k + 0.7 * t).sin(), torch.arange(GOLDEN["N"]) % GOLDEN["C"])
    state = GOLDEN["state_after_3"]
    close = {"rtol": 1e-12, "atol": 1e-14}
    torch.testing.assert_close(moments.count, torch.tensor(state["count"], dtype=torch.float64), **close)
    torch.testing.assert_close(moments.mean, torch.tensor(state["mean"], dtype=torch.float64), **close)
    key = "diag_covariance" if form == "diagonal" else "covariance"
    torch.testing.assert_close(dense(moments), torch.tensor(state[key], dtype=torch.float64), **close)


@given(
    st.sampled_from(["full", "diagonal", "factored"]),
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
    moments = make(form, classes, width)
    for x, y in zip(features.split(sizes), target.split(sizes), strict=True):
        moments.update(x, y)
    assert_state(moments, pooled(features, target, classes), rtol=1e-10, atol=1e-10)


@FORMS
def test_float32_keeps_precision_under_an_offset_over_many_steps(form):
    """Features of mean 1000, standard deviation 1: E a^2 - mu^2 in float32 would have no digit left."""
    moments = ClassMoments(3, 8, form, rank=8 if form == "factored" else None)
    features, target = [], []
    for _ in range(300):
        y = torch.randint(0, 3, (16,))
        x = 1000 + torch.randn(16, 8)
        moments.update(x, y)
        features.append(x), target.append(y)
    expected = pooled(torch.cat(features), torch.cat(target), 3)
    # float32 holds 1000 to 6e-5, so the mean; variances come out to about 300 steps of such roundings, averaged.
    assert_state(moments, expected, rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize("width", [1, 4])
@pytest.mark.parametrize("form", ["full", "diagonal"])
def test_every_path_agrees(form, width):
    """The compiled path (all classes) and the eager one (classes present) are one computation."""
    one, other = ClassMoments(5, width, form).double(), ClassMoments(5, width, form).double()
    for seed in range(3):
        torch.manual_seed(seed)
        x, y = torch.randn(7, width, dtype=torch.float64), torch.randint(0, 4, (7,))
        one._update_all(x, y)
        other._update_present(x, y)
    for mine, theirs in zip(one.buffers(), other.buffers(), strict=True):
        torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize("form", ["full", "diagonal"])
def test_what_is_not_finite_stays_in_its_class(form):
    """Where values are not looked at, in a captured step, a feature that overflowed spoils no other class."""
    moments = ClassMoments(3, 2, form)
    moments._update_all(torch.tensor([[1.0, 2.0], [math.nan, 0.0], [3.0, 5.0]]), torch.tensor([0, 1, 2]))
    assert moments.mean[[0, 2]].tolist() == [[1, 2], [3, 5]]
    assert moments.covariance[[0, 2]].abs().sum() == 0


@FORMS
def test_merge_is_pooling(form):
    x, y = torch.randn(40, 4, dtype=torch.float64), torch.randint(0, 3, (40,))
    one, other = make(form, 5, 4), make(form, 5, 4)
    one.update(x[:13], y[:13])
    other.update(x[13:], (y[13:] + 1) % 4)
    one.merge(other)
    assert_state(one, pooled(x, torch.cat([y[:13], (y[13:] + 1) % 4]), 5))
    one.merge(make(form, 5, 4))  # nothing seen: nothing changes
    assert_state(one, pooled(x, torch.cat([y[:13], (y[13:] + 1) % 4]), 5))


@FORMS
def test_decay_weights_features_by_age(form):
    decay, batches = 0.7, [(torch.randn(6, 3).double(), torch.randint(0, 2, (6,))) for _ in range(4)]
    moments = make(form, 2, 3, decay)
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
        expected = covariance.diagonal() if form == "diagonal" else covariance
        torch.testing.assert_close(dense(moments)[c], expected)


@FORMS
def test_half_precision_features_and_autocast_are_taken_in_float32(form):
    x, y = torch.randn(32, 8).bfloat16(), torch.randint(0, 3, (32,))
    plain, cast = (ClassMoments(3, 8, form, rank=3 if form == "factored" else None) for _ in range(2))
    plain.update(x.float(), y)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast.update(x, y)
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(plain.buffers(), cast.buffers(), strict=True))
    assert dense(cast).dtype == cast.mean.dtype == torch.float32


def test_counts_pass_two_to_the_24():
    moments = ClassMoments(1, 1)
    moments.count += 2**24
    moments.update(torch.ones(1, 1), torch.zeros(1, dtype=torch.long))
    assert moments.count.item() == 2**24 + 1


@FORMS
def test_state_dict_and_no_gradient(form):
    moments = ClassMoments(3, 4, form, rank=2 if form == "factored" else None)
    x = torch.randn(5, 4, requires_grad=True)
    moments.update(x, torch.tensor([0, 1, 1, 0, 0]))
    assert not any(buffer.requires_grad for buffer in moments.buffers())
    other = copy.deepcopy(ClassMoments(3, 4, form, rank=2 if form == "factored" else None))
    other.load_state_dict(moments.state_dict())
    names = ["factor", "diagonal"] if form == "factored" else ["covariance"]
    assert list(moments.state_dict()) == ["count", "mean", *names]
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(moments.buffers(), other.buffers(), strict=True))


@FORMS
def test_casts_never_lose_precision(form):
    """bfloat16 or half training of the whole objective leaves the statistics as they are; double() raises them."""
    moments = ClassMoments(3, 4, form, rank=2 if form == "factored" else None)
    moments.update(torch.randn(9, 4), torch.arange(9) % 3)
    before = [buffer.clone() for buffer in moments.buffers()]
    moments.bfloat16().half().float()
    assert moments.count.dtype == torch.float64
    assert all(torch.equal(now, then) for now, then in zip(moments.buffers(), before, strict=True))
    assert all(buffer.dtype == torch.float64 for buffer in moments.double().buffers())


def frequent_directions(rows, rank, batch):
    """The rival of incremental PCA: every cut lowers all kept squared singular values by the first one cut.

    The variances lost go to the diagonal here too, so that the two differ in the factor alone. For one class.
    """
    factor, diagonal, mean, n = (
        torch.zeros(rank, rows.shape[1]),
        torch.zeros(rows.shape[1]),
        torch.zeros(rows.shape[1]),
        0,
    )
    factor, diagonal, mean = factor.double(), diagonal.double(), mean.double()
    for x in rows.split(batch):
        m, new = len(x), x.mean(0)
        jump = (n * m / (n + m)) ** 0.5 * (new - mean)
        stack = torch.cat([factor, x - new, jump[None]])
        _, values, vectors = torch.linalg.svd(stack, full_matrices=False)
        factor = (values[:rank].square() - values[rank].square()).clamp_min(0).sqrt()[:, None] * vectors[:rank]
        diagonal += stack.square().sum(0) - factor.square().sum(0)
        mean, n = mean + m / (n + m) * (new - mean), n + m
    return (factor.T @ factor + torch.diag(diagonal)) / n


@pytest.mark.parametrize("drift", [False, True])
@pytest.mark.parametrize("rank", [8, 16])
def test_factored_is_close_to_the_best_of_its_rank_and_beats_frequent_directions(rank, drift):
    """Spectrum 1/k, 2 samples a step as in 128 samples of 100 classes; with drift, other directions half-way.

    Frobenius error over the norm of the pooled covariance, as measured at rank 8 and 16 (64 features):
                                 no drift    drift
        best of that rank        .149 .096   .218 .154
        incremental PCA          .160 .101   .278 .190
        frequent directions      .522 .308   .617 .376
        variances alone          .877        .798
    """
    width, n = 64, 2000
    scales = torch.arange(1, width + 1).double() ** -0.5
    turn = [torch.linalg.qr(torch.randn(width, width, dtype=torch.float64)).Q for _ in range(2)]
    rows = torch.randn(n, width, dtype=torch.float64) * scales
    rows = 3 + torch.cat([rows[: n // 2] @ turn[0].T, rows[n // 2 :] @ turn[int(drift)].T])
    moments = ClassMoments(1, width, "factored", rank=rank).double()
    for x in rows.split(2):
        moments.update(x, torch.zeros(2, dtype=torch.long))
    expected = pooled(rows, torch.zeros(n, dtype=torch.long), 1)[2][0]
    values, vectors = torch.linalg.eigh(expected)
    best = vectors[:, -rank:] * values[-rank:] @ vectors[:, -rank:].T
    best = best + torch.diag(expected.diagonal() - best.diagonal())

    def error(covariance):
        return float((covariance - expected).norm() / expected.norm())

    ours, rival = error(dense(moments)[0]), error(frequent_directions(rows, rank, 2))
    assert error(best) <= ours < (1.4 if drift else 1.1) * error(best)
    assert ours < 0.6 * rival
    torch.testing.assert_close(dense(moments)[0].diagonal(), expected.diagonal())  # variances: exact


def test_factored_of_many_samples_in_one_class_and_chunks_of_classes(monkeypatch):
    """Imbalance: 30 samples of one class beside single ones, in chunks that hold one class and several."""
    x, y = torch.randn(40, 6, dtype=torch.float64), torch.tensor([0] * 30 + [1, 2, 3, 4, 5, 7, 7, 8, 9, 9])
    x, y = x[torch.randperm(40)], y[torch.randperm(40)]
    for size in (1, 600, 2**22):
        monkeypatch.setattr("semaug.core.moments._CHUNK", size)
        moments = make("factored", 10, 6)
        moments.update(x[:25], y[:25])
        moments.update(x[25:], y[25:])
        assert_state(moments, pooled(x, y, 10))


def test_full_form_refuses_what_cannot_fit(monkeypatch):
    monkeypatch.setattr("semaug.core.moments._memory", lambda device: 2_000_000_000)
    message = (
        r"covariance: got 'full' of 1000 classes and 2048 features, 16\.8 GB; takes what fits in the 2\.0 GB of cpu, "
        r"as 'factored' with rank=32 \(270 MB\) or 'diagonal' \(8\.19 MB\)"
    )
    with pytest.raises(ValueError, match=message):
        ClassMoments(1000, 2048)
    ClassMoments(100, 640)
    moments = ClassMoments(10, 64)
    monkeypatch.setattr("semaug.core.moments._memory", lambda device: 1000 if device.type == "meta" else None)
    with pytest.raises(ValueError, match=r"the 0\.001 MB of meta"):
        moments.to("meta")


def shares(rank, world, address, folder):
    """One process of two: uneven shares of three batches, some classes seen by one process only."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{address}", rank=rank, world_size=world)
    for name, split in (("", 5), ("traced", 6)):
        if name:  # as while it is compiled: no value is read, and shares are of one length
            core.moments.tracing = lambda x: True
        moments = {form: make(form, 4, 3) for form in ("full", "diagonal", "factored")}
        for x, y in batches():
            mine = slice(0, split) if rank == 0 else slice(split, None)
            for each in moments.values():
                each.update(x[mine], y[mine])
        torch.save({form: each.state_dict() for form, each in moments.items()}, f"{folder}/{name}{rank}.pt")
    dist.destroy_process_group()


def batches():
    generator = torch.Generator().manual_seed(5)
    for t in range(3):
        x = torch.randn(12, 3, generator=generator, dtype=torch.float64)
        yield x, torch.tensor([0, 1, 0, 2, 1, 2, 1, 2, 2, 2, 1, 1]) * (t != 1)


def test_two_processes_are_one(tmp_path):
    torch.multiprocessing.spawn(shares, (2, tmp_path / "rendezvous", tmp_path), nprocs=2)
    names = [f"{way}{rank}.pt" for way in ("", "traced") for rank in (0, 1)]
    states = [torch.load(tmp_path / name, weights_only=True) for name in names]
    for form in ("full", "diagonal", "factored"):
        alone = make(form, 4, 3)
        for x, y in batches():
            alone.update(x, y)
        for key, value in alone.state_dict().items():
            for one, other in (states[:2], states[2:]):
                assert torch.equal(one[form][key], other[form][key])
                torch.testing.assert_close(one[form][key], value, rtol=1e-12, atol=1e-14)


FINITE = "features: got values that are not finite; takes finite ones"
LARGE = r"features: got values whose squares overflow torch.float32; takes a norm up to 1.8e\+16"
ENDS = torch.tensor([0, 1])
BAD = {
    "width": (torch.randn(2, 3), ENDS, ValueError, r"features: got shape \(2, 3\); takes \(N, 4\) with N > 0"),
    "high": (torch.randn(2, 4), torch.tensor([0, 3]), ValueError, "target: got classes 0 to 3; takes 0 to 2"),
    "negative": (torch.randn(2, 4), torch.tensor([0, -1]), ValueError, "target: got classes -1 to 0; takes 0 to 2"),
    "nan": (torch.full((2, 4), math.nan), ENDS, ValueError, FINITE),
    "inf": (torch.full((2, 4), math.inf), ENDS, ValueError, FINITE),
    "large": (torch.full((2, 4), 1e20), ENDS, ValueError, LARGE),
    "negative and large": (torch.full((2, 4), -1e17), ENDS, ValueError, LARGE),
    "double": (torch.full((2, 4), 1e200, dtype=torch.float64), ENDS, ValueError, LARGE),
    "bfloat16": (torch.full((2, 4), 1e20).bfloat16(), ENDS, ValueError, LARGE),
    "soft": (torch.randn(2, 4), torch.rand(2, 3), TypeError, "target: got torch.float32; takes int64 class numbers"),
    "integer": (torch.ones(2, 4).long(), ENDS, TypeError, "features: got torch.int64; takes floats"),
    "empty": (torch.randn(0, 4), torch.zeros(0).long(), ValueError, r"features: got shape \(0, 4\); .* N > 0"),
    "device": (torch.randn(2, 4, device="meta"), ENDS, ValueError, "target: got cpu; takes meta"),
}


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("name", BAD)
@pytest.mark.parametrize("form", ["full", "factored"])
def test_bad_batch_leaves_the_state_alone(name, form):
    x, y, error, message = BAD[name]
    moments = ClassMoments(3, 4, form, rank=2 if form == "factored" else None, decay=0.9)
    moments.update(torch.randn(3, 4), torch.tensor([0, 1, 2]))
    before = [buffer.clone() for buffer in moments.buffers()]
    with pytest.raises(error, match=message):
        moments.update(x, y)
    assert all(torch.equal(now, then) for now, then in zip(moments.buffers(), before, strict=True))


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, 4), "num_classes: got 0; takes a whole number from 1"),
        ((3, 2.0), "num_features: got 2.0; takes a whole number from 1"),
        ((True, 4), "num_classes: got True; takes a whole number from 1"),
        ((3, 4, "banded"), "covariance: got 'banded'; takes one of full, diagonal, factored"),
        ((3, 4, "full", 2), "rank: got 2; takes None for covariance='full'"),
        ((3, 4, "factored"), "rank: got None; takes a whole number from 1 to 4"),
        ((3, 4, "factored", 5), "rank: got 5; takes a whole number from 1 to 4"),
        ((3, 4, "factored", 0), "rank: got 0; takes a whole number from 1"),
        ((3, 4, "factored", 2.0), "rank: got 2.0; takes a whole number from 1"),
        ((3, 4, "full", None, 0.0), r"decay: got 0.0; takes a finite number in \(0, 1\]"),
        ((3, 4, "full", None, 1.5), r"decay: got 1.5; takes"),
        ((3, 4, "full", None, "0.9"), r"decay: got '0.9'; takes"),
        ((3, 4, "full", None, math.nan), r"decay: got nan; takes"),
    ],
)
def test_bad_construction(arguments, message):
    with pytest.raises(ValueError, match=message):
        ClassMoments(*arguments)


@pytest.mark.usefixtures("unchecked")
def test_merge_of_other_moments_is_refused():
    for other in (ClassMoments(4, 4), ClassMoments(3, 5), ClassMoments(3, 4, "diagonal")):
        with pytest.raises(ValueError, match=r"other: got \(.*; takes moments of the same form"):
            ClassMoments(3, 4).merge(other)
    with pytest.raises(ValueError, match="other: got meta; takes cpu"):
        ClassMoments(3, 4).merge(ClassMoments(3, 4).to("meta"))


def test_printed_moments_say_their_settings():
    assert repr(ClassMoments(3, 5)) == "ClassMoments(3, 5, covariance='full', rank=None, decay=None)"
    low = ClassMoments(2, 9, "factored", rank=4, decay=0.5)
    expected = "  (0): ClassMoments(2, 9, covariance='factored', rank=4, decay=0.5)"
    assert repr(nn.Sequential(low)).splitlines()[1] == expected


@pytest.mark.usefixtures("unchecked")
def test_settings_are_plain_numbers():
    moments = ClassMoments(np.int64(3), np.int64(4), "factored", np.int64(2), 1)
    assert [type(value) for value in (*moments.shape, moments.rank, moments.decay)] == [int, int, int, float]
    plain = ClassMoments(3, 4)
    assert (plain.form, plain.rank, plain.decay) == ("full", None, None)


@FORMS
@pytest.mark.parametrize("first", [1e16, -1e16])
def test_the_largest_features_that_are_taken_leave_finite_moments(form, first):
    """However they follow each other: their differences are squared, and many of them added."""
    moments = ClassMoments(2, 4, form, rank=2 if form == "factored" else None)
    for scale in (1.0, first / 20, -first / 20, 0.0):
        moments.update(torch.full((64, 4), scale), torch.zeros(64, dtype=torch.long))
        moments.update(torch.full((1, 4), 20 * 0.4 * scale), torch.zeros(1, dtype=torch.long))
    assert all(buffer.isfinite().all() for buffer in moments.buffers())


@FORMS
def test_the_limit_is_that_of_the_buffers(form):
    """1e20 squared is no number of float32 but one of float64."""
    moments = make(form, 2, 3)
    x, y = 1e20 * torch.randn(8, 3, dtype=torch.float64), torch.arange(8) % 2
    moments.update(x, y)
    torch.testing.assert_close(dense(moments) / 1e40, dense(updated(make(form, 2, 3), x / 1e20, y)))


def updated(moments, x, y):
    moments.update(x, y)
    return moments


@FORMS
def test_a_finite_sum_that_overflows_is_taken(form):
    """4096 numbers of half precision, each finite, whose sum is not."""
    x = torch.full((64, 64), 60_000.0).half()
    assert x.sum().isinf()
    moments = ClassMoments(1, 64, form, rank=2 if form == "factored" else None)
    moments.update(x, torch.zeros(64, dtype=torch.long))
    assert (moments.mean == x[0].float()).all()


@FORMS
def test_eager_and_traced_updates_take_their_own_way(form, monkeypatch):
    """The classes of the batch where values may be read; all classes at once where not, but for the factored form."""
    ways = []
    for way in ("_update_all", "_update_present"):
        original = getattr(ClassMoments, way)
        monkeypatch.setattr(
            ClassMoments, way, lambda *given, way=way, original=original: (ways.append(way), original(*given))[1]
        )
    x, y = torch.randn(6, 4), torch.arange(6) % 2
    rank = 2 if form == "factored" else None
    eager, traced = (ClassMoments(3, 4, form, rank=rank) for _ in range(2))
    eager.update(x, y)
    monkeypatch.setattr("semaug.core.moments.tracing", lambda x: True)
    traced.update(x, y)
    assert ways == ["_update_present", "_update_present" if form == "factored" else "_update_all"]
    for mine, theirs in zip(eager.buffers(), traced.buffers(), strict=True):
        torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize("other_rank", [2, 4])
def test_merge_of_low_rank_keeps_the_leading_directions_and_every_variance(other_rank):
    """Against the pooled second moments of both factors and the shift, reduced to rank 2 by numpy."""
    torch.manual_seed(1)
    one = ClassMoments(2, 6, "factored", rank=2).double()
    other = ClassMoments(2, 6, "factored", rank=other_rank).double()
    for moments, n in ((one, 10), (other, 30)):
        moments.update(torch.randn(n, 6, dtype=torch.float64) * torch.arange(1, 7), torch.arange(n) % 2)
    expected = []
    for c in range(2):
        n, m = one.count[c], other.count[c]
        shift = other.mean[c] - one.mean[c]
        rows = [
            (n / (n + m)).sqrt() * one.factor[c].T,
            (m / (n + m)).sqrt() * other.factor[c].T,
            (n * m).sqrt() / (n + m) * shift[None],
        ]
        second = torch.cat(rows).T @ torch.cat(rows)
        values, vectors = np.linalg.eigh(second.numpy())
        leading = torch.from_numpy(vectors[:, -2:] * values[-2:] @ vectors[:, -2:].T)
        rest = (n * one.diagonal[c] + m * other.diagonal[c]) / (n + m)
        expected.append(leading + torch.diag(rest + second.diagonal() - leading.diagonal()))
    one.merge(other)
    torch.testing.assert_close(dense(one), torch.stack(expected))
    assert one.factor.shape == (2, 6, 2)
    assert (one.diagonal >= 0).all()


def test_variances_outside_the_leading_directions_are_never_negative():
    """Features on a line leave none but rounding, whose root would be NaN."""
    moments = ClassMoments(1, 16, "factored", rank=1)
    for _ in range(20):
        moments.update(torch.randn(8, 1) * torch.linspace(1, 2, 16), torch.zeros(8, dtype=torch.long))
    assert (moments.diagonal >= 0).all()
    torch.testing.assert_close(moments.diagonal, torch.zeros(1, 16), rtol=0, atol=1e-4)
