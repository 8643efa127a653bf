"""Oracles: the released code's golden values, double backward through brute force in float64, finite differences."""

from __future__ import annotations

import copy
import json
import math
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.autograd import forward_ad
from torch.func import functional_call
from torch.nn import functional as F

import throwaway
from semaug import networks
from semaug.core.moments import ClassMoments
from semaug.methods._metasaug_forward import BatchNorm, derivative
from semaug.methods.long_tail import CosineLinear, class_balanced_weights, ldam_margins
from semaug.methods.metasaug import MetaSAug, meta_gradient, nearest_psd
from semaug.training.objective import Batch, Step

GOLDEN = json.loads((Path(__file__).parents[2] / "golden" / "metasaug.json").read_text())
COUNTS = torch.tensor([100, 50, 20, 5])
LR, PROGRESS = 0.3, 0.5
FORMS = pytest.mark.parametrize("form", ["full", "diagonal"])
LOSSES = pytest.mark.parametrize("loss", ["ldam", "ce"])


def batch(n=12, seed=0):
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand(n, 1, 10, 10, generator=generator, dtype=torch.float64)
    return Batch(images, torch.randint(0, 4, (n,), generator=generator))


def step(meta=None, progress=PROGRESS, lr=LR):
    return Step(torch.tensor(progress, dtype=torch.float64), lr, torch.Generator(), meta or batch(10, seed=1))


def objective_of(network=None, **choice):
    torch.manual_seed(0)
    network = networks.small(4, width=8) if network is None else network
    return MetaSAug(network, COUNTS, **{"stage": 0.0, "beta": 0.99, "max_margin": 0.8, **choice}).double().train()


def plain_loss(objective, features, target, weight, bias, covariance):
    """The weighted loss of the batch, by the definition of every part of it."""
    settings = objective.settings
    if covariance.ndim == 2:
        covariance = torch.diag_embed(covariance)
    d = weight - weight[target][:, None]
    forms = torch.einsum("nja,nab,njb->nj", d, covariance[target], d)
    logits = F.linear(features, weight, bias) + 0.5 * PROGRESS * settings["strength"] * forms
    if settings["loss"] == "ldam":
        margins = ldam_margins(COUNTS, settings["max_margin"])
        logits = logits - F.one_hot(target, 4) * margins[target][:, None]
    return F.cross_entropy(logits, target, class_balanced_weights(COUNTS, settings["beta"]))


def meta_loss(objective, images, target, meta, covariance, create_graph=True):
    """The meta batch's loss after the inner step, as a function of the covariance, on a copy of the network."""
    network = copy.deepcopy(objective.network)
    parameters = {name: p for name, p in network.named_parameters() if p.requires_grad}
    head = network.head
    inner = plain_loss(objective, network.features(images), target, head.weight, head.bias, covariance)
    slopes = torch.autograd.grad(inner, list(parameters.values()), create_graph=create_graph)
    stepped = {name: p - LR * slope for (name, p), slope in zip(parameters.items(), slopes, strict=True)}
    buffers = {name: buffer.clone() for name, buffer in network.named_buffers()}
    return F.cross_entropy(functional_call(Whole(network), under(stepped | buffers), (meta.images,)), meta.target)


