"""Oracles: the formulae a class and a sample at a time in numbers of 60 digits or of 16; torchvision's losses."""

from __future__ import annotations

import json
import math
from decimal import Decimal, localcontext
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F
from torchvision.ops import sigmoid_focal_loss

from semaug import networks
from semaug.methods.long_tail import (
    CosineLinear,
    LongTailed,
    class_balanced_weights,
    deferred,
    focal_loss,
    ldam_logits,
    ldam_margins,
)
from semaug.training.objective import Step

GOLDEN = json.loads((Path(__file__).parents[2] / "golden" / "metasaug.json").read_text())
COUNTS = torch.tensor([100, 50, 20, 5])


def case(n=8, classes=4, dtype=torch.float64):
    return torch.randn(n, classes, dtype=dtype), torch.randint(classes, (n,))


def step(progress=0.5):
    return Step(torch.tensor(progress), 0.1, torch.Generator())


def test_golden_weights_and_margins():
    assert class_balanced_weights(COUNTS, 0.9999).tolist() == pytest.approx(GOLDEN["class_weights"], rel=1e-10)
    assert ldam_margins(COUNTS, 0.5).tolist() == pytest.approx(GOLDEN["margins"], rel=1e-12)


@given(
    st.lists(st.integers(1, 3000), min_size=1, max_size=6),
    st.one_of(st.floats(0, 0.5), st.sampled_from([0.9, 0.999, 0.9999, 1 - 1e-9, 1 - 1e-13])),
)
def test_weights_in_sixty_digits(counts, beta):
    with localcontext() as context:
        context.prec = 60
        exact = [1 / (1 - Decimal(beta) ** n) for n in counts]
        expected = [float(len(counts) * each / sum(exact)) for each in exact]
    assert class_balanced_weights(torch.tensor(counts), beta).tolist() == pytest.approx(expected, rel=1e-12)


def test_weights_between_none_and_inverse_frequency():
    assert class_balanced_weights(COUNTS, 0.0).tolist() == [1, 1, 1, 1]
    inverse = 1 / COUNTS.double()
    torch.testing.assert_close(class_balanced_weights(COUNTS, 1 - 1e-12), 4 * inverse / inverse.sum())


def test_margins_by_hand():
    margins = ldam_margins(torch.tensor([10000, 16, 1, 81]), 2.0)
    assert margins.tolist() == pytest.approx([0.2, 1.0, 2.0, 2 / 3])


def test_ldam_logits_with_gradient():
    logits, target = case()
    margins = ldam_margins(COUNTS)
    expected = logits.clone()
    for i, y in enumerate(target.tolist()):
        expected[i, y] -= margins[y]
    torch.testing.assert_close(ldam_logits(logits, target, margins, 30.0), 30 * expected)
    logits.requires_grad_()
    slope = torch.randn_like(logits)
    (gradient,) = torch.autograd.grad((ldam_logits(logits, target, margins, 3.0) * slope).sum(), logits)
    torch.testing.assert_close(gradient, 3 * slope)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_focal_loss_one_sample_at_a_time(gamma, weighted, reduction):
    logits, target = case()
    weight = torch.tensor([0.2, 1.0, 3.0, 0.5], dtype=torch.float64) if weighted else None
    losses, weights = [], []
    for row, y in zip(logits.tolist(), target.tolist(), strict=True):
        p = math.exp(row[y]) / sum(map(math.exp, row))
        weights.append(float(weight[y]) if weighted else 1.0)
        losses.append(-weights[-1] * (1 - p) ** gamma * math.log(p))
    expected = {"none": losses, "sum": sum(losses), "mean": sum(losses) / sum(weights)}[reduction]
    assert focal_loss(logits, target, gamma, weight, reduction).tolist() == pytest.approx(expected, rel=1e-12)


