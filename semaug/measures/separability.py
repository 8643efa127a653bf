"""Separability: how well a linear classifier recognises which view of an image it sees, before any training."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn import functional as F

from semaug._checks import require
from semaug.measures.few_shot import check_labels, linear_classifier


def separability(
    features: Float[Tensor, "N M A"],
    generator: torch.Generator,
    folds: int = 5,
    target: Int64[Tensor, " N"] | None = None,
) -> float:
    """Accuracy of a linear classifier of the M views of unseen images: 1/M by chance, at most 1.

    The classifier is :func:`linear_classifier`, cross-validated; all views of an image are in one fold. No network is
    trained, so this can be known before. Low: no linear classifier of these features distinguishes the views, as where
    the set is an invariance of the data, which data augmentation may use and a label of its own cannot (or where it
    takes more than means to see it: stripes of any phase, horizontal and vertical). High: every view has a distribution
    of its own, and a joint label has something to learn; it does not say that the invariance hurts.

    Args:
        features: (N, M, A) of each view: its pixels (``views(images, name).flatten(2)``) or what an untrained network
            makes of them.
        generator: draws the folds.
        folds: at least 2.
        target: classes, (N,), for a classifier of views in each, and the mean over images. Without it a turned 6 that
            is a 9 hides: of both classes together the views look alike.

    Raises:
        ValueError: for fewer than 2 folds, fewer images (of a class) than folds, targets that are not one int64 class
            an image, and features that are not finite.
    """
    check_labels(features, target)
    if target is not None:
        classes = [features[target == c] for c in target.unique()]
        return sum(len(part) * separability(part, generator, folds) for part in classes) / len(features)
    require(2 <= folds <= len(features), "folds", folds, f"2 to the number of images, {len(features)}")
    N, M, _ = features.shape
    features, view = features.double(), torch.arange(M, device=features.device)
    right = 0
    for held_out in torch.randperm(N, generator=generator).to(features.device).chunk(folds):
        kept = torch.ones(N, dtype=torch.bool, device=features.device)
        kept[held_out] = False
        weight, bias = linear_classifier(features[kept].flatten(0, 1), view.repeat(int(kept.sum())), M)
        right += int((F.linear(features[held_out], weight, bias).argmax(2) == view).sum())
    return right / (N * M)
