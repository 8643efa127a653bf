r"""PuzzleMix and Co-Mixup: masks that keep what is salient of every image, by discrete optimisation.

Saliency is $s = \sqrt{\mathrm{mean}_c\, (\partial\, \mathrm{CE}(f(x), y) / \partial x)^2}$, in blocks that sum to 1.

**PuzzleMix.** Of a pair, block $i$ of $n = b^2$ shows the share $z_i \in \{0, 1/(m-1), \dots, 1\}$ of the image and
$1 - z_i$ of its partner. The mask loses little saliency, keeps about the ratio $\lambda$, changes little between
neighbours, and least where what would meet there differs:

$$\min_z\; \sum_i \bigl[ (1 - z_i)\, s_i + z_i\, s_{\pi,i} - \tfrac{\eta}{n} \log p_\lambda(z_i) \bigr]
  + \beta' \sum_{i \sim j} \bigl[ (z_i - z_j)^2 + \gamma\, \phi_{ij}(z_i, z_j) \bigr], \tag{40}$$

$p_\lambda$ binomial in $m - 1$ draws, $\beta' = \beta / (16\, b)$, $\phi_{ij}$ the distance $d_{z_i z_j}$ at the border
of what both blocks show where each shows one image, and for the shares between, as released,

$$\phi_{ij} = \tfrac{z_i}2 (d_{10} + d_{11}) + \tfrac{1 - z_i}2 (d_{01} + d_{00}) + \tfrac{z_j}2 (d_{01} + d_{11})
  + \tfrac{1 - z_j}2 (d_{10} + d_{00}) + \Delta (z_i - z_j)^2 - \tfrac{d_{10} + d_{01}}2,$$

$2 \Delta = d_{10} + d_{01} - d_{11} - d_{00} \ge -2$. So all that depends on pairs is a square with a weight of
$\beta' (1 - \gamma)$ at least, which makes (40) one minimal cut of a graph with $m - 1$ nodes a block (H. Ishikawa,
"Exact optimization for Markov random fields with convex priors", TPAMI 2003), solved exactly by scipy's maximal flow;
the released code comes near to it by swaps of two labels. Then each image is transported: its blocks are permuted so
that salient ones come to where the mask shows them, at a cost $\epsilon_t$ times the squared distance,

$$\min_{\Pi}\; \sum_{ij} \Pi_{ij} \bigl( \epsilon_t\, d_{ij}^2 - s_i\, [z_j > 0] \bigr), \tag{41}$$

$\Pi$ a permutation, an assignment problem, solved exactly too (scipy; released: rounds of a heuristic).

**Co-Mixup.** All $N'$ outputs of a part of the batch are made together: block i of output o takes image
$y_{oi} \in \{1..N\}$, and outputs shall not use the same images,

$$\min_y\; \sum_{o,i} c_{y_{oi}, i} + \tfrac\beta n \sum_o \sum_{i \sim j} [y_{oi} \ne y_{oj}]
  + \tfrac{2 \gamma}{n} \sum_{o < o'} \sum_k n_{ok}\, n_{o'k}, \qquad
  c_{ki} = -s_{ki} - \tfrac\eta n \log \alpha_k, \tag{42}$$

$n_{ok}$ the blocks of image k in output o, $\alpha \sim$ Dirichlet. One output at a time, the others held: their count
of an image is a price on its label, charged where it is above a threshold; the rest is a Potts model, by expansion
moves.

Kim, Choo, Song, "Puzzle Mix", ICML 2020, https://arxiv.org/abs/2009.06962; Kim, Choo, Jeong, Song, "Co-Mixup", ICLR
2021, https://arxiv.org/abs/2102.03065; constants and what the papers leave open, as released (snu-mllab).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn import functional as F

from semaug._checks import check_draws
from semaug.core.tensors import at_least_float32
from semaug.methods import mixing
from semaug.methods.mixing import Mixed
from semaug.methods.mixup import Mixing, draw_partners
from semaug.training.objective import Step

PUZZLE_BLOCKS = 16

"""The most blocks a side; PuzzleMix draws one of the divisors of the image's sides from 2 to it."""


