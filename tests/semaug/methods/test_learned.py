"""Who is moved by which term, that the generators leave the identity, and golden values."""

import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

import throwaway
from semaug import networks
from semaug.methods.diffaugment import DiffAugment
from semaug.methods.learned import (
    FeatureAugmentation,
    FixedAugmentation,
    ImageAugmentation,
    TeachAugment,
    nonsaturating,
    reverse_gradient,
    triangle_wave,
)
from semaug.training import loop as training
from semaug.training.objective import Step
from semaug.training.recipe import Recipe

IMAGES, TARGET = torch.rand(8, 1, 12, 12, generator=torch.Generator().manual_seed(5)), torch.arange(8) % 4
ADAM = {"optimizer": "adam", "lr": 3e-3, "momentum": 0.9, "schedule": "constant", "weight_decay": 0.0}
RECIPE = Recipe(epochs=15, batch_size=16, **ADAM)


def step(seed=0):
    return Step(torch.tensor(0.5), 0.1, torch.Generator().manual_seed(seed))


def build(kind, **settings):
    torch.manual_seed(0)
    network = networks.small(4, width=4)
    return kind(network, (1, 12, 12), **settings) if kind is TeachAugment else kind(network, **settings)


def disturbed(module):
    """Away from the identity, so that every parameter has a gradient."""
    for parameter in module.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("scale", [0.0, 0.3, 2.0])
def test_reversed_gradient(scale):
    x = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(reverse_gradient(x, scale).square().sum(), x)
    torch.testing.assert_close(slope, -scale * 2 * x.detach())
    assert torch.equal(reverse_gradient(x, scale), x)


def test_descent_on_one_side_is_a_saddle():
    """min over x, max over y of xy - y^2 / 2 + x^2 / 2: descending on x and on the reversed y finds it."""
    x, y = (torch.tensor(value, dtype=torch.float64, requires_grad=True) for value in (1.0, -2.0))
    for _ in range(400):
        reverse = reverse_gradient(y, 1.0)
        slopes = torch.autograd.grad(x * reverse - reverse**2 / 2 + x**2 / 2, (x, y))
        with torch.no_grad():
            for value, slope in zip((x, y), slopes, strict=True):
                value -= 0.1 * slope
    assert abs(x.item()) + abs(y.item()) < 1e-6


def test_triangle_wave_golden():
    values = torch.tensor([-0.3, 0, 0.4, 1, 1.2, 2.5], dtype=torch.float64)
    torch.testing.assert_close(triangle_wave(values), torch.tensor([0.3, 0, 0.4, 1, 0.8, 0.5], dtype=torch.float64))
    many = torch.linspace(-7, 7, 999, dtype=torch.float64, requires_grad=True)
    torch.testing.assert_close(
        triangle_wave(many), torch.arccos(torch.cos(math.pi * many)) / math.pi, atol=1e-7, rtol=0
    )
    triangle_wave(many).sum().backward()
    assert set(many.grad.abs().tolist()) <= {0.0, 1.0}


def test_nonsaturating_golden():
    logits, target = torch.tensor([[2, 0, -1], [0.1, 0.2, 0.3]], dtype=torch.float64), torch.tensor([0, 2])
    assert nonsaturating(logits, target).item() == pytest.approx(1.157065260092877, rel=1e-10)
    assert nonsaturating(torch.tensor([[900.0, 0.0]]), target[:1]).item() == pytest.approx(-math.log(1e-12))


def gradients(objective, loss):
    objective.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in objective.named_parameters() if p.grad is not None}


def test_which_parameters_each_term_of_form_a_moves():
    def of(**weights):
        objective = build(FeatureAugmentation, **{"scale": 1.0, "consistency": 0, "distance": 0, "kl": 0, **weights})
        objective.network.head.weight.data *= 50  # sure of some images: consistency is of these alone
        disturbed(objective.generator)
        return gradients(objective, objective(IMAGES, TARGET, step())[0]), objective

    plain, objective = of(scale=0.0)
    head = {name for name in plain if name.startswith("network.head")}
    generator = {name for name in plain if name.startswith("generator")}
    assert not any(plain[name].any() for name in generator), "nothing holds or drives it"
    objective.zero_grad()
    F.cross_entropy(objective.network(IMAGES), TARGET).backward()
    for name, parameter in objective.network.stages.named_parameters():
        torch.testing.assert_close(plain[f"network.stages.{name}"], parameter.grad, msg="the body learns from CE(z)")
    reversed_, _ = of(scale=1.0)
    twice, _ = of(scale=2.0)
    for name in generator:
        torch.testing.assert_close(twice[name], 2 * reversed_[name])
    assert all(torch.equal(plain[name], reversed_[name]) for name in plain if name not in generator)
    decoder = {name for name in generator if "decoder" in name}
    for term, moves in (("consistency", generator), ("distance", generator), ("kl", generator - decoder)):
        found, _ = of(scale=0.0, **{term: 5.0})
        assert {name for name in found if not torch.equal(found[name], plain[name])} == moves, term
        assert not {name for name in head if not torch.equal(found[name], plain[name])}, "the head is constant there"