class Whole(nn.Module):
    """Features and head, whatever the network's own forward."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, images):
        return self.network.head(self.network.features(images))


def under(values):
    return {f"network.{name}": value for name, value in values.items()}


def moments_after(objective, images, target):
    """The moments once this batch has entered them, leaving the objective as it is."""
    moments, network = copy.deepcopy(objective.moments), copy.deepcopy(objective.network)
    moments.update(network.features(images).detach(), target)
    return moments.covariance


def by_double_backward(objective, images, target, meta):
    """The covariance that one meta step leaves."""
    covariance = moments_after(objective, images, target)
    for _ in range(objective.settings["meta_steps"]):
        covariance = covariance.detach().requires_grad_()
        loss = meta_loss(objective, images, target, meta, covariance)
        covariance = covariance - objective.settings["meta_lr"] * torch.autograd.grad(loss, covariance)[0]
    return covariance.detach()


def entered(objective):
    """Two earlier batches in the moments, so that they are of more than the batch at hand."""
    for seed in (5, 6):
        images, target = batch(20, seed)
        objective.moments.update(copy.deepcopy(objective.network).features(images).detach(), target)
    return objective


class Linear(nn.Module):
    """No backbone: an image is its feature."""

    def __init__(self, weight, bias):
        super().__init__()
        self.head = nn.Linear(*weight.shape[::-1])
        self.head.weight.data, self.head.bias.data = weight, bias

    def features(self, images):
        return images.flatten(1)


def test_golden():
    N, A, C = (GOLDEN[name] for name in "NAC")
    i, k, j = (torch.arange(size, dtype=torch.float64) for size in (N, A, C))
    phase = 0.37 * (i[:, None] + 1) * (k + 2)
    network = Linear((0.2 * j[:, None] - 0.05 * k).cos(), 0.1 * j)
    choice = {"stage": 0.0, "meta_lr": GOLDEN["meta_lr"], "keep": True, "strength": GOLDEN["ratio"]}
    labels, meta = torch.arange(N) ** 2 % C, Batch((phase + 3.5).sin()[:, None, None], torch.arange(N) % C)
    at = step(meta, progress=1.0, lr=GOLDEN["inner_lr"])
    for meta_steps, expected in ((0, "loss_before"), (1, "loss_after")):
        objective = MetaSAug(network, torch.tensor([100, 50, 20, 5]), meta_steps=meta_steps, **choice).double().eval()
        for t in (1, 2, 3):
            objective.moments.update((phase + 0.7 * t).sin(), (torch.arange(N) + t) % C)
        before = objective.moments.covariance.clone()
        loss, terms = objective(phase.sin()[:, None, None], labels, at)
        assert loss.item() == pytest.approx(GOLDEN[expected], rel=1e-12)
    after = objective.moments.covariance
    torch.testing.assert_close(after, torch.tensor(GOLDEN["new_cov"], dtype=torch.float64), rtol=0, atol=1e-13)
    gradient, expected = (before - after) / GOLDEN["meta_lr"], torch.tensor(GOLDEN["grad_cv"], dtype=torch.float64)
    torch.testing.assert_close(gradient, expected, rtol=0, atol=2e-11 * float(expected.abs().max()) + 1e-15)
    shift = GOLDEN["meta_lr"] * GOLDEN["grad_cv_norm"] / GOLDEN["cov_norm"]
    assert terms["covariance_shift"].item() == pytest.approx(shift, rel=1e-10)


@FORMS
@LOSSES
@pytest.mark.parametrize("choice", [{}, {"beta": 0.0}, {"meta_steps": 3}])
def test_meta_step_is_double_backward_and_the_step_takes_its_result_as_a_constant(form, loss, choice):
    # a meta learning rate so large that the gradient, not the covariance, is what is compared
    objective = entered(objective_of(covariance=form, loss=loss, meta_lr=1e3, keep=True, **choice))
    (images, target), meta = batch(), batch(10, seed=1)
    expected = by_double_backward(objective, images, target, meta)
    plain = copy.deepcopy(objective)
    features = plain.network.features(images)
    head = plain.network.head
    plain_loss(plain, features, target, head.weight, head.bias, expected).backward()
    before = moments_after(objective, images, target)

    value, _ = objective(images, target, step(meta))
    value.backward()
    moved = (expected - before).abs().max()
    assert moved > 1e-3 * before.abs().max()
    covariance = objective.moments.covariance
    torch.testing.assert_close(covariance, expected, rtol=0, atol=1e-10 * float(moved))
    torch.testing.assert_close(covariance, covariance.mT if form == "full" else covariance)
    for (name, mine), theirs in zip(objective.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-9, atol=1e-12, msg=name)


def test_meta_gradient_by_finite_differences():
    objective = entered(objective_of(meta_lr=1.0, keep=True))
    (images, target), meta = batch(), batch(10, seed=1)
    covariance = moments_after(objective, images, target)
    objective(images, target, step(meta))
    gradient = covariance - objective.moments.covariance
    direction = torch.randn_like(covariance)
    direction = direction + direction.mT
    ahead, behind = (
        meta_loss(objective, images, target, meta, covariance + e * direction, create_graph=False)
        for e in (1e-4, -1e-4)
    )
    # the quotient's error: 1e-8 of a third derivative, and rounding 1e-16 / 1e-4
    assert (gradient * direction).sum().item() == pytest.approx((ahead - behind).item() / 2e-4, rel=1e-5)


def test_running_statistics_are_of_one_pass_over_the_batch_alone():
    objective = entered(objective_of(meta_steps=2))
    network = copy.deepcopy(objective.network)
    network(batch()[0])
    objective(*batch(), step())[0].backward()
    for (name, mine), theirs in zip(objective.network.named_buffers(), network.buffers(), strict=True):
        assert torch.equal(mine, theirs), name


def test_parameters_and_their_gradients_are_left_alone():
    objective = entered(objective_of())
    before = copy.deepcopy(dict(objective.named_parameters()))
    objective(*batch(), step())
    for name, parameter in objective.named_parameters():
        assert torch.equal(parameter, before[name])
        assert parameter.grad is None


@LOSSES
def test_before_its_stage_it_is_cross_entropy_and_the_moments_stay_empty(loss):
    objective = objective_of(stage=0.8, loss=loss)
    images, target = batch()
    value, terms = objective(images, target, step(progress=0.79))
    torch.testing.assert_close(value, F.cross_entropy(objective.network(images), target))
    assert terms == {"strength": 0, "covariance_shift": 0}
    assert objective.moments.count.sum() == 0
    value, terms = objective(images, target, step(progress=0.81))
    assert objective.moments.count.sum() == len(target)
    assert terms["strength"].item() == pytest.approx(0.81 * 0.75)
    assert terms["covariance_shift"] > 0


def test_phases_are_before_and_after_the_stage():
    objective = objective_of(stage=0.8)
    assert [objective.phase(progress) for progress in (0.0, 0.79, 0.81)] == ["plain", "plain", "meta"]
    assert [objective_of(stage=0.8, psd=True).phase(progress) for progress in (0.79, 0.81)] == ["plain", None]
    images, target = batch()
    for progress, phase in ((0.1, "meta"), (0.9, "plain")):  # what the step says is not looked up in the progress
        before = objective.moments.count.sum()
        objective(images, target, step(progress=progress)._replace(phase=phase))
        assert (objective.moments.count.sum() > before) == (phase == "meta")


@FORMS
def test_without_a_meta_step_it_is_the_loss_at_the_moments(form):
    objective = entered(objective_of(covariance=form, meta_steps=0))
    images, target = batch()
    covariance = moments_after(objective, images, target)
    features, head = copy.deepcopy(objective.network).features(images), objective.network.head
    value, terms = objective(images, target, step())
    expected = plain_loss(objective, features, target, head.weight, head.bias, covariance)
    assert value.item() == pytest.approx(expected.item(), rel=1e-12)
    assert terms["covariance_shift"] == 0


@FORMS
def test_as_released_the_learned_covariance_is_forgotten(form):
    forgets, keeps = (entered(objective_of(covariance=form, keep=keep, meta_lr=100.0)) for keep in (False, True))
    images, target = batch()
    moments = moments_after(forgets, images, target)
    losses = [objective(images, target, step())[0].item() for objective in (forgets, keeps)]
    assert losses[0] == losses[1]
    torch.testing.assert_close(forgets.moments.covariance, moments)
    assert (keeps.moments.covariance - moments).norm() > 0.01 * moments.norm()


def test_a_covariance_that_overflows_is_not_kept():
    objective = entered(objective_of(keep=True, meta_lr=1e300))
    images, target = batch()
    expected = moments_after(objective, images, target)
    with pytest.raises(ValueError, match=r"not finite|overflow"):
        objective(images, target, step(lr=1e10))
    torch.testing.assert_close(objective.moments.covariance, expected)


@FORMS
def test_projection(form):
    objective = entered(objective_of(covariance=form, psd=True, keep=True, meta_lr=3e3))
    free = entered(objective_of(covariance=form, keep=True, meta_lr=3e3))
    for each in (objective, free):
        each(*batch(), step())

    def least(covariance):
        return covariance.min() if form == "diagonal" else torch.linalg.eigvalsh(covariance).min()

    scale = objective.moments.covariance.abs().max()
    assert least(free.moments.covariance) < -1e-3 * scale
    assert least(objective.moments.covariance) > -1e-12 * scale
    torch.testing.assert_close(objective.moments.covariance, nearest_psd(free.moments.covariance))


def test_nearest_psd_is_the_nearest():
    """P is the projection of X on a convex cone: P in it, P - X in its dual (itself), and the two orthogonal."""
    x = torch.randn(5, 6, 6, dtype=torch.float64)
    x = x + x.mT
    p = nearest_psd(x)
    for each in (p, p - x):
        assert torch.linalg.eigvalsh(each).min() > -1e-12
    assert (p * (p - x)).sum((1, 2)).abs().max() < 1e-12
    assert nearest_psd(torch.tensor([[-1.0, 2.0]])).tolist() == [[0, 2]]


def test_projection_leaves_what_is_positive_to_the_last_bits_also_under_autocast():
    root = torch.randn(3, 8, 8)
    x = root @ root.mT + torch.eye(8)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(nearest_psd(x), x)
        x[1] -= 2 * torch.linalg.eigvalsh(x[1]).min() * torch.eye(8)  # one of them now has negative eigenvalues
        assert torch.linalg.eigvalsh(nearest_psd(x)).min() > -1e-5


@pytest.mark.parametrize("frozen", ["stages", "stages.0", "none"])
def test_frozen_layers_and_a_head_without_bias(frozen):
    network = networks.small(4, width=8)
    network.head.bias = None
    if frozen != "none":
        network.get_submodule(frozen).requires_grad_(False)
    objective = entered(objective_of(network, meta_lr=1e3, keep=True))
    images, target = batch()
    expected = by_double_backward(objective, images, target, batch(10, seed=1))
    before = moments_after(objective, images, target)
    objective(images, target, step())[0].backward()
    atol = 1e-10 * float((expected - before).abs().max())
    torch.testing.assert_close(objective.moments.covariance, expected, rtol=0, atol=atol)


@pytest.mark.parametrize("frozen", [["weight"], ["bias"], ["weight", "bias"]])
def test_the_inner_step_leaves_a_frozen_head_where_it_is(frozen):
    objective = entered(objective_of(meta_lr=1e3, keep=True))
    for name in frozen:
        objective.network.head.get_parameter(name).requires_grad_(False)
    images, target = batch()
    expected = by_double_backward(objective, images, target, batch(10, seed=1))
    atol = 1e-10 * float((expected - moments_after(objective, images, target)).abs().max())
    objective(images, target, step())[0].backward()
    torch.testing.assert_close(objective.moments.covariance, expected, rtol=0, atol=atol)


@pytest.mark.parametrize("frozen", [False, True])
def test_parameters_that_do_not_reach_the_features(frozen):
    """The oracle is the network without them."""
    objective = entered(objective_of(meta_lr=1e3, keep=True))
    objective.network.stages.requires_grad_(not frozen)
    images, target = batch()
    expected = by_double_backward(objective, images, target, batch(10, seed=1))
    atol = 1e-10 * float((expected - moments_after(objective, images, target)).abs().max())
    objective.network.auxiliary = nn.Linear(32, 3).double()
    objective(images, target, step())[0].backward()
    torch.testing.assert_close(objective.moments.covariance, expected, rtol=0, atol=atol)
    assert objective.network.auxiliary.weight.grad is None


def test_batch_norms_of_every_kind():
    """In evaluation mode as a frozen one is, without weights, without running statistics."""
    objective = entered(objective_of(meta_lr=1e3, keep=True))
    first, second, third = objective.network.stages[1:]
    first.norm1.eval()
    first.norm2, second.norm1 = nn.BatchNorm2d(8, affine=False), nn.BatchNorm2d(16, track_running_stats=False)
    third.norm2 = nn.BatchNorm2d(32, momentum=None)
    objective.double()
    images, target = batch()
    expected = by_double_backward(objective, images, target, batch(10, seed=1))
    moved = (expected - moments_after(objective, images, target)).abs().max()
    objective(images, target, step())
    torch.testing.assert_close(objective.moments.covariance, expected, rtol=0, atol=1e-10 * float(moved))


class Positional(BatchNorm):
    """Hands on by place what torch hands on by name: which of the two is torch's own affair."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        return super().__torch_function__(function, types, (*args, *(kwargs or {}).values()))


