"""Summaries and paired differences, as scipy would have them."""

import math

import numpy as np
import pytest
import scipy.stats

from companion import stats
from semaug.training.record import Record


def make(seed=0, accuracy=0.8):
    return Record({"objective": "ISDA"}, seed, metrics={"test_accuracy": accuracy})


def test_summary_against_scipy():
    values = np.random.default_rng(0).normal(0.8, 0.01, 7)
    got = stats.summary(values)
    low, high = scipy.stats.t.interval(0.95, 6, loc=values.mean(), scale=scipy.stats.sem(values))
    assert (got.mean - got.half_width, got.mean + got.half_width) == pytest.approx((low, high), rel=1e-12)
    assert got.std == pytest.approx(values.std(ddof=1))
    assert str(stats.summary([0.5, 0.5, 0.5])) == "0.500 ± 0.000 (n = 3)"
    assert str(stats.summary([0.5, 0.5])) == "0.500 (n = 2)"
    assert math.isnan(stats.summary([0.5, 0.6]).half_width), "no interval of two"
    assert str(stats.summary([0.5])) == "0.500 (n = 1)"
    assert math.isnan(stats.summary([0.5]).half_width)


@pytest.mark.parametrize(
    ("values", "form", "text"),
    [
        ([1.0, 2.0, 3.0], ".1f", "2.0 ± 2.5"),  # 4.303 / sqrt(3), t of two degrees of freedom
        ([1.0, 2.0, 3.0], "+.2f", "+2.00 ± 2.48"),
        ([-1.0, -2.0], "+.1f", "\N{MINUS SIGN}1.5"),
        ([-0.02, -0.02, -0.02], "+.1f", "+0.0 ± 0.0"),
        ([-0.4], ".0f", "0"),
    ],
)
def test_summary_in_a_table(values, form, text):
    assert stats.summary(values).text(form) == text


def test_gains_are_records_minus_baseline_on_common_seeds():
    noise = [0.0, 0.1, -0.1, 0.05]
    baseline = [make(seed, 0.80 + noise[seed]) for seed in range(4)]
    records = [make(seed, 0.81 + noise[seed]) for seed in range(3)]
    assert stats.gains(reversed(records), baseline) == pytest.approx([1, 1, 1])
    assert stats.gains(records, baseline, lambda record: record.metrics["test_accuracy"]) == pytest.approx([0.01] * 3)
    assert stats.gains(records, [make(7)]) == []


@pytest.mark.parametrize(("effect", "n"), [(2.0, 5), (1.0, 10), (0.5, 34), (0.2, 199)])
def test_pairs_needed_against_tables(effect, n):
    """Cohen's table for one-sample tests, power 0.8 at 5%, as statsmodels solves it: 4.2, 9.9, 33.4, 198.2."""
    assert stats.pairs_needed(effect, 1.0) == n
    assert stats.pairs_needed(-0.3 * effect, 0.3) == n


def test_pairs_needed_by_simulation():
    n, draws = stats.pairs_needed(0.003, 0.004), np.random.default_rng(0).normal(0.003, 0.004, (20_000, 100))
    shares = [(scipy.stats.ttest_1samp(draws[:, :m], 0, axis=1).pvalue < 0.05).mean() for m in (n - 1, n)]
    assert shares[0] < 0.8 + 0.01  # 20,000 simulations: a standard error of 0.003
    assert 0.8 - 0.01 < shares[1] < 0.85


@pytest.mark.parametrize(
    ("argument", "values"),
    [("effect", (0, 1)), ("std", (1, 0)), ("std", (1, math.nan)), ("power", (1, 1, 0.01)), ("level", (1, 1, 0.8, 0))],
)
def test_pairs_needed_refuses(argument, values):
    with pytest.raises(ValueError, match=f"{argument}: got .*; takes"):
        stats.pairs_needed(*values)


def test_a_seed_twice_is_refused():
    with pytest.raises(ValueError, match=r"baseline: got seeds \[0, 0, 1\]; takes each seed once"):
        stats.gains([make(0), make(1)], [make(0), make(0), make(1)])


def test_empty_summary():
    with pytest.raises(ValueError, match="values: got none"):
        stats.summary([])