def test_the_generator_ascends():
    """A step of G against its gradient makes the head's loss of its features larger."""
    objective = build(FeatureAugmentation, consistency=0, distance=0, kl=0).double()
    disturbed(objective.generator)
    images = IMAGES.double()
    loss, before = objective(images, TARGET, step())
    loss.backward()
    with torch.no_grad():
        for parameter in objective.generator.parameters():
            parameter -= 1e-3 * parameter.grad
    assert objective(images, TARGET, step())[1]["augmented_loss"] > before["augmented_loss"]


def test_form_a_starts_at_the_identity_and_leaves_it_the_more_the_larger_the_scale():
    moved = []
    for scale in (1e-4, 1.0, 10.0):
        objective = build(FeatureAugmentation, scale=scale)
        assert objective(IMAGES, TARGET, step())[1]["moved"] == 0
        record = training.fit(objective, throwaway.data(), RECIPE, progress=False)
        moved.append(record.curves["moved"][-1])
    assert moved[0] < moved[1] < moved[2]
    assert moved[2] > 0.05
    assert record.config["settings"]["scale"] == 10.0


def test_which_parameters_the_student_and_the_augmentation_move():
    objective = build(TeachAugment, every=2)
    disturbed(objective.augmentation)
    running = objective.network.stages[0][2].running_mean
    for turn in (False, True):
        teacher, before = objective.teacher.stages[0][2].running_mean.clone(), running.clone()
        loss, terms = objective(IMAGES, TARGET, step())
        found = gradients(objective, loss)
        assert {name.split(".")[0] for name in found} == ({"network", "augmentation"} if turn else {"network"})
        assert (terms["augmentation_loss"] > 0) == turn
        assert not torch.equal(before, running), "of the student's own pass"
        assert torch.equal(teacher, objective.teacher.stages[0][2].running_mean)
        assert all(part.training for part in objective.modules())
        changed = objective.augmentation(IMAGES, torch.randn(8, 16, generator=step().generator)).detach()
        objective.network.stages[0][2].running_mean.copy_(before)
        objective.zero_grad()
        F.cross_entropy(objective.network(changed), TARGET).backward()
        for name, parameter in objective.network.named_parameters():
            torch.testing.assert_close(
                found[f"network.{name}"], parameter.grad, msg="the student's gradient is its own"
            )
        with torch.no_grad():
            objective.after_step(step())


def test_against_is_its_formula_and_the_teacher_is_an_average():
    objective = build(TeachAugment, ema=0.9)
    before = [p.clone() for p in objective.teacher.parameters()]
    with torch.no_grad():
        for parameter in objective.network.parameters():
            parameter += 1
        objective.after_step(step())
    for old, new in zip(before, objective.teacher.parameters(), strict=True):
        torch.testing.assert_close(new, old + 0.1)
    value = objective.against(IMAGES, TARGET)
    objective.eval()
    p = objective.network(IMAGES).softmax(1).gather(1, TARGET[:, None])
    expected = -(1 - p + 1e-12).log().mean() + F.cross_entropy(objective.teacher(IMAGES), TARGET)
    torch.testing.assert_close(value, expected, rtol=1e-4, atol=1e-5)


def test_images_change_by_an_affine_map_and_a_wave():
    augmentation = ImageAugmentation(1, reach=0.5).double()
    images, noise = IMAGES.double(), torch.randn(8, 16, dtype=torch.float64)
    torch.testing.assert_close(augmentation(images, noise), images)
    bias = augmentation.layers[2].bias.data
    bias[2], bias[7] = math.atanh(2 * 4 / 12), math.atanh(0.6)  # two pixels of twelve to the right, 0.3 brighter
    found = augmentation(images, noise)
    torch.testing.assert_close(found[..., :10], triangle_wave(images[..., 2:] + 0.3))
    assert found.min() >= 0
    assert found.max() <= 1


