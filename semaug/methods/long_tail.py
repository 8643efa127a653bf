r"""The long tail: weights by the effective number of images, the focal loss, and margins by class (LDAM).

Class $c$ has $n_c$ training images. Its images overlap, the more the more there are, so that the last one adds only
$\beta^{n_c - 1}$ to what the class covers, and all together its effective number $(1 - \beta^{n_c}) / (1 - \beta)$
(Cui et al.). Class-balanced weights are its inverse; here they sum to the number of classes C:

$$c_y = C\, \frac{(1 - \beta^{n_y})^{-1}}{\sum_j (1 - \beta^{n_j})^{-1}}, \qquad
  \mathcal L = \frac{\sum_i c_{y_i} \ell_i}{\sum_i c_{y_i}}. \tag{13}$$

$\beta = 0$ weighs all classes alike, $\beta \to 1$ by $1 / n_y$. The loss $\ell$ of a sample is its cross-entropy, or
with $p$ the softmax of its logits $z$ the focal loss (Lin et al.), which takes less of what is right already,

$$\ell = -(1 - p_y)^\gamma \log p_y, \tag{14}$$

or the cross-entropy under a margin that a rare class has more of (Cao et al.: LDAM), the largest being $\Delta_{\max}$:

$$\ell = \mathrm{CE}(s\, z^\Delta, y), \qquad z^\Delta_j = z_j - \Delta_y [j = y], \qquad
  \Delta_c = \Delta_{\max} \Big(\frac{\min_j n_j}{n_c}\Big)^{1/4}. \tag{15}$$

Cao et al. take cosines for $z$ and a scale $s = 30$; the code released with MetaSAug neither, $s = 1$ on plain logits.
Both defer the weights (13): all classes count alike until a fraction of training is done.

Cui et al., "Class-Balanced Loss Based on Effective Number of Samples", CVPR 2019, https://arxiv.org/abs/1901.05555;
Lin et al., "Focal Loss for Dense Object Detection", ICCV 2017, https://arxiv.org/abs/1708.02002;
Cao et al., "Learning Imbalanced Datasets with Label-Distribution-Aware Margin Loss", NeurIPS 2019,
https://arxiv.org/abs/1906.07413.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn
from torch.nn import functional as F

from semaug._checks import check_features, check_reduction
from semaug.core.tensors import Reduction, at_least_float32
from semaug.training.objective import Objective, Setting, Step


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


LOSSES = ("ce", "focal", "ldam")


def class_balanced_weights(counts: Int64[Tensor, " C"], beta: float) -> Float[Tensor, " C"]:
    """The weights (13) of the classes, float64, summing to C; ``counts``: training images of each class.

    Raises TypeError or ValueError for counts that are not (C,) whole numbers from 1 and a beta outside [0, 1).
    """
    check_counts(counts)
    if not (is_number(beta) and 0 <= beta < 1):
        raise ValueError(f"beta must lie in [0, 1), got {beta!r}")
    log_beta = math.log(beta) if beta > 0 else -math.inf
    inverse = -1 / torch.expm1(counts.double() * log_beta)  # expm1: 1 - beta^n of a beta near 1 keeps its digits
    return len(counts) * inverse / inverse.sum()


def ldam_margins(counts: Int64[Tensor, " C"], max_margin: float = 0.5) -> Float[Tensor, " C"]:
    """The margins (15) of the classes, float64, in units of the logits; the rarest class has ``max_margin``.

    Raises TypeError or ValueError for counts that are not (C,) whole numbers from 1 and a margin that is not finite
    and positive.
    """
    check_counts(counts)
    check_positive("max_margin", max_margin)
    return max_margin * (counts.min() / counts.double()) ** 0.25


def ldam_logits(
    logits: Float[Tensor, "N C"], target: Int64[Tensor, " N"], margins: Float[Tensor, " C"], scale: float = 1.0
) -> Float[Tensor, "N C"]:
    """The logits (15) whose cross-entropy is the LDAM loss: the own one less its class's margin, all times ``scale``.

    Raises ValueError or TypeError for shapes that do not fit, logits that are not finite, targets that are not int64
    in [0, C), and a scale that is not finite and positive.
    """
    _check_logits(logits, target)
    if margins.shape != logits.shape[1:]:
        raise ValueError(f"margins must be (C,) = ({logits.shape[1]},), got {tuple(margins.shape)}")
    check_positive("scale", scale)
    own = margins.to(logits.dtype).index_select(0, target)
    return scale * logits.scatter_add(1, target[:, None], -own[:, None])


def focal_loss(
    logits: Float[Tensor, "N C"],
    target: Int64[Tensor, " N"],
    gamma: float = 2.0,
    class_weight: Float[Tensor, " C"] | None = None,
    reduction: Reduction = "mean",
) -> Float[Tensor, ""] | Float[Tensor, " N"]:
    """The focal loss (14) in nats; ``class_weight`` as F.cross_entropy's weight: "mean" divides by the weights' sum.

    gamma = 0 is the cross-entropy. Computed in float32 at least. Raises ValueError or TypeError as :func:`ldam_logits`,
    for a gamma that is negative or not finite, class weights that are not (C,), and another reduction.
    """
    _check_logits(logits, target)
    check_reduction(reduction)
    _check_gamma(gamma)
    if class_weight is not None and class_weight.shape != logits.shape[1:]:
        raise ValueError(f"class_weight must be (C,) = ({logits.shape[1]},), got {tuple(class_weight.shape)}")
    logits = at_least_float32(logits)
    losses = F.cross_entropy(logits, target, reduction="none")
    # log(1 - p) from the other logits: 1 - p itself rounds to 0, where a power below 1 has an infinite slope
    others = logits.scatter(1, target[:, None], -math.inf).logsumexp(1) - logits.logsumexp(1)
    losses = (gamma * others).exp() * losses
    weight = torch.ones_like(losses) if class_weight is None else class_weight.to(losses.dtype)[target]
    losses = weight * losses
    return losses if reduction == "none" else losses.sum() / (weight.sum() if reduction == "mean" else 1)


def deferred(class_weight: Float[Tensor, " C"], progress: Float[Tensor, ""], start: float) -> Float[Tensor, " C"]:
    """Deferred re-weighting: all ones while ``progress``, the fraction of training done, is below ``start``."""
    return torch.where(progress < start, torch.ones_like(class_weight), class_weight)


class CosineLinear(nn.Linear):
    """A classifier whose logits are cosines: features and rows of the weight at length one, no bias."""

    def __init__(self, of: nn.Linear) -> None:
        super().__init__(of.in_features, of.out_features, bias=False)
        self.weight = of.weight

    def forward(self, features: Float[Tensor, "N A"]) -> Float[Tensor, "N C"]:
        """Numbers in [-1, 1], computed in float32 at least, also under autocast."""
        with torch.autocast(features.device.type, enabled=False):
            weight = at_least_float32(self.weight)
            return F.linear(F.normalize(features.to(weight.dtype)), F.normalize(weight))


class LongTailed(Objective):
    """The baselines of the long tail: cross-entropy, focal or LDAM loss, under class-balanced weights, deferred or not.

    counts: training images of each class (``Data.counts``).
    loss: "ce", "focal" (14) with ``gamma``, or "ldam" (15) with ``max_margin`` and ``scale``.
    beta: of the weights (13); 0 weighs all classes alike. defer: the fraction of training after which they hold.
    normalised: the network's head becomes a :class:`CosineLinear` of the same weight.

    As Cao et al. have LDAM: ``loss="ldam", scale=30, normalised=True, beta=0.9999, defer=0.8``.
    """

    network: Any
    static = True
    class_weight: Tensor
    margins: Tensor

    def __init__(
        self,
        network: nn.Module,
        counts: Int64[Tensor, " C"],
        loss: Literal["ce", "focal", "ldam"] = "ce",
        beta: float = 0.0,
        defer: float = 0.0,
        gamma: float = 2.0,
        max_margin: float = 0.5,
        scale: float = 1.0,
        normalised: bool = False,
    ) -> None:
        if loss not in LOSSES:
            raise ValueError(f"loss must be one of {', '.join(LOSSES)}, got {loss!r}")
        check_fraction("defer", defer)
        check_flag("normalised", normalised)
        check_positive("scale", scale)
        _check_gamma(gamma)
        settings: dict[str, Setting] = {"loss": loss, "beta": beta, "defer": defer, "normalised": normalised}
        settings |= {"focal": {"gamma": gamma}, "ldam": {"max_margin": max_margin, "scale": scale}}.get(loss, {})
        # Before the network changes: these raise for counts, beta and max_margin that are not good.
        class_weight, margins = class_balanced_weights(counts, beta), ldam_margins(counts, max_margin)
        if normalised:
            if not isinstance(head := getattr(network, "head", None), nn.Linear):
                raise TypeError(f"network must have an nn.Linear called head, {type(network).__name__} has {head!r}")
            network.head = CosineLinear(head)
        super().__init__(network, **settings)
        self.loss, self.defer, self.gamma, self.scale = loss, defer, gamma, scale
        # Given again at every construction: no part of a checkpoint.
        self.register_buffer("class_weight", class_weight, persistent=False)
        self.register_buffer("margins", margins, persistent=False)

    def forward(self, images: Tensor, target: Tensor, step: Step) -> tuple[Tensor, dict[str, Tensor]]:
        """The weighted mean (13) of a batch, of the global one in a data-parallel run.

        Raises ValueError or TypeError for soft targets and other bad ones, logits that are not finite, and a network of
        another number of classes than ``counts`` has.
        """
        if target.ndim != 1:
            raise ValueError(
                f"target must be class numbers (N,), LongTailed takes no soft ones; got {tuple(target.shape)}"
            )
        logits = at_least_float32(self.network(images))
        if logits.shape[1] != len(self.class_weight):
            raise ValueError(f"counts must be (C,) = ({logits.shape[1]},), got {tuple(self.class_weight.shape)}")
        if self.loss == "focal":  # it and ldam_logits look at the target
            losses = focal_loss(logits, target, self.gamma, reduction="none")
        else:
            if self.loss == "ldam":
                logits = ldam_logits(logits, target, self.margins, self.scale)
            else:
                _check_logits(logits, target)
            losses = F.cross_entropy(logits, target, reduction="none")
        share = shares(deferred(self.class_weight, step.progress, self.defer), target, step).to(losses.dtype)
        return (share * losses).sum(), {}

    def predict(self, images: Float[Tensor, "N channels H W"]) -> Float[Tensor, "N C"]:
        """Logits as trained: those of the network, for LDAM times ``scale``."""
        return self.scale * self.network(images) if self.loss == "ldam" else self.network(images)


def shares(class_weight: Float[Tensor, " C"], target: Int64[Tensor, " N"], step: Step) -> Float[Tensor, " N"]:
    """The share of each sample in (13), of which the mean over the processes is that of the global batch."""
    weight = class_weight.index_select(0, target)
    (total,) = step.mean(weight.sum())
    return weight / total


def check_counts(counts: Tensor) -> None:
    """Raise TypeError or ValueError unless counts are (C,) whole numbers from 1."""
    if not isinstance(counts, Tensor):
        raise TypeError(f"counts must be a tensor (C,) of whole numbers, got a {type(counts).__name__}")
    if counts.ndim != 1 or counts.is_floating_point() or counts.dtype == torch.bool or len(counts) == 0:
        raise ValueError(f"counts must be (C,) whole numbers, got {tuple(counts.shape)} of {counts.dtype}")
    if (least := int(counts.min())) < 1:
        raise ValueError(f"counts must be at least 1, got {least} for class {int(counts.argmin())}")


def is_number(value: object) -> bool:
    """Whether this is a finite number, True and False being none."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def check_positive(name: str, value: float) -> None:
    """Raise ValueError unless this is a finite number above 0."""
    if not (is_number(value) and value > 0):
        raise ValueError(f"{name} must be a finite number above 0, got {value!r}")


def check_fraction(name: str, value: float) -> None:
    """Raise ValueError unless this is a number in [0, 1]."""
    if not (is_number(value) and 0 <= value <= 1):
        raise ValueError(f"{name} must be a fraction in [0, 1], got {value!r}")


def check_flag(name: str, value: bool) -> None:
    """Raise TypeError unless this is True or False: a "no" would count as True."""
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False, got {value!r}")


def _check_gamma(gamma: float) -> None:
    if not (is_number(gamma) and gamma >= 0):
        raise ValueError(f"gamma must be a finite number from 0, got {gamma!r}")


def _check_logits(logits: Tensor, target: Tensor) -> None:
    if logits.ndim != 2 or logits.shape[1] < 2:
        raise ValueError(f"logits must be (N, C) with C > 1, got {tuple(logits.shape)}")
    check_features(logits, target, logits.shape[1], logits.shape[1], "logits")
