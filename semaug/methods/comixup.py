r"""Co-Mixup: all mixtures of a part of the batch made together, each of the salient blocks of many images.

Block i of output o takes image $y_{oi} \in \{1..N\}$, by the saliency $s$ of PuzzleMix, and outputs shall not use the
same images,

$$\min_y\; \sum_{o,i} c_{y_{oi}, i} + \tfrac\beta n \sum_o \sum_{i \sim j} [y_{oi} \ne y_{oj}]
  + \tfrac{2 \gamma}{n} \sum_{o < o'} \sum_k n_{ok}\, n_{o'k}, \qquad
  c_{ki} = -s_{ki} - \tfrac\eta n \log \alpha_k, \tag{42}$$

$n = b^2$, $n_{ok}$ the blocks of image k in output o, $\alpha \sim$ Dirichlet. One output at a time, the others held:
their count of an image is a price on its label, charged where it is above a threshold; the rest is a Potts model, by
expansion moves.

Kim, Choo, Jeong, Song, "Co-Mixup: Saliency Guided Joint Mixup with Supermodular Diversity", ICLR 2021,
https://arxiv.org/abs/2102.03065. Constants, and what the paper leaves open, are the defaults of the released code,
https://github.com/snu-mllab/Co-Mixup. Left out of it: labels of two images in one block, the repair of outputs that
came out the same, and the distance of images in the count (``omega``, 0.001 there). The loss of the images themselves
(``clean_lam``) is an option: 0 here, 1 there. It minimises the binary cross-entropy of the softmax; here it is the
paper's cross-entropy.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from semaug._checks import check_count, check_number
from semaug.methods._graph_cut import grid_pairs, unordered_labels
from semaug.methods.mixing import Mixed
from semaug.methods.puzzlemix import SalientMixing, in_blocks, saliency
from semaug.training.objective import Step


def comixup_labels(
    saliency: Float[np.ndarray, "N b b"],
    log_prior: Float[np.ndarray, " N"],
    start: Int[np.ndarray, "outputs b b"],
    beta: float = 0.32,
    gamma: float = 1.0,
    threshold: float = 0.83,
    eta: float = 0.05,
    rounds: int = 4,
) -> Int[np.ndarray, "outputs b b"]:
    r"""The labelling (42): which image each block of each output shows.

    Args:
        saliency: of every image, summing to 1, (N, b, b).
        log_prior: $\log \alpha$, (N,).
        start: labels to begin with, (outputs, b, b).
        beta: price of two neighbours with different images.
        gamma: price of images that outputs share.
        threshold: an image is priced for an output where the others show it in more than this share of b * b blocks.
        eta: weight of the prior.
        rounds: the most sweeps over the outputs.
    """
    N, b, _ = saliency.shape
    n, pairs = b * b, grid_pairs(b, b)
    costs = -saliency.reshape(N, n).T - eta / n * log_prior
    labels, prices = start.reshape(len(start), n).copy(), np.full((len(start), N), np.nan)
    for _ in range(rounds):
        before = labels.copy()
        for o in range(len(labels)):
            others = np.bincount(np.delete(labels, o, 0).ravel(), minlength=N)
            price = 2 * gamma / n * np.where(others > threshold * n, others, 0)
            if (price != prices[o]).any():  # at the same prices no expansion would lower the cost
                labels[o], prices[o] = unordered_labels(costs + price, beta / n, pairs, labels[o]), price
        if (labels == before).all():
            break
    return labels.reshape(start.shape)


class CoMixup(SalientMixing):
    """Training on mixtures of many images. The solvers run on the CPU.

    Args:
        network: as in :class:`Mixing`, like probability.
        alpha: of the Dirichlet over the images of a part.
        blocks: b, blocks a side of an image; a divisor of both sides.
        part: images that are mixed with each other.
        beta: as gamma, threshold, eta and rounds those of :func:`comixup_labels`.
        clean_lam: as in :class:`SalientMixing`. The release, whose loss of the mixtures is a mean over C classes,
            multiplies it by 2 / C.
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
        clean_lam: float = 0.0,
    ) -> None:
        self.blocks, self.part = check_count("blocks", blocks), check_count("part", part)
        prices = {"beta": beta, "gamma": gamma, "threshold": threshold, "eta": eta}
        self.options: dict[str, Any] = {name: check_number(name, value, 0) for name, value in prices.items()}
        self.options["rounds"] = check_count("rounds", rounds)
        super().__init__(network, alpha, probability, clean_lam, blocks=self.blocks, part=self.part, **self.options)

    def mix(self, images: Tensor, target: Tensor, step: Step, salient: Tensor | None = None) -> Mixed:
        """Outputs and labels by :func:`comixup_labels`; ``lam`` is the largest share of one image in each output."""
        N, b = len(images), self.blocks
        H, W = images.shape[2:]
        if H % b or W % b:
            raise ValueError(f"blocks: got {b}; takes a divisor of the sides of the images, {H} and {W}")
        if self.probability < 1 and bool(self._or_one(torch.zeros(()), step) == 1):
            return Mixed(images, target, images.new_ones(N))
        if salient is None:
            salient = saliency(self.network, images, target)
        blocks = in_blocks(salient, b).cpu().numpy()
        shares, outputs = torch.zeros(N, N, dtype=target.dtype, device=images.device), []
        drawn, priors = self._start_and_priors(N, step)
        for first, prior in zip(range(0, N, self.part), priors, strict=True):
            rows = slice(first, min(first + self.part, N))
            count = rows.stop - first
            # a smaller part takes the first of alpha: a Dirichlet up to a factor, which changes no label
            log_prior, start = np.log(prior[:count] + 1e-8), (drawn[rows] * count).astype(np.int64)
            labels = comixup_labels(blocks[rows], log_prior, start, **self.options)
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
