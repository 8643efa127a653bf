r"""Evaluation: what a trained objective gets right on a split, overall and by class.

With the confusion matrix :math:`K_{yz}`, the number of images of class :math:`y` that are called :math:`z`,

.. math:: \text{accuracy} = \frac{\sum_y K_{yy}}{\sum_{yz} K_{yz}}, \qquad
          \text{accuracy of class } y = \frac{K_{yy}}{\sum_z K_{yz}}, \qquad
          \text{balanced accuracy} = \text{its mean over the classes present}.

The balanced form is the one to read where the split is long-tailed (K. H. Brodersen, C. S. Ong, K. E. Stephan,
J. M. Buhmann, "The balanced accuracy and its posterior distribution", ICPR 2010).

Whether confidence is deserved (C. Guo, G. Pleiss, Y. Sun, K. Q. Weinberger, "On calibration of modern neural
networks", ICML 2017, arXiv:1706.04599): of :math:`N` predictions, those whose confidence is in one of :math:`B` bins,

.. math:: \text{ECE} = \sum_b \frac{n_b}{N} \, |\text{accuracy}_b - \text{confidence}_b|, \qquad
          \text{MCE} = \max_b |\text{accuracy}_b - \text{confidence}_b|.

And of features: what a classifier made of a few images gets right on them (``few_shot``), and, before any training,
how far the views of images lie apart (``separability``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn
from torch.nn import functional as F

from semaug.data import Split
from semaug.gaussian import at_least_float32

Predict = Callable[[Tensor], Tensor]


def predictions(predict: Predict, split: Split, batch_size: int = 500) -> Float[Tensor, "N C"]:
    """Logits of every image of a split, in its order, without gradients.

    predict: images (n, channels, H, W), float32 in [0, 1], to logits (n, C): ``objective.predict``, a network, or any
        function. A module, or the module whose method it is, runs in evaluation mode and gets back the mode it had;
        the modules inside any other function are for the caller to switch.
    split: on the device of the module.

    Raises ValueError for an empty split, a batch size below 1, logits of a wrong shape, or logits that are NaN.
    """
    if len(split) == 0:
        raise ValueError("split: got 0 images; takes at least one")
    if batch_size < 1:
        raise ValueError(f"batch_size: got {batch_size}; takes a whole number from 1")
    batches = []
    with torch.no_grad(), evaluating(predict):
        for start in range(0, len(split), batch_size):
            images = split.floats(slice(start, start + batch_size))
            batches.append(predict(images))
            if batches[-1].ndim != 2 or len(batches[-1]) != len(images):
                got, takes = tuple(batches[-1].shape), f"logits (N, C) for {len(images)} images"
                raise ValueError(f"predict: got a result of shape {got}; takes {takes}")
    logits = torch.cat(batches)
    if bad := int(logits.isnan().any(1).sum()):
        raise ValueError(f"predict: got logits that are NaN for {bad} of {len(split)} images; takes numbers")
    return logits


def accuracy(predict: Predict, split: Split, batch_size: int = 500) -> float:
    """Share of the split's images whose largest logit is their class; arguments and errors of :func:`predictions`."""
    called = predictions(predict, split, batch_size).argmax(1)
    return int((called == split.target).sum()) / len(split)


def confusion(logits: Float[Tensor, "N C"], target: Int64[Tensor, " N"]) -> Int64[Tensor, "C C"]:
    """Counts by true class (row) and predicted class (column).

    Raises ValueError where the lengths differ or a target is outside [0, C).
    """
    if logits.ndim != 2 or target.shape != logits.shape[:1]:
        got = f"{tuple(logits.shape)} and {tuple(target.shape)}"
        raise ValueError(f"logits and target: got shapes {got}; takes (N, C) and (N,)")
    classes = logits.shape[1]
    if len(target) and not 0 <= int(target.min()) <= int(target.max()) < classes:
        raise ValueError(f"target: got classes {int(target.min())} to {int(target.max())}; takes 0 to {classes - 1}")
    pairs = target * classes + logits.argmax(1)
    return torch.bincount(pairs, minlength=classes * classes).reshape(classes, classes)


