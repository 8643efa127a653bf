"""Few-shot classification: the accuracy of a classifier made of a few images of a few classes."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn import functional as F

from semaug.core.tensors import at_least_float32


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


def _check_features(features: Tensor, target: Tensor | None) -> None:
    if target is not None and (target.shape != features.shape[:1] or target.dtype != torch.int64):
        got = f"{target.dtype} {tuple(target.shape)}"
        raise ValueError(f"target: got {got}; takes int64 ({len(features)},), a class an image")
    if not bool(features.isfinite().all()):
        raise ValueError(f"features: got {int((~features.isfinite()).sum())} numbers that are not finite")
