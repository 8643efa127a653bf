"""Oracles: the formulae a class and a sample at a time in numbers of 60 digits or of 16; torchvision's losses."""

from __future__ import annotations

import json
import math
from decimal import Decimal, localcontext
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st
from torch import nn
from torch.nn import functional as F
from torchvision.ops import sigmoid_focal_loss

import throwaway
from semaug import networks
from semaug.methods.long_tail import (
    CosineLinear,
    LongTailed,
    class_balanced_weights,
    deferred,
    focal_loss,
    ldam_logits,
    ldam_margins,
    many_medium_few,
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


def test_focal_loss_of_a_logit_40_ahead_is_finite_below_gamma_1():
    """There 1 - p is 0 in float32, and the slope of its square root infinite: the code released with LDAM gives NaN."""
    logits = torch.tensor([[40.0, 0.0]], requires_grad=True)
    loss = focal_loss(logits, torch.tensor([0]), 0.5)
    (slope,) = torch.autograd.grad(loss, logits)
    expected = math.exp(-60)  # (1 - p)^1.5, to first order
    assert loss.item() == pytest.approx(expected, abs=1e-20)
    assert slope.abs().max().item() == pytest.approx(1.5 * expected, abs=1e-20)


def test_the_weight_of_a_class_multiplies_the_focal_loss():
    logits, target = case()
    weight = torch.tensor([0.5, 1.0, 2.0, 4.0], dtype=torch.float64)
    expected = weight[target] * focal_loss(logits, target, reduction="none")
    torch.testing.assert_close(focal_loss(logits, target, class_weight=weight, reduction="none"), expected)
    none = torch.zeros(4, dtype=torch.float64)  # divides no "sum"
    assert focal_loss(logits, target, class_weight=none, reduction="sum") == 0


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
    assert {name for name, _ in objective.network.head.named_parameters()} == {"weight"}
    assert objective.settings["normalised"] is True


def test_the_network_given_keeps_its_head():
    network = networks.small(4, width=8)
    images = torch.rand(5, 1, 12, 12)
    head, before = network.head, network.eval()(images)
    objective = LongTailed(network, COUNTS, normalised=True)
    assert network.head is head
    assert torch.equal(network(images), before)
    assert objective.network.stages is network.stages, "all else is shared, so that training reaches it"
    assert [*objective.state_dict()] == [f"network.{name}" for name in network.state_dict() if name != "head.bias"]
    assert objective.network.name == network.name


@pytest.mark.parametrize("normalised", [False, True])
def test_a_frozen_head_stays_frozen(normalised):
    network = networks.small(4, width=8)
    network.head.requires_grad_(False)
    weight = network.head.weight.clone()
    objective = LongTailed(network, COUNTS, normalised=normalised)
    optimizer = torch.optim.SGD(objective.parameters(), lr=1.0)
    objective(torch.rand(8, 1, 12, 12), torch.arange(8) % 4, step())[0].backward()
    optimizer.step()
    assert not any(p.requires_grad for head in (network.head, objective.network.head) for p in head.parameters())
    assert torch.equal(network.head.weight, weight)


@pytest.mark.parametrize("normalised", [False, True])
@pytest.mark.parametrize("loss", LOSS_OF)
def test_the_logits_predicted_are_those_trained(loss, normalised):
    """With margins next to nothing the loss of ``predict`` is the one trained."""
    network = networks.small(4, width=8).double()
    objective = LongTailed(network, COUNTS, loss, gamma=1.5, max_margin=1e-12, scale=7.0, normalised=normalised)
    images, target = torch.rand(8, 1, 12, 12, dtype=torch.float64), torch.arange(8) % 4
    losses = LOSS_OF["focal" if loss == "focal" else "ce"]
    expected = losses(objective.predict(images), target, None).mean()
    assert objective(images, target, step())[0].item() == pytest.approx(expected.item(), rel=1e-10)


def test_settings_are_those_that_matter():
    def settings(**choice):
        return LongTailed(networks.small(4, width=8), COUNTS, **choice).settings

    assert settings() == {"loss": "ce", "beta": 0.0, "defer": 0.0, "normalised": False}
    assert settings(loss="focal").keys() - settings().keys() == {"gamma"}
    assert settings(loss="ldam").keys() - settings().keys() == {"max_margin", "scale"}


SETTINGS = {"beta": 0.0, "defer": 0.0, "gamma": 2.0, "max_margin": 1.0, "scale": 1.0}


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("loss", LOSS_OF)
@pytest.mark.parametrize("number", [int, np.float64, np.float32, np.int64])
def test_settings_are_plain_floats(loss, number):
    given = {name: number(value) for name, value in SETTINGS.items()}
    settings = LongTailed(networks.small(4), COUNTS, loss, **given).settings
    assert settings == LongTailed(networks.small(4), COUNTS, loss, **SETTINGS).settings
    assert {type(value) for name, value in settings.items() if name in SETTINGS} == {float}


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("loss", LOSS_OF)
@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("value", [True, "1", math.nan, math.inf, -1.0, None])
def test_settings_are_checked_at_construction(loss, name, value):
    with pytest.raises(ValueError, match=f"{name}: got {value!r}; takes a finite number"):
        LongTailed(networks.small(4), COUNTS, loss, **{name: value})


def test_built_for_a_data_set_it_has_its_counts():
    dataset = throwaway.data()
    objective = LongTailed.build(networks.small(4), dataset, loss="ldam", beta=0.5)
    assert isinstance(objective, LongTailed)
    assert torch.equal(objective.class_weight, class_balanced_weights(dataset.counts, 0.5))
    assert objective.settings == LongTailed(networks.small(4), dataset.counts, "ldam", 0.5).settings


def test_what_is_given_at_construction_is_not_in_the_checkpoint():
    assert all(name.startswith("network.") for name in LongTailed(networks.small(4), COUNTS).state_dict())


Z, Y = torch.zeros(3, 4), torch.zeros(3, dtype=torch.int64)
INTEGERS = r"takes integers \(C,\)"
BAD = {
    "no image": (
        lambda: class_balanced_weights(torch.tensor([3, 0]), 0.9),
        "counts: got 0 for class 1; takes integers",
    ),
    "floats": (lambda: ldam_margins(torch.ones(3)), rf"counts: got torch.float32 \(3,\); {INTEGERS}"),
    "table": (lambda: ldam_margins(torch.ones(3, 1, dtype=torch.int64)), rf"counts: got .* \(3, 1\); {INTEGERS}"),
    "no class": (lambda: class_balanced_weights(torch.ones(0, dtype=torch.int64), 0.9), r"counts: got .* \(0,\)"),
    "one number": (lambda: class_balanced_weights(torch.tensor(3), 0.9), rf"counts: got .* \(\); {INTEGERS}"),
    "flags": (lambda: ldam_margins(torch.ones(3, dtype=torch.bool)), "counts: got torch.bool"),
    "list": (lambda: class_balanced_weights([3, 2], 0.9), r"counts: got a list; takes a tensor \(C,\) of integers"),
    "beta 1": (lambda: class_balanced_weights(COUNTS, 1.0), r"beta: got 1.0; takes a finite number in \[0, 1\)"),
    "beta below": (lambda: class_balanced_weights(COUNTS, -0.1), "beta: got -0.1"),
    "beta nan": (lambda: class_balanced_weights(COUNTS, math.nan), "beta: got nan"),
    "beta text": (lambda: class_balanced_weights(COUNTS, "0.9"), "beta: got '0.9'"),
    "margin": (lambda: ldam_margins(COUNTS, 0.0), "max_margin: got 0.0; takes a finite number above 0"),
    "margin inf": (lambda: ldam_margins(COUNTS, math.inf), "max_margin: got inf"),
    "margins": (lambda: ldam_logits(Z, Y, torch.ones(3)), r"margins: got shape \(3,\); takes \(4,\)"),
    "margins nan": (lambda: ldam_logits(Z, Y, torch.tensor([1, math.nan, 1, 1])), "margins: got .* not finite"),
    "margins too large": (
        lambda: ldam_logits(Z, Y, torch.full((4,), 1e300, dtype=torch.float64)),
        "margins: got .* not finite",
    ),
    "scale": (lambda: ldam_logits(Z, Y, torch.ones(4), 0.0), "scale: got 0.0; takes a finite number above 0"),
    "gamma": (lambda: focal_loss(Z, Y, -1.0), "gamma: got -1.0; takes a finite number from 0"),
    "gamma nan": (lambda: focal_loss(Z, Y, math.nan), "gamma: got nan"),
    "weight": (lambda: focal_loss(Z, Y, class_weight=torch.ones(3)), r"class_weight: got .*\(3,\)"),
    "weight below": (lambda: focal_loss(Z, Y, class_weight=torch.tensor([1.0, 1, 1, -1])), "class_weight: got .*-1"),
    "weight nan": (lambda: focal_loss(Z, Y, class_weight=torch.tensor([1, 1, 1, math.nan])), "class_weight: got .*nan"),
    "weight too large": (
        lambda: focal_loss(Z, Y, class_weight=torch.full((4,), 1e300, dtype=torch.float64)),
        "class_weight: got",
    ),
    "no weight": (lambda: focal_loss(Z, Y, class_weight=torch.zeros(4)), "class_weight: got 0 for every class"),
    "none in the batch": (
        lambda: focal_loss(Z, Y, class_weight=torch.tensor([0.0, 1, 1, 1])),
        "class_weight: got 0 for every class of the batch",
    ),
    "reduction": (lambda: focal_loss(Z, Y, reduction="median"), "reduction: got 'median'; takes one of"),
    "one class": (lambda: focal_loss(Z[:, :1], Y), r"logits: got shape \(3, 1\); takes \(N, C\) with C > 1"),
    "target": (lambda: focal_loss(Z, Y[:2]), r"target: got shape \(2,\)"),
    "soft": (lambda: ldam_logits(Z, Z, torch.ones(4)), "target: got torch.float32; takes int64"),
    "target range": (lambda: ldam_logits(Z, Y + 4, torch.ones(4)), "target: got classes 4 to 4; takes 0 to 3"),
    "target below": (lambda: focal_loss(Z, Y - 1), "target: got classes -1 to -1"),
    "no images": (lambda: focal_loss(Z[:0], Y[:0]), r"logits: got shape \(0, 4\)"),
    "nan": (lambda: focal_loss(Z * math.nan, Y), "logits: got values that are not finite"),
    "loss": (lambda: LongTailed(networks.small(4), COUNTS, "hinge"), "loss: got 'hinge'; takes one of ce, focal, ldam"),
    "normalised": (
        lambda: LongTailed(networks.small(4), COUNTS, normalised="no"),
        "normalised: got 'no'; takes True or",
    ),
    "defer": (lambda: LongTailed(networks.small(4), COUNTS, defer=80), r"defer: got 80; takes .* in \[0, 1\]"),
    "classes": (
        lambda: LongTailed(networks.small(3), COUNTS)(torch.rand(2, 1, 8, 8), Y[:2], step()),
        "counts: got 4 classes; takes 3, as the network has",
    ),
    "soft targets": (
        lambda: LongTailed(networks.small(4), COUNTS)(torch.rand(3, 1, 8, 8), Z, step()),
        r"target: got \(3, 4\); takes class numbers \(N,\)",
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
    [
        (Y.int(), r"target: got torch.int32.*; takes int64"),
        (Y + 4, "target: got classes 4 to 4"),
        (Y - 101, "target: got"),
    ],
)
def test_bad_targets_of_every_loss(loss, target, message):
    with pytest.raises((ValueError, TypeError), match=message):
        LongTailed(networks.small(4), COUNTS, loss)(torch.rand(3, 1, 8, 8), target, step())


def test_normalised_without_a_head():
    with pytest.raises(TypeError, match="network: got Identity with head None; takes one with a linear head"):
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


def test_many_medium_few_by_hand():
    accuracy = torch.tensor([0.9, 0.8, 0.7, 0.4, 0.2, 0.1], dtype=torch.float64)
    counts = torch.tensor([500, 101, 100, 20, 19, 1])
    groups = many_medium_few(accuracy, counts)
    assert groups == pytest.approx({"many": 0.85, "medium": 0.55, "few": 0.15})
    groups = many_medium_few(accuracy, counts, few=1, many=500)
    assert groups["medium"] == pytest.approx(float(accuracy.mean()))
    assert math.isnan(groups["many"])
    assert math.isnan(groups["few"])


@pytest.mark.usefixtures("unchecked")
def test_many_medium_few_of_bad_input():
    with pytest.raises(ValueError, match=r"got shapes \(3,\) and \(2,\); takes \(C,\) and \(C,\)"):
        many_medium_few(torch.ones(3), torch.ones(2, dtype=torch.int64))
    for few, many in ((0, 5), (6, 5)):
        with pytest.raises(ValueError, match="takes 0 < few <= many"):
            many_medium_few(torch.ones(3), torch.ones(3, dtype=torch.int64), few, many)
