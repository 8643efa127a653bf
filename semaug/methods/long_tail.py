r"""The long tail: weights by the effective number of images, the focal loss, and margins by class (LDAM).

Class $c$ has $n_c$ training images. Images of a class overlap, so the $n$-th one adds only $\beta^{n - 1}$ to what the
class covers. All together count for the effective number $(1 - \beta^{n_c}) / (1 - \beta)$ (Cui et al.).
Class-balanced weights are its inverse; here they sum to the number of classes $C$:

$$c_y = C\, \frac{(1 - \beta^{n_y})^{-1}}{\sum_j (1 - \beta^{n_j})^{-1}}, \qquad
  \mathcal L = \frac{\sum_i c_{y_i} \ell_i}{\sum_i c_{y_i}}. \tag{13}$$

$\beta = 0$ weighs all classes alike, $\beta \to 1$ by $1 / n_y$. The loss $\ell$ of a sample is its cross-entropy; or
the focal loss (Lin et al.), a smaller share of it where the sample is right already, with $p$ the softmax of the logits
$z$,

$$\ell = -(1 - p_y)^\gamma \log p_y; \tag{14}$$

or the cross-entropy under a margin, the larger the rarer the class, at most $\Delta_{\max}$ (Cao et al.: LDAM),

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

import copy
import math
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn
from torch.nn import functional as F

from semaug._checks import (
    check_choice,
    check_class_weight,
    check_device,
    check_features,
    check_finite,
    check_flag,
    check_number,
    check_shape,
    require,
)
from semaug.core.tensors import REDUCTIONS, Reduction, at_least_float32
from semaug.data.sets import Data
from semaug.training.objective import Built, Objective, Setting, Step


def class_groups(train_counts: Int64[Tensor, " C"], few: int = 20, many: int = 100) -> dict[str, Bool[Tensor, " C"]]:
    """The frequent, the rare and the other classes.

    The three groups and their bounds are those of Liu et al., "Large-Scale Long-Tailed Recognition in an Open World",
    CVPR 2019, https://arxiv.org/abs/1904.05160.

    Args:
        train_counts: training images of each class, (C,).
        few: a rare class has fewer images than this.
        many: a frequent class has more images than this.

    Returns:
        "many", "medium" and "few", each a mask (C,).

    Raises:
        ValueError: for bounds that are not 0 < few <= many.
    """
    if not 0 < few <= many:
        raise ValueError(f"few and many: got {few} and {many}; takes 0 < few <= many")
    frequent, rare = train_counts > many, train_counts < few
    return {"many": frequent, "medium": ~(frequent | rare), "few": rare}


def many_medium_few(
    accuracy: Float[Tensor, " C"], train_counts: Int64[Tensor, " C"], few: int = 20, many: int = 100
) -> dict[str, float]:
    """Mean accuracy of each of :func:`class_groups`; NaN for a group without a class.

    Args:
        accuracy: of each class, (C,), from :func:`class_accuracy` or a record.
        train_counts: training images of each class, (C,).
        few: as for :func:`class_groups`.
        many: as for :func:`class_groups`.

    Raises:
        ValueError: for lengths that differ, and as :func:`class_groups`.
    """
    if accuracy.ndim != 1 or accuracy.shape != train_counts.shape:
        got = f"{tuple(accuracy.shape)} and {tuple(train_counts.shape)}"
        raise ValueError(f"accuracy and train_counts: got shapes {got}; takes (C,) and (C,)")
    groups = class_groups(train_counts, few, many)
    return {name: float(accuracy[members].double().mean()) for name, members in groups.items()}


LOSSES = ("ce", "focal", "ldam")


def class_balanced_weights(counts: Int64[Tensor, " C"], beta: float) -> Float[Tensor, " C"]:
    """The weights (13) of the classes.

    Args:
        counts: training images of each class, (C,), integers from 1.
        beta: in [0, 1).

    Returns:
        (C,) float64, with the sum C.

    Raises:
        TypeError, ValueError: for counts or a beta that are not so.
    """
    check_counts(counts)
    beta = check_number("beta", beta, 0, 1, without=(1,))
    log_beta = math.log(beta) if beta > 0 else -math.inf
    inverse = -1 / torch.expm1(counts.double() * log_beta)  # expm1: 1 - beta^n of a beta near 1 keeps its digits
    return len(counts) * inverse / inverse.sum()


def ldam_margins(counts: Int64[Tensor, " C"], max_margin: float = 0.5) -> Float[Tensor, " C"]:
    """The margins (15) of the classes, in units of the logits.

    Args:
        counts: training images of each class, (C,), integers from 1.
        max_margin: the margin of the rarest class, above 0.

    Returns:
        (C,) float64.

    Raises:
        TypeError, ValueError: for counts or a margin that are not so.
    """
    check_counts(counts)
    max_margin = check_number("max_margin", max_margin, 0, without=(0,))
    return max_margin * (counts.min() / counts.double()) ** 0.25


def ldam_logits(
    logits: Float[Tensor, "N C"], target: Int64[Tensor, " N"], margins: Float[Tensor, " C"], scale: float = 1.0
) -> Float[Tensor, "N C"]:
    """The logits (15), whose cross-entropy is the LDAM loss.

    Args:
        logits: (N, C), finite.
        target: (N,) int64 in [0, C).
        margins: of the classes, (C,), finite: :func:`ldam_margins`.
        scale: $s$, above 0.

    Raises:
        TypeError, ValueError: for arguments that are not so.
    """
    _check_logits(logits, target)
    scale = check_number("scale", scale, 0, without=(0,))
    check_shape("margins", margins, logits.shape[1:])
    check_device("margins", margins, logits, "logits")
    check_finite("margins", margins := margins.to(logits.dtype))
    own = margins.index_select(0, target)
    return scale * logits.scatter_add(1, target[:, None], -own[:, None])


def focal_loss(
    logits: Float[Tensor, "N C"],
    target: Int64[Tensor, " N"],
    gamma: float = 2.0,
    class_weight: Float[Tensor, " C"] | None = None,
    reduction: Reduction = "mean",
) -> Float[Tensor, ""] | Float[Tensor, " N"]:
    r"""The focal loss (14) in nats, computed in float32 at least; gamma = 0 is the cross-entropy.

    The weight of a class multiplies (14). In the code released with LDAM it multiplies the cross-entropy from which
    $p_y$ is computed, so that it changes the focus $(1 - p_y)^\gamma$ too.

    Args:
        logits: (N, C), finite.
        target: (N,) int64 in [0, C).
        gamma: finite, from 0.
        class_weight: (C,), finite, from 0, as the weight of F.cross_entropy: "mean" divides by the weights' sum.
        reduction: "mean", "sum" or "none".

    Raises:
        TypeError, ValueError: for arguments that are not so, and for a mean over weights that are all 0.
    """
    _check_logits(logits, target)
    check_choice("reduction", reduction, REDUCTIONS)
    gamma = check_number("gamma", gamma, 0)
    logits = at_least_float32(logits)
    losses = F.cross_entropy(logits, target, reduction="none")
    # log(1 - p) from the other logits: 1 - p itself rounds to 0, where a power below 1 has an infinite slope
    others = logits.scatter(1, target[:, None], -math.inf).logsumexp(1) - logits.logsumexp(1)
    losses = (gamma * others).exp() * losses
    weight = torch.ones_like(losses)
    if class_weight is not None:
        class_weight = class_weight.to(losses.dtype)
        check_class_weight(class_weight, target, logits.shape[1], reduction)
        weight = class_weight.index_select(0, target)
    losses = weight * losses
    return losses if reduction == "none" else losses.sum() / (weight.sum() if reduction == "mean" else 1)


def deferred(class_weight: Float[Tensor, " C"], progress: Float[Tensor, ""], start: float) -> Float[Tensor, " C"]:
    """Deferred re-weighting: all ones while ``progress``, the fraction of training done, is below ``start``."""
    return torch.where(progress < start, torch.ones_like(class_weight), class_weight)


class CosineLinear(nn.Linear):
    """A classifier whose logits are cosines of features and weights; it shares the weight of a linear layer."""

    def __init__(self, head: nn.Linear) -> None:
        super().__init__(head.in_features, head.out_features, bias=False)
        self.weight = head.weight

    def forward(self, features: Float[Tensor, "N A"]) -> Float[Tensor, "N C"]:
        """Numbers in [-1, 1], computed in float32 at least, also under autocast."""
        with torch.autocast(features.device.type, enabled=False):
            weight = at_least_float32(self.weight)
            return F.linear(F.normalize(features.to(weight.dtype)), F.normalize(weight))


def with_head(network: nn.Module, head: nn.Module) -> nn.Module:
    """The network under another head. All other parts are the caller's own, whose network keeps its head."""
    other = copy.copy(network)
    other._modules = {**network._modules, "head": head}
    return other


