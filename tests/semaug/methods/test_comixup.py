"""Oracles: the objective (42) written out, images of one value each, which show how they were mixed."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from semaug import data, networks
from semaug.methods import comixup
from semaug.methods._graph_cut import grid_pairs
from semaug.methods.comixup import CoMixup
from semaug.training import loop as training
from semaug.training.objective import Step
from semaug.training.recipe import Recipe


def step(seed=0):
    return Step(torch.tensor(0.5), 0.1, torch.Generator().manual_seed(seed))


def test_comixup_labels_lower_the_objective_and_share_the_images():
    random = np.random.default_rng(0)
    s = random.random((6, 3, 3))
    s /= s.sum((1, 2), keepdims=True)
    start = random.integers(0, 6, (6, 3, 3))
    pairs = grid_pairs(3, 3)

    def objective(labels, gamma=1.0):
        flat = labels.reshape(6, 9)
        counts = np.stack([np.bincount(row, minlength=6) for row in flat])
        total = sum(-s[flat[o, i], i // 3, i % 3] for o in range(6) for i in range(9))
        total += 0.32 / 9 * (flat[:, pairs[:, 0]] != flat[:, pairs[:, 1]]).sum()
        return total + gamma * 2 / 9 * sum(counts[o] @ counts[p] for o in range(6) for p in range(o))

    found = comixup.comixup_labels(s, np.zeros(6), start, threshold=0.0)
    assert objective(found) < objective(start)
    free = comixup.comixup_labels(s, np.zeros(6), start, beta=0.0, gamma=0.0)
    assert (free == s.argmax(0)).all(), "without prices every output shows the most salient image of each place"
    assert len(np.unique(found)) > len(np.unique(free)) - 1
    shared = [np.bincount(found.ravel(), minlength=6).max(), np.bincount(free.ravel(), minlength=6).max()]
    assert shared[0] < shared[1]


def test_comixup_shows_the_blocks_it_counts():
    torch.manual_seed(0)
    objective = CoMixup(networks.small(4, width=4, norm="group"), part=4, blocks=2)
    images = torch.arange(1.0, 5)[:, None, None, None].expand(4, 1, 8, 8) / 4
    mixed = objective.mix(images.clone(), torch.eye(4), step())
    for image, label in zip(mixed.images, mixed.target, strict=True):
        shares = torch.stack([(image == value / 4).float().mean() for value in range(1, 5)])
        torch.testing.assert_close(label, shares)


def test_processes_begin_with_draws_of_their_own():
    """What two processes draw is what one draws for the batch of both."""
    torch.manual_seed(0)
    objective = CoMixup(networks.small(3, width=4, norm="group"), part=5)
    starts, priors = objective._start_and_priors(20, step())
    assert (starts.shape, priors.shape) == ((20, 4, 4), (4, 5))
    np.testing.assert_allclose(priors.sum(1), 1)
    for rank in range(2):
        mine = objective._start_and_priors(10, step()._replace(rank=rank, world=2))
        assert np.array_equal(mine[0], starts[10 * rank : 10 * rank + 10])
        # the priors come after the same numbers, as many of them
        assert np.array_equal(mine[1], priors[2 * rank : 2 * rank + 2])


def test_batchnorm_counts_the_mixtures_alone():
    torch.manual_seed(0)
    objective = CoMixup(networks.small(3, width=4), part=4)
    objective(torch.rand(4, 1, 16, 16), torch.tensor([0, 1, 2, 0]), step())
    buffers = dict(objective.network.named_buffers())
    assert {int(b) for name, b in buffers.items() if name.endswith("num_batches_tracked")} == {1}
    assert all(part.training for part in objective.network.modules())


def test_trains_by_seed_with_labels_that_are_shares():
    dataset = data.load("fashion-mini", train_size=20, test_size=20)

    def run():
        torch.manual_seed(0)
        objective = CoMixup(networks.small(10, width=4), part=5)
        return training.fit(objective, dataset, Recipe(epochs=1, batch_size=10), progress=False)

    one, two = run(), run()
    assert one.curves == two.curves
    assert math.isfinite(one.curves["train_loss"][0])
    assert not CoMixup.static
    expected = {"alpha": 2.0, "probability": 1.0, "blocks": 4, "part": 5, "beta": 0.32, "gamma": 1.0}
    assert one.config["settings"] == expected | {"threshold": 0.83, "eta": 0.05, "rounds": 4}
    images, soft = torch.rand(11, 1, 28, 28), F.one_hot(torch.arange(11) % 10, 10).float()
    mixed = CoMixup(networks.small(10, width=4), part=8).mix(images, soft, step())
    torch.testing.assert_close(mixed.target.sum(1), torch.ones(11))
    assert mixed.images.shape == images.shape
    assert 0 <= mixed.images.min() <= mixed.images.max() <= 1


@pytest.mark.usefixtures("unchecked")
def test_settings_are_plain():
    objective = CoMixup(networks.small(3, width=4), alpha=2, part=np.int64(5), beta=np.float64(0.5), gamma=1)
    assert objective.settings["gamma"] == 1.0
    whole = [name for name, value in objective.settings.items() if type(value) is int]
    assert whole == ["blocks", "part", "rounds"]
    assert {type(value) for value in objective.settings.values()} == {int, float}


def test_probability_batch_of_one_and_sides():
    torch.manual_seed(0)
    network = networks.small(3, width=4, norm="group")
    images, target = torch.rand(1, 1, 16, 24), F.one_hot(torch.tensor([1]), 3).float()
    left = CoMixup(network, probability=0.0).mix(images, target, step())
    assert torch.equal(left.images, images)
    assert torch.equal(left.target, target)
    torch.testing.assert_close(CoMixup(network).mix(images, target, step()).target, target)
    assert CoMixup(network, probability=0.0).mix(images.double(), target, step()).lam.dtype == torch.float64


@pytest.mark.usefixtures("unchecked")
class TestBadInput:
    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"part": 0}, "part: got 0; takes a whole number from 1"),
            ({"blocks": True}, "blocks: got True; takes a whole number from 1"),
            ({"rounds": 1.5}, "rounds: got 1.5"),
            ({"eta": math.nan}, "eta: got nan; takes a finite number from 0"),
            ({"threshold": "1"}, "threshold: got '1'"),
        ],
    )
    def test_settings(self, changes, message):
        with pytest.raises(ValueError, match=message):
            CoMixup(networks.small(3, width=4), **changes)

    def test_blocks_that_do_not_divide(self):
        with pytest.raises(ValueError, match="blocks: got 4; takes a divisor of the sides of the images, 18 and 18"):
            CoMixup(networks.small(2, width=4)).mix(torch.rand(2, 1, 18, 18), torch.eye(2), step())