@pytest.mark.parametrize("shape", [(6, 3, 4, 5), (6, 3, 4), (6, 3)])
def test_forward_mode_through_batch_norm_is_torchs(shape, monkeypatch):
    tensors = [torch.randn(size, dtype=torch.float64) for size in (shape, 3, 3)]
    dots = [torch.randn_like(tensor) for tensor in tensors]
    calls, native = [], torch.native_batch_norm
    monkeypatch.setattr(torch, "native_batch_norm", lambda *a: calls.append(1) or native(*a))

    def derivative(mode):
        running = torch.zeros(3, dtype=torch.float64), torch.ones(3, dtype=torch.float64)
        with forward_ad.dual_level(), mode:
            x, weight, bias = (forward_ad.make_dual(*pair) for pair in zip(tensors, dots, strict=True))
            return *forward_ad.unpack_dual(F.batch_norm(x, *running, weight, bias, True, 0.3, 0.1)), *running

    torchs = derivative(nullcontext())
    for mode in (BatchNorm(), Positional()):
        calls[:] = []
        for mine, theirs in zip(derivative(mode), torchs, strict=True):
            torch.testing.assert_close(mine, theirs)
        assert len(calls) == 1, "the short way was taken"


@pytest.mark.parametrize("training", [True, False])
def test_the_derivative_of_the_features_is_the_plain_gradient_s(training):
    """For any u, u . df = (gradient of u . f) . v: the oracle is one backward pass."""
    network = networks.small(4, width=8).double().train(training)
    images = batch()[0]
    names, point = zip(*network.stages.named_parameters(prefix="stages"), strict=True)
    direction = [torch.randn_like(p) for p in point]
    statistics = copy.deepcopy(dict(network.named_buffers()))

    class Features(nn.Module):
        def __init__(self):
            super().__init__()
            self.network = network

        def forward(self):
            return self.network.features(images)

    def features(values):
        buffers = {name: buffer.clone() for name, buffer in statistics.items()}
        return functional_call(Features(), under(dict(zip(names, values, strict=True)) | buffers), ())

    value = features(point)
    u = torch.randn_like(value)
    gradient = torch.autograd.grad(value, point, u)
    expected = sum((slope * v).sum() for slope, v in zip(gradient, direction, strict=True))
    torch.testing.assert_close((u * derivative(features, point, direction)).sum(), expected)


