r"""PuzzleMix: masks that keep what is salient of two images, and blocks moved to where the mask shows them.

Saliency is $s = \sqrt{\mathrm{mean}_c\, (\partial\, \mathrm{CE}(f(x), y) / \partial x)^2}$, in blocks that sum to 1.
Of a pair, block $i$ of $n = b^2$ shows the share $z_i \in \{0, 1/(m-1), \dots, 1\}$ of the image and $1 - z_i$ of its
partner. The mask loses little saliency, keeps about the ratio $\lambda$, changes little between neighbours, and least
where what would meet there differs:

$$\min_z\; \sum_i \bigl[ (1 - z_i)\, s_i + z_i\, s_{\pi,i} - \tfrac{\eta}{n} \log p_\lambda(z_i) \bigr]
  + \beta' \sum_{i \sim j} \bigl[ (z_i - z_j)^2 + \gamma\, \phi_{ij}(z_i, z_j) \bigr], \tag{40}$$

$p_\lambda$ binomial in $m - 1$ draws, $\beta' = \beta / (16\, b)$. Where each of two neighbours shows one image,
$\phi_{ij}$ is the distance $d_{z_i z_j}$ of what they show at their border: the mean absolute difference of cells of
pixels on either side, each the mean of ``neigh_size`` x ``neigh_size`` pixels. For the shares between, as released,

$$\phi_{ij} = \tfrac{z_i}2 (d_{10} + d_{11}) + \tfrac{1 - z_i}2 (d_{01} + d_{00}) + \tfrac{z_j}2 (d_{01} + d_{11})
  + \tfrac{1 - z_j}2 (d_{10} + d_{00}) + \Delta (z_i - z_j)^2 - \tfrac{d_{10} + d_{01}}2,$$

$2 \Delta = d_{10} + d_{01} - d_{11} - d_{00} \ge -2$. So all that depends on pairs is a square with a weight of
$\beta' (1 - \gamma)$ at least. That makes (40) one minimal cut of a graph with $m - 1$ nodes a block, solved exactly
by scipy's maximal flow; the released code comes near to it by swaps of two labels. Then each image is transported: its
blocks are permuted so that salient ones come to where the mask shows them, at a cost $\epsilon_t$ times the squared
distance,

$$\min_{\Pi}\; \sum_{ij} \Pi_{ij} \bigl( \epsilon_t\, d_{ij}^2 - s_i\, [z_j > 0] \bigr), \tag{41}$$

$\Pi$ a permutation, an assignment problem, solved exactly too (scipy; released: rounds of a heuristic).

Kim, Choo, Song, "Puzzle Mix", ICML 2020, https://arxiv.org/abs/2009.06962. Constants, and what the paper leaves open,
are the defaults of the released code, https://github.com/snu-mllab/PuzzleMix. It differs in two points. It minimises
the binary cross-entropy of the softmax; here it is the paper's cross-entropy. Its option for adversarial noise, off by
default, is left out. Its commands for CIFAR-100 set ``t_size`` to 4, those for Tiny ImageNet ``clean_lam`` to 1.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int, Int64
from torch import Tensor, nn
from torch.nn import functional as F

from semaug._checks import Ratio, check_count, check_draws, check_floats, check_number, check_shape
from semaug.core.metrics import evaluating
from semaug.core.tensors import at_least_float32
from semaug.methods import mixing
from semaug.methods._graph_cut import grid_pairs, ordered_labels
from semaug.methods.mixing import Mixed
from semaug.methods.mixup import Mixing, draw_integers, draw_partners
from semaug.training.objective import Setting, Step, cross_entropy

PUZZLE_BLOCKS = 16
"""The most blocks a side that :class:`PuzzleMix` draws."""

Image = Float[Tensor, "channels H W"]

Grid = Float[np.ndarray, "b b"]

Borders = Float[np.ndarray, " e"]


def saliency(
    network: nn.Module, images: Float[Tensor, "N channels H W"], target: Float[Tensor, "N C"]
) -> Float[Tensor, "N H W"]:
    """The root of the mean square over the channels of the gradient of the cross-entropy: a pass forward and back.

    The network runs in evaluation mode, as released, and gets its own modes back: BatchNorm learns nothing from this
    pass. Its parameters get no gradient.
    """
    images = images.detach().requires_grad_()
    with torch.enable_grad(), evaluating(network):
        loss = F.cross_entropy(at_least_float32(network(images)), target, reduction="sum")
        return _root_mean_square(*torch.autograd.grad(loss, images))


def in_blocks(saliency: Float[Tensor, "N H W"], b: int) -> Float[Tensor, "N b b"]:
    """Sums over b x b blocks, each image's summing to 1; equal ones where an image has no saliency."""
    N, H, W = saliency.shape
    blocks = saliency.double().reshape(N, b, H // b, b, W // b).sum((2, 4))
    total = blocks.sum((1, 2), keepdim=True)
    return torch.where(total > 0, blocks / total.clamp_min(1e-300), 1 / b**2)


def border_differences(
    images: Float[Tensor, "N channels H W"], permutation: Int64[Tensor, " N"], b: int, neigh_size: int = 4
) -> Float[np.ndarray, "N 4 e"]:
    """The distances d of (40) at the border of every pair of neighbours, pairs in the order of :func:`grid_pairs`.

    A block whose side is no multiple of neigh_size has cells that overlap; the released blocks are powers of two.

    Returns:
        d where both blocks show the partner, the first the partner and the second the image, the first the image and
        the second the partner, and both the image.
    """
    H, W = images.shape[2:]
    h, w = -(-H // (b * neigh_size)), -(-W // (b * neigh_size))  # cells of a block
    image = F.adaptive_avg_pool2d(at_least_float32(images.detach()), (b * h, b * w))
    partner, found = image.index_select(0, permutation), []
    for first, second in ((partner, partner), (partner, image), (image, partner), (image, image)):
        down = (first[:, :, h - 1 : -1 : h] - second[:, :, h::h]).abs().mean(1).unflatten(2, (b, w)).mean(3)
        across = (first[..., w - 1 : -1 : w] - second[..., w::w]).abs().mean(1).unflatten(1, (b, h)).mean(2)
        found.append(torch.cat([down.flatten(1), across.flatten(1)], 1))
    return torch.stack(found, 1).double().cpu().numpy()


def puzzle_mask(
    saliency: Grid,
    partner: Grid,
    differences: tuple[Borders, Borders, Borders, Borders],
    lam: float,
    labels: int = 3,
    beta: float = 1.2,
    gamma: float = 0.5,
    eta: float = 0.2,
) -> Grid:
    """The mask (40) of one pair, of the shares k / (labels - 1).

    Args:
        saliency: of the image, summing to 1, (b, b).
        partner: saliency of the partner, likewise.
        differences: of this pair, four arrays (e,) as :func:`border_differences` has them.
        lam: the ratio.
        labels: $m$.
        beta: weight of all that depends on pairs.
        gamma: weight in it of the differences, in [0, 1].
        eta: weight of the ratio.
    """
    b, K = len(saliency), labels - 1
    pairs, scale = grid_pairs(b, b), beta / (16 * b)
    neither, second, first, both = (scale * gamma * each for each in differences)
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


def transport(saliency: Grid, mask: Grid, cost: float = 0.8) -> Int[np.ndarray, " n"]:
    """The assignment (41): where each of the b x b blocks goes, (b * b,), both in row-major order."""
    from scipy.optimize import linear_sum_assignment

    b = len(mask)
    row, column = np.divmod(np.arange(b * b), b)
    squared = (row[:, None] - row) ** 2 + (column[:, None] - column) ** 2
    gain = saliency.ravel()[:, None] * (mask.ravel() > 0)
    return linear_sum_assignment(cost * squared / max(1, b - 1) ** 2 - gain)[1]


def move_blocks(image: Image, to: Int[np.ndarray, " n"], b: int) -> Image:
    """Block i of b x b put where block ``to[i]`` was."""
    channels, H, W = image.shape
    blocks = image.reshape(channels, b, H // b, b, W // b).permute(1, 3, 0, 2, 4).flatten(0, 1)
    moved = torch.empty_like(blocks)
    moved[torch.from_numpy(to).to(image.device)] = blocks
    return moved.unflatten(0, (b, b)).permute(2, 0, 3, 1, 4).reshape(channels, H, W)


def puzzlemix(
    images: Float[Tensor, "N channels H W"],
    target: mixing.Labels,
    lam: Ratio,
    permutation: Int64[Tensor, " N"],
    saliency: Float[Tensor, "N H W"],
    b: int,
    num_classes: int | None = None,
    labels: int = 3,
    beta: float = 1.2,
    gamma: float = 0.5,
    eta: float = 0.2,
    transport_cost: float | None = 0.8,
    neigh_size: int = 4,
    t_size: int | None = None,
) -> Mixed:
    r"""Images by the masks (40), their blocks moved by (41); labels by the mean of each mask.

    Args:
        images: as target, lam, permutation and num_classes those of :func:`mixing.mixup`.
        saliency: of every image, (N, H, W).
        b: blocks a side, a divisor of H and W.
        labels: $m$ of (40), as beta, gamma and eta in :func:`puzzle_mask`.
        transport_cost: $\epsilon_t$ of (41); None leaves the blocks where they are.
        neigh_size: side in pixels of the cells that are compared at the borders of blocks, the block's where that is
            less; 1 compares single pixels.
        t_size: least side in pixels of the blocks that (41) moves. Those of the mask are divided evenly into the
            smallest that have it. None moves those of the mask.

    Returns:
        lam is of every image, the share of it that its mask shows.

    Raises:
        ValueError: as :func:`mixing.mixup`; for a b that is no divisor, a saliency of another shape, and settings out
            of range.
    """
    check_floats(images)
    lam = check_draws(images, lam, permutation)
    _check_options(labels, beta, gamma, eta, transport_cost, neigh_size, t_size)
    N, _, H, W = images.shape
    if b < 1 or H % b or W % b:
        raise ValueError(f"b: got {b}; takes a divisor of the sides of the images, {H} and {W}")
    check_shape("saliency", saliency, (N, H, W), " = (N, H, W)")
    blocks, other = in_blocks(saliency, b).cpu().numpy(), images.index_select(0, permutation)
    split = 1 if t_size is None else _split(H // b, W // b, t_size)
    moved = in_blocks(saliency, b * split).cpu().numpy()
    differences = border_differences(images, permutation, b, neigh_size)
    masks, mixed = torch.empty(N, b, b, dtype=torch.float64), torch.empty_like(images)
    for i, (j, ratio) in enumerate(zip(permutation.tolist(), lam.expand(N).tolist(), strict=True)):
        mask = puzzle_mask(blocks[i], blocks[j], tuple(differences[i]), ratio, labels, beta, gamma, eta)
        one, two = images[i], other[i]
        if transport_cost is not None:
            shown = mask.repeat(split, 0).repeat(split, 1)
            one = move_blocks(one, transport(moved[i], shown, transport_cost), b * split)
            two = move_blocks(two, transport(moved[j], 1 - shown, transport_cost), b * split)
        masks[i] = torch.from_numpy(mask)
        large = masks[i].to(images).repeat_interleave(H // b, 0).repeat_interleave(W // b, 1)
        mixed[i] = large * one + (1 - large) * two
    share = masks.mean((1, 2)).to(at_least_float32(images))
    return Mixed(mixed, mixing.blend_labels(target, share, permutation, num_classes), share)


class SalientMixing(Mixing):
    """Training on images mixed by their saliency, and, as an option of the released codes, on the images themselves.

    Args:
        network: as in :class:`Mixing`, like alpha, probability and settings.
        clean_lam: weight of the cross-entropy of the images themselves, logged as ``clean``, beside that of the
            mixtures. Above 0, as released, one pass in training mode gives this loss and saliency: it trains the
            network, and BatchNorm learns from it too. At 0 saliency is that of evaluation mode.
    """

    def __init__(
        self, network: nn.Module, alpha: float, probability: float, clean_lam: float, **settings: Setting
    ) -> None:
        self.clean_lam = check_number("clean_lam", clean_lam, 0)
        super().__init__(network, alpha, probability, clean_lam=self.clean_lam or None, **settings)

    def forward(self, images: Tensor, target: Tensor, step: Step) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss (32) of the mixtures and ``clean_lam`` times that of the images, in nats."""
        if self.clean_lam == 0:
            return super().forward(images, target, step)
        soft, inputs = mixing.soft_labels(target, self.num_classes), images.detach().requires_grad_()
        total = F.cross_entropy(at_least_float32(self.network(inputs)), soft, reduction="sum")
        (slope,) = torch.autograd.grad(total, inputs, retain_graph=True)
        mixed = self.mix(images, soft, step, _root_mean_square(slope))
        loss = cross_entropy(self.network(mixed.images), mixed.target)
        clean = total / len(images)
        return loss + self.clean_lam * clean, {"lam": mixed.lam.detach().float().mean(), "clean": clean.detach()}

    @abstractmethod
    def mix(self, images: Tensor, target: Tensor, step: Step, salient: Tensor | None = None) -> Mixed:
        """As in :class:`Mixing`; ``salient`` is (N, H, W), or None, where it is to be computed."""
        raise NotImplementedError(f"{type(self).__name__} has to define mix(images, target, step, salient)")


class PuzzleMix(SalientMixing):
    """Training on :func:`puzzlemix`: one more pass forward and back than mixup, and the solvers on the CPU.

    b is drawn for every batch from the divisors of both sides from 2 to 16: 2, 4, 8 and 16 for 32 pixels, as released.

    Args:
        network: as in :class:`Mixing`, like alpha and probability.
        labels: as beta, gamma, eta, transport_cost, neigh_size and t_size those of :func:`puzzlemix`.
        clean_lam: as in :class:`SalientMixing`. The releases for CIFAR and Tiny ImageNet, whose loss of the mixtures
            is a mean over C classes, multiply it by 2 / C; that for ImageNet does not.
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
        neigh_size: int = 4,
        t_size: int | None = None,
        clean_lam: float = 0.0,
    ) -> None:
        self.options = _check_options(labels, beta, gamma, eta, transport_cost, neigh_size, t_size)
        super().__init__(network, alpha, probability, clean_lam, **self.options)

    def mix(self, images: Tensor, target: Tensor, step: Step, salient: Tensor | None = None) -> Mixed:
        """By :func:`puzzlemix`, with the saliency of the network as it is now."""
        lam, partners = self.ratio(step), draw_partners(images, step)
        b = _draw_blocks(images, step)
        if bool(lam == 1) and self.probability < 1:  # a batch that is left alone
            return mixing.mixup(images, target, lam, partners)
        if salient is None:
            salient = saliency(self.network, images, target)
        return puzzlemix(images, target, lam, partners, salient, b, **self.options)


def _check_options(
    labels: int,
    beta: float,
    gamma: float,
    eta: float,
    transport_cost: float | None,
    neigh_size: int,
    t_size: int | None,
) -> dict[str, Any]:
    return {
        "labels": check_count("labels", labels, low=2),
        "beta": check_number("beta", beta, 0),
        "gamma": check_number("gamma", gamma, 0, 1),
        "eta": check_number("eta", eta, 0),
        "transport_cost": None if transport_cost is None else check_number("transport_cost", transport_cost, 0),
        "neigh_size": check_count("neigh_size", neigh_size),
        "t_size": None if t_size is None else check_count("t_size", t_size),
    }


def _root_mean_square(slope: Tensor) -> Float[Tensor, "N H W"]:
    return at_least_float32(slope).square().mean(1).sqrt()


def _split(h: int, w: int, t_size: int) -> int:
    """Into how many parts a side blocks of h x w pixels are divided, for parts of at least ``t_size`` pixels a side."""
    return max(k for k in range(1, h + 1) if h % k == w % k == 0 and (k == 1 or min(h, w) // k >= t_size))


def _draw_blocks(images: Tensor, step: Step) -> int:
    H, W = images.shape[2:]
    choices = [b for b in range(2, PUZZLE_BLOCKS + 1) if H % b == 0 and W % b == 0]
    if not choices:
        raise ValueError(f"images: got {H} x {W} pixels; takes sides with a common divisor from 2 to {PUZZLE_BLOCKS}")
    return choices[int(draw_integers(len(choices), (), step))]
