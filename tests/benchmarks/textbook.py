"""ISDA written straight from its formulae, as it is commonly published: what the package is measured against.

Every sample carries its own copy: of the weights minus the row of its class (N, C, A), of its class's covariance
(N, A, A), of the products (N, C, A) and (N, C, C). The statistics expand the features to (N, C, A) and mask them.
"""

from __future__ import annotations

import torch
from torch.nn import functional as F


class Textbook:
    """Moments of every class, full or diagonal, and the loss; state as in ClassMoments."""

    def __init__(self, classes, width, full=True, dtype=torch.float32):
        self.full = full
        self.count = torch.zeros(classes, dtype=dtype)
        self.mean = torch.zeros(classes, width, dtype=dtype)
        self.covariance = torch.zeros(classes, width, *([width] if full else []), dtype=dtype)

    @torch.no_grad()
    def update(self, features, target):
        n, (c, a) = len(features), self.mean.shape
        mask = F.one_hot(target, c).to(features.dtype)[:, :, None]  # (N, C, 1)
        masked = features[:, None].expand(n, c, a) * mask
        count = mask.sum(0)  # (C, 1)
        mean = masked.sum(0) / count.clamp_min(1)
        deviation = (masked - mean) * mask
        if self.full:
            deviation = deviation.permute(1, 0, 2)
            covariance = deviation.transpose(1, 2) @ deviation / count[:, :, None].clamp_min(1)
        else:
            covariance = deviation.square().sum(0) / count.clamp_min(1)
        share = count / (count + self.count[:, None])
        share[share.isnan()] = 0
        shift = self.mean - mean
        wide = share[:, :, None] if self.full else share
        outer = shift[:, :, None] * shift[:, None] if self.full else shift.square()
        self.covariance = (1 - wide) * self.covariance + wide * covariance + wide * (1 - wide) * outer
        self.mean = (1 - share) * self.mean + share * mean
        self.count = self.count + count[:, 0]

    def loss(self, features, target, weight, bias, strength):
        n, (c, a) = len(features), weight.shape
        own = weight[target][:, None]
        difference = weight.expand(n, c, a) - own
        covariance = self.covariance[target]
        if self.full:
            square = difference @ covariance @ difference.transpose(1, 2)
            forms = square.diagonal(dim1=1, dim2=2)
        else:
            forms = (difference.square() * covariance[:, None]).sum(2)
        logits = features @ weight.T + bias + 0.5 * strength * forms
        return F.cross_entropy(logits, target)