def class_accuracy(counts: Int64[Tensor, "C C"]) -> Float[Tensor, " C"]:
    """Accuracy of each class from a confusion matrix, float64; NaN for a class that is not there."""
    return counts.diagonal().double() / counts.sum(1).double()


def balanced_accuracy(counts: Int64[Tensor, "C C"]) -> float:
    """Mean accuracy of the classes present in a confusion matrix; raises ValueError for an empty one."""
    if not counts.any():
        raise ValueError("counts: got no image; takes a confusion matrix of at least one")
    return float(class_accuracy(counts).nanmean())


def class_groups(train_counts: Int64[Tensor, " C"], few: int = 20, many: int = 100) -> dict[str, Bool[Tensor, " C"]]:
    """The classes with more than ``many`` training images, with fewer than ``few``, and the others between them.

    The split of a long tail in three and its bounds are those of Liu et al., "Large-Scale Long-Tailed Recognition in an
    Open World", CVPR 2019, https://arxiv.org/abs/1904.05160. Raises ValueError for bounds that are not 0 < few <= many.
    """
    if not 0 < few <= many:
        raise ValueError(f"few and many: got {few} and {many}; takes 0 < few <= many")
    frequent, rare = train_counts > many, train_counts < few
    return {"many": frequent, "medium": ~(frequent | rare), "few": rare}


def many_medium_few(
    accuracy: Float[Tensor, " C"], train_counts: Int64[Tensor, " C"], few: int = 20, many: int = 100
) -> dict[str, float]:
    """Mean accuracy of each of :func:`class_groups`, NaN for a group without a class.

    accuracy: of each class, from :func:`class_accuracy` or a record; train_counts: training images of each class.
    Raises ValueError for lengths that differ and bounds that are not 0 < few <= many.
    """
    if accuracy.ndim != 1 or accuracy.shape != train_counts.shape:
        got = f"{tuple(accuracy.shape)} and {tuple(train_counts.shape)}"
        raise ValueError(f"accuracy and train_counts: got shapes {got}; takes (C,) and (C,)")
    groups = class_groups(train_counts, few, many)
    return {name: float(accuracy[chosen].double().mean()) for name, chosen in groups.items()}


class Calibration(NamedTuple):
    """Expected and maximal calibration error, and the reliability diagram behind them.

    table: float64, a row for every bin that holds a prediction: its ends (low, high], the predictions in it, their
    accuracy and their mean confidence.
    """

    ece: float
    mce: float
    table: Float[Tensor, "rows 5"]


def calibration(confidence: Float[Tensor, " N"], correct: Bool[Tensor, " N"], bins: int = 15) -> Calibration:
    r"""Calibration of predictions made with a confidence in [0, 1], of which some are correct.

    The bins are :math:`(k/B, (k + 1)/B]`, the first with its lower end, in float64: a confidence of exactly 0.2 is in
    the lower of two bins that meet there, 1 in the last one. Edges in float32, or of numpy.linspace (0.6 + 1e-16),
    would sort it otherwise, and a few samples on an edge can move the error by a third. Raises ValueError for lengths
    that differ, no predictions, a confidence outside [0, 1] and bins below 1.
    """
    if confidence.ndim != 1 or confidence.shape != correct.shape or len(confidence) == 0:
        got = f"{tuple(confidence.shape)} and {tuple(correct.shape)}"
        raise ValueError(f"confidence and correct: got shapes {got}; takes (N,) and (N,), at least one")
    if bins < 1:
        raise ValueError(f"bins: got {bins}; takes a whole number from 1")
    if not bool(((confidence >= 0) & (confidence <= 1)).all()):
        got = f"{float(confidence.min()):.6g} to {float(confidence.max()):.6g}"
        raise ValueError(f"confidence: got {got}; takes numbers in [0, 1]")
    confidence, right = confidence.double(), correct.double()
    edges = torch.arange(bins + 1, dtype=torch.float64, device=confidence.device) / bins
    place = torch.bucketize(confidence, edges[1:])  # the first edge that is not below
    count, hits, total = (torch.bincount(place, each, bins) for each in (torch.ones_like(right), right, confidence))
    there = count > 0
    count, hits, total = count[there], hits[there], total[there]
    gap = (hits - total).abs() / count
    table = torch.stack([edges[:-1][there], edges[1:][there], count, hits / count, total / count], 1)
    return Calibration(float((gap * count).sum() / len(confidence)), float(gap.max()), table)


