r"""Labels of the blocks of a grid by minimal cuts of graphs: the solvers of PuzzleMix and Co-Mixup, on the CPU.

A cut minimises any sum of terms in one and in two binary variables, where (0, 1) and (1, 0) together cost at least as
much as (0, 0) and (1, 1) together. Ordered labels with a convex price on neighbours are one cut (H. Ishikawa, "Exact
optimization for Markov random fields with convex priors", TPAMI 2003). Labels without an order need expansion moves
(Y. Boykov, O. Veksler, R. Zabih, "Fast approximate energy minimization via graph cuts", TPAMI 2001).
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float, Int

from semaug._checks import require

Pairs = Int[np.ndarray, "e 2"]

Labels = Int[np.ndarray, " n"]

Prices = Float[np.ndarray, " e"]


def cut(rises: Float[np.ndarray, " n"], edges: Pairs, prices: Prices) -> Bool[np.ndarray, " n"]:
    r"""The x in {0, 1}^n that minimises $\sum_i r_i x_i + \sum_e p_e x_{a_e} (1 - x_{b_e})$.

    Args:
        rises: $r$, (n,).
        edges: the variables a and b of every term in two variables, (e, 2).
        prices: $p$ from 0, (e,).

    Returns:
        x as booleans, (n,). Exact but for rounding every cost to a billionth of their sum: scipy's flows are whole
        numbers of 32 bits.

    Raises:
        ValueError: for a price below 0.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import breadth_first_order, maximum_flow

    require(not (prices < 0).any(), "prices", float(prices.min(initial=0)), "numbers from 0")
    n = len(rises)
    source, sink, node = n, n + 1, np.arange(n)
    rows = np.concatenate([np.full(n, source), node, edges[:, 0]])
    columns = np.concatenate([node, np.full(n, sink), edges[:, 1]])
    costs = np.concatenate([np.maximum(-rises, 0), np.maximum(rises, 0), prices])
    capacity = np.rint(costs * (2**30 / (costs.sum() or 1))).astype(np.int32)
    graph = coo_array((capacity, (rows, columns)), (n + 2, n + 2)).tocsr()
    graph.eliminate_zeros()
    left = graph - maximum_flow(graph, source, sink).flow
    left.eliminate_zeros()
    chosen = np.zeros(n + 2, dtype=bool)
    chosen[breadth_first_order(left, source, return_predecessors=False)] = True
    return chosen[:n]


def grid_pairs(height: int, width: int) -> Pairs:
    """The pairs of neighbours in a grid: first those in a column, row by row, then those in a row."""
    node = np.arange(height * width).reshape(height, width)
    down, across = (node[:-1], node[1:]), (node[:, :-1], node[:, 1:])
    return np.concatenate([np.stack([a.ravel(), b.ravel()], 1) for a, b in (down, across)])


def ordered_labels(unary: Float[np.ndarray, "n m"], weight: Prices, pairs: Pairs) -> Labels:
    r"""The labels z in {0..m-1} that minimise $\sum_i u_{i z_i} + \sum_e w_e (z_{a_e} - z_{b_e})^2$, exactly.

    One cut with the nodes [z >= k]: the square counts the pairs of nodes that the cut separates, plus
    $z^2 - (m - 1) z$ at each end.

    Args:
        unary: what each label costs at each node, (n, m).
        weight: of every pair, from 0, (e,); ValueError for one below.
        pairs: neighbours, (e, 2).
    """
    n, m = unary.shape
    K, label = m - 1, np.arange(m)
    ends = np.bincount(pairs.ravel(), np.repeat(weight, 2), minlength=n)
    rises = np.diff(unary + ends[:, None] * (label**2 - K * label))
    node = np.arange(n * K).reshape(n, K)
    # [z >= k + 1] without [z >= k] costs more than all else that a node has to do with
    never = np.abs(rises).sum(1) + 2 * K * K * ends
    edges = [np.stack([node[:, 1:].ravel(), node[:, :-1].ravel()], 1)]
    prices = [np.repeat(never, K - 1)]
    for a, b in (pairs.T, pairs.T[::-1]):
        for k, l in np.ndindex(K, K):
            edges.append(np.stack([node[a, k], node[b, l]], 1))
            prices.append(weight)
    return cut(rises.ravel(), np.concatenate(edges), np.concatenate(prices)).reshape(n, K).sum(1)


def unordered_labels(unary: Float[np.ndarray, "n m"], weight: float, pairs: Pairs, labels: Labels) -> Labels:
    r"""Labels whose cost $\sum_i u_{i y_i} + w \sum_e [y_{a_e} \ne y_{b_e}]$ no expansion of one label lowers.

    In an expansion move every node keeps its label or takes one and the same label, by one cut. The pairwise part of
    the result costs at most twice the least.

    Args:
        unary: what each label costs at each node, (n, m).
        weight: $w$ from 0.
        pairs: neighbours, (e, 2).
        labels: to begin with, (n,).
    """
    n, m = unary.shape
    labels, node = labels.copy(), np.arange(n)

    def cost(labels: np.ndarray) -> float:
        return unary[node, labels].sum() + weight * (labels[pairs[:, 0]] != labels[pairs[:, 1]]).sum()

    best, unchanged, label = cost(labels), 0, 0
    while unchanged < m:
        a, b = labels[pairs].T
        kept, first, second = weight * (a != b), weight * (a != label), weight * (b != label)
        rises = unary[:, label] - unary[node, labels]
        # a node that takes the label spares at most its borders; where that pays for no node, no move lowers the cost
        if (rises < np.bincount(pairs.ravel(), kept.repeat(2), minlength=n)).any():
            # x = 1 takes the label: (0, 0) costs kept, a alone second, b alone first, both nothing
            rises = rises + np.bincount(pairs[:, 0], second - kept, minlength=n)
            rises = rises + np.bincount(pairs[:, 1], -second, minlength=n)
            moved = np.where(cut(rises, pairs[:, ::-1], first + second - kept), label, labels)
            if (value := cost(moved)) < best - 1e-9 * (1 + abs(best)):
                labels, best, unchanged = moved, value, 0
        unchanged, label = unchanged + 1, (label + 1) % m
    return labels