def test_focal_loss_of_two_classes_is_torchvisions():
    """A softmax over (0, x) is a sigmoid of x."""
    x, y = torch.randn(9, dtype=torch.float64), torch.arange(9) % 2
    expected = sigmoid_focal_loss(x, y.double(), alpha=-1, gamma=1.5, reduction="mean")
    assert focal_loss(torch.stack([torch.zeros_like(x), x], 1), y, 1.5).item() == pytest.approx(expected.item())


def test_focal_gradients_also_where_all_is_right_already():
    logits, target = case(n=4)
    assert torch.autograd.gradcheck(lambda z: focal_loss(z, target, 0.7), logits.requires_grad_())
    certain = torch.tensor([[200.0, 0.0, 0.0], [1e4, -1e4, 0.0], [-300.0, 0.0, 0.0]], requires_grad=True)
    (slope,) = torch.autograd.grad(focal_loss(certain, torch.zeros(3, dtype=torch.int64), 0.5), certain)
    assert slope.isfinite().all()
    assert slope[:2].abs().max() == 0
    assert slope[2, 0] == pytest.approx(-1 / 3)


def test_focal_loss_of_half_precision_is_float32():
    logits, target = case(dtype=torch.bfloat16)
    assert focal_loss(logits, target).item() == focal_loss(logits.float(), target).item()


def test_deferred_weights_hold_from_the_start_on():
    weight = torch.tensor([0.5, 1.5])
    for progress, expected in ((0.0, [1, 1]), (0.799, [1, 1]), (0.8, [0.5, 1.5]), (1.0, [0.5, 1.5])):
        assert deferred(weight, torch.tensor(progress), 0.8).tolist() == expected


LOSS_OF = {
    "ce": lambda z, y, margins: F.cross_entropy(z, y, reduction="none"),
    "focal": lambda z, y, margins: focal_loss(z, y, 1.5, reduction="none"),
    "ldam": lambda z, y, margins: F.cross_entropy(ldam_logits(z, y, margins, 3.0), y, reduction="none"),
}


@pytest.mark.parametrize("loss", LOSS_OF)
@pytest.mark.parametrize(("progress", "weighted"), [(0.59, False), (0.61, True)])
def test_objective_is_the_weighted_mean_of_its_loss(loss, progress, weighted):
    network = networks.small(4, width=8).double()
    objective = LongTailed(network, COUNTS, loss, beta=0.99, defer=0.6, gamma=1.5, max_margin=0.7, scale=3.0).double()
    images, target = torch.rand(8, 1, 12, 12, dtype=torch.float64), torch.arange(8) % 4
    value, terms = objective(images, target, step(progress))
    losses = LOSS_OF[loss](network(images), target, ldam_margins(COUNTS, 0.7))
    weight = class_balanced_weights(COUNTS, 0.99)[target] if weighted else torch.ones(8, dtype=torch.float64)
    assert value.item() == pytest.approx(((weight * losses).sum() / weight.sum()).item(), rel=1e-12)
    assert terms == {}


def test_plain_objective_is_cross_entropy():
    network = networks.small(4, width=8)
    images, target = torch.rand(8, 1, 12, 12), torch.arange(8) % 4
    value, _ = LongTailed(network, COUNTS)(images, target, step())
    torch.testing.assert_close(value, F.cross_entropy(network(images), target))


def test_a_normalised_classifier():
    network = networks.small(4, width=8).double()
    weight = network.head.weight
    objective = LongTailed(network, COUNTS, "ldam", scale=30.0, normalised=True)
    assert objective.network.head.weight is weight, "the weights it would have had without"
    images = torch.rand(5, 1, 12, 12, dtype=torch.float64)
    features = network.features(images)
    expected = torch.stack([F.cosine_similarity(features, row[None]) for row in weight], 1)
    torch.testing.assert_close(objective.network(images), expected)
    torch.testing.assert_close(objective.predict(images), 30 * expected)
    assert {name for name, _ in network.head.named_parameters()} == {"weight"}
    assert objective.settings["normalised"] is True


