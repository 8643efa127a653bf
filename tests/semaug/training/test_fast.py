"""The fast recipe: its loss and predictions by definition, its network by counts, and that it can be captured."""

import pytest
import torch
from torch.nn import functional as F

import throwaway
from semaug import load, networks
from semaug.training import loop as training
from semaug.training.objective import Smoothed, Step
from semaug.training.recipe import Recipe

STEP = Step(torch.tensor(0.5), 0.1, torch.Generator())


def test_the_loss_is_cross_entropy_against_smoothed_labels():
    dataset = load("fashion-mini", train_size=100, test_size=40)
    objective = throwaway.build("Smoothed", dataset=dataset, seed=0, smoothing=0.3)
    images, target = torch.rand(8, 1, 28, 28), torch.arange(8)
    loss, terms = objective(images, target, STEP)
    soft = 0.7 * F.one_hot(target, 10) + 0.03
    expected = -(soft * objective.network(images).softmax(1).log()).sum(1).mean()
    torch.testing.assert_close(loss, expected)  # by softmax and logarithm, one after the other
    assert terms == {}
    plain, _ = throwaway.build("Smoothed", dataset=dataset, seed=0, smoothing=0.0)(images, target, STEP)
    torch.testing.assert_close(plain, throwaway.build("CrossEntropy", dataset=dataset, seed=0)(images, target, STEP)[0])


def test_predictions_are_those_of_the_mirror_image_too():
    dataset = load("fashion-mini", train_size=100, test_size=40)
    objective, alone = (
        throwaway.build("Smoothed", dataset=dataset, seed=0, mirror=mirror).eval() for mirror in (True, False)
    )
    images = torch.rand(4, 1, 28, 28)
    with torch.no_grad():
        both, one, other = objective.predict(images), alone.predict(images), alone.predict(images.flip(3))
        torch.testing.assert_close(both, (one + other) / 2)
        torch.testing.assert_close(objective.predict(images.flip(3)), both)
    assert not torch.allclose(one, other)


@pytest.mark.parametrize("smoothing", [-0.1, 1.0])
def test_a_smoothing_outside_its_range(smoothing):
    with pytest.raises(ValueError, match=rf"smoothing: got {smoothing}; takes a finite number in \[0, 1\)"):
        Smoothed(torch.nn.Linear(2, 2), smoothing=smoothing)


def test_the_network():
    network = networks.resnet9(10)
    weights = 9 * (3 * 64 + 64 * 128 + 2 * 128**2 + 128 * 256 + 256 * 512 + 2 * 512**2)
    norms = 2 * (64 + 3 * 128 + 256 + 3 * 512)
    assert sum(parameter.numel() for parameter in network.parameters()) == weights + norms + 10 * 512 + 10
    maps = torch.rand(2, 3, 16, 16)
    sides = []
    for stage in network.stages:
        maps = stage(maps)
        sides.append(tuple(maps.shape[1:]))
    assert sides == [(64, 16, 16), (128, 8, 8), (256, 4, 4), (512, 2, 2)]
    torch.testing.assert_close(network.pool(maps), maps.flatten(2).max(2).values / 8)
    network.head(network.pool(maps)).sum().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())


def test_it_learns_and_could_be_captured():
    recipe = Recipe.preset("fast/resnet9", epochs=3, batch_size=100, lr=0.1, precision="float32")
    dataset = load("fashion-mini", train_size=2000, test_size=500)
    objective = throwaway.build("Smoothed", dataset=dataset, seed=0)
    assert training.fit(objective, dataset, recipe, progress=False).metrics["test_accuracy"] > 0.55
    assert training.capturable(Smoothed(networks.resnet9(10)), Recipe.preset("fast/resnet9"))
