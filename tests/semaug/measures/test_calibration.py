"""Calibration against golden values, and counting bin by bin."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from semaug.measures.calibration import calibration, temperature

# ten predictions of which two stand on an edge of five bins (golden values)
CONFIDENCE = torch.tensor([0.95, 0.9, 0.85, 0.55, 0.6, 0.3, 0.35, 1.0, 0.5, 0.2], dtype=torch.float64)
CORRECT = torch.tensor([1, 1, 0, 1, 0, 0, 1, 1, 1, 0]).bool()


def test_calibration_golden():
    result = calibration(CONFIDENCE, CORRECT, 5)
    assert (result.ece, result.mce) == (pytest.approx(0.16, abs=1e-12), pytest.approx(0.2, abs=1e-12))
    expected = [[0, 0.2, 1, 0, 0.2], [0.2, 0.4, 2, 0.5, 0.325], [0.4, 0.6, 3, 2 / 3, 0.55], [0.8, 1, 4, 0.75, 0.925]]
    torch.testing.assert_close(result.table, torch.tensor(expected, dtype=torch.float64))
    fine = calibration(CONFIDENCE, CORRECT)
    assert (fine.ece, fine.mce) == (pytest.approx(0.28, abs=1e-12), pytest.approx(0.85, abs=1e-12))


@pytest.mark.parametrize("bins", [1, 4, 15])
def test_calibration_bin_by_bin(bins):
    confidence, correct = torch.rand(500, dtype=torch.float64), torch.rand(500) < 0.7
    confidence[:3] = torch.tensor([0.0, 1.0, 0.25])
    ece, mce = 0.0, 0.0
    for k in range(bins):
        rows = [n for n, c in enumerate(confidence.tolist()) if k / bins < c <= (k + 1) / bins or (k == c == 0)]
        if rows:
            gap = abs(sum(correct[rows].tolist()) / len(rows) - sum(confidence[rows].tolist()) / len(rows))
            ece, mce = ece + gap * len(rows) / 500, max(mce, gap)
    result = calibration(confidence, correct, bins)
    assert (result.ece, result.mce) == (pytest.approx(ece), pytest.approx(mce))
    assert result.table[:, 2].sum() == 500


def test_calibration_of_the_sure():
    sure = torch.ones(2)
    assert calibration(sure, torch.tensor([True, True]))[:2] == (0, 0)
    assert calibration(sure, torch.tensor([False, False]))[:2] == (1, 1)
    # one tenth in float32 is above one tenth: the upper bin
    assert calibration(torch.tensor([0.1]), torch.tensor([True]), 10).table[0, 0] == 0.1


@pytest.mark.usefixtures("unchecked")
def test_bad_input():
    right = torch.ones(3).bool()
    for confidence, correct, message in (
        (torch.rand(2), right, r"got shapes \(2,\) and \(3,\); takes \(N,\) and \(N,\)"),
        (torch.rand(0), right[:0], "at least one"),
        (torch.tensor([0.5, 1.01, 0.3]), right, r"confidence: got 0.3 to 1.01 and 0 NaN; takes values in \[0, 1\]"),
        (torch.tensor([0.5, math.nan, 0.3]), right, "confidence: got 0.3 to 0.5 and 1 NaN"),
    ):
        with pytest.raises(ValueError, match=message):
            calibration(confidence, correct)
    for numbers in (torch.tensor([3, 0, 1]), torch.tensor([1.0, 0.0, 1.0])):
        with pytest.raises(TypeError, match=r"correct: got torch\.\w+; takes torch.bool, predictions == target"):
            calibration(torch.rand(3), numbers)
    with pytest.raises(ValueError, match="bins: got 0; takes a whole number from 1"):
        calibration(torch.rand(3), right, 0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_what_softmax_leaves_above_one_is_one(dtype):
    most = torch.tensor([1 + 2 * torch.finfo(dtype).eps, 0.25], dtype=dtype)
    right = torch.tensor([True, False])
    assert calibration(most, right).table.tolist() == calibration(most.clamp(max=1), right).table.tolist()


def test_temperature_is_where_scipy_finds_the_least_cross_entropy():
    from scipy.optimize import minimize_scalar

    torch.manual_seed(0)
    for scale in (0.2, 1.0, 7.0):
        logits = torch.randn(400, 5)
        target = torch.distributions.Categorical(logits=logits).sample()  # sure as it should be at T = scale
        logits = scale * logits

        def loss(log_t, logits=logits, target=target):
            return float(torch.nn.functional.cross_entropy(logits.double() / np.exp(log_t), target))

        best = np.exp(minimize_scalar(loss, bounds=(-4.6, 4.6), method="bounded", options={"xatol": 1e-9}).x)
        assert temperature(logits, target) == pytest.approx(best, rel=1e-4)
        assert best == pytest.approx(scale, rel=0.3)


def test_temperature_at_its_ends_and_of_bad_logits():
    right, wrong = torch.tensor([[3.0, 0.0]]), torch.tensor([[0.0, 3.0]])
    assert temperature(right, torch.tensor([0])) == pytest.approx(0.01)
    assert temperature(wrong, torch.tensor([0])) == pytest.approx(100)
    assert np.isfinite(temperature(1e30 * right, torch.tensor([0])))


@pytest.mark.parametrize(
    ("logits", "message"),
    [
        (torch.zeros(3), r"logits: got shape \(3,\); takes \(N, C\)"),
        (torch.zeros(0, 2), r"logits: got shape \(0, 2\)"),
        (torch.full((1, 2), torch.nan), "logits: got values that are not finite"),
    ],
)
def test_temperature_refuses(unchecked, logits, message):
    with pytest.raises(ValueError, match=message):
        temperature(logits, torch.zeros(len(logits), dtype=torch.int64))