def test_the_derivative_of_what_does_not_depend_on_the_parameters_is_0():
    point, direction = [torch.randn(3, requires_grad=True)], [torch.randn(3)]
    assert torch.equal(derivative(lambda values: torch.ones(2, 4), point, direction), torch.zeros(2, 4))


def test_meta_gradient_where_the_images_alone_reach_the_features():
    """An image that asks for a gradient, a frozen backbone, and a free part that the features do not use."""
    objective = entered(objective_of())
    network, (images, target), meta = objective.network, batch(), batch(10, seed=1)
    network.stages.requires_grad_(False)

    def loss(features, weight, bias, covariance):
        return plain_loss(objective, features, target, weight, bias, covariance)

    def gradient(images):
        features = copy.deepcopy(network).features(images)
        return meta_gradient(network, images, features, objective.moments.covariance, loss, meta, step(meta))

    expected = gradient(images)
    network.auxiliary = nn.Linear(32, 3).double()
    torch.testing.assert_close(gradient(images.clone().requires_grad_()), expected)


def test_under_autocast_it_is_near_float32():
    (images, target), meta = batch(32), batch(32, seed=1)
    shifts = []
    for enabled in (False, True):
        pair = [objective_of(meta_lr=1e3, meta_steps=number, keep=True).float() for number in (0, 1)]
        at = step(Batch(meta.images.float(), meta.target))._replace(progress=torch.tensor(PROGRESS))
        for objective in pair:
            with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
                objective(images.float(), target, at)[0].backward()
            assert all(p.grad.isfinite().all() for p in objective.parameters())
            covariance = objective.moments.covariance
            torch.testing.assert_close(covariance, covariance.mT, rtol=1e-5, atol=1e-5 * float(covariance.abs().max()))
        shifts.append((pair[1].moments.covariance - pair[0].moments.covariance).flatten())
    assert F.cosine_similarity(*shifts, dim=0) > 0.99


