"""Oracles: all labellings of small grids, all permutations of few blocks, autograd, sums written out."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from semaug import data, networks
from semaug.methods import puzzlemix
from semaug.methods.puzzlemix import CoMixup, PuzzleMix, grid_pairs
from semaug.training import loop as training
from semaug.training.objective import Step
from semaug.training.recipe import Recipe


def step(seed=0):
    return Step(torch.tensor(0.5), 0.1, torch.Generator().manual_seed(seed))


def test_grid_pairs():
    found = {tuple(pair) for pair in grid_pairs(2, 3).tolist()}
    assert found == {(0, 3), (1, 4), (2, 5), (0, 1), (1, 2), (3, 4), (4, 5)}
    assert len(grid_pairs(4, 5)) == 3 * 5 + 4 * 4


@pytest.mark.parametrize("seed", range(10))
def test_a_cut_is_the_best_of_all(seed):
    random = np.random.default_rng(seed)
    rises, edges = random.normal(size=7), random.integers(0, 7, (15, 2))
    prices = random.random(15)

    def cost(x):
        return (rises * x).sum() + (prices * x[edges[:, 0]] * (1 - x[edges[:, 1]])).sum()

    best = min(cost(np.array(x)) for x in itertools.product((0, 1), repeat=7))
    assert cost(puzzlemix.cut(rises, edges, prices).astype(int)) == pytest.approx(best, abs=1e-6)


@pytest.mark.parametrize("labels", [2, 3, 4])
@pytest.mark.parametrize("seed", range(5))
def test_ordered_labels_are_the_best_of_all(labels, seed):
    """A grid of 2 x 3, every one of up to 4096 labellings."""
    random = np.random.default_rng(seed)
    pairs = grid_pairs(2, 3)
    unary, weight = random.normal(size=(6, labels)), random.random(len(pairs)) * random.choice([0.05, 0.5])

    def cost(z):
        z = np.asarray(z)
        return unary[np.arange(6), z].sum() + (weight * (z[pairs[:, 0]] - z[pairs[:, 1]]) ** 2).sum()

    best = min(map(cost, itertools.product(range(labels), repeat=6)))
    assert cost(puzzlemix.ordered_labels(unary, weight, pairs)) == pytest.approx(best, abs=1e-6)


@pytest.mark.parametrize("seed", range(5))
def test_expansions_end_where_no_expansion_helps_and_near_the_best(seed):
    random = np.random.default_rng(seed)
    pairs, unary, weight = grid_pairs(2, 3), random.random((6, 3)), 0.3

    def cost(y):
        return unary[np.arange(6), y].sum() + weight * (y[pairs[:, 0]] != y[pairs[:, 1]]).sum()

    found = puzzlemix.unordered_labels(unary, weight, pairs, random.integers(0, 3, 6))
    every = [np.array(y) for y in itertools.product(range(3), repeat=6)]
    expansions = [np.where(take, label, found) for label in range(3) for take in itertools.product((0, 1), repeat=6)]
    assert cost(found) <= min(map(cost, expansions)) + 1e-9
    best = min(map(cost, every))
    assert best <= cost(found) <= 2 * best


def energy(z, s, partner, differences, lam, labels, beta, gamma, eta):
    """(40) as the paper has it: every pair of neighbours pays for the difference of what they show."""
    b = len(s)
    pairs, scale = grid_pairs(b, b), beta / (16 * b)
    total = ((1 - z) * s + z * partner).sum()
    for value in z.ravel():
        k = round(value * (labels - 1))
        p = math.comb(labels - 1, k) * (lam + 1e-8) ** k * (1 - lam + 1e-8) ** (labels - 1 - k)
        total -= eta / b**2 * math.log(p)
    for e, (i, j) in enumerate(pairs):
        one, two = z.ravel()[i], z.ravel()[j]
        neither, second, first, both = (each[e] for each in differences)
        total += scale * (one - two) ** 2
        phi = one * (first + both) + (1 - one) * (second + neither) + two * (second + both)
        phi = (phi + (1 - two) * (first + neither) - first - second) / 2
        phi += (first + second - both - neither) / 2 * (one - two) ** 2
        if labels == 2:
            assert phi == pytest.approx({(0, 0): neither, (0, 1): second, (1, 0): first, (1, 1): both}[one, two])
        total += scale * gamma * phi
    return total


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("b", "labels"), [(3, 2), (2, 3), (2, 4)])
def test_the_mask_is_the_best_of_all(b, labels, seed):
    random = np.random.default_rng(seed)
    s, partner = (each / each.sum() for each in random.random((2, b, b)))
    differences = tuple(random.random((4, len(grid_pairs(b, b)))))
    options = {"labels": labels, "beta": 3.0, "gamma": 0.9, "eta": 0.2}
    mask = puzzlemix.puzzle_mask(s, partner, differences, 0.3, **options)

    def cost(z):
        return energy(np.array(z).reshape(b, b), s, partner, differences, 0.3, labels, 3.0, 0.9, 0.2)

    best = min(map(cost, itertools.product(np.linspace(0, 1, labels), repeat=b * b)))
    assert cost(mask) == pytest.approx(best, abs=1e-6)


def test_the_mask_shows_what_is_salient_and_about_its_ratio():
    s = np.zeros((4, 4))
    s[:2] = 1 / 8
    nothing = tuple(np.zeros((4, 24)))
    mask = puzzlemix.puzzle_mask(s, np.flipud(s), nothing, 0.5)
    assert (mask[:2] == 1).all()
    assert (mask[2:] == 0).all()
    flat = np.full((4, 4), 1 / 16)
    means = [puzzlemix.puzzle_mask(flat, flat, nothing, lam).mean() for lam in (0.0, 0.3, 0.5, 0.7, 1.0)]
    assert means == sorted(means)
    assert (means[0], means[2], means[-1]) == (0, 0.5, 1)


@pytest.mark.parametrize("seed", range(3))
def test_transport_is_the_best_of_all(seed):
    """Of four blocks: 24 permutations; and where nothing is to be won nothing moves."""
    random = np.random.default_rng(seed)
    s, mask = random.random((2, 2)), np.array([[1.0, 0.0], [0.5, 0.0]])

    def cost(to):
        squared = [(i // 2 - j // 2) ** 2 + (i % 2 - j % 2) ** 2 for i, j in enumerate(to)]
        return 0.2 * sum(squared) - sum(s.ravel()[i] * (mask.ravel()[j] > 0) for i, j in enumerate(to))

    found = puzzlemix.transport(s, mask, 0.2)
    assert cost(found) == pytest.approx(min(map(cost, itertools.permutations(range(4)))))
    assert puzzlemix.transport(s, np.ones((2, 2))).tolist() == [0, 1, 2, 3]


def test_blocks_move_as_told():
    image = torch.arange(2 * 4 * 6.0).reshape(2, 4, 6)
    moved = puzzlemix.move_blocks(image, np.array([3, 0, 1, 2]), 2)
    blocks = [
        (slice(0, 2), slice(0, 3)),
        (slice(0, 2), slice(3, 6)),
        (slice(2, 4), slice(0, 3)),
        (slice(2, 4), slice(3, 6)),
    ]
    for i, j in enumerate([3, 0, 1, 2]):
        assert torch.equal(moved[(slice(None), *blocks[j])], image[(slice(None), *blocks[i])])


def test_saliency_is_the_gradient():
    torch.manual_seed(0)
    network = networks.small(3, channels=2, width=4, norm="group")
    images, target = torch.rand(3, 2, 12, 12), F.one_hot(torch.tensor([0, 2, 1]), 3).float()
    found = puzzlemix.saliency(network, images, target)
    for i in range(3):
        one = images[i : i + 1].clone().requires_grad_()
        F.cross_entropy(network(one), target[i : i + 1]).backward()
        torch.testing.assert_close(found[i], (one.grad[0] ** 2).mean(0).sqrt(), rtol=1e-3, atol=1e-6)
    network.zero_grad()
    puzzlemix.saliency(network, images, target)
    assert all(parameter.grad is None or not parameter.grad.any() for parameter in network.parameters())
    assert not found.requires_grad


def test_puzzlemix_mixes_by_its_masks():
    """Without transport every block is the image's, the partner's, or half of both, and labels are their shares."""
    images, target = torch.rand(5, 1, 8, 12), torch.arange(5) % 3
    permutation, s = torch.tensor([2, 0, 4, 1, 3]), torch.rand(5, 8, 12)
    mixed = puzzlemix.puzzlemix(images, target, 0.4, permutation, s, 4, 3, transport_cost=None)
    for i, j in enumerate(permutation.tolist()):
        shown = 0.0
        for y in range(4):
            for x in range(4):
                block = (0, slice(2 * y, 2 * y + 2), slice(3 * x, 3 * x + 3))
                own, other, seen = images[i][block], images[j][block], mixed.images[i][block]
                match = [z for z in (0, 0.5, 1) if torch.allclose(seen, z * own + (1 - z) * other)]
                assert len(match) == 1
                shown += match[0] / 16
        assert mixed.lam[i].item() == pytest.approx(shown)
        expected = shown * F.one_hot(target[i], 3) + (1 - shown) * F.one_hot(target[j], 3)
        torch.testing.assert_close(mixed.target[i], expected.float())


def test_differences_are_of_the_pixels_on_either_side():
    first, second = torch.rand(2, 2, 3, 4, 6).unbind(0)
    found = puzzlemix._border(first, second, 2)
    expected = [
        (first[:, :, 1, :3] - second[:, :, 2, :3]).abs().mean((1, 2)),
        (first[:, :, 1, 3:] - second[:, :, 2, 3:]).abs().mean((1, 2)),
        (first[:, :, :2, 2] - second[:, :, :2, 3]).abs().mean((1, 2)),
        (first[:, :, 2:, 2] - second[:, :, 2:, 3]).abs().mean((1, 2)),
    ]
    torch.testing.assert_close(torch.from_numpy(found), torch.stack(expected, 1).double())


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

    found = puzzlemix.comixup_labels(s, np.zeros(6), start, threshold=0.0)
    assert objective(found) < objective(start)
    free = puzzlemix.comixup_labels(s, np.zeros(6), start, beta=0.0, gamma=0.0)
    assert (free == s.argmax(0)).all(), "without prices every output shows the most salient image of each place"
    assert len(np.unique(found)) > len(np.unique(free)) - 1
    shared = [np.bincount(found.ravel(), minlength=6).max(), np.bincount(free.ravel(), minlength=6).max()]
    assert shared[0] < shared[1]


@pytest.mark.parametrize("method", [PuzzleMix, CoMixup])
def test_trains_by_seed_with_labels_that_are_shares(method):
    of = data.load("embedded", train_size=60, test_size=40)
    options = {"part": 8} if method is CoMixup else {}

    def run():
        torch.manual_seed(0)
        objective = method(networks.small(10, width=4), **options)
        return training.fit(objective, of, Recipe(epochs=1, batch_size=20), progress=False), objective

    (one, objective), (two, _) = run(), run()
    assert one.curves == two.curves
    assert math.isfinite(one.curves["train_loss"][0])
    assert one.config["settings"].keys() >= {"alpha", "probability", "beta", "gamma", "eta"}
    assert not training._static(objective, Recipe())
    images, soft = torch.rand(11, 1, 28, 28), F.one_hot(torch.arange(11) % 10, 10).float()
    mixed = objective.mix(images, soft, step())
    torch.testing.assert_close(mixed.target.sum(1), torch.ones(11))
    assert mixed.images.shape == images.shape
    assert 0 <= mixed.images.min() <= mixed.images.max() <= 1


@pytest.mark.parametrize("method", [PuzzleMix, CoMixup])
def test_probability_batch_of_one_and_sides(method):
    torch.manual_seed(0)
    network = networks.small(3, width=4, norm="group")
    images, target = torch.rand(1, 1, 16, 24), F.one_hot(torch.tensor([1]), 3).float()
    left = method(network, probability=0.0).mix(images, target, step())
    assert torch.equal(left.images, images)
    assert torch.equal(left.target, target)
    alone = method(network).mix(images, target, step())
    torch.testing.assert_close(alone.target, target)


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


def test_empty_batch_and_the_type_of_the_ratio():
    none = torch.zeros(0, dtype=torch.int64)
    mixed = puzzlemix.puzzlemix(torch.rand(0, 1, 8, 8), none, 0.5, none, torch.rand(0, 8, 8), 2, num_classes=3)
    assert (mixed.images.shape, mixed.target.shape, mixed.lam.shape) == ((0, 1, 8, 8), (0, 3), (0,))
    images, pair = torch.rand(2, 1, 8, 8), torch.tensor([1, 0])
    half = puzzlemix.puzzlemix(images.bfloat16(), torch.eye(2), 0.3, pair, torch.rand(2, 8, 8), 8)
    assert half.images.dtype == torch.bfloat16
    assert half.lam.dtype == torch.float32
    objective = CoMixup(networks.small(2, width=4), probability=0.0)
    assert objective.mix(images.double(), torch.eye(2), step()).lam.dtype == torch.float64


@pytest.mark.usefixtures("unchecked")
class TestBadInput:
    @pytest.mark.parametrize(
        ("make", "message"),
        [
            (lambda net: PuzzleMix(net, labels=1), "labels: got 1; takes a whole number from 2"),
            (lambda net: PuzzleMix(net, gamma=1.5), "gamma: got 1.5; takes a fraction"),
            (lambda net: PuzzleMix(net, beta=-1.0), "beta: got -1.0"),
            (lambda net: PuzzleMix(net, transport_cost=-1.0), "transport_cost: got -1.0"),
            (lambda net: CoMixup(net, part=0), "part: got 0; takes a whole number from 1"),
            (lambda net: CoMixup(net, eta=math.nan), "eta: got nan"),
        ],
    )
    def test_settings(self, make, message):
        with pytest.raises(ValueError, match=message):
            make(networks.small(3, width=4))

    def test_blocks_that_do_not_divide(self):
        images, target, permutation = torch.rand(2, 1, 8, 8), torch.arange(2), torch.tensor([1, 0])
        for changes, message in (
            ({"b": 3}, "b: got 3; takes a divisor of the sides of the images, 8 and 8"),
            ({"saliency": torch.rand(2, 4, 4)}, r"saliency: got shape \(2, 4, 4\)"),
            ({"gamma": 2.0}, "gamma: got 2.0"),
            ({"lam": 1.2}, "lam: got 1.2"),
            ({"permutation": torch.tensor([0])}, "permutation: got"),
            ({"labels": 1}, "labels: got 1; takes a whole number from 2"),
        ):
            good = {"lam": 0.5, "permutation": permutation, "saliency": torch.rand(2, 8, 8), "b": 2, "num_classes": 2}
            with pytest.raises(ValueError, match=message):
                puzzlemix.puzzlemix(images, target, **(good | changes))
        with pytest.raises(TypeError, match=r"images: got torch.uint8; takes floats"):
            puzzlemix.puzzlemix(images.byte(), target, 0.5, permutation, torch.rand(2, 8, 8), 2, 2)
        network = networks.small(2, width=4)
        with pytest.raises(ValueError, match="images: got 17 x 13 pixels; takes sides with a common divisor"):
            PuzzleMix(network).mix(torch.rand(2, 1, 17, 13), torch.eye(2), step())
        with pytest.raises(ValueError, match="blocks: got 4; takes a divisor"):
            CoMixup(network).mix(torch.rand(2, 1, 18, 18), torch.eye(2), step())

    def test_prices_below_nothing(self):
        with pytest.raises(ValueError, match="prices: got -1; takes numbers from 0"):
            puzzlemix.cut(np.zeros(2), np.array([[0, 1]]), np.array([-1.0]))