@pytest.mark.parametrize("normalised", [False, True])
@pytest.mark.parametrize("loss", LOSS_OF)
def test_the_logits_predicted_are_those_trained(loss, normalised):
    """With margins next to nothing the loss of ``predict`` is the one trained."""
    network = networks.small(4, width=8).double()
    objective = LongTailed(network, COUNTS, loss, gamma=1.5, max_margin=1e-12, scale=7.0, normalised=normalised)
    images, target = torch.rand(8, 1, 12, 12, dtype=torch.float64), torch.arange(8) % 4
    of = LOSS_OF["focal" if loss == "focal" else "ce"]
    expected = of(objective.predict(images), target, None).mean()
    assert objective(images, target, step())[0].item() == pytest.approx(expected.item(), rel=1e-10)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("choice", [{"counts": COUNTS - 5}, {"beta": 1.0}, {"max_margin": -1.0}, {"defer": 2.0}])
def test_a_bad_choice_leaves_the_network_as_it_was(choice):
    network = networks.small(4)
    head = network.head
    with pytest.raises(ValueError, match=next(iter(choice))):
        LongTailed(network, **{"counts": COUNTS, "normalised": True, **choice})
    assert network.head is head


def test_settings_are_those_that_matter():
    def settings(**choice):
        return LongTailed(networks.small(4, width=8), COUNTS, **choice).settings

    assert settings() == {"loss": "ce", "beta": 0.0, "defer": 0.0, "normalised": False}
    assert settings(loss="focal").keys() - settings().keys() == {"gamma"}
    assert settings(loss="ldam").keys() - settings().keys() == {"max_margin", "scale"}


def test_what_is_given_at_construction_is_not_in_the_checkpoint():
    assert all(name.startswith("network.") for name in LongTailed(networks.small(4), COUNTS).state_dict())


