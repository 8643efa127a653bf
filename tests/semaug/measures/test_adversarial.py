"""Oracles: golden values of a linear classifier, its closed form, and the box by its ends."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from semaug import data, networks
from semaug.core.metrics import accuracy
from semaug.measures.robustness import attacked_accuracy, fgsm, pgd


def linear_case():
    k, e = torch.meshgrid(torch.arange(3.0).double(), torch.arange(6.0).double(), indexing="ij")
    n, f = torch.meshgrid(torch.arange(4.0).double(), torch.arange(6.0).double(), indexing="ij")
    weight, bias = torch.sin(0.5 * k + 0.3 * e), torch.tensor([0.1, 0.0, -0.1], dtype=torch.float64)
    images = (0.25 + 0.1 * n - 0.05 * f).view(4, 1, 2, 3)
    return images, torch.tensor([0, 1, 2, 1]), lambda images: F.linear(images.flatten(1), weight, bias), weight, bias


def test_fgsm_golden():
    images, target, predict, *_ = linear_case()
    epsilon = 8 / 255
    assert F.cross_entropy(predict(images), target).item() == pytest.approx(1.0392893160835424, rel=1e-10)
    found = fgsm(predict, images, target, epsilon, clip=(-1, 1))
    assert F.cross_entropy(predict(found), target).item() == pytest.approx(1.0644722174789059, rel=1e-10)
    clipped = fgsm(predict, images.clamp(0, 1), target, epsilon)
    first = [
        0.28137254901960784,
        0.23137254901960785,
        0.18137254901960784,
        0.13137254901960782,
        0.018627450980392146,
        0,
    ]
    assert clipped[0].flatten().tolist() == pytest.approx(first, abs=1e-12)
    assert F.cross_entropy(predict(clipped), target).item() == pytest.approx(1.0630607450850218, rel=1e-10)
    signs = [[1, 1, 1, 1, -1, -1], [1, -1, -1, -1, -1, -1], [-1, -1, -1, -1, 1, 1], [1, 1, -1, -1, -1, -1]]
    assert (found - images).sign().flatten(1).tolist() == signs


def test_fgsm_of_two_classes_is_the_worst_of_the_box():
    """A margin w.x falls by epsilon |w|_1, and no corner of the box takes it lower."""
    weight, epsilon = torch.randn(6, dtype=torch.float64), 0.05
    images = torch.rand(3, 1, 2, 3, dtype=torch.float64) * 0.8 + 0.1

    def predict(images):
        margin = images.flatten(1) @ weight
        return torch.stack([margin, -margin], 1)

    target = torch.zeros(3, dtype=torch.int64)
    found = fgsm(predict, images, target, epsilon)
    fall = (images - found).flatten(1) @ weight
    torch.testing.assert_close(fall, (epsilon * weight.abs().sum()).expand(3))
    corners = torch.cartesian_prod(*[torch.tensor([-epsilon, epsilon]).double()] * 6)
    lowest = (images.flatten(1)[:, None] + corners).matmul(weight).amin(1)
    torch.testing.assert_close(found.flatten(1) @ weight, lowest)


@pytest.mark.parametrize("margin", [1.0, 17.5, 25.0, 32.0, 50.0, 120.0, 200.0, 1000.0])
def test_being_sure_is_no_defence(margin):
    """The gradient is (1 - p) (w_1 - w_0), whatever p; 1 - p is 0 from a margin of 17 (float32), 37 (float64) on."""
    weight, images = torch.randn(2, 6), torch.full((1, 1, 2, 3), 0.5)
    bias = torch.tensor([margin + 0.5 * float(weight[1].sum() - weight[0].sum()), 0.0])
    found = fgsm(lambda x: F.linear(x.flatten(1), weight, bias), images, torch.tensor([0]), 0.1)
    torch.testing.assert_close((found - images).flatten(), 0.1 * (weight[1] - weight[0]).sign(), rtol=0, atol=1e-6)


def sure_network():
    """Three classes, random features, margins of about 200 that a step of 8/255 takes away for some."""
    torch.manual_seed(2)
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 3)).double()
    images = torch.rand(200, 1, 8, 8, dtype=torch.float64)
    with torch.no_grad():
        logits = network(images)
        network[3].weight *= 200 / (logits.max(1).values - logits.median(1).values).median()
        network[3].bias.zero_()
    return network, images


def test_accuracy_under_attack_is_that_of_float64_where_the_network_is_sure():
    network, images = sure_network()
    with torch.no_grad():
        logits = network(images)
    target = logits.argmax(1)
    margins = (logits.max(1).values - logits.topk(2).values[:, 1]).sort().values
    assert margins[100] > 150
    split = data.Split.from_float(images, target)
    shares = []
    for dtype in (torch.float64, torch.float32):
        network, right = network.to(dtype), 0
        for rows in range(0, 200, 50):
            x = split.floats(slice(rows, rows + 50)).to(dtype)
            attacked = fgsm(network, x, target[rows : rows + 50], 8 / 255)
            right += int((network(attacked).argmax(1) == target[rows : rows + 50]).sum())
        shares.append(right / 200)
    assert shares[0] == shares[1]
    assert 0.2 < shares[0] < 0.9

    # by the gradient written out in logarithms: of each other class, log p_j - log(1 - p_y)
    network, x = network.double(), split.floats().double().requires_grad_()
    logits = network(x)
    others = logits.masked_fill(F.one_hot(target, 3).bool(), -math.inf).log_softmax(1).exp().detach()
    (slope,) = torch.autograd.grad(logits, x, others - F.one_hot(target, 3))
    expected = (x + 8 / 255 * slope.sign()).clamp(0, 1).detach()
    torch.testing.assert_close(fgsm(network, x, target, 8 / 255), expected)


@pytest.mark.parametrize("soft", [False, True])
def test_the_step_goes_along_the_gradient_that_autograd_finds(soft):
    torch.manual_seed(0)
    network = networks.small(3, width=4, norm="group").double()
    images, target = torch.rand(6, 1, 12, 12, dtype=torch.float64), torch.tensor([0, 2, 1, 0, 1, 2])
    if soft:
        target = torch.rand(6, 3, dtype=torch.float64)
        target /= target.sum(1, keepdim=True)
    x = images.clone().requires_grad_()
    F.cross_entropy(network(x), target).backward()
    expected = (images + 0.01 * x.grad.sign()).clamp(0, 1)
    torch.testing.assert_close(fgsm(network, images, target, 0.01), expected, rtol=0, atol=1e-12)


def test_half_precision_with_a_random_start():
    network = nn.Sequential(nn.Flatten(), nn.Linear(16, 2)).half()
    images, generator = torch.rand(3, 1, 4, 4).half(), torch.Generator().manual_seed(0)
    found = pgd(network, images, torch.tensor([0, 1, 0]), 0.1, 3, 0.05, generator)
    assert found.dtype == torch.float16
    assert not torch.equal(found, images)
    assert (found - images).abs().max() <= 0.1001


def test_pgd_step_by_step_and_inside_the_box():
    torch.manual_seed(0)
    network = networks.small(3, width=4, norm="group").double()
    images, target = torch.rand(4, 1, 12, 12, dtype=torch.float64), torch.tensor([0, 2, 1, 0])
    generator = torch.Generator().manual_seed(7)
    found = pgd(network, images, target, 0.03, 5, 0.01, generator)
    low, high = (images - 0.03).clamp(0, 1), (images + 0.03).clamp(0, 1)
    start = torch.rand(images.shape, generator=torch.Generator().manual_seed(7))
    x = low + (high - low) * start
    for _ in range(5):
        x = x.detach().requires_grad_()
        F.cross_entropy(network(x), target).backward()
        x = torch.maximum(torch.minimum(x + 0.01 * x.grad.sign(), high), low)
    torch.testing.assert_close(found, x.detach())
    assert (found - images).abs().max() <= 0.03 + 1e-12
    clean = F.cross_entropy(network(images), target)
    one = F.cross_entropy(network(fgsm(network, images, target, 0.03)), target)
    many = F.cross_entropy(network(pgd(network, images, target, 0.03, 20, 0.005)), target)
    assert clean < one < many


def test_soft_labels_are_taken_and_parameters_left_alone():
    network = networks.small(3, width=4).train()
    images, target = torch.rand(4, 1, 12, 12), torch.tensor([0, 2, 1, 0])
    before = {name: buffer.clone() for name, buffer in network.named_buffers()}
    hard = fgsm(network, images, target, 0.02)
    assert torch.equal(hard, fgsm(network, images, F.one_hot(target, 3).float(), 0.02))
    assert not hard.requires_grad
    assert all(parameter.grad is None for parameter in network.parameters())
    assert network.training
    assert all(torch.equal(buffer, before[name]) for name, buffer in network.named_buffers())
    assert torch.equal(fgsm(network, images, target, 0.0), images)
    with torch.no_grad():
        assert torch.equal(fgsm(network, images, target, 0.02), hard), "called where no gradients are kept"


def test_attacked_accuracy_falls_and_is_the_plain_one_at_nothing():
    split = data.load("fashion-mini", train_size=100, test_size=60).test
    network = nn.Sequential(nn.Flatten(), nn.Linear(784, 10))
    images = split.floats()
    with torch.no_grad():  # a classifier that knows: ridge on the very images
        x = images.flatten(1)
        network[1].weight.copy_(
            (torch.linalg.solve(x.T @ x + torch.eye(784), x.T @ F.one_hot(split.target, 10).float())).T
        )
        network[1].bias.zero_()
    clean = accuracy(network, split)
    assert clean > 0.9
    shares = [
        attacked_accuracy(network, split, partial(fgsm, network, epsilon=e / 255), batch_size=17) for e in (0, 2, 8, 32)
    ]
    assert shares[0] == clean
    assert shares[1] >= shares[2] >= shares[3]
    assert shares[3] < clean / 3
    expected = (network(fgsm(network, images, split.target, 8 / 255)).argmax(1) == split.target).double().mean()
    assert shares[2] == pytest.approx(expected.item())


def test_attacked_accuracy_of_nothing():
    split = data.load("fashion-mini", train_size=100, test_size=20).test
    with pytest.raises(ValueError, match="split: got 0 images; takes at least one"):
        attacked_accuracy(nn.Flatten(), split.take(slice(0, 0)), lambda images, target: images)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epsilon": -0.1}, "epsilon: got -0.1; takes a finite number from 0"),
        ({"epsilon": math.nan}, "epsilon: got nan"),
        ({"step_size": math.inf}, "step_size: got inf"),
        ({"steps": 0}, "steps: got 0; takes a whole number from 1"),
        ({"clip": (1, 1)}, r"clip: got \(1, 1\); takes \(low, high\), low < high"),
        ({"images": torch.full((2, 1, 4, 4), 1.5)}, r"images: got 1.5 to 1.5 and 0 NaN; takes values in \[0, 1\]"),
        ({"target": torch.tensor([0, -100])}, "target: got classes -100 to 0; takes 0 to 1"),
        ({"target": torch.tensor([0, 2])}, "target: got classes 0 to 2; takes 0 to 1"),
        (
            {"target": torch.tensor([0, 1]).int()},
            r"target: got torch.int32 \(2,\); takes int64 \(2,\) or shares \(2, 2\)",
        ),
        ({"target": torch.tensor([0])}, r"target: got torch.int64 \(1,\); takes int64 \(2,\)"),
        ({"target": torch.tensor([[0.5, 0.5], [math.nan, 1.0]])}, "target: got shares that are negative or do not add"),
        ({"target": torch.tensor([[0.5, 0.5], [-1.0, 2.0]])}, "target: got shares that are negative or do not add"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_bad_input(changes, message):
    good = {"images": torch.rand(2, 1, 4, 4), "epsilon": 0.1, "steps": 2, "step_size": 0.1, "clip": (0, 1)}
    network = nn.Sequential(nn.Flatten(), nn.Linear(16, 2))
    with pytest.raises(ValueError, match=message):
        pgd(network, **(good | {"target": torch.tensor([0, 1])} | changes))


@pytest.mark.usefixtures("unchecked")
def test_bytes_are_no_images_to_attack():
    images = torch.zeros(2, 1, 4, 4, dtype=torch.uint8)
    with pytest.raises(TypeError, match=r"images: got torch.uint8; takes floats from 0 to 1 \(clip\)"):
        fgsm(nn.Flatten(), images, torch.tensor([0, 1]), 0.1)


@pytest.mark.parametrize("clip", [(0, 1), (-1, 1), (0, 255)])
def test_what_interpolation_leaves_beside_the_range_is_its_end(clip):
    images = torch.full((2, 1, 4, 4), float(clip[1]))
    beside = images * (1 + 2**-22)
    assert (beside > clip[1]).all()
    target = torch.tensor([0, 1])
    attacked = [fgsm(nn.Flatten(), x, target, 0.1, clip) for x in (images, beside)]
    assert torch.equal(*attacked)
    with pytest.raises(ValueError, match=r"images: got 1.001\S* to 1.001\S* and 0 NaN; takes values in"):
        fgsm(nn.Flatten(), torch.full((2, 1, 4, 4), 1.001), target, 0.1)
