"""Oracles: the released code's golden values, brute force in float64, autograd through it, F.cross_entropy."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st
from torch import nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.textbook import Textbook
from semaug import _checks
from semaug.core.gaussian import sampled_cross_entropy
from semaug.core.moments import ClassMoments
from semaug.core.tensors import Factored, capturing, tracing
from semaug.data.sets import Data
from semaug.data.split import Split
from semaug.methods import _isda_fast, isda
from semaug.methods._isda_fast import _chunks
from semaug.methods.isda import CONTROLS, ISDA, ISDALoss, control_covariance, isda_logits, isda_loss
from semaug.networks import small
from semaug.training.loop import fit
from semaug.training.objective import Step
from semaug.training.recipe import Recipe

GOLDEN = json.loads((Path(__file__).parents[2] / "golden" / "isda.json").read_text())
FORMS = pytest.mark.parametrize("form", ["full", "diagonal", "factored"])


def case(form="full", n=9, classes=4, width=5, seed=0, dtype=torch.float64):
    """Features, target, weight, bias and covariance per class."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=dtype)

    root, diagonal = draw(classes, width, 3), draw(classes, width).square()
    covariance = {
        "full": root @ root.mT,
        "diagonal": diagonal,
        "factored": Factored(root, diagonal),
    }[form]
    target = torch.randint(0, classes, (n,), generator=generator)
    return draw(n, width), target, draw(classes, width), draw(classes), covariance


def dense(covariance):
    if isinstance(covariance, Factored):
        return covariance.factor @ covariance.factor.mT + torch.diag_embed(covariance.diagonal)
    return covariance if covariance.ndim == 3 else torch.diag_embed(covariance)


def brute_force(features, target, weight, bias, covariance, strength):
    """(12), one number at a time."""
    covariance = dense(covariance)
    rows = []
    for a, y in zip(features, target.tolist(), strict=True):
        row = []
        for w, b in zip(weight, bias, strict=True):
            d = w - weight[y]
            row.append(w @ a + b + 0.5 * strength * (d @ covariance[y] @ d))
        rows.append(torch.stack(row))
    return torch.stack(rows)


def parts(covariance):
    return list(covariance) if isinstance(covariance, Factored) else [covariance]


def gradients(loss, tensors):
    return torch.autograd.grad(loss, tensors, retain_graph=True)


@pytest.mark.parametrize("form", ["full", "diagonal"])
def test_golden(form):
    n, a, c = GOLDEN["N"], GOLDEN["A"], GOLDEN["C"]
    i, k, j = (torch.arange(size, dtype=torch.float64) for size in (n, a, c))
    weight = (0.2 * j[:, None] - 0.05 * k).cos().requires_grad_()
    bias = (0.1 * j).requires_grad_()
    moments, y = ClassMoments(c, a, form).double(), torch.arange(n) % c
    for t, expected in enumerate(GOLDEN["steps"]):
        features = (0.1 * i[:, None] + 0.3 * k + 0.7 * t).sin().requires_grad_()
        moments.update(features.detach(), y)
        loss = isda_loss(features, y, weight, bias, moments.covariance, GOLDEN["ratio"])
        suffix = "_diag" if form == "diagonal" else ""
        assert loss.item() == pytest.approx(expected["loss_" + ("diag" if suffix else "full")], rel=1e-12)
        for_features, for_weight, for_bias = gradients(loss, (features, weight, bias))
        close = {"rtol": 1e-10, "atol": 1e-13}
        torch.testing.assert_close(for_weight, torch.tensor(expected["grad_W" + suffix]).double(), rtol=1e-6, atol=1e-8)
        torch.testing.assert_close(for_weight, torch.tensor(expected["grad_W" + suffix], dtype=torch.float64), **close)
        if not suffix:
            torch.testing.assert_close(for_bias, torch.tensor(expected["grad_b"], dtype=torch.float64), **close)
            summed = torch.tensor(expected["grad_a_sum_over_batch"], dtype=torch.float64)
            torch.testing.assert_close(for_features.sum(0), summed, **close)


@FORMS
@pytest.mark.parametrize("n", [3, 9])  # fewer samples than classes, and more: two ways to choose the rows
def test_logits_are_brute_force_with_all_gradients(form, n):
    features, target, weight, bias, covariance = case(form, n, classes=5)
    tensors = [t.requires_grad_() for t in (features, weight, bias, *parts(covariance))]
    expected = brute_force(features, target, weight, bias, covariance, 0.7)
    actual = isda_logits(features, target, weight, bias, covariance, 0.7)
    torch.testing.assert_close(actual, expected)
    slope = torch.randn_like(expected)
    for mine, theirs in zip(
        gradients((actual * slope).sum(), tensors), gradients((expected * slope).sum(), tensors), strict=True
    ):
        torch.testing.assert_close(mine, theirs)


@FORMS
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("chunked", [False, True])
def test_loss_is_cross_entropy_of_the_logits_with_all_gradients(form, reduction, weighted, chunked, monkeypatch):
    if chunked:  # one class at a time, only those present: what large sizes take

        def chunks(target, weight):
            for y in target.unique().tolist():
                rows = (target == y).nonzero().squeeze(1)
                yield torch.tensor([y]), rows, torch.zeros_like(rows)

        monkeypatch.setattr("semaug.methods._isda_fast._chunks", chunks)
    features, target, weight, bias, covariance = case(form, classes=6)
    tensors = [t.requires_grad_() for t in (features, weight, bias, *parts(covariance))]
    class_weight = torch.rand(6, dtype=torch.float64) if weighted else None
    logits = brute_force(features, target, weight, bias, covariance, 0.7)
    expected = F.cross_entropy(logits, target, class_weight, reduction=reduction)
    actual = isda_loss(features, target, weight, bias, covariance, 0.7, reduction, class_weight)
    torch.testing.assert_close(actual, expected)
    for mine, theirs in zip(
        gradients((3 * actual).sum(), tensors), gradients((3 * expected).sum(), tensors), strict=True
    ):
        torch.testing.assert_close(mine, theirs)


