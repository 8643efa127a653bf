"""Few-shot classification: the accuracy of a classifier made of a few images of a few classes."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn import functional as F

from semaug._checks import check_choice, check_count, check_features, check_finite, check_number, check_result, require
from semaug.core.tensors import at_least_float32


def prototype_classifier(
    features: Float[Tensor, "S A"], target: Int64[Tensor, " S"], classes: int
) -> tuple[Float[Tensor, "C A"], Float[Tensor, " C"]]:
    r"""Weight and bias of the classifier that predicts the class whose mean feature $m_c$ is nearest.

    $-\frac12|a - m_c|^2 = m_c^\top a - \frac12|m_c|^2$ up to what all classes share: J. Snell, K. Swersky, R. Zemel,
    "Prototypical networks for few-shot learning", NeurIPS 2017, arXiv:1703.05175. Computed in float32 at least.

    Args:
        features: (S, A).
        target: class numbers, (S,) int64.
        classes: C.

    Returns:
        Weight (C, A) and bias (C,).

    Raises:
        ValueError: for a class without features, features that are not finite, and classes outside [0, C).
    """
    check_features(features, target, classes, features.shape[-1])
    features, counts = at_least_float32(features), torch.bincount(target, minlength=classes)
    require(bool((counts > 0).all()), "target", counts.tolist(), f"some features of each of {classes} classes")
    mean = torch.zeros(classes, features.shape[1], dtype=features.dtype, device=features.device)
    mean = mean.index_add(0, target, features) / counts[:, None]
    return mean, -0.5 * mean.square().sum(1)


def linear_classifier(
    features: Float[Tensor, "S A"], target: Int64[Tensor, " S"], classes: int, ridge: float = 0.1
) -> tuple[Float[Tensor, "C A"], Float[Tensor, " C"]]:
    r"""Weight and bias of the ridge regression on the one-hot classes, a linear classifier in closed form.

    As in few-shot learning: L. Bertinetto, J. F. Henriques, P. H. S. Torr, A. Vedaldi, "Meta-learning with
    differentiable closed-form solvers", ICLR 2019, arXiv:1805.08136. Computed in float32 at least.

    Args:
        features: (S, A).
        target: class numbers, (S,) int64.
        classes: C.
        ridge: the penalty on the weights, in mean squared distances of the features from their mean: the scale of the
            features changes nothing.

    Returns:
        Weight (C, A) and bias (C,).

    Raises:
        ValueError: for features that are not finite or whose squares overflow, no features, classes outside [0, C), and
            a ridge below 0.
    """
    check_features(features, target, classes, features.shape[-1])
    features = at_least_float32(features)
    mean, truth = features.mean(0), F.one_hot(target, classes).to(features.dtype)
    x, y = features - mean, truth - truth.mean(0)
    penalty = check_number("ridge", ridge, 0) * x.square().sum(1).mean()
    penalty = torch.where(penalty > 0, penalty, 1)  # where all features are the same
    wide = x.shape[1] > x.shape[0]
    gram = x @ x.T if wide else x.T @ x
    check_result(gram.diagonal().add_(penalty), "features")
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

    An episode draws ``ways`` classes and of each ``shots`` images to learn from and ``queries`` to be tried on.

    Args:
        features: (N, A), of images the network was not trained on, best of classes it never saw;
            ``predictions(network.features, split)`` computes them. Where every image has several views, their features
            side by side, (N, M A), make of "prototype" the classifier that adds up the squared distances of the views.
        target: class numbers, (N,) int64.
        generator: of the CPU; generators of one seed give the same episodes, so that two networks can be compared
            pairwise.
        ways: classes of an episode.
        shots: images to learn from.
        queries: images to be tried on.
        episodes: their number.
        classifier: one of ``CLASSIFIERS``.

    Returns:
        (episodes,) float64. The spread of its mean is over episodes of this network and these images, not over
        trainings.

    Raises:
        ValueError: for numbers below 1, another classifier, fewer classes than ``ways``, a class with fewer than
            ``shots + queries`` images, targets that are not one int64 class an image, and features that are not finite.
    """
    check_labels(features, target)
    ways, shots = check_count("ways", ways), check_count("shots", shots)
    queries, episodes = check_count("queries", queries), check_count("episodes", episodes)
    check_choice("classifier", classifier, CLASSIFIERS)
    members = [(target == label).nonzero().squeeze(1) for label in target.unique()]
    if len(members) < ways:
        raise ValueError(f"target: got {len(members)} classes; takes at least {ways} for {ways} ways")
    if (fewest := min(map(len, members))) < shots + queries:
        raise ValueError(f"target: got a class of {fewest} images; takes {shots} + {queries} of each")
    features, way = features.double(), torch.arange(ways, device=features.device)
    accuracies = []
    for _ in range(episodes):
        chosen = [members[c] for c in torch.randperm(len(members), generator=generator)[:ways].tolist()]
        orders = [torch.randperm(len(rows), generator=generator)[: shots + queries] for rows in chosen]
        rows = [own[order.to(own.device)] for own, order in zip(chosen, orders, strict=True)]
        episode = features[torch.stack(rows)]  # (ways, shots + queries, A)
        weight, bias = CLASSIFIERS[classifier](episode[:, :shots].flatten(0, 1), way.repeat_interleave(shots), ways)
        predicted = F.linear(episode[:, shots:], weight, bias).argmax(2)
        accuracies.append((predicted == way[:, None]).double().mean())
    return torch.stack(accuracies)


def check_labels(features: Float[Tensor, "N ..."], target: Int64[Tensor, " N"] | None) -> None:
    """Raise ValueError unless features (N, ...) are finite and targets, where there are any, one int64 class each."""
    if target is not None and (target.shape != features.shape[:1] or target.dtype != torch.int64):
        got = f"{target.dtype} {tuple(target.shape)}"
        raise ValueError(f"target: got {got}; takes int64 ({len(features)},), a class an image")
    check_finite("features", features)
