"""Oracles: all labellings of small grids."""

import itertools

import numpy as np
import pytest

from semaug.methods import _graph_cut
from semaug.methods._graph_cut import cut, grid_pairs, unordered_labels


def test_grid_pairs():
    pairs = {tuple(pair) for pair in grid_pairs(2, 3).tolist()}
    assert pairs == {(0, 3), (1, 4), (2, 5), (0, 1), (1, 2), (3, 4), (4, 5)}
    assert len(grid_pairs(4, 5)) == 3 * 5 + 4 * 4


@pytest.mark.parametrize("seed", range(10))
def test_a_cut_is_the_best_of_all(seed):
    random = np.random.default_rng(seed)
    rises, edges = random.normal(size=7), random.integers(0, 7, (15, 2))
    prices = random.random(15)

    def cost(x):
        return (rises * x).sum() + (prices * x[edges[:, 0]] * (1 - x[edges[:, 1]])).sum()

    best = min(cost(np.array(x)) for x in itertools.product((0, 1), repeat=7))
    assert cost(_graph_cut.cut(rises, edges, prices).astype(int)) == pytest.approx(best, abs=1e-6)


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
    assert cost(_graph_cut.ordered_labels(unary, weight, pairs)) == pytest.approx(best, abs=1e-6)


@pytest.mark.parametrize("seed", range(5))
def test_expansions_end_where_no_expansion_helps_and_near_the_best(seed):
    random = np.random.default_rng(seed)
    pairs, unary, weight = grid_pairs(2, 3), random.random((6, 3)), 0.3

    def cost(y):
        return unary[np.arange(6), y].sum() + weight * (y[pairs[:, 0]] != y[pairs[:, 1]]).sum()

    found = _graph_cut.unordered_labels(unary, weight, pairs, random.integers(0, 3, 6))
    every = [np.array(y) for y in itertools.product(range(3), repeat=6)]
    expansions = [np.where(take, label, found) for label in range(3) for take in itertools.product((0, 1), repeat=6)]
    assert cost(found) <= min(map(cost, expansions)) + 1e-9
    best = min(map(cost, every))
    assert best <= cost(found) <= 2 * best


def test_no_prices_and_no_nodes():
    none = np.zeros((0, 2), dtype=np.int64)
    assert _graph_cut.cut(np.array([-1.0, 1.0]), none, np.zeros(0)).tolist() == [True, False]
    assert _graph_cut.ordered_labels(np.array([[2.0, 0.0, 1.0]]), np.zeros(0), grid_pairs(1, 1)).tolist() == [1]


def test_prices_below_nothing():
    with pytest.raises(ValueError, match=r"prices: got -1.0; takes numbers from 0"):
        _graph_cut.cut(np.zeros(2), np.array([[0, 1]]), np.array([-1.0]))


@pytest.mark.parametrize("seed", range(5))
def test_moves_that_pay_for_no_node_are_left_out_without_effect(seed):
    """Expansion moves by a cut for every label, also where none can pay, end in the same labels."""
    rng = np.random.default_rng(seed)
    pairs, labels, weight = grid_pairs(4, 4), rng.integers(6, size=16), 0.4 * rng.random()
    unary, node = rng.gamma(0.5 + seed, size=(16, 6)), np.arange(16)

    def cost(labels):
        return unary[node, labels].sum() + weight * (labels[pairs[:, 0]] != labels[pairs[:, 1]]).sum()

    expected, unchanged, label = labels, 0, 0
    while unchanged < 6:
        a, b = expected[pairs].T
        kept, first, second = weight * (a != b), weight * (a != label), weight * (b != label)
        rises = unary[:, label] - unary[node, expected]
        rises += np.bincount(pairs[:, 0], second - kept, minlength=16) - np.bincount(pairs[:, 1], second, minlength=16)
        moved = np.where(cut(rises, pairs[:, ::-1], first + second - kept), label, expected)
        if cost(moved) < cost(expected) - 1e-9:
            expected, unchanged = moved, 0
        unchanged, label = unchanged + 1, (label + 1) % 6
    np.testing.assert_array_equal(unordered_labels(unary, weight, pairs, labels), expected)