class _ClassBalanced(Objective):
    """An objective under the weights (13) and margins (15) of the classes, for a subclass to ``balance`` itself by."""

    class_weight: Tensor
    margins: Tensor

    @classmethod
    def build(cls: type[Built], network: nn.Module, dataset: Data, **settings: Setting) -> Built:
        """The objective under the counts of a data set."""
        return cls(network, dataset.counts, **settings)  # type: ignore[call-arg]  # a subclass takes them

    def balance(self, counts: Int64[Tensor, " C"], loss: str, beta: float, max_margin: float) -> None:
        """Weights, and margins where the loss is "ldam"; given again at every construction: no part of a checkpoint."""
        margins = ldam_margins(counts, max_margin) * (loss == "ldam")
        self.register_buffer("class_weight", class_balanced_weights(counts, beta), persistent=False)
        self.register_buffer("margins", margins, persistent=False)
        self.settings |= {"loss": loss, "beta": float(beta)}
        self.settings |= {"max_margin": float(max_margin)} if loss == "ldam" else {}


class LongTailed(_ClassBalanced):
    """The baselines of the long tail: cross-entropy, focal or LDAM loss, under class-balanced weights, deferred or not.

    As Cao et al. have LDAM: ``loss="ldam", scale=30, normalised=True, beta=0.9999, defer=0.8``.

    Args:
        network: images to logits (N, C).
        counts: training images of each class, (C,) (``Data.counts``).
        loss: "ce", "focal" (14) or "ldam" (15).
        beta: of the weights (13), in [0, 1); 0 weighs all classes alike.
        defer: the fraction of training after which the weights hold.
        gamma: of the focal loss, from 0.
        max_margin: of LDAM, above 0, in units of the logits.
        scale: $s$ of LDAM, above 0.
        normalised: train the network under a :class:`CosineLinear` of its head's weight. The network given keeps its
            own head, with the same weight; ``self.network`` has the cosines.

    Raises:
        TypeError, ValueError: for arguments that are not so.
    """

    static = True

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
        check_choice("loss", loss, LOSSES)
        defer, gamma = check_number("defer", defer, 0, 1), check_number("gamma", gamma, 0)
        scale = check_number("scale", scale, 0, without=(0,))
        settings: dict[str, Setting] = {"defer": defer, "normalised": check_flag("normalised", normalised)}
        settings |= {"focal": {"gamma": gamma}, "ldam": {"scale": scale}}.get(loss, {})
        if normalised:
            head = getattr(network, "head", None)
            if not isinstance(head, nn.Linear):
                raise TypeError(f"network: got {type(network).__name__} with head {head}; takes one with a linear head")
            network = with_head(network, CosineLinear(head))
        super().__init__(network, **settings)
        self.balance(counts, loss, beta, max_margin)
        self.loss, self.defer, self.gamma, self.scale = loss, defer, gamma, scale if loss == "ldam" else 1.0

    def forward(self, images: Tensor, target: Tensor, step: Step) -> tuple[Tensor, dict[str, Tensor]]:
        """The weighted mean (13) of a batch, of the global one in a data-parallel run.

        Raises:
            TypeError, ValueError: for targets that are not class numbers (N,), logits that are not finite, and a
                network of another number of classes than ``counts`` has.
        """
        require(target.ndim == 1, "target", tuple(target.shape), "class numbers (N,)")
        logits = at_least_float32(self.network(images))
        if logits.shape[1] != (classes := len(self.class_weight)):
            raise ValueError(f"counts: got {classes} classes; takes {logits.shape[1]}, as the network has")
        if self.loss == "focal":
            losses = focal_loss(logits, target, self.gamma, reduction="none")
        else:
            logits = ldam_logits(logits, target, self.margins, self.scale)  # "ce": margins 0, scale 1
            losses = F.cross_entropy(logits, target, reduction="none")
        share = shares(deferred(self.class_weight, step.progress, self.defer), target, step).to(losses.dtype)
        return (share * losses).sum(), {}

    def predict(self, images: Float[Tensor, "N channels H W"]) -> Float[Tensor, "N C"]:
        """Logits as trained: those of the network, for LDAM times ``scale``."""
        return self.scale * self.network(images)