@pytest.fixture
def captured(monkeypatch):
    """As while a CUDA graph is captured, on the CPU: nothing may be looked at. How often the form for it was taken."""
    taken = []
    apply = _isda_fast._CapturedLogits.apply
    monkeypatch.setattr(_isda_fast._CapturedLogits, "apply", lambda *arguments: taken.append(1) or apply(*arguments))
    for module, name in ((_isda_fast, "capturing"), (_isda_fast, "tracing"), (isda, "tracing"), (_checks, "tracing")):
        monkeypatch.setattr(module, name, lambda x: True)
    return taken


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("strength", [0.7, torch.tensor(0.7, dtype=torch.float64)])
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("n", [6, 9, 40])
def test_captured_loss_is_brute_force_with_all_gradients(captured, reduction, weighted, strength, biased, n):
    features, target, weight, bias, covariance = case("full", n=n, classes=6)
    tensors = [t.requires_grad_() for t in (features, weight, *([bias] if biased else []))]
    class_weight = torch.rand(6, dtype=torch.float64) if weighted else None
    expected = F.cross_entropy(
        brute_force(features, target, weight, bias if biased else torch.zeros_like(bias), covariance, 0.7),
        target,
        class_weight,
        reduction=reduction,
    )
    arguments = features, target, weight, bias if biased else None, covariance, strength, reduction, class_weight
    actual = isda_loss(*arguments)
    assert captured == [1]
    torch.testing.assert_close(actual, expected)
    wanted = gradients((3 * expected).sum(), tensors)
    loss = (3 * actual).sum()
    covariance.zero_()  # the moments' next batch may come before the backward pass
    for again in range(2):  # the graph may be gone through twice
        for mine, theirs in zip(gradients(loss, tensors), wanted, strict=True):
            torch.testing.assert_close(mine, theirs, msg=lambda text, again=again: f"pass {again}: {text}")
    with pytest.raises(RuntimeError, match="use isda_logits"):
        torch.autograd.grad(loss, weight, create_graph=True)


def test_captured_loss_leaves_to_autograd_what_it_does_not_cover(captured, monkeypatch):
    """A covariance or a strength with a gradient, no reduction, other forms, more classes than fit or than images."""
    for form in ("diagonal", "factored"):
        features, target, weight, bias, covariance = case(form)
        expected = F.cross_entropy(brute_force(features, target, weight, bias, covariance, 0.7), target)
        torch.testing.assert_close(isda_loss(features, target, weight, bias, covariance, 0.7), expected)
    features, target, weight, bias, covariance = case("full")
    strength = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    expected = F.cross_entropy(brute_force(features, target, weight, bias, covariance, strength), target)
    actual = isda_loss(features, target, weight, bias, covariance, strength)
    torch.testing.assert_close(gradients(actual, strength), gradients(expected, strength))
    covariance.requires_grad_()
    expected = F.cross_entropy(brute_force(features, target, weight, bias, covariance, 0.7), target)
    actual = isda_loss(features, target, weight, bias, covariance, 0.7)
    torch.testing.assert_close(gradients(actual, covariance), gradients(expected, covariance))
    monkeypatch.setattr(_isda_fast, "_CHUNK", 2 * 5 * (5 + 2 * 4))  # two classes of four
    isda_loss(features, target, weight, bias, covariance.detach(), 0.7)
    monkeypatch.setattr(_isda_fast, "_CHUNK", 2**20)
    isda_loss(features, target, weight, bias, covariance.detach(), 0.7)
    assert captured == [1], "what it covers"
    captured.clear()
    isda_loss(features[:3], target[:3], weight, bias, covariance.detach(), 0.7)
    assert not captured


def test_nothing_is_captured_while_it_is_compiled_or_transformed(monkeypatch):
    """There the form by autograd has to be taken, which both can see through."""

    class OnGPU(torch.Tensor):
        is_cuda = True

    x = torch.zeros(2).as_subclass(OnGPU)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    assert capturing(x)
    assert tracing(x)
    assert not capturing(torch.zeros(2))
    seen = []
    torch.func.vmap(lambda row: seen.append((capturing(x), tracing(x))) or row)(torch.zeros(2, 2))
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    assert [*seen, (capturing(x), tracing(x))] == 2 * [(False, True)]


def test_captured_step_takes_the_kernels_that_its_docstring_says(captured, monkeypatch):
    """Thirteen beside cross-entropy's: a small network's step on a GPU costs what its kernels cost to start."""
    features, target, weight, bias, covariance = (
        t.float() if t.is_floating_point() else t for t in case("full", n=40, classes=6)
    )
    tensors, strength = [t.requires_grad_() for t in (features, weight, bias)], torch.tensor(0.7)

    class Operations(TorchDispatchMode):
        views = ("view", "t", "transpose", "permute", "unsqueeze", "detach", "expand", "promote_types")

        def __init__(self):
            super().__init__()
            self.names = []

        def __torch_dispatch__(self, function, types, arguments=(), options=None):
            self.names.append(function.__name__.split(".")[0].removeprefix("_unsafe_"))
            return function(*arguments, **options or {})

        def kernels(self):
            return [name for name in self.names if name not in self.views]

    with Operations() as plain:
        torch.autograd.grad(F.cross_entropy(F.linear(features, weight, bias), target), tensors)
    with Operations() as ours:
        torch.autograd.grad(isda_loss(features, target, weight, bias, covariance, strength), tensors)
    with Operations() as by_autograd:
        monkeypatch.setattr(_isda_fast, "capturing", lambda x: False)
        torch.autograd.grad(isda_loss(features, target, weight, bias, covariance, strength), tensors)
    assert len(ours.kernels()) - len(plain.kernels()) == 13, " ".join(ours.kernels())
    assert len(by_autograd.kernels()) - len(plain.kernels()) > 20


