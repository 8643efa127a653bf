"""The contract's own pieces; how it carries real training is in test_training."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from semaug import networks
from semaug.data.sets import Data, load
from semaug.data.split import Split
from semaug.training.loop import fit
from semaug.training.objective import Batch, CrossEntropy, Objective, Smoothed, Step
from semaug.training.recipe import Recipe

STEP = Step(torch.tensor(0.5), 0.1, torch.Generator())


def test_cross_entropy_in_nats():
    network = nn.Sequential(nn.Flatten(), nn.Linear(4, 3))
    images, target = torch.rand(5, 1, 2, 2), torch.tensor([0, 1, 2, 0, 1])
    loss, terms = CrossEntropy(network)(images, target, STEP)
    probability = network(images).softmax(1)[torch.arange(5), target]
    assert loss.item() == pytest.approx(-probability.log().mean().item(), rel=1e-6)
    assert terms == {}
    soft = F.one_hot(target, 3).float()
    assert CrossEntropy(network)(images, soft, STEP)[0].item() == pytest.approx(loss.item(), rel=1e-6)


def test_defaults():
    objective = Objective(nn.Sequential(nn.Flatten(), nn.Linear(4, 3)), strength=0.5)
    assert objective.settings == {"strength": 0.5}
    assert objective.streams == ("train",)
    next(objective.parameters()).requires_grad_(False)
    (group,) = objective.parameter_groups(Recipe())
    assert [p.shape for p in group["params"]] == [(3,)], "frozen parameters stay out"
    assert objective.predict(torch.rand(2, 1, 2, 2)).shape == (2, 3)
    assert objective.after_step(STEP) is None


def test_an_objective_is_built_for_a_data_set_and_may_ask_it():
    class Counted(Objective):
        def __init__(self, network, counts, strength=1.0):
            super().__init__(network, strength=strength)
            self.counts = counts

        @classmethod
        def build(cls, network, dataset, **settings):
            return cls(network, dataset.counts, **settings)

    target = torch.tensor([0, 1, 1])
    split = Split(torch.zeros(3, 1, 2, 2, dtype=torch.uint8), target)
    dataset, network = Data("three", split, split), nn.Linear(4, 2)
    assert CrossEntropy.build(network, dataset).network is network
    built = Counted.build(network, dataset, strength=0.5)
    assert type(built) is Counted
    assert built.counts.tolist() == [1, 2]
    assert built.settings == {"strength": 0.5}
    with pytest.raises(TypeError, match="smoothness"):
        Smoothed.build(network, dataset, smoothness=0.1)


def test_an_objective_without_a_loss_says_so():
    with pytest.raises(NotImplementedError, match=r"Objective has to define forward\(images, target, step\)"):
        Objective(nn.Identity())(torch.rand(1, 1, 2, 2), torch.tensor([0]), STEP)


def test_an_objective_that_is_frozen_is_not_trained():
    frozen = CrossEntropy(networks.small(2, width=4)).requires_grad_(False)
    message = "objective: got CrossEntropy without a parameter to train; takes one at least"
    with pytest.raises(ValueError, match=message):
        fit(frozen, load("fashion-mini", train_size=20, test_size=20), Recipe(epochs=1, batch_size=10), progress=False)


def test_batch_and_step_are_plain_tuples():
    images, _ = Batch(torch.rand(1, 1, 2, 2), torch.tensor([0]))
    assert images.shape == (1, 1, 2, 2)
    assert STEP.meta is None
