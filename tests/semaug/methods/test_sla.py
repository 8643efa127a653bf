"""Oracles: the released code's golden values, loops over pixels, views and classes in float64, torch.rot90."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st
from torch import nn
from torch.nn import functional as F

import throwaway
from benchmarks.test_isda import peak_memory
from semaug import networks
from semaug.methods.long_tail import class_balanced_weights
from semaug.methods.sla import (
    SLA,
    TRANSFORMS,
    DataAugmentation,
    LongTailedSLA,
    MultiTask,
    aggregate,
    distillation_loss,
    joint_labels,
    rotations,
    sla_loss,
    views,
)
from semaug.training import loop as training
from semaug.training.objective import CrossEntropy, Step

GOLDEN = json.loads((Path(__file__).parents[2] / "golden" / "sla.json").read_text())
STEP = Step(torch.tensor(0.5), 0.1, torch.Generator())
ORDERS = [(0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0)]
CYCLES = [(0, 1, 2), (1, 2, 0), (2, 0, 1)]
SETS = {  # what each set is, as the paper's code has it: quarter turns, order of the channels
    "none": ([0], [(0, 1, 2)]),
    "rotation": ([0, 1, 2, 3], [(0, 1, 2)]),
    "rotation2": ([0, 2], [(0, 1, 2)]),
    "color_perm": ([0], ORDERS),
    "color_perm3": ([0], CYCLES),
    "rotation2+color_perm3": ([0, 2], CYCLES),
    "rotation+color_perm3": ([0, 1, 2, 3], CYCLES),
    "rotation+color_perm": ([0, 1, 2, 3], ORDERS),
}
KINDS = ["DataAugmentation", "MultiTask", "SLA", "distilled"]


class Net(nn.Module):
    """The least a network must be: images of three channels and 4 x 4 pixels; linear features are the pixels."""

    def __init__(self, classes=3, width=None, bias=True):
        super().__init__()
        layers = [nn.Linear(48, width), nn.Tanh()] if width else []
        self.features = nn.Sequential(nn.Flatten(), *layers)
        self.head = nn.Linear(width or 48, classes, bias)

    def forward(self, images):
        return self.head(self.features(images))


def build(kind, network, transforms="rotation", accumulate=False, **settings):
    if kind == "distilled":
        return SLA(network, transforms, temperature=2.0, accumulate=accumulate, **settings)
    return {"DataAugmentation": DataAugmentation, "MultiTask": MultiTask, "SLA": SLA}[kind](
        network, transforms, accumulate=accumulate, **settings
    )


def batch(n=5, classes=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand(n, 3, 4, 4, generator=generator, dtype=torch.float64)
    return images, torch.randint(classes, (n,), generator=generator)


# --- transformations ----------------------------------------------------------------------------------------------


def by_pixel(image, turns, order):
    """One image turned and permuted, a value at a time."""
    channels, side, _ = image.shape
    result = torch.empty_like(image)
    for c, y, x in itertools.product(range(channels), range(side), range(side)):
        row, column = y, x
        for _ in range(turns):  # counter-clockwise: what was at the right end of a row is now at the top of a column
            row, column = column, side - 1 - row
        result[c, y, x] = image[order[c], row, column]
    return result


@pytest.mark.parametrize("name", TRANSFORMS)
def test_views_are_the_sets_pixel_by_pixel(name):
    turns, orders = SETS[name]
    images = batch(2)[0]
    expected = [[by_pixel(image, k, order) for k in turns for order in orders] for image in images]
    actual = views(images, name)
    assert torch.equal(actual, torch.stack([torch.stack(row) for row in expected]))
    assert torch.equal(actual[:, 0], images), "the identity comes first"
    bytes_ = (images * 255).byte()
    assert torch.equal(views(bytes_, name)[:, -1], torch.stack([by_pixel(b, turns[-1], orders[-1]) for b in bytes_]))


def test_the_sets_are_all_there_and_of_their_size():
    assert {name: len(each) for name, each in TRANSFORMS.items()} == {
        name: len(turns) * len(orders) for name, (turns, orders) in SETS.items()
    }


def test_rotations_are_rot90_and_colour_permutations_are_indices():
    images = batch()[0]
    for k, view in enumerate(rotations(images).unbind(1)):
        assert torch.equal(view, torch.rot90(images, k, (2, 3)))
    for order, view in zip(ORDERS, views(images, "color_perm").unbind(1), strict=True):
        assert torch.equal(view, images[:, order])
    gray = rotations(images[:, :1])
    assert gray.shape == (5, 4, 1, 4, 4)


@pytest.mark.parametrize("name", ["rotation", "color_perm", "rotation+color_perm3"])
def test_views_are_differentiable(name):
    images = batch(1)[0][..., :2, :2].requires_grad_()
    assert torch.autograd.gradcheck(lambda x: views(x, name).sin(), images)


def test_sides_that_differ_may_be_turned_by_half():
    images = batch()[0][:, :, :3]
    assert torch.equal(views(images, "rotation2")[:, 1], images.flip(2, 3))
    assert views(images, "color_perm").shape == (5, 6, 3, 3, 4)


# --- losses -------------------------------------------------------------------------------------------------------


def golden_case():
    n, c, h, w = torch.meshgrid(*(torch.arange(k, dtype=torch.float64) for k in (3, 3, 4, 4)), indexing="ij")
    images = (0.5 * n + 0.3 * c + 0.7 * h + 0.11 * w**2).sin()
    r, i, d = (torch.arange(k, dtype=torch.float64) for k in (12, 3, 48))
    joint = (0.2 * r[:, None] - 0.05 * d).cos(), 0.01 * r
    return images, torch.tensor([0, 2, 1]), joint, (0.15 * i[:, None] + 0.07 * d).cos()


def golden_objective(cls, **settings):
    """The objective with the golden weights; features are the pixels."""
    _, _, (weight, bias), single = golden_case()
    objective = cls(Net(), **settings).double()
    with torch.no_grad():
        objective.network.head.weight.copy_(single)
        objective.network.head.bias.zero_()
        if cls is SLA:
            objective.joint_head.weight.copy_(weight)
            objective.joint_head.bias.copy_(bias)
    return objective


def approx(expected):
    return pytest.approx(expected, rel=1e-10)


def golden(name):
    return [approx(row) for row in GOLDEN[name]]


def test_golden_functions():
    images, target, (weight, bias), single = golden_case()
    joint_logits = F.linear(rotations(images).flatten(2), weight, bias)
    logits = images.flatten(1) @ single.T
    assert joint_labels(target, 4).flatten().tolist() == GOLDEN["joint_labels"]
    assert sla_loss(joint_logits, target).item() == approx(GOLDEN["sla_loss"])
    aggregated = aggregate(joint_logits)
    assert aggregated.tolist() == golden("aggregated_logits")
    assert aggregated.softmax(1).tolist() == golden("aggregated_probs")
    assert distillation_loss(logits, aggregated).item() == approx(GOLDEN["kl_T1"])
    two = GOLDEN["sla_sd_loss_T2"] - GOLDEN["sla_loss"] - GOLDEN["single_head_ce"]
    assert distillation_loss(logits, aggregated, 2.0).item() == approx(two)


@pytest.mark.parametrize("accumulate", [False, True])
def test_golden_objectives(accumulate):
    images, target, *_ = golden_case()

    def value(cls, **settings):
        return golden_objective(cls, accumulate=accumulate, **settings)(images, target, STEP)[0].item()

    assert value(DataAugmentation) == approx(GOLDEN["da_loss"])
    assert value(SLA) == approx(GOLDEN["sla_loss"])
    assert value(SLA, temperature=1.0) == approx(GOLDEN["sla_sd_loss_T1"])
    assert value(SLA, temperature=2.0) == approx(GOLDEN["sla_sd_loss_T2"])


def test_golden_inference():
    images, _, _, _ = golden_case()
    sla = golden_objective(SLA, inference="aggregated")
    assert sla.predict(images).tolist() == golden("aggregated_logits")
    distilled = golden_objective(SLA, inference="single", temperature=1.0)
    assert distilled.predict(images).tolist() == golden("single_head_logits")
    plain = golden_objective(SLA, inference="single")
    plain.after_step(STEP)
    assert plain.predict(images).tolist() == golden("single_inference_logits")


@pytest.mark.parametrize("name", ["none", "rotation", "rotation+color_perm3"])
def test_multi_task_is_sla_whose_joint_weights_are_sums(name):
    """(21) = (22) for w_ij = u_i + v_j, for rotations the golden value; and so the gradients that reach the images."""
    images, target, *_ = golden_case()
    multi, sla = golden_objective(MultiTask, transforms=name), SLA(Net(), name).double()
    j, d = torch.arange(multi.M, dtype=torch.float64)[:, None], torch.arange(48, dtype=torch.float64)
    with torch.no_grad():
        multi.transform_head.weight.copy_((0.3 * j + 0.02 * d).sin())
        multi.transform_head.bias.zero_()
        for joint, u, v in zip(
            sla.joint_head.parameters(), multi.network.head.parameters(), multi.transform_head.parameters(), strict=True
        ):
            joint.copy_((u[:, None] + v).flatten(0, 1))
    images.requires_grad_()
    losses = [objective(images, target, STEP)[0] for objective in (multi, sla)]
    assert losses[0].item() == pytest.approx(losses[1].item(), rel=1e-12)
    if name == "rotation":
        assert losses[0].item() == approx(GOLDEN["mt_equals_sla_when_w_ij=u_i+v_j"]["value"])
    slopes = [torch.autograd.grad(loss, images)[0] for loss in losses]
    torch.testing.assert_close(*slopes, rtol=1e-10, atol=1e-12)


def log_softmax(logits):
    """Plain logarithm of a quotient, for logits of moderate size."""
    return (logits.exp() / logits.exp().sum()).log()


def brute_force(objective, images, target):
    """Loss and logged class loss, one image and one view after the other."""
    turns, orders = SETS[objective.transforms]
    moves = [(k, order) for k in turns for order in orders]
    head, M = objective.network.head, len(moves)
    total, of_class, distillation = 0, 0, 0
    for image, y in zip(images, target.tolist(), strict=True):
        summed = torch.zeros(len(head.weight), dtype=torch.float64)
        for j, move in enumerate(moves):
            z = objective.network.features(by_pixel(image, *move)[None])[0]
            if isinstance(objective, SLA):
                joint = objective.joint_head.weight @ z + objective.joint_head.bias
                total = total - log_softmax(joint)[y * M + j] / M
                column = torch.stack([joint[i * M + j] for i in range(len(head.weight))])
                summed = summed + column / M
                of_class = of_class - log_softmax(column)[y] / M
            else:
                loss = -log_softmax(head.weight @ z + head.bias)[y] / M
                total, of_class = total + loss, of_class + loss
            if isinstance(objective, MultiTask):
                head_j = objective.transform_head
                total = total - log_softmax(head_j.weight @ z + head_j.bias)[j] / M
        if isinstance(objective, SLA) and objective.temperature:
            single, T = head.weight @ objective.network.features(image[None])[0] + head.bias, objective.temperature
            teacher, student = log_softmax(summed.detach() / T), log_softmax(single / T)
            kl = sum(p.exp() * (p - q) for p, q in zip(teacher, student, strict=True))
            total = total - log_softmax(single)[y] + T**2 * kl
            distillation = distillation + T**2 * kl
    terms = {"class_loss": of_class / len(images)}
    terms |= {"distillation": distillation / len(images)} if torch.is_tensor(distillation) else {}
    return total / len(images), {name: value.detach() for name, value in terms.items()}


def gradients(loss, objective):
    trained = {name: p for name, p in objective.named_parameters() if p.requires_grad}
    return dict(zip(trained, torch.autograd.grad(loss, list(trained.values())), strict=True))


@pytest.mark.parametrize("accumulate", [False, True])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["none", "rotation", "color_perm3", "rotation2+color_perm3"])
def test_objectives_are_brute_force_with_all_gradients(kind, name, accumulate):
    objective = build(kind, Net(width=6), name, accumulate).double()
    images, target = batch()
    loss, terms = objective(images, target, STEP)
    expected, logged = brute_force(objective, images, target)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(terms, logged)
    assert not any(value.requires_grad for value in terms.values())
    torch.testing.assert_close(gradients(3 * loss, objective), gradients(3 * expected, objective))


@pytest.mark.parametrize("accumulate", [False, True])
@pytest.mark.parametrize("temperature", [None, 2.0])
@pytest.mark.parametrize(
    ("settings", "progress"),
    [
        ({}, 0.5),
        ({"beta": 0.99}, 0.5),
        ({"beta": 0.99, "defer": 0.6}, 0.5),
        ({"loss": "ldam", "max_margin": 2.0}, 0.5),
        ({"loss": "ldam", "beta": 0.9, "defer": 0.6}, 0.7),
    ],
)
def test_long_tailed_is_brute_force_with_weights_and_margins_of_the_class(settings, progress, temperature, accumulate):
    counts, M = [40, 9, 2], 4
    options = {"temperature": temperature, "accumulate": accumulate, **settings}
    objective = LongTailedSLA(Net(width=6), torch.tensor(counts), **options).double()
    images, target = batch(7, seed=2)
    loss, _ = objective(images, target, STEP._replace(progress=torch.tensor(progress)))
    beta = settings.get("beta", 0.0) if progress >= settings.get("defer", 0.0) else 0.0
    weight = [(1 - beta) / (1 - beta**n) for n in counts]
    margin = [settings.get("max_margin", 0.5) * (2 / n) ** 0.25 * (settings.get("loss") == "ldam") for n in counts]
    total = sum(weight[y] for y in target.tolist())
    expected = 0
    for image, y in zip(images, target.tolist(), strict=True):
        share, column = weight[y] / total, 0
        for j in range(M):
            joint = objective.joint_head(objective.network.features(torch.rot90(image, j, (1, 2))[None]))[0]
            column = column + joint[j::M].detach() / M
            lowered = joint - margin[y] * F.one_hot(torch.tensor(y * M + j), len(joint))
            expected = expected - share * log_softmax(lowered)[y * M + j] / M
        if temperature:
            single = objective.network(image[None])[0]
            lowered = single - margin[y] * F.one_hot(torch.tensor(y), len(single))
            teacher, student = log_softmax(column / temperature), log_softmax(single / temperature)
            kl = sum(p.exp() * (p - q) for p, q in zip(teacher, student, strict=True))  # without weight or margin
            expected = expected - share * log_softmax(lowered)[y] + temperature**2 * kl / len(images)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(gradients(loss, objective), gradients(expected, objective))
    assert objective.settings.items() >= settings.items()


@given(st.integers(1, 6), st.integers(1, 5), st.integers(1, 6), st.sampled_from([0.0, 1.0, 300.0]), st.integers(0, 99))
def test_functions_on_any_shape_and_scale(n, classes, M, scale, seed):
    """Loss by log-sum-exp, aggregation and divergence by loops, for logits up to a thousand."""
    generator = torch.Generator().manual_seed(seed)
    joint = scale * torch.randn(n, M, classes * M, generator=generator, dtype=torch.float64)
    target = torch.randint(classes, (n,), generator=generator)
    loss = sum(
        torch.logsumexp(joint[i, j], 0) - joint[i, j, int(target[i]) * M + j] for i in range(n) for j in range(M)
    )
    torch.testing.assert_close(sla_loss(joint, target), loss / (n * M))
    mean = [[sum(joint[i, j, c * M + j].item() for j in range(M)) / M for c in range(classes)] for i in range(n)]
    torch.testing.assert_close(aggregate(joint), torch.tensor(mean, dtype=torch.float64).view(n, classes))
    student = torch.randn(n, classes, generator=generator, dtype=torch.float64)
    for T in (0.5, 1.0, 4.0):
        p, q = (torch.distributions.Categorical(logits=each / T) for each in (aggregate(joint), student))
        expected = T**2 * torch.distributions.kl_divergence(p, q).mean()
        torch.testing.assert_close(distillation_loss(student, aggregate(joint), T), expected, rtol=1e-9, atol=1e-12)


def test_gradcheck():
    generator = torch.Generator().manual_seed(0)
    joint, logits, teacher = (
        torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()
        for shape in ((3, 2, 8), (3, 4), (3, 4))
    )
    target = torch.tensor([0, 3, 1])
    assert torch.autograd.gradcheck(lambda x: sla_loss(x, target), joint)
    assert torch.autograd.gradgradcheck(lambda x: sla_loss(x, target), joint)
    assert torch.autograd.gradcheck(aggregate, joint)
    assert torch.autograd.gradcheck(lambda x: distillation_loss(x, teacher.detach(), 2.0), logits)


def test_distillation_s_gradient_is_the_difference_of_the_softened_probabilities_and_spares_the_teacher():
    logits, teacher = (torch.randn(6, 4, dtype=torch.float64).requires_grad_() for _ in range(2))
    distillation_loss(logits, teacher, 3.0).backward()
    expected = 3.0 * ((logits / 3).softmax(1) - (teacher / 3).softmax(1)) / 6
    torch.testing.assert_close(logits.grad, expected.detach())
    assert teacher.grad is None


def test_distillation_of_weight_0_leaves_the_second_head_its_labels():
    network, (images, target) = Net(width=6).double(), batch()
    objective = SLA(network, temperature=2.0, distillation=0.0).double()
    loss, _ = objective(images, target, STEP)
    z = torch.stack([network.features(torch.rot90(images, j, (2, 3))) for j in range(4)], 1)
    joint = F.cross_entropy(objective.joint_head(z).flatten(0, 1), joint_labels(target, 4).flatten())
    torch.testing.assert_close(loss, joint + F.cross_entropy(network.head(z[:, 0]), target))
    with pytest.raises(ValueError, match=r"distillation: got -1.*takes a finite number from 0"):
        SLA(Net(width=6), temperature=1.0, distillation=-1.0)
    with pytest.raises(ValueError, match=r"temperature: got None; takes a number above 0 for distillation=0.0"):
        SLA(Net(width=6), distillation=0.0)


@pytest.mark.parametrize("frozen", [False, True])
def test_the_network_given_keeps_its_head_which_the_next_objective_may_train(frozen):
    network = Net(width=6)
    network.head.requires_grad_(not frozen)
    head, before = network.head, network.head.weight.clone()
    objective = SLA(network)
    with torch.no_grad():
        objective.joint_head.weight.add_(1)
    objective.after_step(STEP)
    assert network.head is head
    assert torch.equal(head.weight, before)
    assert objective.network.features is network.features, "all else is shared, so that training reaches it"
    assert not objective.network.head.weight.requires_grad
    assert [*objective.state_dict()][-4:] == [
        f"{a}.{b}" for a in ("network.head", "joint_head") for b in ("weight", "bias")
    ]
    assert SLA(network, temperature=1.0).network.head.weight.requires_grad is not frozen


@pytest.mark.parametrize("accumulate", [False, True])
@pytest.mark.parametrize("kind", [*KINDS, "long-tailed", "long-tailed, distilled"])
def test_what_the_user_froze_stays_frozen(kind, accumulate):
    """In flags and in values: after the constructor, a step, inference, and a training."""
    network, data = networks.small(throwaway.CLASSES, width=8, norm="group"), throwaway.data()
    frozen = [*network.head.parameters(), *network.stages[0].parameters()]
    for parameter in frozen:
        parameter.requires_grad_(False)
    before = [parameter.clone() for parameter in frozen]
    if kind.startswith("long-tailed"):
        temperature = 2.0 if "distilled" in kind else None
        objective = LongTailedSLA(network, data.counts, temperature=temperature, accumulate=accumulate)
    else:
        objective = build(kind, network, accumulate=accumulate)
    loss, _ = objective(data.train.floats(slice(0, 8)), data.train.target[:8], STEP)
    loss.backward()
    objective.after_step(STEP)
    objective.predict(data.test.floats(slice(0, 4)))
    training.fit(objective, data, training.Recipe(epochs=1, batch_size=16, lr=0.5), progress=False)
    for parameter, value in zip(frozen, before, strict=True):
        assert not parameter.requires_grad
        assert parameter.grad is None
        assert torch.equal(parameter, value)


@pytest.mark.parametrize("accumulate", [False, True])
@pytest.mark.parametrize("temperature", [None, 2.0])
def test_the_summed_loss_has_the_joint_loss_m_times(temperature, accumulate):
    images, target = batch()
    mean = SLA(Net(width=6), temperature=temperature).double()
    total = SLA(mean.network, temperature=temperature, accumulate=accumulate, summed=True).double()
    total.load_state_dict(mean.state_dict())
    z = mean.network.features(rotations(images).flatten(0, 1)).unflatten(0, (5, 4))
    expected = mean(images, target, STEP)[0] + 3 * sla_loss(mean.joint_head(z), target)
    torch.testing.assert_close(total(images, target, STEP)[0], expected)
    assert "summed" not in mean.settings
    assert total.settings == mean.settings | {"accumulate": accumulate, "summed": True}


def test_a_joint_head_of_another_width_is_an_error():
    objective, (images, target) = SLA(Net(width=6)).double(), batch()
    objective.joint_head = nn.Linear(objective.joint_head.in_features, 16).double()
    for use in (lambda: objective(images, target, STEP), lambda: objective.predict(images)):
        with pytest.raises(ValueError, match=r"joint_head: got 16 rows; takes \d+ classes x 4 transformations"):
            use()


def test_one_view_after_the_other_without_gradients_and_with_those_of_images():
    objective, (images, target) = SLA(Net(width=6), accumulate=True).double(), batch()
    plain = SLA(Net(width=6)).double()
    plain.load_state_dict(objective.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(objective(images, target, STEP)[0], plain(images, target, STEP)[0])
    with pytest.raises(ValueError, match="images: got some that ask for a gradient; accumulate=True takes none"):
        objective(images.requires_grad_(), target, STEP)
    for parameter in objective.parameters():
        parameter.requires_grad_(False)
    assert not objective(images.detach(), target, STEP)[0].requires_grad


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("target", [torch.zeros(5, 3), torch.zeros(5, dtype=torch.int32), torch.zeros(5).byte()])
def test_targets_that_are_no_class_numbers(target):
    for use in (lambda: joint_labels(target, 4), lambda: sla_loss(torch.zeros(5, 4, 12), target)):
        with pytest.raises(ValueError, match=r"target: got torch.* takes class numbers, int64 \(N,\)"):
            use()


def test_aggregation_is_the_renormalised_geometric_mean_of_the_conditionals_and_not_their_mean():
    joint = torch.randn(4, 3, 15, dtype=torch.float64)
    conditionals = torch.stack([joint[:, j, j::3].softmax(1) for j in range(3)])
    geometric = conditionals.prod(0) ** (1 / 3)
    torch.testing.assert_close(aggregate(joint).softmax(1), geometric / geometric.sum(1, keepdim=True))
    assert (aggregate(joint).softmax(1) - conditionals.mean(0)).abs().max() > 0.01


# --- inference ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TRANSFORMS)
@pytest.mark.parametrize("bias", [True, False])
def test_aggregated_inference_is_that_of_all_joint_logits(name, bias):
    objective, (images, _) = SLA(Net(width=6, bias=bias), name).double(), batch()
    every = views(images, name)
    joint = objective.joint_head(objective.network.features(every.flatten(0, 1))).unflatten(0, every.shape[:2])
    torch.testing.assert_close(objective.predict(images), aggregate(joint))
    single = SLA(objective.network, name, "single").double()
    single.load_state_dict(objective.state_dict())
    single.after_step(STEP)
    torch.testing.assert_close(single.predict(images), joint[:, 0, :: objective.M])


@pytest.mark.parametrize("kind", ["DataAugmentation", "MultiTask"])
def test_the_mean_over_a_group_of_transformations_is_the_same_for_every_view(kind):
    objective, (images, _) = build(kind, Net(width=6), "rotation+color_perm", inference="aggregated").double(), batch()
    expected = objective.predict(images)
    for view in views(images, "rotation+color_perm").unbind(1):
        torch.testing.assert_close(objective.predict(view), expected)
    torch.testing.assert_close(
        build(kind, objective.network, inference="single").predict(images), objective.network(images)
    )


def test_without_distillation_the_network_s_own_head_is_the_joint_head_s_rows_for_the_identity():
    network, (images, target) = Net(width=6).double(), batch()
    start = network.head.weight.detach().clone()
    objective = SLA(network)

    def is_copy():
        mine, joint = objective.network.head, objective.joint_head
        return torch.equal(mine.weight, joint.weight[::4]) and torch.equal(mine.bias, joint.bias[::4])

    assert is_copy(), "from the start on"
    assert torch.equal(objective.network.head.weight, start), "the joint head starts from what the network had learnt"
    optimizer = torch.optim.SGD([p for p in objective.parameters() if p.requires_grad], lr=0.1)
    objective(images, target, STEP)[0].backward()
    assert objective.network.head.weight.grad is None
    optimizer.step()
    assert not is_copy()
    objective.after_step(STEP)
    assert is_copy()

    distilled = SLA(Net(width=6), temperature=1.0).double()
    before = distilled.network.head.weight.clone()
    distilled.after_step(STEP)
    assert torch.equal(distilled.network.head.weight, before), "distilled: a head that is trained"
    assert distilled.network.head.weight.requires_grad


def test_one_transformation_is_plain_training():
    images, target = batch()
    for cls in (DataAugmentation, MultiTask, SLA):
        plain = CrossEntropy(Net(width=6)).double()
        expected, logits = plain(images, target, STEP)[0], plain.predict(images)
        objective = cls(plain.network, "none").double()
        torch.testing.assert_close(objective(images, target, STEP)[0], expected)
        torch.testing.assert_close(objective.aggregated(images), logits)


# --- one view after the other ---------------------------------------------------------------------------------------


def copies(kind, norm, **settings):
    """The same objective twice, all views at once and one by one, on images of 12 x 12."""
    objectives = []
    for accumulate in (False, True):
        torch.manual_seed(1)
        objectives.append(
            build(kind, networks.small(3, channels=3, width=8, norm=norm), accumulate=accumulate, **settings)
        )
    return [objective.double() for objective in objectives]


@pytest.mark.parametrize("kind", KINDS)
def test_accumulated_views_are_all_at_once_to_rounding(kind):
    at_once, accumulated = copies(kind, "group", transforms="rotation2+color_perm3")
    images, target = torch.rand(4, 3, 12, 12, dtype=torch.float64), torch.tensor([0, 1, 2, 0])
    results = []
    for objective in (at_once, accumulated):
        loss, terms = objective(images, target, STEP)
        results.append({**gradients(2 * loss, objective), "loss": loss, **terms})
    torch.testing.assert_close(*results, rtol=1e-10, atol=1e-13)  # sums in another order


def test_accumulated_views_are_normalised_each_by_itself():
    """BatchNorm: the loss is the mean of the losses of single views, and the identity enters the running ones last."""
    accumulated = copies("DataAugmentation", "batch")[1]
    reference = copies("DataAugmentation", "batch")[0]
    images, target = torch.rand(4, 3, 12, 12, dtype=torch.float64), torch.tensor([0, 1, 2, 0])
    loss = accumulated(images, target, STEP)[0]
    parts = [F.cross_entropy(reference.network(view), target) for view in rotations(images).unbind(1)[::-1]]
    torch.testing.assert_close(loss, sum(parts) / 4)
    torch.testing.assert_close(gradients(loss, accumulated), gradients(sum(parts) / 4, reference))
    torch.testing.assert_close(dict(accumulated.named_buffers()), dict(reference.named_buffers()))
    at_once = copies("DataAugmentation", "batch")[0](images, target, STEP)[0]
    assert abs(at_once - loss) > 1e-4, "so it differs from all at once"


@pytest.mark.parametrize("kind", ["MultiTask", "distilled"])
def test_accumulated_views_take_the_memory_of_few(kind):
    at_once, accumulated = (objective.float() for objective in copies(kind, "group", transforms="rotation+color_perm"))
    images, target = torch.rand(32, 3, 12, 12), torch.arange(32) % 3

    def step(objective):
        return lambda: objective(images, target, STEP)[0].backward()

    peaks = [peak_memory(step(objective)) for objective in (at_once, accumulated)]
    assert peaks[1] < peaks[0] / 8, "of 24 views"


def test_twice_through_accumulated_views_says_so():
    objective = SLA(Net(width=6), accumulate=True).double()
    loss = objective(*batch(), STEP)[0]
    with pytest.raises(RuntimeError, match="accumulate=True differentiates once"):
        torch.autograd.grad(loss, objective.joint_head.weight, create_graph=True)


def test_evaluation_without_gradients_gives_the_same_loss():
    for accumulate in (False, True):
        objective, (images, target) = SLA(Net(width=6), temperature=1.0, accumulate=accumulate).double(), batch()
        expected = objective(images, target, STEP)[0].item()
        with torch.no_grad():
            assert objective(images, target, STEP)[0].item() == expected


# --- in training ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("accumulate", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_fit_trains_and_records_both_inferences(kind, accumulate):
    """Two-fold rotations of quadrants that stay in their half are learnt; accuracies are counted by hand."""
    data = throwaway.data()
    torch.manual_seed(0)
    network = networks.small(throwaway.CLASSES, width=8, norm="group")
    objective = build(kind, network, "rotation2" if kind in ("SLA", "distilled") else "none", accumulate)
    recipe = training.Recipe(epochs=2, batch_size=16, lr=0.05)
    record = training.fit(objective, data, recipe, progress=False)
    images, target = data.test.floats(), data.test.target
    with torch.no_grad():
        called = {"single": objective.network(images), "aggregated": objective.aggregated(images)}
    for name, logits in called.items():
        assert record.metrics[f"{name}_test_accuracy"] == (logits.argmax(1) == target).sum().item() / len(target)
    assert record.metrics["test_accuracy"] == record.metrics[f"{objective.inference}_test_accuracy"]
    assert "single_validation_accuracy" not in record.metrics
    expected = {"transforms": objective.transforms, "inference": objective.inference, "accumulate": accumulate}
    assert record.config["settings"] == expected | (
        {"temperature": 2.0, "distillation": 1.0} if kind == "distilled" else {}
    )
    assert record.curves["train_loss"][1] < record.curves["train_loss"][0]
    assert len(record.curves["class_loss"]) == 2


def test_the_validation_split_is_counted_where_there_is_one():
    whole = throwaway.data()
    data = throwaway.Data("quadrants", whole.train, whole.test, validation=whole.meta, classes=whole.classes)
    metrics = SLA(networks.small(4)).eval().metrics(data)
    assert metrics.keys() == {f"{a}_{b}_accuracy" for a in ("single", "aggregated") for b in ("test", "validation")}


def test_functions_take_half_precision_to_float32():
    joint, logits = torch.randn(5, 4, 12).bfloat16(), torch.randn(5, 3).bfloat16()
    target = torch.arange(5) % 3
    for function, half in [
        (lambda x: sla_loss(x, target), joint),
        (aggregate, joint),
        (lambda x: distillation_loss(x, x.flip(0)), logits),
    ]:
        assert function(half).dtype == torch.float32
        torch.testing.assert_close(function(half), function(half.float()), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("accumulate", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_autocast_takes_losses_of_half_precision_logits_in_float32(kind, accumulate):
    objective, (images, target) = build(kind, Net(width=6), accumulate=accumulate), batch()
    images, seen, head = images.float(), [], objective.network.head
    trained = objective.joint_head if isinstance(objective, SLA) else head
    trained.register_forward_hook(lambda module, inputs, logits: seen.insert(0, logits))  # the identity comes last
    single = []
    head.register_forward_hook(lambda module, inputs, logits: single.append(logits))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss, terms = objective(images, target, STEP)
        assert objective.aggregated(images).dtype == torch.float32
    assert all(logits.dtype == torch.bfloat16 for logits in seen)
    joint = torch.stack(seen[-4:], 1).float()
    if kind == "SLA":
        torch.testing.assert_close(loss, sla_loss(joint, target))
    if kind == "distilled":
        expected = distillation_loss(single[0].float(), aggregate(joint), 2.0)
        torch.testing.assert_close(terms["distillation"], expected.detach(), rtol=1e-5, atol=1e-7)
        torch.testing.assert_close(
            loss, sla_loss(joint, target) + F.cross_entropy(single[0].float(), target) + expected
        )
    assert loss.dtype == torch.float32
    assert all(term.dtype == torch.float32 for term in terms.values())
    assert all(slope.dtype == torch.float32 for slope in gradients(loss, objective).values())


@pytest.mark.usefixtures("unchecked")  # the shape checks cannot be captured
@pytest.mark.parametrize("kind", KINDS)
def test_compiles_whole_without_a_break(kind):
    torch.compiler.reset()  # what other tests compiled counts towards the limit on versions of one function
    images, target = batch()
    eager = build(kind, Net(width=6)).double()
    loss = eager(images, target, STEP)[0]
    compiled = torch.compile(eager, fullgraph=True, backend="aot_eager")(images, target, STEP)[0]
    torch.testing.assert_close(gradients(compiled, eager), gradients(loss, eager))


# --- on a GPU -------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("accumulate", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_a_step_there_is_the_cpu_s_without_waiting_for_the_device(kind, accumulate):
    objective, (images, target) = build(kind, Net(width=6), "rotation+color_perm", accumulate).double(), batch()
    expected = objective(images, target, STEP)[0]
    slopes = gradients(expected, objective)
    objective, images, target = objective.cuda(), images.cuda(), target.cuda()
    gradients(objective(images, target, STEP)[0], objective)  # libraries are loaded
    torch.cuda.set_sync_debug_mode("error")
    try:
        loss, _ = objective(images, target, STEP)
        there = gradients(loss, objective)
        aggregated = objective.aggregated(images)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    torch.testing.assert_close(loss.cpu(), expected)
    torch.testing.assert_close({name: slope.cpu() for name, slope in there.items()}, slopes)
    torch.testing.assert_close(aggregated.cpu(), objective.cpu().aggregated(images.cpu()))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("accumulate", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_captured_training_there_is_that_of_single_launches(kind, accumulate, monkeypatch):
    curves = []
    for captured in (True, False):
        torch.manual_seed(0)
        objective = build(kind, networks.small(4, norm="group"), accumulate=accumulate).double().cuda()
        assert objective.phase(0.5) is not None
        if not captured:
            monkeypatch.setattr(type(objective), "phase", lambda self, progress: None)
        record = training.fit(objective, throwaway.data(), training.Recipe(epochs=4, batch_size=16), progress=False)
        curves.append(record.curves["train_loss"])
    assert curves[0] == pytest.approx(curves[1], rel=1e-6)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("number", [int, np.float64, np.float32, np.int64])
def test_settings_are_plain_floats(number):
    settings = SLA(Net(), temperature=number(1), distillation=number(0)).settings
    assert settings == SLA(Net(), temperature=1.0, distillation=0.0).settings
    assert {type(settings[name]) for name in ("temperature", "distillation")} == {float}
    plain = {"beta": 0.0, "defer": 1.0, "max_margin": 1.0}
    counts, given = torch.tensor([3, 2, 1]), {name: number(value) for name, value in plain.items()}
    settings = LongTailedSLA(Net(), counts, loss="ldam", **given).settings
    assert settings == LongTailedSLA(Net(), counts, loss="ldam", **plain).settings
    assert {type(settings[name]) for name in plain} == {float}


def test_built_for_a_data_set_it_has_its_counts():
    dataset = throwaway.data()
    objective = LongTailedSLA.build(networks.small(4), dataset, beta=0.5, loss="ldam")
    assert isinstance(objective, LongTailedSLA)
    assert torch.equal(objective.class_weight, class_balanced_weights(dataset.counts, 0.5))
    assert objective.settings == LongTailedSLA(networks.small(4), dataset.counts, beta=0.5, loss="ldam").settings


# --- bad input ------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: rotations(torch.rand(2, 3, 4, 5)), "images: got 4 x 5 pixels; takes square ones"),
        (lambda: views(torch.rand(2, 1, 4, 4), "color_perm"), r"images: got 1 channel\(s\); takes 3 to permute"),
        (lambda: views(torch.rand(2, 3, 4, 4), "rotate"), "transforms: got 'rotate'; takes one of none, rotation"),
        (lambda: views(torch.rand(3, 4, 4), "none"), r"images: got shape \(3, 4, 4\); takes \(N, channels, H, W\)"),
        (lambda: sla_loss(torch.rand(2, 4, 30), torch.tensor([0, 1])), r"joint_logits: got shape \(2, 4, 30\)"),
        (lambda: sla_loss(torch.rand(8, 12), torch.tensor([0, 1])), r"takes \(N, M, C \* M\), C classes x M"),
        (lambda: aggregate(torch.rand(2, 4, 30)), r"joint_logits: got shape \(2, 4, 30\)"),
        (
            lambda: distillation_loss(torch.rand(2, 3), torch.rand(2, 4)),
            r"aggregated: got shape \(2, 4\); takes that of logits",
        ),
        (lambda: distillation_loss(torch.rand(2, 3), torch.rand(2, 3), 0.0), "temperature: got 0.0; takes a finite"),
        (lambda: SLA(Net(), temperature=-1.0), "temperature: got -1.0; takes a finite number above 0"),
        (lambda: SLA(Net(), temperature=math.inf), "temperature: got inf"),
        (lambda: SLA(Net(), "mirror"), "transforms: got 'mirror'; takes one of none"),
        (lambda: MultiTask(Net(), inference="mean"), "inference: got 'mean'; takes one of single, aggregated"),
        (lambda: LongTailedSLA(Net(), torch.tensor([3, 2])), "counts: got 2 classes; takes 3, as the network has"),
        (lambda: LongTailedSLA(Net(), torch.tensor([3, 2, 0])), "counts: got 0 for class 2; takes integers from 1"),
        (
            lambda: LongTailedSLA(Net(), torch.tensor([3, 2, 1]), loss="focal"),
            "loss: got 'focal'; takes one of ce, ldam",
        ),
        (lambda: LongTailedSLA(Net(), torch.tensor([3, 2, 1]), beta=1.0), "beta: got 1.0; takes a finite"),
        (
            lambda: LongTailedSLA(Net(), torch.tensor([3, 2, 1]), defer=2.0),
            r"defer: got 2.0; takes a finite number in \[0, 1\]",
        ),
        (lambda: SLA(Net())(torch.rand(2, 3, 4, 4), torch.rand(2, 3), STEP), "takes class numbers, int64"),
        (lambda: sla_loss(torch.rand(0, 4, 12), torch.tensor([], dtype=torch.int64)), r"target: .* of N > 0 images"),
        (lambda: sla_loss(torch.rand(2, 4, 12), torch.tensor([0])), r"target: got shape \(1,\); takes \(2,\)"),
        (lambda: distillation_loss(torch.rand(0, 3), torch.rand(0, 3)), r"logits: got shape \(0, 3\); .* N > 0"),
        (lambda: distillation_loss(torch.rand(3), torch.rand(3)), r"logits: got shape \(3,\); takes \(N, C\)"),
        *(
            (
                lambda value=value: SLA(Net(), temperature=value),
                f"temperature: got {value!r}; takes a finite number above 0",
            )
            for value in (True, "1", math.nan, 0)
        ),
        *(
            (lambda value=value: SLA(Net(), temperature=1.0, distillation=value), f"distillation: got {value!r}; takes")
            for value in (True, "1", math.nan, math.inf, None)
        ),
        *(
            (lambda value=value: MultiTask(Net(), accumulate=value), f"accumulate: got {value!r}; takes True or False")
            for value in ("no", 1, None)
        ),
        (lambda: SLA(Net(), summed="no"), "summed: got 'no'; takes True or False"),
        (lambda: LongTailedSLA(Net(), torch.tensor([3, 2, 1]), max_margin="1"), "max_margin: got '1'"),
        (lambda: LongTailedSLA(Net(), torch.tensor(3)), r"counts: got torch.int64 \(\); takes integers"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("label", [-1, 3, -100, 2**62])
@pytest.mark.parametrize("kind", [*KINDS, "long-tailed", "function"])
def test_labels_that_are_no_class(kind, label):
    """-100 is what F.cross_entropy leaves out without a word."""
    images, target = batch()
    target[2] = label
    if kind == "function":

        def use():
            sla_loss(torch.rand(5, 4, 12), target)
    else:
        counts = torch.tensor([3, 2, 1])
        objective = LongTailedSLA(Net(width=6), counts) if kind == "long-tailed" else build(kind, Net(width=6))

        def use():
            objective.double()(images, target, STEP)

    with pytest.raises(ValueError, match=rf"target: got classes .*{label}.*; takes 0 to 2"):
        use()


@pytest.mark.parametrize("accumulate", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_batches_that_do_not_fit(kind, accumulate):
    objective, (images, target) = build(kind, Net(width=6), accumulate=accumulate).double(), batch()
    for n, message in ((0, "with N > 0"), (4, r"target: got shape \(4,\); takes \(5,\)")):
        with pytest.raises(ValueError, match=message):
            objective(images[:n] if n == 0 else images, target[:n], STEP)


@pytest.mark.usefixtures("unchecked")
def test_a_network_without_head_is_named():
    with pytest.raises(TypeError, match=r"network.* head.*NoneType"):
        SLA(nn.Linear(3, 2))


@pytest.mark.parametrize("kind", KINDS)
def test_an_unknown_option_is_no_setting(kind):
    with pytest.raises(TypeError, match="unexpected keyword argument 'transform'"):
        build(kind, Net(), transform="rotation")