BAD = {
    "covariance": ({"covariance": "factored"}, "covariance: got 'factored'; takes one of full, diagonal"),
    "loss": ({"loss": "focal"}, "loss: got 'focal'; takes one of ce, ldam"),
    "meta_lr": ({"meta_lr": 0.0}, "meta_lr: got 0.0; takes a finite number above 0"),
    "meta_lr nan": ({"meta_lr": math.nan}, "meta_lr: got nan"),
    "meta_lr flag": ({"meta_lr": True}, "meta_lr: got True"),
    "meta_steps": ({"meta_steps": -1}, "meta_steps: got -1; takes a whole number from 0"),
    "part of a step": ({"meta_steps": 1.5}, "meta_steps: got 1.5"),
    "flag of steps": ({"meta_steps": True}, "meta_steps: got True"),
    "stage": ({"stage": 160}, r"stage: got 160; takes a finite number in \[0, 1\]"),
    "stage text": ({"stage": "0.8"}, "stage: got '0.8'"),
    "beta": ({"beta": 1.0}, r"beta: got 1.0; takes a finite number in \[0, 1\)"),
    "beta text": ({"beta": "x"}, "beta: got 'x'"),
    "strength": ({"strength": -1.0}, "strength: got -1.0; takes a finite number from 0"),
    "strength text": ({"strength": "1"}, "strength: got '1'"),
    "margin": ({"max_margin": -0.5}, "max_margin: got -0.5"),
    "margin of no use": ({"max_margin": "x", "loss": "ce"}, "max_margin: got 'x'"),
    "counts": ({"counts": COUNTS[:3]}, "counts: got 3 classes; takes 4, as the network has"),
    "zero": ({"counts": torch.tensor([3, 2, 0, 1])}, "counts: got 0 for class 2"),
    "one number": ({"counts": torch.tensor(3)}, r"counts: got torch.int64 \(\); takes integers"),
    "list": ({"counts": [3, 2, 2, 1]}, "counts: got a list; takes a tensor"),
    "psd": ({"psd": "no"}, "psd: got 'no'; takes True or False"),
    "keep": ({"keep": 1}, "keep: got 1; takes True or False"),
}


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("name", BAD)
def test_bad_choice(name):
    choice, message = BAD[name]
    with pytest.raises((ValueError, TypeError), match=message):
        MetaSAug(networks.small(4), **{"counts": COUNTS, **choice})