@pytest.mark.parametrize(("n", "classes", "width"), [(7, 3, 4), (40, 150, 96), (300, 150, 96), (5, 30, 900)])
def test_chunks_partition_the_batch(n, classes, width):
    """Every sample once, with its own class; at sizes of one chunk, of several and of one class each."""
    target, seen = torch.randint(0, classes, (n,)), []
    for chosen, samples, index in _chunks(target, torch.zeros(classes, width)):
        rows, labels = torch.arange(n)[samples], torch.arange(classes)[chosen]
        assert torch.equal(labels[index], target[rows])
        seen.append(rows)
    assert torch.equal(torch.cat(seen).sort().values, torch.arange(n))


def test_loss_of_many_classes_is_brute_force():
    """A size at which the package itself works in several chunks, some classes missing."""
    features, target, weight, bias, covariance = case("full", n=60, classes=120, width=100)
    weight.requires_grad_()
    assert sum(1 for _ in _chunks(target, weight)) > 1
    d = weight - weight[target][:, None]
    forms = ((d @ covariance[target]) * d).sum(2)
    expected = F.cross_entropy(F.linear(features, weight, bias) + 0.05 * forms, target)
    actual = isda_loss(features, target, weight, bias, covariance, 0.1)
    torch.testing.assert_close(actual, expected)
    torch.testing.assert_close(*(gradients(loss, (weight,))[0] for loss in (actual, expected)))