def test_teach_augment_trains_and_leaves_the_identity():
    objective = build(TeachAugment, every=2, ema=0.9)
    assert objective(IMAGES, TARGET, step())[1]["moved"] < 1e-6
    record = training.fit(objective, throwaway.data(), RECIPE, progress=False)
    assert record.curves["moved"][-1] > 0.02
    assert record.metrics["test_accuracy"] > 0.5  # four classes: chance is .25


def test_fixed_augmentation_is_the_transformation_and_nothing_else():
    objective = build(FixedAugmentation, policy="translation,cutout")
    loss, terms = objective(IMAGES, TARGET, step())
    changed = (DiffAugment("translation,cutout")(2 * IMAGES - 1, step().generator) + 1) / 2
    objective.network.load_state_dict(build(FixedAugmentation).network.state_dict())  # running statistics too
    torch.testing.assert_close(loss, F.cross_entropy(objective.network(changed), TARGET))
    assert terms == {}
    assert objective.settings == {"policy": "translation,cutout"}
    assert torch.equal(objective.eval().predict(IMAGES), objective.network(IMAGES))


def test_the_order_of_a_policy_is_part_of_the_settings():
    one, two = (build(FixedAugmentation, policy=policy) for policy in ("cutout,color", "color,cutout"))
    assert (one.settings, two.settings) == ({"policy": "cutout,color"}, {"policy": "color,cutout"})
    for objective in (one, two):
        loss, _ = objective(IMAGES, TARGET, step())
        changed = (objective.augment(2 * IMAGES - 1, step().generator) + 1) / 2
        objective.network.load_state_dict(build(FixedAugmentation).network.state_dict())
        torch.testing.assert_close(loss, F.cross_entropy(objective.network(changed.clamp(0, 1)), TARGET))


@pytest.mark.usefixtures("unchecked")
def test_settings_are_plain_numbers():
    settings = build(FeatureAugmentation, scale=1, kl=np.float32(0.5), latent=np.int64(4), generator_lr=1).settings
    expected = {"scale": 1.0, "consistency": 0.01, "distance": 0.1, "kl": 0.5, "latent": 4, "hidden": 64}
    assert settings == {**expected, "generator_lr": 1.0}
    assert {type(settings[name]) for name in ("scale", "kl", "generator_lr")} == {float}
    settings = build(TeachAugment, ema=np.float64(0.5), every=np.int64(2)).settings
    assert settings == {"every": 2, "ema": 0.5, "noise": 16, "hidden": 64, "reach": 0.5}
    assert (type(settings["ema"]), type(settings["every"])) == (float, int)


def test_teach_augment_is_built_for_the_images_of_a_data_set():
    assert TeachAugment.build(networks.small(4, width=4), throwaway.data(), every=2).augmentation.channels == 1


def test_parts_of_the_student_in_evaluation_mode_stay_in_it():
    objective = build(TeachAugment, every=1)
    frozen = objective.network.stages[0].eval()
    objective(IMAGES, TARGET, step())
    assert not any(part.training for part in frozen.modules())
    assert objective.network.stages[1].training


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: build(FixedAugmentation, policy="rotation"), "policy: got 'rotation'; takes one or more of color"),
        (lambda: reverse_gradient(IMAGES, -1.0), "scale: got -1.0; takes a finite number from 0"),
        (lambda: build(FeatureAugmentation, scale=math.inf), "scale: got inf; takes a finite number from 0"),
        (lambda: build(FeatureAugmentation, latent=0), "latent: got 0; takes a whole number from 1"),
        (lambda: build(FeatureAugmentation, generator_lr=0.0), "generator_lr: got 0.0; takes a finite number above 0"),
        (lambda: build(TeachAugment)(IMAGES, torch.rand(8, 4), step()), r"target: got \(8, 4\); takes class numbers"),
        (lambda: build(TeachAugment, every=0), "every: got 0; takes a whole number from 1"),
        (lambda: build(TeachAugment, ema=1.0), r"ema: got 1.0; takes a finite number in \[0, 1\)"),
        (lambda: build(TeachAugment, reach=1.0), r"reach: got 1.0; takes a finite number in \(0, 1\)"),
        (lambda: build(FeatureAugmentation, kl="0.1"), "kl: got '0.1'; takes a finite number from 0"),
        (lambda: build(FeatureAugmentation, scale=True), "scale: got True; takes a finite number from 0"),
        (
            lambda: build(TeachAugment, augmentation_lr=math.nan),
            "augmentation_lr: got nan; takes a finite number above",
        ),
        (
            lambda: build(TeachAugment)(IMAGES, TARGET, step()._replace(world=2)),
            "every: got 5; takes 1 in a data-paral",
        ),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()