def test_a_head_of_cosines_is_refused():
    """Its loss would be of F.linear and its predictions of cosines."""
    network = networks.small(4)
    network.head = CosineLinear(network.head)
    with pytest.raises(TypeError, match="network: got a head of type CosineLinear; takes"):
        MetaSAug(network, COUNTS)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("stage", [0.0, 0.9])
def test_bad_batch_leaves_the_objective_as_it_was(stage):
    objective = entered(objective_of(stage=stage))
    images, target = batch()
    before = copy.deepcopy(objective.state_dict())
    without, meta = step()._replace(meta=None), batch(10, seed=1)

    def bad_meta(**parts):
        return step(meta._replace(**parts))

    for arguments, message in [
        ((images, F.one_hot(target, 4).double(), step()), r"target: got \(12, 4\); takes class numbers"),
        ((images, target, without), "step.meta: got None; takes a batch of the balanced meta set"),
        ((images, target + 1, step()), "target: got classes 1 to 4; takes 0 to 3"),
        ((images * math.nan, target, step()), "features: got values that are not finite"),
        ((images, target, bad_meta(images=meta.images * math.nan)), "step.meta.images: got values that are not finite"),
        ((images, target, bad_meta(images=meta.images[:0], target=meta.target[:0])), "step.meta.images: got .* N > 0"),
        ((images, target, bad_meta(target=meta.target + 4)), "step.meta.target: got classes 4"),
        ((images, target, bad_meta(target=meta.target.int())), "step.meta.target: got torch.int32"),
        ((images, target, bad_meta(target=F.one_hot(meta.target).double())), "step.meta.target: got torch.float64"),
        ((images, target, bad_meta(target=meta.target[:3])), r"step.meta.target: got shape \(3,\)"),
    ]:
        with pytest.raises((ValueError, TypeError), match=message):
            objective(*arguments)
    for name, tensor in objective.moments.state_dict().items():
        assert torch.equal(tensor, before[f"moments.{name}"]), name


