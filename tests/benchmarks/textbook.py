"""ISDA and DiffAugment written straight from their formulae, as commonly published: what the package is measured
against.

ISDA: every sample carries its own copy: of the weights minus the row of its class (N, C, A), of its class's covariance
(N, A, A), of the products (N, C, A) and (N, C, C). The statistics expand the features to (N, C, A) and mask them.

DiffAugment: brightness, saturation and contrast in three passes; translation by a grid of clipped indices into the
image padded by one pixel, channels last and back; cutout by a mask of ones with a window of zeros, multiplied in.
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


def color(images, brightness, saturation, contrast):
    """Three passes, one draw (N,) of each an image."""
    b, s, c = (draw[:, None, None, None].to(images.dtype) for draw in (brightness, saturation, contrast))
    images = images + b
    gray = images.mean(1, keepdim=True)
    images = (images - gray) * s + gray
    mean = images.mean((1, 2, 3), keepdim=True)
    return (images - mean) * c + mean


def translation(images, dy, dx):
    """Out of the padded image, every pixel of every sample by its own three indices."""
    n, _, height, width = images.shape
    sample, y, x = torch.meshgrid(torch.arange(n), torch.arange(height), torch.arange(width), indexing="ij")
    y = (y + dy[:, None, None] + 1).clamp(0, height + 1)
    x = (x + dx[:, None, None] + 1).clamp(0, width + 1)
    padded = F.pad(images, (1, 1, 1, 1)).permute(0, 2, 3, 1).contiguous()
    return padded[sample, y, x].permute(0, 3, 1, 2)


def cutout(images, cy, cx, size):
    """A mask in which the window, clipped to the image, is overwritten."""
    (n, _, height, width), (tall, wide) = images.shape, size
    sample, y, x = torch.meshgrid(torch.arange(n), torch.arange(tall), torch.arange(wide), indexing="ij")
    y = (y + cy[:, None, None] - tall // 2).clamp(0, height - 1)
    x = (x + cx[:, None, None] - wide // 2).clamp(0, width - 1)
    mask = torch.ones(n, height, width, dtype=images.dtype)
    mask[sample, y, x] = 0
    return images * mask[:, None]