@FORMS
def test_gradcheck_first_and_second_order_and_forward_mode(form):
    features, target, weight, bias, covariance = case(form, n=3, classes=4, width=3)
    tensors = [t.requires_grad_() for t in (features, weight, bias, *parts(covariance))]

    def rebuilt(function):
        def call(features, weight, bias, *covariance):
            each = Factored(*covariance) if form == "factored" else covariance[0]
            return function(features, target, weight, bias, each, 0.7)

        return call

    assert torch.autograd.gradcheck(rebuilt(isda_logits), tensors, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(rebuilt(isda_logits), tensors)
    if form != "full":  # a full covariance: gradient with respect to a symmetric matrix, checked against brute force
        assert torch.autograd.gradcheck(rebuilt(isda_loss), tensors)


def test_twice_through_the_full_loss_says_so():
    features, target, weight, bias, covariance = case()
    weight.requires_grad_()
    loss = isda_loss(features, target, weight, bias, covariance, 0.7)
    with pytest.raises(RuntimeError, match="use isda_logits"):
        torch.autograd.grad(loss, weight, create_graph=True)


@FORMS
def test_transforms_of_torch_func(form):
    """jvp, grad and vmap over weights: what MetaSAug and per-sample analyses call."""
    features, target, weight, bias, covariance = case(form)
    direction = torch.randn_like(weight)

    def loss(weight):
        return isda_loss(features, target, weight, bias, covariance, 0.7)

    value, tangent = torch.func.jvp(loss, (weight,), (direction,))
    slope = torch.func.grad(loss)(weight)
    assert tangent.item() == pytest.approx((slope * direction).sum().item())
    assert value.item() == pytest.approx(loss(weight).item())
    several = torch.stack([weight, weight + 0.1 * direction])
    torch.testing.assert_close(torch.vmap(loss)(several), torch.stack([loss(each) for each in several]))


def test_meta_gradient_with_respect_to_the_covariance():
    """d/dSigma of a loss after one gradient step taken on the ISDA loss, against the same by brute force."""
    features, target, weight, bias, covariance = case("full", n=8)
    other, labels = case(n=8, seed=1)[:2]
    weight.requires_grad_(), covariance.requires_grad_()

    def meta(logits_of):
        inner = F.cross_entropy(logits_of(features, target, weight, bias, covariance, 0.7), target)
        (slope,) = torch.autograd.grad(inner, weight, create_graph=True)
        return torch.autograd.grad(F.cross_entropy(F.linear(other, weight - 0.1 * slope, bias), labels), covariance)[0]

    torch.testing.assert_close(meta(isda_logits), meta(brute_force))


@FORMS
def test_zero_strength_unseen_classes_and_equal_weights_are_plain_cross_entropy(form):
    features, target, weight, bias, covariance = case(form)
    expected = F.cross_entropy(F.linear(features, weight, bias), target)
    torch.testing.assert_close(isda_loss(features, target, weight, bias, covariance, 0.0), expected)
    unseen = [torch.zeros_like(part) for part in parts(covariance)]
    unseen = Factored(*unseen) if form == "factored" else unseen[0]
    torch.testing.assert_close(isda_loss(features, target, weight, bias, unseen, 5.0), expected)
    same = weight[:1].expand_as(weight).contiguous()
    torch.testing.assert_close(
        isda_loss(features, target, same, bias, covariance, 5.0),
        F.cross_entropy(F.linear(features, same, bias), target),
    )


@FORMS
def test_own_logit_gains_nothing_and_the_others_never_lose(form):
    features, target, weight, bias, covariance = case(form, dtype=torch.float32)
    gain = isda_logits(features, target, weight, bias, covariance, 1.0) - F.linear(features, weight, bias)
    assert gain.gather(1, target[:, None]).abs().max() < 1e-5 * gain.max()
    assert gain.min() > -1e-5 * gain.max()


@FORMS
def test_float32_is_stable_where_weights_share_an_offset(form):
    """All rows of W shifted by 100: differences, so q, are the same up to the rounding of the shifted weights."""
    features, target, weight, bias, covariance = case(form, 32, 10, 64, dtype=torch.float32)
    shifted = 100 + 0.1 * weight
    expected = brute_force(
        *(t.double() if t.is_floating_point() else t for t in (features, target, shifted, bias)),
        dense(covariance).double(),
        1.0,
    ) - F.linear(features.double(), shifted.double(), bias.double())
    zero = torch.zeros_like(features)
    actual = isda_logits(zero, target, shifted, torch.zeros(10), covariance, 1.0)
    # Without care the terms are 1e6 times the result: nothing would be left of float32's 7 digits.
    torch.testing.assert_close(actual.double(), expected, rtol=1e-4, atol=1e-5 * float(expected.max()))


@given(
    st.sampled_from(["full", "diagonal", "factored"]),
    st.integers(1, 12),
    st.integers(1, 7),
    st.integers(1, 6),
    st.sampled_from([0.0, 1e-3, 1.0, 1e4]),
    st.floats(0, 10),
    st.integers(0, 999),
)
def test_any_shape_imbalance_and_scale(form, n, classes, width, scale, strength, seed):
    """Loss finite and at least the plain cross-entropy, equal to brute force in float64, for logits up to 1e5."""
    features, target, weight, bias, covariance = case(form, n, classes, width, seed)
    features, target = scale * features, torch.minimum(target, torch.tensor(seed % classes))
    weight.requires_grad_()
    losses = isda_loss(features, target, weight, bias, covariance, strength, "none")
    expected = F.cross_entropy(
        brute_force(features, target, weight, bias, covariance, strength), target, reduction="none"
    )
    torch.testing.assert_close(losses, expected, rtol=1e-9, atol=1e-9)
    plain = F.cross_entropy(F.linear(features, weight, bias), target, reduction="none")
    assert (losses >= plain - 1e-9 * (1 + plain)).all()
    mean = isda_loss(features, target, weight, bias, covariance, strength)
    torch.testing.assert_close(mean, expected.mean(), rtol=1e-9, atol=1e-9)
    assert gradients(mean, (weight,))[0].isfinite().all()


@FORMS
def test_bounds_the_explicit_loss(form):
    features, target, weight, bias, covariance = case(form)
    explicit = sampled_cross_entropy(
        features, covariance, target, weight, bias, 0.5, 20_000, torch.Generator().manual_seed(0)
    )
    assert F.cross_entropy(F.linear(features, weight, bias), target) < explicit
    assert explicit < isda_loss(features, target, weight, bias, covariance, 0.5)


@pytest.mark.parametrize("form", ["diagonal", "factored"])
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_loss_is_stable_where_weights_share_an_offset_and_class_weights_have_another_dtype(form, reduction):
    """What all logits of a sample have in common is left out: at 1e5 float32 has two digits behind the point."""
    features, target, weight, bias, covariance = case(form, 32, 10, 64)
    weight, class_weight = 1e4 + 0.1 * weight, torch.rand(10, dtype=torch.float64)
    weight = weight.float().double()  # the offset rounds the differences of the rows
    expected = isda_loss(features, target, weight, bias, covariance, 0.5, reduction, class_weight)
    features, weight, bias = features.float(), weight.float(), bias.float()
    covariance = Factored(*(part.float() for part in covariance)) if form == "factored" else covariance.float()
    actual = isda_loss(features, target, weight, bias, covariance, 0.5, reduction, class_weight)
    torch.testing.assert_close(actual, expected.float(), rtol=2e-5, atol=2e-5)


@FORMS
def test_autocast_leaves_the_forms_in_float32(form):
    features, target, weight, bias, covariance = case(form, dtype=torch.float32)
    features, bias = torch.zeros_like(features), torch.zeros_like(bias)  # logits are the forms alone
    expected = isda_logits(features, target, weight, bias, covariance, 0.7)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        actual = isda_logits(features.bfloat16(), target, weight, bias, covariance, 0.7)
        loss = isda_loss(features.bfloat16(), target, weight.requires_grad_(), bias, covariance, 0.7)
    torch.testing.assert_close(actual, expected, rtol=1e-6, atol=1e-6)
    assert loss.dtype == torch.float32
    assert gradients(loss, (weight,))[0].dtype == torch.float32


@FORMS
def test_covariance_may_change_in_place_before_the_backward_pass(form):
    features, target, weight, bias, covariance = case(form)
    weight.requires_grad_()
    first = isda_loss(features, target, weight, bias, covariance, 0.7)
    (expected,) = gradients(first, (weight,))
    second = isda_loss(features, target, weight, bias, covariance, 0.7)
    for part in parts(covariance):
        part.zero_()
    torch.testing.assert_close(gradients(second, (weight,))[0], expected)


@pytest.mark.parametrize("form", ["full", "diagonal"])
def test_the_textbook_form_that_benchmarks_compare_with_is_the_same(form):
    features, target, weight, bias, _ = case(n=20, classes=6)
    tensors = [t.requires_grad_() for t in (features, weight, bias)]
    moments, textbook = ClassMoments(6, 5, form).double(), Textbook(6, 5, form == "full", torch.float64)
    for scale in (1, 2):
        for each in (moments, textbook):
            each.update(scale * features.detach(), target)
    torch.testing.assert_close(textbook.covariance, moments.covariance)
    losses = (
        isda_loss(features, target, weight, bias, moments.covariance, 0.7),
        textbook.loss(features, target, weight, bias, 0.7),
    )
    torch.testing.assert_close(*losses)
    for mine, theirs in zip(*(gradients(loss, tensors) for loss in losses), strict=True):
        torch.testing.assert_close(mine, theirs)


class Net(nn.Module):
    """The least a network must be for ISDA."""

    def __init__(self, classes=3, width=4):
        super().__init__()
        self.features = nn.Sequential(nn.Flatten(), nn.Linear(8, width), nn.Tanh())
        self.head = nn.Linear(width, classes)

    def forward(self, images):
        return self.head(self.features(images))


def step(progress=0.5):
    return Step(torch.tensor(progress), 0.1, torch.Generator())


def batch(n=6):
    return torch.rand(n, 2, 2, 2), torch.arange(n) % 3


def objective_of(form="full", **settings):
    return ISDA(Net(), covariance=form, rank=2 if form == "factored" else None, **settings)


@FORMS
def test_objective_updates_first_then_takes_the_loss_at_the_strength_of_the_moment(form):
    objective, (images, target) = objective_of(form, strength=2.0), batch()
    loss, terms = objective(images, target, step(0.25))
    features = objective.network.features(images)
    moments = ClassMoments(3, 4, form, rank=objective.settings.get("rank"))
    moments.update(features.detach(), target)
    head = objective.network.head
    expected = F.cross_entropy(brute_force(features, target, head.weight, head.bias, moments.covariance, 0.5), target)
    torch.testing.assert_close(loss, expected)
    assert terms["strength"].item() == 0.5
    mine, theirs = (torch.autograd.grad(each, list(objective.network.parameters())) for each in (loss, expected))
    for one, other in zip(mine, theirs, strict=True):
        torch.testing.assert_close(one, other)
    settings = {name: value for name, value in objective.settings.items() if value is not None}
    assert settings == {"strength": 2.0, "covariance": form, **({"rank": 2} if form == "factored" else {})}
    torch.testing.assert_close(objective.predict(images), objective.network(images))


@FORMS
def test_two_forwards_before_one_backward_and_none_counted_in_evaluation(form):
    objective = objective_of(form)
    first, second = (objective(*batch(), step())[0] for _ in range(2))
    (first + second).backward()
    assert objective.moments.count.sum() == 12
    objective.eval()(*batch(), step())
    assert objective.moments.count.sum() == 12


@FORMS
@pytest.mark.parametrize("decay", [None, 0.9])
def test_a_bad_batch_leaves_the_objective_as_it_was(form, decay):
    """A target outside the classes, or one image that is not finite: an error first, and the next batch trains."""
    objective, (images, target) = objective_of(form, decay=decay), batch()
    objective(images, target, step())
    before = {name: tensor.clone() for name, tensor in objective.state_dict().items()}
    broken, infinite = images.clone(), images.clone()
    broken[2, 0, 1, 1], infinite[2] = torch.nan, torch.inf
    objective.network.features[2] = nn.Identity()  # tanh would hide the infinity
    for bad, labels, message in [
        (images, target - 1, "target: got classes -1 to 1; takes 0 to 2"),
        (images, target + 1, "target: got classes 1 to 3; takes 0 to 2"),
        (broken, target, "features: got values that are not finite; takes finite ones"),
        (infinite, target, "features: got values that are not finite; takes finite ones"),
    ]:
        for mode in (True, False):
            with pytest.raises(ValueError, match=message):
                objective.train(mode)(bad, labels, step())
    for name, tensor in objective.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    loss, _ = objective.train()(images, target, step())
    loss.backward()
    assert all(parameter.grad.isfinite().all() for parameter in objective.parameters())


@pytest.mark.parametrize("form", ["full", "diagonal"])
def test_training_that_diverges_is_the_error_that_fit_documents(form):
    images, target = torch.randint(0, 256, (30, 2, 2, 2), dtype=torch.uint8), torch.arange(30) % 3
    data = Data("random", Split(images[:20], target[:20]), Split(images[20:], target[20:]))
    with pytest.raises(FloatingPointError, match=r"got .* takes finite ones|overflow|became"):
        fit(objective_of(form), data, Recipe(epochs=2, batch_size=5, lr=1e30), progress=False)


@pytest.mark.usefixtures("unchecked")  # the shape checks cannot be captured
@pytest.mark.parametrize("form", ["full", "diagonal"])
def test_compiles_whole_without_a_break(form):
    """One graph, several steps, equal to eager; backend aot_eager: what is captured, not what inductor makes of it."""
    torch.manual_seed(0)
    eager = ISDA(Net(), covariance=form)
    other = ISDA(Net(), covariance=form)
    other.load_state_dict(eager.state_dict())
    compiled = torch.compile(other, fullgraph=True, backend="aot_eager")
    for progress in (0.1, 0.9):
        images, target = batch()
        for objective in (eager, compiled):
            objective.zero_grad()
            loss, _ = objective(images, target, step(progress))
            loss.backward()
    for mine, theirs in zip(eager.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad)
    for mine, theirs in zip(eager.buffers(), other.buffers(), strict=True):
        torch.testing.assert_close(mine, theirs)


# After a graph break dynamo itself looks at .grad of tensors that have none.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
@pytest.mark.usefixtures("unchecked")
def test_factored_compiles_with_breaks_and_is_eager():
    eager, other = objective_of("factored"), objective_of("factored")
    other.load_state_dict(eager.state_dict())
    compiled = torch.compile(other, backend="eager")
    for _ in range(2):
        images, target = batch()
        losses = [objective(images, target, step())[0] for objective in (eager, compiled)]
        torch.testing.assert_close(*losses)
    for mine, theirs in zip(eager.buffers(), other.buffers(), strict=True):
        torch.testing.assert_close(mine, theirs)


def orthogonal(width):
    return torch.linalg.qr(torch.randn(width, width, dtype=torch.float64)).Q


@pytest.mark.parametrize("kind", CONTROLS)
def test_controls_have_the_trace_of_their_class_and_what_their_name_says(kind):
    covariance, rotation = case("full", classes=4, width=5)[4], orthogonal(5)
    count = torch.tensor([1.0, 2.0, 3.0, 4.0])
    control = dense(control_covariance(covariance, kind, count, rotation))
    trace = covariance.diagonal(dim1=1, dim2=2).sum(1)
    torch.testing.assert_close(control.diagonal(dim1=1, dim2=2).sum(1), trace)
    if kind == "identity":
        torch.testing.assert_close(control, trace[:, None, None] / 5 * torch.eye(5, dtype=torch.float64))
    if kind == "diagonal":
        torch.testing.assert_close(control, covariance * torch.eye(5))
    if kind == "shared":
        mean = sum(n * each for n, each in zip(count, covariance, strict=True))
        for each in control:
            torch.testing.assert_close(each / each.trace(), mean / mean.trace())
    if kind == "random":
        spectra = [torch.linalg.eigvalsh(each) for each in (control, covariance)]
        torch.testing.assert_close(*spectra, rtol=1e-9, atol=1e-9)
        assert (control - covariance).norm() > 0.5 * covariance.norm()


@pytest.mark.parametrize("kind", CONTROLS)
def test_objective_with_a_control_trains_on_that_covariance(kind):
    objective, (images, target) = objective_of(control=kind, strength=3.0), batch()
    loss, _ = objective(images, target, step())
    network, moments = objective.network, objective.moments
    rotation = objective.rotation if kind == "random" else None
    covariance = control_covariance(moments.covariance, kind, moments.count, rotation)
    features = network.features(images)
    expected = isda_loss(features, target, network.head.weight, network.head.bias, covariance, 1.5)
    torch.testing.assert_close(loss, expected)
    loss.backward()
    assert kind in repr(objective.settings)


@pytest.mark.parametrize("kind", ["shared", "random"])
def test_autocast_leaves_controls_in_float32(kind, monkeypatch):
    objective, (images, target), seen = objective_of(control=kind), batch(), []
    monkeypatch.setattr(isda, "isda_loss", lambda *given: (seen.append(given[4]), isda_loss(*given))[1])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        objective(images, target, Step(torch.tensor(0.5), 0.1, torch.Generator()))
    rotation = objective.rotation if kind == "random" else None
    expected = control_covariance(objective.moments.covariance, kind, objective.moments.count, rotation)
    assert seen[0].dtype == torch.float32
    assert torch.equal(seen[0], expected)


def test_control_of_classes_never_seen_is_zero():
    for kind in CONTROLS:
        control = control_covariance(torch.zeros(2, 3, 3), kind, torch.zeros(2), torch.eye(3))
        assert torch.equal(control, torch.zeros_like(control))


def arguments(**changes):
    features, target, weight, bias, covariance = case(n=5, classes=3, width=4, dtype=torch.float32)
    values = {
        "features": features,
        "target": target,
        "weight": weight,
        "bias": bias,
        "covariance": covariance,
        "strength": 0.5,
    }
    return {**values, **changes}


NAN, INF = torch.nan, torch.inf
FINITE = "got values that are not finite; takes finite ones"
FITS = r"takes \(3, 4, 4\), \(3, 4\) or Factored \(3, 4, r\) and \(3, 4\)"
BAD = {
    "features": ({"features": torch.randn(5, 3)}, ValueError, r"features: got shape \(5, 3\); takes \(N, 4\)"),
    "nan": ({"features": torch.full((5, 4), NAN)}, ValueError, f"features: {FINITE}"),
    "dtype": ({"features": torch.randn(5, 4).double()}, TypeError, "weight: got torch.float32; takes torch.float64"),
    "target": ({"target": torch.tensor([0, 1, 2, 3, 0])}, ValueError, "target: got classes 0 to 3; takes 0 to 2"),
    "negative target": ({"target": torch.tensor([0, 1, 2, -1, 0])}, ValueError, "target: got classes -1 to 2"),
    "soft": ({"target": torch.rand(5, 3)}, TypeError, "target: got torch.float32; takes int64 class numbers"),
    "device": ({"weight": torch.randn(3, 4, device="meta")}, ValueError, "weight: got meta; takes cpu"),
    "bias": ({"bias": torch.zeros(2)}, ValueError, r"bias: got shape \(2,\); takes \(3,\)"),
    "nan weight": ({"weight": torch.full((3, 4), NAN)}, ValueError, f"weight: {FINITE}"),
    "nan bias": ({"bias": torch.full((3,), NAN)}, ValueError, f"bias: {FINITE}"),
    "inf bias": ({"bias": torch.tensor([0.0, INF, -INF])}, ValueError, f"bias: {FINITE}"),
    "covariance": ({"covariance": torch.zeros(3, 4, 3)}, ValueError, rf"covariance: got \(3, 4, 3\); {FITS}"),
    "swapped": ({"covariance": torch.zeros(4, 3)}, ValueError, rf"covariance: got \(4, 3\); {FITS}"),
    "factored": (
        {"covariance": Factored(torch.zeros(3, 4), torch.zeros(3, 4))},
        ValueError,
        rf"covariance: got \(3, 4\) and \(3, 4\); {FITS}",
    ),
    "rank 0": (
        {"covariance": Factored(torch.zeros(3, 4, 0), torch.zeros(3, 4))},
        ValueError,
        rf"covariance: got \(3, 4, 0\) and \(3, 4\); {FITS}",
    ),
    "whole numbers": ({"covariance": torch.ones(3, 4).long()}, TypeError, "covariance: got torch.int64; takes floats"),
    "covariance device": ({"covariance": torch.zeros(3, 4, 4, device="meta")}, ValueError, "covariance: got meta"),
    "numpy": (
        {"covariance": torch.eye(4).repeat(3, 1, 1).numpy()},
        TypeError,
        "covariance: got numpy.ndarray; takes a tensor or Factored",
    ),
    "pair": ({"covariance": (torch.zeros(3, 4, 2), torch.zeros(3, 4))}, TypeError, "covariance: got builtins.tuple"),
    "asymmetric": ({"covariance": torch.randn(3, 4, 4).tril()}, ValueError, "covariance: .* takes symmetric matrices"),
    "nan full": ({"covariance": torch.full((3, 4, 4), NAN)}, ValueError, f"covariance: {FINITE}"),
    "inf diagonal": ({"covariance": torch.full((3, 4), INF)}, ValueError, f"covariance: {FINITE}"),
    "nan factor": (
        {"covariance": Factored(torch.full((3, 4, 2), NAN), torch.ones(3, 4))},
        ValueError,
        f"covariance: {FINITE}",
    ),
    "nan of a factored diagonal": (
        {"covariance": Factored(torch.ones(3, 4, 2), torch.full((3, 4), NAN))},
        ValueError,
        f"covariance: {FINITE}",
    ),
    "strength": ({"strength": -0.1}, ValueError, "strength: got -0.1; takes a finite number from 0"),
    "infinite strength": ({"strength": torch.tensor(INF)}, ValueError, "strength: got inf"),
    "strengths": ({"strength": torch.ones(5)}, ValueError, r"strength: got a tensor \(5,\); takes one number"),
    "text": ({"strength": "1"}, ValueError, "strength: got '1'; takes a finite number from 0"),
    "overflow": (
        {"covariance": 1e36 * torch.ones(3, 4), "strength": 1e6},
        ValueError,
        "features, weight, covariance, strength: got values whose loss overflows torch.float32; takes smaller ones",
    ),
}


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("name", BAD)
@pytest.mark.parametrize("function", [isda_logits, isda_loss])
def test_bad_input(function, name):
    changes, error, message = BAD[name]
    with pytest.raises(error, match=message):
        function(**arguments(**changes))


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_loss_and_logits_have_the_gradients_of_one_function_up_to_the_covariance_s_rounding(reduction):
    """An asymmetry that passes for rounding: gradients differ by no more than that."""
    features, target, weight, bias, covariance = case("full", n=20, classes=6)
    tensors = [t.requires_grad_() for t in (features, weight, bias)]
    covariance = covariance * (1 + 1e-6 * torch.randn_like(covariance))
    weights = torch.rand(20, dtype=torch.float64) if reduction == "none" else torch.ones((), dtype=torch.float64)
    loss = (isda_loss(features, target, weight, bias, covariance, 0.7, reduction) * weights).sum()
    logits = isda_logits(features, target, weight, bias, covariance, 0.7)
    expected = (F.cross_entropy(logits, target, reduction=reduction) * weights).sum()
    for mine, theirs in zip(gradients(loss, tensors), gradients(expected, tensors), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"reduction": "average"}, "reduction: got 'average'; takes one of mean, sum, none"),
        ({"class_weight": torch.ones(4)}, r"class_weight: got shape \(4,\); takes \(3,\)"),
        ({"class_weight": torch.ones(3, device="meta")}, "class_weight: got meta; takes cpu"),
        ({"class_weight": -torch.ones(3)}, "class_weight: got -1; takes finite numbers from 0"),
        ({"class_weight": torch.full((3,), NAN)}, "class_weight: got nan; takes finite numbers from 0"),
        ({"class_weight": torch.zeros(3)}, "class_weight: got 0 for every class of the batch"),
    ],
)
def test_bad_loss_arguments(changes, message):
    with pytest.raises(ValueError, match=message):
        isda_loss(**arguments(**changes))