def test_settings_are_those_that_matter():
    assert "max_margin" not in objective_of(loss="ce").settings
    assert objective_of().settings == {
        "strength": 0.75, "covariance": "full", "loss": "ldam", "beta": 0.99, "max_margin": 0.8, "meta_lr": 0.1,
        "meta_steps": 1, "stage": 0.0, "psd": False, "keep": False,
    }  # fmt: skip
    assert isinstance(objective_of().moments, ClassMoments)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("number", [int, np.float64, np.int64])
def test_settings_are_plain_numbers(number):
    plain = {"strength": 2.0, "beta": 0.0, "max_margin": 1.0, "meta_lr": 1.0, "stage": 1.0}
    given = {name: number(value) for name, value in plain.items()}
    settings = MetaSAug(networks.small(4), COUNTS, meta_steps=np.int64(2), **given).settings
    assert settings == MetaSAug(networks.small(4), COUNTS, meta_steps=2, **plain).settings
    assert {type(settings[name]) for name in plain} == {float}
    assert type(settings["meta_steps"]) is int


def test_built_for_a_data_set_it_has_its_counts():
    dataset = throwaway.data()
    objective = MetaSAug.build(networks.small(4), dataset, beta=0.5, keep=True)
    assert isinstance(objective, MetaSAug)
    assert torch.equal(objective.class_weight, class_balanced_weights(dataset.counts, 0.5))
    assert objective.settings == MetaSAug(networks.small(4), dataset.counts, beta=0.5, keep=True).settings


def test_what_is_given_at_construction_is_not_in_the_checkpoint():
    assert {name.split(".")[0] for name in objective_of().state_dict()} == {"network", "moments"}
