"""Oracles: draws of the same generator by hand, autograd, the generator alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import throwaway
from semaug import networks
from semaug.methods.augmented import Augmented
from semaug.training.objective import Step

METHODS = ("none", "noise", "vae", "cvae", "gvae")


def step(seed=0, progress=0.5):
    return Step(torch.tensor(progress), 0.1, torch.Generator().manual_seed(seed))


def batch(n=6):
    return torch.rand(n, 1, 12, 12), torch.arange(n) % 4


def augmented(method="gvae", norm="batch", **settings):
    torch.manual_seed(0)
    return Augmented(networks.small(4, width=4, norm=norm), (1, 12, 12), method, latent=4, width=4, **settings)


@pytest.mark.parametrize("method", METHODS)
def test_what_the_classifier_sees(method, monkeypatch):
    objective, (images, target) = augmented(method, probability=0.5, start=0.3, strength=0.7), batch(40)
    seen = []
    monkeypatch.setattr(
        objective.network, "forward", lambda x: seen.append(x) or torch.zeros(len(x), 4, requires_grad=True)
    )
    objective(images, target, step(progress=0.2))
    objective(images, target, step(progress=0.4))
    assert torch.equal(seen[0], images), "before start nothing is replaced"
    replaced = (seen[1] != images).flatten(1).any(1)
    assert 10 <= replaced.sum() <= 30 if method != "none" else not replaced.any()
    assert (seen[1].min() >= 0) & (seen[1].max() <= 1)


@pytest.mark.parametrize(
    ("method", "residual"), [("noise", False), ("vae", False), ("cvae", False), ("gvae", False), ("gvae", True)]
)
def test_what_is_drawn(method, residual, monkeypatch):
    """(1), or Gaussian noise, by hand: the draws of the generator in their order, every image replaced."""
    objective = augmented(method, probability=1.0, start=0.0, strength=0.7, residual=residual)
    images, target = batch()
    seen = []
    monkeypatch.setattr(
        objective.network, "forward", lambda x: seen.append(x) or torch.zeros(len(x), 4, requires_grad=True)
    )
    draws = torch.Generator().manual_seed(3)
    if method == "noise":
        objective(images, target, step(3))
        expected = (images + 0.7 * torch.randn(images.shape, generator=draws)).clamp(0, 1)
    else:
        mean, log_variance = objective.generator.encode(images)  # by the batch's statistics, as in training
        objective(images, target, step(3))
        torch.randn(6, 4, generator=draws)  # of the generator's own loss
        codes = mean + 0.7 * log_variance.exp().sqrt() * torch.randn(6, 4, generator=draws)
        decode = objective.generator.eval().decode
        expected = decode(codes, target).detach()
        if residual:
            expected = (images + expected - decode(mean, target).detach()).clamp(0, 1)
    torch.testing.assert_close(seen[0], expected)


def test_strength_zero_is_the_reconstruction_and_residual_the_image():
    images, target = batch(8)
    for residual in (False, True):
        objective = augmented(strength=0.0, residual=residual)
        generator = objective.generator
        mean, log_variance = (each.detach() for each in generator.encode(images))
        moved = objective.moved(generator, images, mean, log_variance, target, step())
        generator.eval()
        torch.testing.assert_close(moved, images if residual else generator.decode(mean).detach())


def test_classifier_and_generator_do_not_reach_each_other():
    objective, (images, target) = augmented(start=0.0, probability=1.0), batch(8)
    before = {name: b.clone() for name, b in objective.generator.network.decoder.named_buffers()}
    loss, terms = objective(images, target, step())
    slopes = torch.autograd.grad(loss, list(objective.generator.parameters()), retain_graph=True)
    alone = augmented().generator
    own = torch.autograd.grad(alone(images, target, step())[0], list(alone.parameters()))
    assert all(torch.equal(a, b) for a, b in zip(slopes, own, strict=True))
    for name, buffer in alone.network.decoder.named_buffers():
        assert torch.equal(dict(objective.generator.network.decoder.named_buffers())[name], buffer)
    assert any(not torch.equal(before[name], b) for name, b in objective.generator.network.decoder.named_buffers())
    assert "classifier_loss" in terms
    assert objective.generator.training


def test_parts_of_the_generator_in_evaluation_mode_stay_in_it():
    objective, (images, target) = augmented(start=0.0), batch()
    frozen = objective.generator.network.encoder.eval()
    objective(images, target, step())
    assert not any(part.training for part in frozen.modules())
    assert objective.generator.network.decoder.training


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.usefixtures("unchecked")
def test_settings_are_plain_numbers_and_those_of_the_method(method):
    given = {"strength": np.float64(1), "probability": 1, "deviation": np.float32(0.5), "class_weight": 3}
    settings = augmented(method, **given).settings
    expected = {"method": method, "strength": 1.0, "probability": 1.0, "start": 0.3}
    if method in ("vae", "cvae", "gvae"):
        expected |= {"residual": False, "latent": 4, "width": 4, "norm": "batch", "deviation": 0.5}
        expected |= {"class_weight": 3.0} if method == "gvae" else {}
    assert settings == expected
    assert {type(settings[name]) for name in ("strength", "probability", "start")} == {float}


def test_it_is_built_for_the_images_of_a_data_set():
    objective = Augmented.build(networks.small(4, width=4), throwaway.data(), method="vae", latent=3)
    assert objective.generator.network.image_shape == (1, 12, 12)
    assert objective.settings["latent"] == 3


BAD = {
    "method": (lambda: augmented("gan"), "method: got 'gan'; takes one of none, noise, vae"),
    "probability": (lambda: augmented(probability=1.5), r"probability: got 1.5; takes a finite number in \[0, 1\]"),
    "strength": (lambda: augmented(strength=-1.0), "strength: got -1.0; takes a finite number from 0"),
    "text": (lambda: augmented(strength="1"), "strength: got '1'; takes a finite number from 0"),
    "start": (lambda: augmented(start=True), r"start: got True; takes a finite number in \[0, 1\]"),
    "residual": (lambda: augmented(residual="no"), "residual: got 'no'; takes True or False"),
    "deviation": (lambda: augmented(deviation=0.0), "deviation: got 0.0; takes a finite number above 0"),
}


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("name", BAD)
def test_bad_input(name):
    call, message = BAD[name]
    with pytest.raises(ValueError, match=message):
        call()