@pytest.mark.usefixtures("unchecked")
def test_bad_control():
    covariance = torch.zeros(3, 4, 4)
    for arguments, message in [
        ((covariance, "noise"), "kind: got 'noise'; takes one of identity, diagonal, shared, random"),
        ((covariance[0], "identity"), r"covariance: got shape \(4, 4\); takes \(C, A, A\)"),
        ((covariance, "shared"), r"count: got None; takes \(3,\) for 'shared'"),
        ((covariance, "shared", torch.ones(2)), r"count: got shape \(2,\); takes \(3,\) for 'shared'"),
        ((covariance, "random"), r"rotation: got None; takes \(4, 4\) for 'random'"),
        ((covariance, "random", None, torch.eye(3)), r"rotation: got shape \(3, 3\); takes \(4, 4\) for 'random'"),
    ]:
        with pytest.raises(ValueError, match=message):
            control_covariance(*arguments)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        *(({"strength": bad}, "strength: got .*; takes a finite number from 0") for bad in (-1.0, "1", math.nan, True)),
        ({"covariance": "half"}, "covariance: got 'half'; takes one of full, diagonal, factored"),
        ({"decay": 0.0}, r"decay: got 0.0; takes a finite number in \(0, 1\]"),
        ({"decay": True}, r"decay: got True; takes a finite number in \(0, 1\]"),
        ({"covariance": "factored", "rank": 9}, "rank: got 9; takes a whole number from 1 to 4"),
    ],
)
def test_bad_settings(settings, message):
    for build in (lambda: ISDA(Net(), **settings), lambda: ISDALoss(3, 4, **settings)):
        with pytest.raises(ValueError, match=message):
            build()