def prototype_classifier(
    features: Float[Tensor, "S A"], target: Int64[Tensor, " S"], classes: int
) -> tuple[Float[Tensor, "C A"], Float[Tensor, " C"]]:
    r"""Weight and bias of the classifier that calls the class whose mean feature :math:`m_c` is nearest.

    :math:`-\frac12|a - m_c|^2 = m_c^\top a - \frac12|m_c|^2` up to what all classes share: J. Snell, K. Swersky,
    R. Zemel, "Prototypical networks for few-shot learning", NeurIPS 2017, arXiv:1703.05175. Every class in
    ``range(classes)`` has to be in ``target``. Computed in float32 at least.
    """
    features = at_least_float32(features)
    mean = torch.zeros(classes, features.shape[1], dtype=features.dtype, device=features.device)
    mean = mean.index_add(0, target, features) / torch.bincount(target, minlength=classes)[:, None]
    return mean, -0.5 * mean.square().sum(1)


def linear_classifier(
    features: Float[Tensor, "S A"], target: Int64[Tensor, " S"], classes: int, ridge: float = 0.1
) -> tuple[Float[Tensor, "C A"], Float[Tensor, " C"]]:
    r"""Weight and bias of the ridge regression on the one-hot classes, a linear classifier in closed form.

    The penalty on the weights is ``ridge`` times the mean squared distance of the features from their mean: the scale
    of the features changes nothing. As in few-shot learning: L. Bertinetto, J. F. Henriques, P. H. S. Torr, A. Vedaldi,
    "Meta-learning with differentiable closed-form solvers", ICLR 2019, arXiv:1805.08136. Computed in float32 at least.
    """
    features = at_least_float32(features)
    mean, truth = features.mean(0), F.one_hot(target, classes).to(features.dtype)
    x, y = features - mean, truth - truth.mean(0)
    penalty = ridge * x.square().sum(1).mean()
    penalty = torch.where(penalty > 0, penalty, 1)  # where all features are the same
    wide = x.shape[1] > x.shape[0]
    gram = x @ x.T if wide else x.T @ x
    gram.diagonal().add_(penalty)
    weight = (x.T @ torch.linalg.solve(gram, y) if wide else torch.linalg.solve(gram, x.T @ y)).T
    return weight, truth.mean(0) - weight @ mean


CLASSIFIERS = {"prototype": prototype_classifier, "linear": linear_classifier}


def few_shot(
    features: Float[Tensor, "N A"],
    target: Int64[Tensor, " N"],
    generator: torch.Generator,
    *,
    ways: int = 5,
    shots: int = 1,
    queries: int = 15,
    episodes: int = 600,
    classifier: str = "prototype",
) -> Float[Tensor, " episodes"]:
    """Accuracy of each episode: a classifier made of a few images of a few classes, tried on other images of these.

    An episode draws ``ways`` classes and of each ``shots`` images to learn from and ``queries`` to be tried on, by
    ``generator`` (of the CPU): generators of one seed give the same episodes, so two networks can be compared pairwise.
    features: of images the network was not trained on, best of classes it never saw; ``predictions(network.features,
    split)`` computes them. Where every image has several views, their features side by side, (N, M A), make of
    "prototype" the classifier that adds up the squared distances of the views.
    classifier: one of ``CLASSIFIERS``.

    ``records.summary(result.tolist())`` is the mean with a 95% interval: over episodes of this network and these
    images, not over trainings. Raises ValueError for numbers below 1, another classifier, fewer classes than ``ways``,
    a class with fewer than ``shots + queries`` images, targets that are not one int64 class an image, and features that
    are not finite.
    """
    _check_features(features, target)
    for name, value in {"ways": ways, "shots": shots, "queries": queries, "episodes": episodes}.items():
        if value < 1:
            raise ValueError(f"{name}: got {value}; takes a whole number from 1")
    if classifier not in CLASSIFIERS:
        raise ValueError(f"classifier: got {classifier!r}; takes one of {', '.join(CLASSIFIERS)}")
    members = [(target == label).nonzero().squeeze(1) for label in target.unique()]
    if len(members) < ways:
        raise ValueError(f"target: got {len(members)} classes; takes at least {ways} for {ways} ways")
    if (fewest := min(map(len, members))) < shots + queries:
        raise ValueError(f"target: got a class of {fewest} images; takes {shots} + {queries} of each")
    features, way = features.double(), torch.arange(ways, device=features.device)
    accuracies = []
    for _ in range(episodes):
        drawn = [members[c] for c in torch.randperm(len(members), generator=generator)[:ways].tolist()]
        rows = [of[torch.randperm(len(of), generator=generator)[: shots + queries].to(of.device)] for of in drawn]
        episode = features[torch.stack(rows)]  # (ways, shots + queries, A)
        weight, bias = CLASSIFIERS[classifier](episode[:, :shots].flatten(0, 1), way.repeat_interleave(shots), ways)
        called = F.linear(episode[:, shots:], weight, bias).argmax(2)
        accuracies.append((called == way[:, None]).double().mean())
    return torch.stack(accuracies)