Z, Y = torch.zeros(3, 4), torch.zeros(3, dtype=torch.int64)
BAD = {
    "no image": (lambda: class_balanced_weights(torch.tensor([3, 0]), 0.9), "at least 1, got 0 for class 1"),
    "floats": (lambda: ldam_margins(torch.ones(3)), r"counts must be \(C,\) whole numbers"),
    "table": (lambda: ldam_margins(torch.ones(3, 1, dtype=torch.int64)), r"counts must be \(C,\) whole numbers"),
    "no class": (lambda: class_balanced_weights(torch.ones(0, dtype=torch.int64), 0.9), r"got \(0,\)"),
    "beta 1": (lambda: class_balanced_weights(COUNTS, 1.0), r"beta must lie in \[0, 1\), got 1.0"),
    "beta below": (lambda: class_balanced_weights(COUNTS, -0.1), "beta must lie"),
    "beta nan": (lambda: class_balanced_weights(COUNTS, math.nan), "beta must lie"),
    "beta text": (lambda: class_balanced_weights(COUNTS, "x"), r"beta must lie in \[0, 1\), got 'x'"),
    "list": (
        lambda: class_balanced_weights([3, 2], 0.9),
        r"counts must be a tensor \(C,\) of whole numbers, got a list",
    ),
    "one number": (lambda: class_balanced_weights(torch.tensor(3), 0.9), r"counts must be \(C,\) whole .* got \(\)"),
    "flags": (lambda: ldam_margins(torch.ones(3, dtype=torch.bool)), "whole numbers, got .* of torch.bool"),
    "margin": (lambda: ldam_margins(COUNTS, 0.0), "max_margin must be a finite number above 0, got 0.0"),
    "margin inf": (lambda: ldam_margins(COUNTS, math.inf), "max_margin must be"),
    "margins": (lambda: ldam_logits(Z, Y, torch.ones(3)), r"margins must be \(C,\) = \(4,\), got \(3,\)"),
    "scale": (lambda: ldam_logits(Z, Y, torch.ones(4), 0.0), "scale must be a finite number above 0"),
    "gamma": (lambda: focal_loss(Z, Y, -1.0), "gamma must be a finite number from 0, got -1.0"),
    "gamma nan": (lambda: focal_loss(Z, Y, math.nan), "gamma must be"),
    "weight": (lambda: focal_loss(Z, Y, class_weight=torch.ones(3)), r"class_weight must be \(C,\) = \(4,\)"),
    "reduction": (lambda: focal_loss(Z, Y, reduction="median"), "reduction must be one of"),
    "one class": (lambda: focal_loss(Z[:, :1], Y), "C > 1"),
    "target": (lambda: focal_loss(Z, Y[:2]), r"target must be \(N,\) = \(3,\) class numbers"),
    "soft": (lambda: ldam_logits(Z, Z, torch.ones(4)), "target must be int64 class numbers, got torch.float32"),
    "target range": (
        lambda: ldam_logits(Z, Y + 4, torch.ones(4)),
        r"target must lie in \[0, 4\), got values from 4 to 4",
    ),
    "target below": (lambda: focal_loss(Z, Y - 1), r"target must lie in \[0, 4\), got values from -1 to -1"),
    "nan": (lambda: focal_loss(Z * math.nan, Y), "logits has values that are not finite"),
    "loss": (lambda: LongTailed(networks.small(4), COUNTS, "hinge"), "loss must be one of ce, focal, ldam"),
    "a scale": (
        lambda: LongTailed(networks.small(4), COUNTS, "ldam", scale=-1.0),
        "scale must be .* above 0, got -1.0",
    ),
    "a scale nan": (lambda: LongTailed(networks.small(4), COUNTS, "ldam", scale=math.nan), "scale must be a finite"),
    "a gamma": (lambda: LongTailed(networks.small(4), COUNTS, "focal", gamma=-3.0), "gamma must be a finite number"),
    "normalised": (lambda: LongTailed(networks.small(4), COUNTS, normalised="no"), "normalised must be True or False"),
    "defer": (lambda: LongTailed(networks.small(4), COUNTS, defer=80), "defer must be a fraction in .*, got 80"),
    "classes": (
        lambda: LongTailed(networks.small(3), COUNTS)(torch.rand(2, 1, 8, 8), Y[:2], step()),
        r"counts must be \(C,\) = \(3,\), got \(4,\)",
    ),
    "soft targets": (
        lambda: LongTailed(networks.small(4), COUNTS)(torch.rand(3, 1, 8, 8), Z, step()),
        r"target must be class numbers \(N,\), LongTailed takes no soft ones; got \(3, 4\)",
    ),
}


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("name", BAD)
def test_bad_input(name):
    call, message = BAD[name]
    with pytest.raises((ValueError, TypeError), match=message):
        call()


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("loss", LOSS_OF)
@pytest.mark.parametrize(
    ("target", "message"),
    [(Y.int(), "target must be int64 class numbers, got torch.int32"), (Y + 4, r"target must lie in \[0, 4\)")],
)
def test_bad_targets_of_every_loss(loss, target, message):
    with pytest.raises((ValueError, TypeError), match=message):
        LongTailed(networks.small(4), COUNTS, loss)(torch.rand(3, 1, 8, 8), target, step())


def test_normalised_without_a_head():
    with pytest.raises(TypeError, match=r"network must have an nn.Linear called head, Identity has None"):
        LongTailed(nn.Identity(), COUNTS, normalised=True)


def test_cosines_whatever_the_lengths():
    head = CosineLinear(nn.Linear(5, 3))
    features = torch.randn(4, 5)
    torch.testing.assert_close(head(features), head(7 * features))
    torch.testing.assert_close(head(head.weight).diagonal(), torch.ones(3))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_cosines_are_float32_under_autocast(dtype):
    head, features = CosineLinear(nn.Linear(64, 10)), torch.randn(8, 64).to(dtype)
    expected = F.cosine_similarity(features.float()[:, None], head.weight, dim=2)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(head(features), expected, rtol=0, atol=1e-6)  # bfloat16 would be off by 1e-3