@pytest.mark.usefixtures("unchecked")
def test_bad_objective():
    with pytest.raises(TypeError, match=r"network.* head"):
        ISDA(nn.Linear(3, 2))
    with pytest.raises(ValueError, match="control: got 'noise'; takes one of identity"):
        ISDA(Net(), control="noise")
    with pytest.raises(ValueError, match="control: got 'shared'; takes None with covariance='diagonal'"):
        ISDA(Net(), covariance="diagonal", control="shared")
    with pytest.raises(TypeError, match=r"target: got torch\.float32; takes int64 class numbers"):
        ISDA(Net())(torch.rand(6, 2, 2, 2), torch.rand(6, 3), step())


@pytest.mark.usefixtures("unchecked")
def test_settings_are_plain_numbers_whatever_they_are_given_as():
    """A record of strength 1 is one of 1.0, and NumPy's numbers are in no checkpoint."""
    settings = {"strength": np.float64(1), "covariance": "factored", "rank": np.int64(2), "decay": 1}
    objective = ISDA(Net(), **settings)
    assert objective.settings == {"strength": 1.0, "covariance": "factored", "rank": 2, "decay": 1.0}
    assert [type(value) for value in objective.settings.values()] == [float, str, int, float]
    assert type(ISDA(Net(), strength=1).strength) is float
    assert type(ISDALoss(3, 4, 1).strength) is float