def separability(
    features: Float[Tensor, "N M A"],
    generator: torch.Generator,
    folds: int = 5,
    target: Int64[Tensor, " N"] | None = None,
) -> float:
    """How well a linear classifier tells the M views of unseen images from each other: 1/M by chance, at most 1.

    features: of each view, its pixels (``views(images, name).flatten(2)``) or what an untrained network makes of them:
    no network is trained, so this can be known before. Low: no linear classifier of these features tells the views
    apart, as where the set is an invariance of the data, which data augmentation may use and a label of its own cannot
    (or where it takes more than means to see it: stripes of any phase, standing and lying). High: every view has a
    distribution of its own, which a network has to be forced to forget, and joint labels spare it that.

    target: classes, for a classifier of views in each, and the mean over images. Without it a turned 6 that is a 9
    hides: of both classes together the views look alike.

    The accuracy is of :func:`linear_classifier`, cross-validated; all views of an image are in one fold, drawn by
    ``generator``. Raises ValueError for fewer than 2 folds, fewer images (of a class) than folds, targets that are not
    one int64 class an image, and features that are not finite.
    """
    _check_features(features, target)
    if target is not None:
        classes = [features[target == c] for c in target.unique()]
        return sum(len(part) * separability(part, generator, folds) for part in classes) / len(features)
    if not 2 <= folds <= len(features):
        raise ValueError(f"folds: got {folds}; takes 2 to the number of images, {len(features)}")
    N, M, _ = features.shape
    features, view = features.double(), torch.arange(M, device=features.device)
    right = 0
    for held_out in torch.randperm(N, generator=generator).to(features.device).chunk(folds):
        kept = torch.ones(N, dtype=torch.bool, device=features.device)
        kept[held_out] = False
        weight, bias = linear_classifier(features[kept].flatten(0, 1), view.repeat(int(kept.sum())), M)
        right += int((F.linear(features[held_out], weight, bias).argmax(2) == view).sum())
    return right / (N * M)


def _check_features(features: Tensor, target: Tensor | None) -> None:
    if target is not None and (target.shape != features.shape[:1] or target.dtype != torch.int64):
        got = f"{target.dtype} {tuple(target.shape)}"
        raise ValueError(f"target: got {got}; takes int64 ({len(features)},), a class an image")
    if not bool(features.isfinite().all()):
        raise ValueError(f"features: got {int((~features.isfinite()).sum())} numbers that are not finite")


@contextmanager
def evaluating(predict: Predict) -> Iterator[None]:
    """Evaluation mode for the module behind ``predict``, if it shows one; afterwards each part's own mode again.

    A forgotten ``eval()`` would be silent: right-looking logits, and test images in BatchNorm's running statistics.
    """
    owner = predict if isinstance(predict, nn.Module) else getattr(predict, "__self__", None)
    modes = {part: part.training for part in owner.modules()} if isinstance(owner, nn.Module) else {}
    try:
        for part in modes:
            part.training = False
        yield
    finally:
        for part, mode in modes.items():
            part.training = mode