def saliency(
    network: nn.Module, images: Float[Tensor, "N channels H W"], target: Float[Tensor, "N C"]
) -> Float[Tensor, "N H W"]:
    """The root of the mean square over the channels of the gradient of the cross-entropy: a pass forward and back.

    The network runs in the mode it has; its parameters get no gradient.
    """
    images = images.detach().requires_grad_()
    with torch.enable_grad():
        loss = F.cross_entropy(at_least_float32(network(images)), target, reduction="sum")
        (slope,) = torch.autograd.grad(loss, images)
    return at_least_float32(slope).square().mean(1).sqrt()


def cut(rises: np.ndarray, edges: np.ndarray, prices: np.ndarray) -> np.ndarray:
    r"""The x in {0, 1}^n that minimises $\sum_i r_i x_i + \sum_e p_e x_{a_e} (1 - x_{b_e})$, as booleans.

    rises: (n,). edges: (e, 2), the nodes a and b; prices: (e,), not negative, or ValueError. Exact but for
    rounding every cost to a billionth of their sum: scipy's flows are whole numbers of 32 bits.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import breadth_first_order, maximum_flow

    if (prices < 0).any():
        raise ValueError(f"prices: got {prices.min():.3g}; takes numbers from 0")
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


def grid_pairs(height: int, width: int) -> np.ndarray:
    """The pairs of neighbours in a grid, (e, 2): first those in a column, row by row, then those in a row."""
    node = np.arange(height * width).reshape(height, width)
    down, across = (node[:-1], node[1:]), (node[:, :-1], node[:, 1:])
    return np.concatenate([np.stack([a.ravel(), b.ravel()], 1) for a, b in (down, across)])


def ordered_labels(unary: np.ndarray, weight: np.ndarray, pairs: np.ndarray) -> np.ndarray:
    r"""The labels z in {0..m-1} that minimise $\sum_i u_{i z_i} + \sum_e w_e (z_{a_e} - z_{b_e})^2$, exactly.

    unary: (n, m). weight: (e,), not negative, or ValueError; of pairs (e, 2). As one cut, with the nodes [z >= k]: the
    square counts the pairs of these that it parts, plus $z^2 - (m - 1) z$ at each end.
    """
    n, m = unary.shape
    K, label = m - 1, np.arange(m)
    ends = np.bincount(pairs.ravel(), np.repeat(weight, 2), minlength=n)
    rises = np.diff(unary + ends[:, None] * (label**2 - K * label))
    node = np.arange(n * K).reshape(n, K)
    # [z >= k + 1] without [z >= k] costs more than all that a node has to do with
    never = np.abs(rises).sum(1) + 2 * K * K * ends
    edges = [np.stack([node[:, 1:].ravel(), node[:, :-1].ravel()], 1)]
    prices = [np.repeat(never, K - 1)]
    for a, b in (pairs.T, pairs.T[::-1]):
        for k, l in np.ndindex(K, K):
            edges.append(np.stack([node[a, k], node[b, l]], 1))
            prices.append(weight)
    return cut(rises.ravel(), np.concatenate(edges), np.concatenate(prices)).reshape(n, K).sum(1)


def unordered_labels(unary: np.ndarray, weight: float, pairs: np.ndarray, labels: np.ndarray) -> np.ndarray:
    r"""Labels whose cost $\sum_i u_{i y_i} + w \sum_e [y_{a_e} \ne y_{b_e}]$ no expansion of one label lowers.

    From ``labels`` (n,), by expansion moves (Boykov, Veksler, Zabih, TPAMI 2001): in each, every node keeps its label
    or takes one and the same, by one cut. The result costs at most twice the least (of the pairwise part).
    """
    n, m = unary.shape
    labels, node = labels.copy(), np.arange(n)

    def cost(labels: np.ndarray) -> float:
        return unary[node, labels].sum() + weight * (labels[pairs[:, 0]] != labels[pairs[:, 1]]).sum()

    best, unchanged, label = cost(labels), 0, 0
    while unchanged < m:
        a, b = labels[pairs].T
        kept, first, second = weight * (a != b), weight * (a != label), weight * (b != label)
        # x = 1 takes the label: (0, 0) costs kept, a alone second, b alone first, both nothing
        rises = unary[:, label] - unary[node, labels]
        rises = rises + np.bincount(pairs[:, 0], second - kept, minlength=n)
        rises = rises + np.bincount(pairs[:, 1], -second, minlength=n)
        moved = np.where(cut(rises, pairs[:, ::-1], first + second - kept), label, labels)
        if (value := cost(moved)) < best - 1e-9 * (1 + abs(best)):
            labels, best, unchanged = moved, value, 0
        unchanged, label = unchanged + 1, (label + 1) % m
    return labels


def puzzle_mask(
    saliency: np.ndarray,
    partner: np.ndarray,
    differences: tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray],
    lam: float,
    labels: int = 3,
    beta: float = 1.2,
    gamma: float = 0.5,
    eta: float = 0.2,
) -> np.ndarray:
    """The mask (40) of one pair, (b, b), of the shares k / (labels - 1).

    saliency, partner: (b, b), each summing to 1. differences: for every pair of neighbours in the order of
    :func:`grid_pairs`, how much what they show differs where they meet, where both show the partner, the first the
    partner and the second the image, the first the image and the second the partner, and both the image; (e,) each.
    """
    b, K = len(saliency), labels - 1
    pairs, scale = grid_pairs(b, b), beta / (16 * b)
    both, second, first, neither = (
        scale * gamma * each for each in (differences[3], *differences[1:3], differences[0])
    )
    image, other = np.zeros(b * b), np.zeros(b * b)  # what showing the image, or the partner, costs at each block
    for block, own, theirs in ((pairs[:, 0], first, second), (pairs[:, 1], second, first)):
        image += np.bincount(block, (own + both) / 2, minlength=b * b)
        other += np.bincount(block, (theirs + neither) / 2, minlength=b * b)
    weight = np.maximum(scale + (first + second - both - neither) / 2, 0)  # below 0 by rounding alone
    share = np.arange(labels) / K
    log_prior = [
        math.log(math.comb(K, k)) + k * math.log(lam + 1e-8) + (K - k) * math.log(1 - lam + 1e-8) for k in range(labels)
    ]
    unary = (1 - share) * (saliency.ravel() + other)[:, None] + share * (partner.ravel() + image)[:, None]
    unary = unary - eta / b**2 * np.array(log_prior)
    return ordered_labels(unary, weight / K**2, pairs).reshape(b, b) / K


def transport(saliency: np.ndarray, mask: np.ndarray, cost: float = 0.8) -> np.ndarray:
    """The assignment (41): where each of the b x b blocks goes, (b * b,), both in row-major order."""
    from scipy.optimize import linear_sum_assignment

    b = len(mask)
    row, column = np.divmod(np.arange(b * b), b)
    squared = (row[:, None] - row) ** 2 + (column[:, None] - column) ** 2
    gain = saliency.ravel()[:, None] * (mask.ravel() > 0)
    return linear_sum_assignment(cost * squared / max(1, b - 1) ** 2 - gain)[1]


def move_blocks(image: Float[Tensor, "channels H W"], to: np.ndarray, b: int) -> Float[Tensor, "channels H W"]:
    """Block i of b x b put where block ``to[i]`` was."""
    channels, H, W = image.shape
    blocks = image.reshape(channels, b, H // b, b, W // b).permute(1, 3, 0, 2, 4).flatten(0, 1)
    moved = torch.empty_like(blocks)
    moved[torch.from_numpy(to).to(image.device)] = blocks
    return moved.unflatten(0, (b, b)).permute(2, 0, 3, 1, 4).reshape(channels, H, W)


def in_blocks(saliency: Float[Tensor, "N H W"], b: int) -> Float[Tensor, "N b b"]:
    """Sums over b x b blocks, each image's summing to 1; equal ones where an image has no saliency."""
    N, H, W = saliency.shape
    blocks = saliency.double().reshape(N, b, H // b, b, W // b).sum((2, 4))
    total = blocks.sum((1, 2), keepdim=True)
    return torch.where(total > 0, blocks / total.clamp_min(1e-300), 1 / b**2)


def puzzlemix(
    images: Float[Tensor, "N channels H W"],
    target: mixing.Labels,
    lam: mixing.Ratio,
    permutation: Int64[Tensor, " N"],
    saliency: Float[Tensor, "N H W"],
    b: int,
    num_classes: int | None = None,
    labels: int = 3,
    beta: float = 1.2,
    gamma: float = 0.5,
    eta: float = 0.2,
    transport_cost: float | None = 0.8,
) -> Mixed:
    """Images by the masks (40) of b x b blocks, their blocks moved by (41); labels by the mean of each mask.

    saliency: of every image (N, H, W). transport_cost: None leaves the blocks where they are. The lam that comes back
    is of every image, what its mask shows of it. Errors as :func:`mixing.mixup`; ValueError for a b that does not
    divide the sides of the images, a saliency of another shape, fewer than 2 labels, and a gamma outside [0, 1].
    """
    mixing.check_floats(images)
    lam = check_draws(images, lam, permutation)
    N, _, H, W = images.shape
    if b < 1 or H % b or W % b:
        raise ValueError(f"b: got {b}; takes a divisor of the sides of the images, {H} and {W}")
    if saliency.shape != (N, H, W):
        raise ValueError(f"saliency: got shape {tuple(saliency.shape)}; takes (N, H, W) = {(N, H, W)}")
    if labels < 2:
        raise ValueError(f"labels: got {labels!r}; takes a whole number from 2")
    if not 0 <= gamma <= 1:
        raise ValueError(f"gamma: got {gamma!r}; takes a fraction in [0, 1]")
    blocks, other = in_blocks(saliency, b).cpu().numpy(), images.index_select(0, permutation)
    pair = (other, images)
    differences = [_border(pair[a], pair[c], b) for a, c in ((0, 0), (0, 1), (1, 0), (1, 1))]
    masks = torch.empty(N, b, b, dtype=torch.float64)
    mixed = torch.empty_like(images)
    for i, j in enumerate(permutation.tolist()):
        ratio = float(lam if lam.ndim == 0 else lam[i])
        met = tuple(each[i] for each in differences)
        mask = puzzle_mask(blocks[i], blocks[j], met, ratio, labels, beta, gamma, eta)
        one, two = images[i], other[i]
        if transport_cost is not None:
            one = move_blocks(one, transport(blocks[i], mask, transport_cost), b)
            two = move_blocks(two, transport(blocks[j], 1 - mask, transport_cost), b)
        masks[i] = torch.from_numpy(mask)
        large = masks[i].to(images).repeat_interleave(H // b, 0).repeat_interleave(W // b, 1)
        mixed[i] = large * one + (1 - large) * two
    shown = masks.mean((1, 2)).to(at_least_float32(images))
    return Mixed(mixed, mixing.blend_labels(target, shown, permutation, num_classes), shown)


def _border(first: Tensor, second: Tensor, b: int) -> np.ndarray:
    """Mean distance of the pixels on either side of the border of neighbours, (N, e): first's block, then second's."""
    N, _, H, W = first.shape
    h, w = H // b, W // b
    down = (first[:, :, h - 1 : H - 1 : h] - second[:, :, h::h]).abs().mean(1).reshape(N, b - 1, b, w).mean(3)
    across = (first[..., w - 1 : W - 1 : w] - second[..., w::w]).abs().mean(1).reshape(N, b, h, b - 1).mean(2)
    return torch.cat([down.flatten(1), across.flatten(1)], 1).double().cpu().numpy()


def comixup_labels(
    saliency: np.ndarray,
    log_prior: np.ndarray,
    start: np.ndarray,
    beta: float = 0.32,
    gamma: float = 1.0,
    threshold: float = 0.83,
    eta: float = 0.05,
    rounds: int = 4,
) -> np.ndarray:
    """The labelling (42): which image each block of each output shows, (outputs, b, b).

    saliency: (N, b, b), each summing to 1. log_prior: (N,), log alpha. start: (outputs, b, b), labels to begin with.
    threshold: an image is priced for an output where the others show it in more than this share of b * b blocks.
    """
    N, b, _ = saliency.shape
    n, pairs = b * b, grid_pairs(b, b)
    costs = -saliency.reshape(N, n).T - eta / n * log_prior
    labels = start.reshape(len(start), n).copy()
    for _ in range(rounds):
        before = labels.copy()
        for o in range(len(labels)):
            others = np.bincount(np.delete(labels, o, 0).ravel(), minlength=N)
            price = 2 * gamma / n * np.where(others > threshold * n, others, 0)
            labels[o] = unordered_labels(costs + price, beta / n, pairs, labels[o])
        if (labels == before).all():
            break
    return labels.reshape(start.shape)


class PuzzleMix(Mixing):
    """PuzzleMix: masks and transport by saliency, a pass forward and back more than mixup, and the solvers on the CPU.

    alpha: of Beta(alpha, alpha), one ratio a batch. labels: $m$ of (40). beta, gamma, eta: there. transport_cost: of
    (41), None: no transport. Blocks: b x b of a batch, b drawn from the divisors of both sides from 2 to 16 (2, 4, 8
    and 16 for 32 pixels, as released). The released code transports at blocks of four pixels where the mask's are
    larger; here they are the mask's.
    """

    def __init__(
        self,
        network: nn.Module,
        alpha: float = 1.0,
        probability: float = 1.0,
        labels: int = 3,
        beta: float = 1.2,
        gamma: float = 0.5,
        eta: float = 0.2,
        transport_cost: float | None = 0.8,
    ) -> None:
        for name, value, good, takes in (
            ("labels", labels, isinstance(labels, int) and labels >= 2, "a whole number from 2"),
            ("beta", beta, math.isfinite(beta) and beta >= 0, "a finite number from 0"),
            ("gamma", gamma, 0 <= gamma <= 1, "a fraction in [0, 1]"),
            ("eta", eta, math.isfinite(eta) and eta >= 0, "a finite number from 0"),
            (
                "transport_cost",
                transport_cost,
                transport_cost is None or transport_cost >= 0,
                "a number from 0, or None",
            ),
        ):
            if not good:
                raise ValueError(f"{name}: got {value!r}; takes {takes}")
        self.options: dict[str, Any] = {"labels": labels, "beta": beta, "gamma": gamma, "eta": eta}
        self.options["transport_cost"] = transport_cost
        super().__init__(network, alpha, probability, **self.options)

    def mix(self, images: Tensor, target: Tensor, step: Step) -> Mixed:
        """By :func:`puzzlemix`, with the saliency of the network as it is now."""
        lam, partners = self.ratio(step), draw_partners(images, step)
        b = _draw_blocks(images, step)
        if bool(lam == 1) and self.probability < 1:  # a batch that is left alone
            return mixing.mixup(images, target, lam, partners)
        found = saliency(self.network, images, target)
        return puzzlemix(images, target, lam, partners, found, b, **self.options)


class CoMixup(Mixing):
    """Co-Mixup: all outputs of a part of the batch made together, each of the blocks of many images.

    alpha: of the Dirichlet over the images of a part. blocks: b x b of an image. part: images that are mixed with each
    other. beta, gamma, threshold, eta, rounds: of (42).

    Left out of the released code: labels of two images in one block, the repair of outputs that came out the same, and
    the distance of images in the count (weight 0.001 there). The solvers cost seconds a batch.
    """

    def __init__(
        self,
        network: nn.Module,
        alpha: float = 2.0,
        probability: float = 1.0,
        blocks: int = 4,
        part: int = 20,
        beta: float = 0.32,
        gamma: float = 1.0,
        threshold: float = 0.83,
        eta: float = 0.05,
        rounds: int = 4,
    ) -> None:
        for name, value in (("blocks", blocks), ("part", part), ("rounds", rounds)):
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(f"{name}: got {value!r}; takes a whole number from 1")
        for name, number in (("beta", beta), ("gamma", gamma), ("threshold", threshold), ("eta", eta)):
            if not (math.isfinite(number) and number >= 0):
                raise ValueError(f"{name}: got {number!r}; takes a finite number from 0")
        options: dict[str, Any] = {"beta": beta, "gamma": gamma, "threshold": threshold, "eta": eta, "rounds": rounds}
        super().__init__(network, alpha, probability, blocks=blocks, part=part, **options)
        self.blocks, self.part, self.options = blocks, part, options

    def mix(self, images: Tensor, target: Tensor, step: Step) -> Mixed:
        """Outputs and labels by :func:`comixup_labels`; ``lam`` is the largest share of one image in each output."""
        N, b = len(images), self.blocks
        H, W = images.shape[2:]
        if H % b or W % b:
            raise ValueError(f"blocks: got {b}; takes a divisor of the sides of the images, {H} and {W}")
        if self.probability < 1 and bool(self._or_one(torch.zeros(()), step) == 1):
            return Mixed(images, target, images.new_ones(N))
        found = in_blocks(saliency(self.network, images, target), b).cpu().numpy()
        shares, outputs = torch.zeros(N, N, dtype=target.dtype, device=images.device), []
        drawn, priors = self._start_and_priors(N, step)
        for first, prior in zip(range(0, N, self.part), priors, strict=True):
            rows = slice(first, min(first + self.part, N))
            count = rows.stop - first
            # a part with fewer images takes the first of alpha: a Dirichlet but for a factor, which decides nothing
            log_prior, start = np.log(prior[:count] + 1e-8), (drawn[rows] * count).astype(np.int64)
            labels = comixup_labels(found[rows], log_prior, start, **self.options)
            shown = F.one_hot(torch.from_numpy(labels), count).to(images)  # (outputs, b, b, images)
            shares[rows, rows] = shown.mean((1, 2))
            large = shown.repeat_interleave(H // b, 1).repeat_interleave(W // b, 2)
            outputs.append(torch.einsum("ohwn,nchw->ochw", large, images[rows]))
        return Mixed(torch.cat(outputs), shares @ target, shares.amax(1))

    def _start_and_priors(self, N: int, step: Step) -> tuple[np.ndarray, np.ndarray]:
        """Uniform numbers (N, b, b), of which labels to begin with are made, and alpha of (42) for each part."""
        options: dict[str, Any] = {"dtype": torch.float64, "device": step.generator.device}
        b, parts = self.blocks, -(-N // self.part)
        drawn = step.share(N, lambda n: torch.rand(n, b, b, generator=step.generator, **options))

        def dirichlet(n: int) -> Tensor:
            return torch._sample_dirichlet(torch.full((n, self.part), self.alpha, **options), step.generator)

        return drawn.cpu().numpy(), step.share(parts, dirichlet).cpu().numpy()


def _draw_blocks(images: Tensor, step: Step) -> int:
    H, W = images.shape[2:]
    choices = [b for b in range(2, PUZZLE_BLOCKS + 1) if H % b == 0 and W % b == 0]
    if not choices:
        raise ValueError(f"images: got {H} x {W} pixels; takes sides with a common divisor from 2 to {PUZZLE_BLOCKS}")
    drawn = torch.randint(len(choices), (), generator=step.generator, device=step.generator.device)
    return choices[int(drawn)]