def test_defaults():
    assert ISDA(Net()).settings == {"strength": 0.5, "covariance": "full"}
    criterion = ISDALoss(3, 4)
    assert (criterion.strength, criterion.moments.form, criterion.moments.decay) == (0.5, "full", None)
    values = arguments()
    logits = isda_logits(**values)
    torch.testing.assert_close(isda_loss(**values), F.cross_entropy(logits, values["target"]))


@FORMS
def test_criterion_is_the_objective_step_for_step(form):
    """Losses, gradients, moments, also in evaluation mode; the caller sets the strength that fit's progress gives."""
    objective, rank = objective_of(form, strength=2.0), 2 if form == "factored" else None
    network, criterion = objective.network, ISDALoss(3, 4, covariance=form, rank=rank)
    for t, training in enumerate([True, True, False, True]):
        images, target = batch()
        objective.moments.train(training)
        objective.training = criterion.training = training
        criterion.strength = 2.0 * t / 4
        losses = [
            objective(images, target, step(t / 4))[0],
            criterion(network.features(images), target, network.head),
        ]
        assert losses[1].ndim == 0
        torch.testing.assert_close(*losses)
        both = [torch.autograd.grad(loss, list(network.parameters())) for loss in losses]
        for mine, theirs in zip(*both, strict=True):
            torch.testing.assert_close(mine, theirs)
        states = objective.moments.state_dict(), criterion.moments.state_dict()
        assert all(torch.equal(states[0][name], states[1][name]) for name in states[1])
    assert criterion.moments.count.sum() == 18