def shares(class_weight: Float[Tensor, " C"], target: Int64[Tensor, " N"], step: Step) -> Float[Tensor, " N"]:
    """The share of each sample in (13), of which the mean over the processes is that of the global batch."""
    weight = class_weight.index_select(0, target)
    (total,) = step.mean(weight.sum())
    return weight / total


def check_counts(counts: Tensor, classes: int | None = None) -> None:
    """Raise TypeError or ValueError unless counts are (C,) integers from 1, C = ``classes`` where it is given."""
    if not isinstance(counts, Tensor):
        raise TypeError(f"counts: got a {type(counts).__name__}; takes a tensor (C,) of integers")
    if counts.ndim != 1 or counts.is_floating_point() or counts.dtype == torch.bool or len(counts) == 0:
        raise ValueError(f"counts: got {counts.dtype} {tuple(counts.shape)}; takes integers (C,)")
    if (least := int(counts.min())) < 1:
        raise ValueError(f"counts: got {least} for class {int(counts.argmin())}; takes integers from 1")
    if classes is not None and len(counts) != classes:
        raise ValueError(f"counts: got {len(counts)} classes; takes {classes}, as the network has")


def _check_logits(logits: Tensor, target: Tensor) -> None:
    if logits.ndim != 2 or logits.shape[1] < 2:
        raise ValueError(f"logits: got shape {tuple(logits.shape)}; takes (N, C) with C > 1")
    check_features(logits, target, logits.shape[1], logits.shape[1], "logits")