@pytest.mark.parametrize("form", ["full", "diagonal"])
def test_criterion_has_the_golden_losses(form):
    """The released ISDALoss: a step of the moments and the loss in one call."""
    n, a, c = GOLDEN["N"], GOLDEN["A"], GOLDEN["C"]
    i, k, j = (torch.arange(size, dtype=torch.float64) for size in (n, a, c))
    head = nn.Linear(a, c).double()
    with torch.no_grad():
        head.weight.copy_((0.2 * j[:, None] - 0.05 * k).cos())
        head.bias.copy_(0.1 * j)
    criterion = ISDALoss(c, a, GOLDEN["ratio"], form).double()
    for t, expected in enumerate(GOLDEN["steps"]):
        loss = criterion((0.1 * i[:, None] + 0.3 * k + 0.7 * t).sin(), torch.arange(n) % c, head)
        assert loss.item() == pytest.approx(expected["loss_full" if form == "full" else "loss_diag"], rel=1e-12)
    torch.testing.assert_close(criterion.moments.count, torch.full((c,), 9.0, dtype=torch.float64))


@FORMS
def test_criterion_s_state_is_its_state_dict(form):
    rank, head = 2 if form == "factored" else None, nn.Linear(4, 3)
    one, other = (ISDALoss(3, 4, covariance=form, rank=rank) for _ in range(2))
    for _ in range(2):
        one(torch.randn(6, 4), torch.arange(6) % 3, head)
    assert not list(one.parameters())
    other.load_state_dict(one.state_dict())
    features, target = torch.randn(6, 4), torch.arange(6) % 3
    assert torch.equal(one(features, target, head), other(features, target, head))
    assert all(torch.equal(value, other.state_dict()[name]) for name, value in one.state_dict().items())


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("bad", [torch.full((6, 4), 1e20), torch.full((6, 4), NAN)])
def test_a_bad_batch_leaves_the_criterion_as_it_was(bad):
    criterion, head, target = ISDALoss(3, 4), nn.Linear(4, 3), torch.arange(6) % 3
    criterion(torch.randn(6, 4), target, head)
    before = {name: value.clone() for name, value in criterion.state_dict().items()}
    with pytest.raises(ValueError, match="features: got values"):
        criterion(bad, target, head)
    with pytest.raises(TypeError, match="head: got 'Identity'; takes an nn\\.Linear"):
        criterion(torch.randn(6, 4), target, nn.Identity())
    assert all(torch.equal(value, before[name]) for name, value in criterion.state_dict().items())
    criterion.strength = -1.0
    with pytest.raises(ValueError, match=r"strength: got -1\.0; takes a finite number from 0"):
        criterion(torch.randn(6, 4), target, head)


@pytest.mark.usefixtures("unchecked")
def test_criterion_compiles_without_a_break_and_once_for_all_strengths():
    torch.compiler.reset()  # the wrapper that checks shapes is one function, which other tests have compiled
    criterion, head, target = ISDALoss(3, 4), nn.Linear(4, 3), torch.arange(6) % 3
    other = copy.deepcopy(criterion)
    compiled = torch.compile(other, fullgraph=True, backend="aot_eager")
    for strength, stance in ((0.1, "default"), (0.5, "fail_on_recompile")):
        criterion.strength, other.strength, features = strength, torch.tensor(strength), torch.randn(6, 4)
        with torch.compiler.set_stance(stance):
            torch.testing.assert_close(compiled(features, target, head), criterion(features, target, head))


@FORMS
def test_a_finite_sum_is_not_asked_for(form):
    """Finite values whose sum overflows are taken: 3e38 twice in float32, beside weights that do not see them."""
    features, target, weight, bias, covariance = case(form, classes=3, width=4, dtype=torch.float32)
    features[:2, 0], weight[:, 0] = 3e38, 0
    assert features.sum().isinf()
    assert isda_loss(features, target, weight, bias, covariance, 0.5).isfinite()
    assert isda_logits(features, target, weight, bias, covariance, 0.5).isfinite().all()


@FORMS
def test_eager_and_traced_calls_take_their_own_way(form, monkeypatch):
    """By hand and for the classes present where values may be read; the plain line for all classes where not."""
    features, target, weight, bias, covariance = case(form)
    present, by_hand = [], []
    original, fast = isda._present, isda.fast_loss
    monkeypatch.setattr(isda, "_present", lambda *given: (present.append(original(*given)), present[-1])[1])
    monkeypatch.setattr(isda, "fast_loss", lambda *given: (by_hand.append(1), fast(*given))[1])
    target = target.clamp_max(2)  # of four classes
    eager = isda_loss(features, target, weight, bias, covariance, 0.7)
    assert len(by_hand) == (form != "factored")
    isda_logits(features, target, weight, bias, covariance, 0.7)
    assert all(torch.equal(classes, target.unique()) for classes, _ in present)
    assert len(present) == {"full": 1, "factored": 2, "diagonal": 0}[form]
    present.clear(), by_hand.clear()
    traced = torch.func.vmap(lambda x: isda_loss(x, target, weight, bias, covariance, 0.7))(features[None])
    torch.testing.assert_close(traced[0], eager)
    assert not by_hand
    assert all(torch.equal(classes, torch.arange(4)) for classes, _ in present)


@pytest.mark.parametrize(("covariance", "phase"), [("full", "all"), ("diagonal", "all"), ("factored", None)])
def test_a_step_is_captured_once_unless_it_goes_through_the_classes(covariance, phase):
    objective = ISDA(small(3), covariance=covariance, rank=2 if phase is None else None)
    assert objective.phase(0.0) == objective.phase(1.0) == phase
