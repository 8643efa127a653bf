r"""SLA: the class of an image and what was done to it, learned as one label.

A network $f$ sees every image through $M$ transformations, $z_j = f(t_j(x))$, where $t_0$ is the identity. A classifier
$u$ of the classes can ignore the transformation (data augmentation, which asks $f$ to be invariant). A second
classifier $v$ can name it (multi-task). Or one joint classifier $w$ of $C M$ rows names both:

$$\mathcal L_{DA} = \frac1M \sum_j \mathrm{CE}(u z_j, y), \tag{20}$$
$$\mathcal L_{MT} = \frac1M \sum_j \bigl[\mathrm{CE}(u z_j, y) + \mathrm{CE}(v z_j, j)\bigr], \tag{21}$$
$$\mathcal L_{SLA} = \frac1M \sum_j \mathrm{CE}(w z_j, (y, j)). \tag{22}$$

(21) is (22) under the constraint $w_{ij} = u_i + v_j$. At inference $j$ is known, so of the logits of view $j$ only
those of its own column count, $P(i \mid t_j(x), j) \propto e^{w_{ij}^\top z_j}$. Their mean over the views is the
logarithm of the geometric mean of these $M$ conditionals, up to its normalisation:

$$P_{agg}(i \mid x) \propto e^{s_i}, \qquad s_i = \frac1M \sum_j w_{ij}^\top z_j. \tag{23}$$

That costs $M$ passes. Self-distillation teaches it to a classifier $u$ of the image as it is, at the temperature $T$;
$P_{agg}$ is a constant there:

$$\mathcal L_{SD} = \mathcal L_{SLA} + \mathrm{CE}(u z_0, y)
  + T^2\, \mathrm{KL}\bigl(\mathrm{softmax}(s / T) \,\|\, \mathrm{softmax}(u z_0 / T)\bigr). \tag{24}$$

Training takes $M$ passes in all of (20) to (24). Lee, Hwang, Shin, "Self-supervised Label Augmentation via Input
Transformations", ICML 2020, https://proceedings.mlr.press/v119/lee20c.html.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Literal

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn import functional as F

from semaug._checks import (
    check_choice,
    check_classes,
    check_finite,
    check_flag,
    check_number,
    check_result,
    check_shape,
    require,
)
from semaug.core.metrics import Predict
from semaug.core.tensors import at_least_float32
from semaug.data.sets import Data
from semaug.methods import long_tail
from semaug.methods._sla_accumulate import accumulated
from semaug.methods._sla_views import TRANSFORMS, rotations, views  # noqa: F401  (offered here)
from semaug.networks import Network
from semaug.training.objective import Objective, Step, accuracies, cross_entropy, linear_head

Loss = Callable[[Tensor, Tensor], Tensor]
Terms = dict[str, Tensor]
Inference = Literal["single", "aggregated"]
INFERENCES = ("single", "aggregated")


def joint_labels(target: Int64[Tensor, " N"], M: int) -> Int64[Tensor, "N M"]:
    """The label $y M + j$ of every view, which counts the pairs (class, transformation).

    Raises:
        ValueError: for targets that are not class numbers, (N,) int64.
    """
    if target.ndim != 1 or target.dtype != torch.int64:
        raise ValueError(f"target: got {target.dtype} {tuple(target.shape)}; takes class numbers, int64 (N,)")
    return target[:, None] * M + torch.arange(M, device=target.device)


def sla_loss(joint_logits: Float[Tensor, "N M CM"], target: Int64[Tensor, " N"]) -> Float[Tensor, ""]:
    """The loss (22) in nats, mean over images and views.

    Args:
        joint_logits: (N, M, C M), N > 0, finite; of view j the logits of all pairs of a class and a transformation.
        target: (N,) int64 in [0, C).

    Raises:
        ValueError: for arguments that are not so.
    """
    labels = joint_labels(target, M := _number_of_views(joint_logits))
    N, _, width = joint_logits.shape
    require(N > 0, "target", (N,), "the classes of N > 0 images")
    check_shape("target", target, (N,), ", a class for each of N > 0 images")
    check_classes(target, width // M)
    check_finite("joint_logits", joint_logits)
    return cross_entropy(joint_logits.flatten(0, 1), labels.flatten())


def aggregate(joint_logits: Float[Tensor, "N M CM"]) -> Float[Tensor, "N C"]:
    """The logits $s$ of (23): of view j the C logits of column j, averaged over the views.

    Args:
        joint_logits: (N, M, C M), as for :func:`sla_loss`; another shape raises ValueError.
    """
    by_class = at_least_float32(joint_logits).unflatten(2, (-1, _number_of_views(joint_logits)))
    return by_class.diagonal(dim1=1, dim2=3).mean(2)


def distillation_loss(
    logits: Float[Tensor, "N C"], aggregated: Float[Tensor, "N C"], temperature: float = 1.0
) -> Float[Tensor, ""]:
    r"""The last term of (24) in nats, $T^2 \mathrm{KL}$, mean over the images.

    $T^2$ keeps the size of the gradient by ``logits`` about the same for every temperature.

    Args:
        logits: of the single classifier, (N, C), N > 0, finite.
        aggregated: $s$ of (23), (N, C), finite; no gradient reaches it.
        temperature: $T$, above 0.

    Raises:
        ValueError: for arguments that are not so, and logits that overflow.
    """
    temperature = check_number("temperature", temperature, 0, without=(0,))
    if (shape := tuple(logits.shape)) != tuple(aggregated.shape):
        raise ValueError(f"aggregated: got shape {tuple(aggregated.shape)}; takes that of logits, {shape}")
    if len(shape) != 2 or 0 in shape:
        raise ValueError(f"logits: got shape {shape}; takes (N, C) with N > 0")
    check_finite("logits", logits)
    check_finite("aggregated", aggregated)
    return check_result(_distillation(logits, aggregated, temperature), "logits, aggregated")


class DataAugmentation(Objective):
    """The loss (20): every view is of the class of its image. The base of the other objectives, which train on views.

    Logs ``class_loss``, the cross-entropy of the class; that of SLA is of the class with the transformation given.

    Args:
        network: with ``features(images)`` (N, A) and ``head``, a linear layer from A to C.
        transforms: a set of ``TRANSFORMS``.
        inference: what ``predict`` gives: "single", the network's own logits of the image as it is, or "aggregated",
            the mean of the class logits of its M views, in M passes.
        accumulate: one view after the other, with the memory of one. Gradients are taken inside ``forward``, those of
            parameters alone, and the loss differentiates once. The same to rounding, except for BatchNorm: each view is
            normalised by its own statistics, and the running ones are updated M times a step, by the identity last.

    Raises:
        TypeError, ValueError: for arguments that are not so.
    """

    static = True
    network: Network

    def __init__(
        self,
        network: nn.Module,
        transforms: str = "rotation",
        inference: Inference = "single",
        accumulate: bool = False,
    ) -> None:
        linear_head(network)
        self.transforms = check_choice("transforms", transforms, TRANSFORMS)
        self.inference = check_choice("inference", inference, INFERENCES)
        self.accumulate = check_flag("accumulate", accumulate)
        self.M = len(TRANSFORMS[transforms])
        super().__init__(network, transforms=transforms, inference=inference, accumulate=accumulate)

    def forward(self, images: Tensor, target: Tensor, step: Step) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of all views of a batch.

        Raises:
            ValueError: for targets that are not class numbers (not read on a GPU, which would have to wait), images
                that do not fit the set, and, with ``accumulate``, images that ask for a gradient.
        """
        joint_labels(target, self.M)
        terms: Terms = {}
        loss = self.loss_of(target, step)
        if not self.accumulate:
            together = self.network.features(views(images, self.transforms).flatten(0, 1))
            features = reversed(together.unflatten(0, (len(images), self.M)).unbind(1))
            return torch.stack(list(self.view_losses(features, target, loss, terms))).sum(), terms
        if images.requires_grad and torch.is_grad_enabled():
            raise ValueError("images: got some that ask for a gradient; accumulate=True takes none")
        each = (self.network.features(transform(images)) for transform in reversed(TRANSFORMS[self.transforms]))
        return accumulated(self.view_losses(each, target, loss, terms), self.parameters()), terms

    def loss_of(self, target: Tensor, step: Step) -> Loss:
        """What is taken of logits and labels of this batch, (N, labels) and (N,): here the cross-entropy."""
        return cross_entropy

    def view_losses(self, features: Iterator[Tensor], target: Tensor, loss: Loss, terms: Terms) -> Iterator[Tensor]:
        """What each view adds to the loss, for the features (N, A) of view M - 1, ..., 0; adds to ``terms``.

        With ``accumulate`` each is differentiated before the next: what it takes from earlier views is detached.
        """
        for z in features:
            part = loss(self.network.head(z), target) / self.M
            terms["class_loss"] = terms.get("class_loss", 0) + part.detach()
            yield part

    def class_logits(self, features: Tensor, j: int) -> Tensor:
        """Logits (N, C) of the class from the features of view j."""
        return self.network.head(features)

    def aggregated(self, images: Float[Tensor, "N channels H W"]) -> Float[Tensor, "N C"]:
        """The logits $s$ of (23), in M passes, one view after the other."""
        features = (self.network.features(transform(images)) for transform in TRANSFORMS[self.transforms])
        return torch.stack([at_least_float32(self.class_logits(z, j)) for j, z in enumerate(features)]).mean(0)

    def predict(self, images: Float[Tensor, "N channels H W"]) -> Float[Tensor, "N C"]:
        """Logits by the chosen inference."""
        return self.network(images) if self.inference == "single" else self.aggregated(images)

    def metrics(self, data: Data) -> dict[str, float]:
        """Accuracy of both inferences on the test split, and on the validation split where there is one."""
        inferences: dict[str, Predict] = {"single": self.network, "aggregated": self.aggregated}
        return accuracies(data, inferences, next(self.parameters()).device)


class MultiTask(DataAugmentation):
    """The loss (21): beside the class, a head of its own, ``transform_head``, names the transformation of a view."""

    static = True

    def __init__(
        self,
        network: nn.Module,
        transforms: str = "rotation",
        inference: Inference = "single",
        accumulate: bool = False,
    ) -> None:
        super().__init__(network, transforms, inference, accumulate)
        self.transform_head = _head_like(linear_head(network), self.M)

    def view_losses(self, features: Iterator[Tensor], target: Tensor, loss: Loss, terms: Terms) -> Iterator[Tensor]:
        """The class and the transformation of each view."""
        for j, z in zip(reversed(range(self.M)), features, strict=True):
            part = loss(self.network.head(z), target) / self.M
            terms["class_loss"] = terms.get("class_loss", 0) + part.detach()
            yield part + loss(self.transform_head(z), torch.full_like(target, j)) / self.M


class SLA(DataAugmentation):
    """The loss (22), or (24): one head, ``joint_head``, names class and transformation of a view together.

    ``network`` alone is single inference. Without distillation its head is a frozen copy of the rows of the joint head
    for the identity, and takes their values after every step; the joint head starts there from the head of the network
    given, which keeps it. "aggregated" inference computes of view j the C logits of column j alone, not all C * M.

    Args:
        network, transforms, inference, accumulate: as for :class:`DataAugmentation`.
        temperature: $T$ of self-distillation into the network's own head, the paper's is 1; None: none, (22).
        distillation: weight of the last term of (24), from 0. At 0 the network's own head learns from labels alone,
            which measures what distillation adds to them. Needs a temperature.
        summed: the sum over the views in place of the mean in (22), as released for ImageNet and iNaturalist.

    Raises:
        TypeError, ValueError: for arguments that are not so.
    """

    static = True

    def __init__(
        self,
        network: nn.Module,
        transforms: str = "rotation",
        inference: Inference = "aggregated",
        temperature: float | None = None,
        accumulate: bool = False,
        distillation: float = 1.0,
        summed: bool = False,
    ) -> None:
        head, distillation = linear_head(network), check_number("distillation", distillation, 0)
        if temperature is None:
            require(distillation == 1, "temperature", None, f"a number above 0 for distillation={distillation}")
            network = long_tail.with_head(network, copy.deepcopy(head).requires_grad_(False))
        else:
            temperature = check_number("temperature", temperature, 0, without=(0,))
        super().__init__(network, transforms, inference, accumulate)
        self.settings |= {} if temperature is None else {"temperature": temperature, "distillation": distillation}
        self.settings |= {"summed": True} if check_flag("summed", summed) else {}
        self.temperature, self.distillation, self.summed = temperature, distillation, summed
        self.joint_head = _head_like(head, head.out_features * self.M)
        if temperature is None:
            with torch.no_grad():
                for own, joint in zip(head.parameters(), self.joint_head.parameters(), strict=True):
                    joint[:: self.M] = own

    def view_losses(self, features: Iterator[Tensor], target: Tensor, loss: Loss, terms: Terms) -> Iterator[Tensor]:
        """The joint label of each view; with the identity, which comes last, what distillation adds."""
        self._check_width()
        labels, total = joint_labels(target, self.M), torch.zeros((), device=target.device)
        for j, z in zip(reversed(range(self.M)), features, strict=True):
            logits = at_least_float32(self.joint_head(z))
            part, of_class = loss(logits, labels[:, j]), logits.detach()[:, j :: self.M]
            part = part if self.summed else part / self.M
            terms["class_loss"] = terms.get("class_loss", 0) + cross_entropy(of_class, target) / self.M
            if self.temperature is not None:
                total = total + of_class
                if j == 0:
                    single = self.network.head(z)
                    distillation = _distillation(single, total / self.M, self.temperature)
                    terms["distillation"] = distillation.detach()
                    part = part + loss(single, target) + self.distillation * distillation
            yield part

    def class_logits(self, features: Tensor, j: int) -> Tensor:
        """Logits (N, C) of the class from the features of view j, by the rows y M + j of the joint head."""
        self._check_width()
        bias = self.joint_head.bias
        return F.linear(features, self.joint_head.weight[j :: self.M], None if bias is None else bias[j :: self.M])

    def _check_width(self) -> None:
        classes, width = self.network.head.out_features, self.joint_head.out_features
        if width != classes * self.M:
            raise ValueError(f"joint_head: got {width} rows; takes {classes} classes x {self.M} transformations")

    def after_step(self, step: Step) -> None:
        """Without distillation: the network's own head becomes the joint head's rows for the identity."""
        if self.temperature is None:
            with torch.no_grad():
                for own, joint in zip(self.network.head.parameters(), self.joint_head.parameters(), strict=True):
                    own.copy_(joint[:: self.M])


class LongTailedSLA(long_tail._ClassBalanced, SLA):
    """SLA on a long tail: the cross-entropies of (22) or (24) under the weights and margins of module ``long_tail``.

    Every transformation of a class has as many images, so that the weights (13) and the margins (15) of a class are
    those of its M joint labels.

    Args:
        network, transforms, inference, temperature, accumulate: as for :class:`SLA`.
        counts, loss, beta, defer, max_margin: as for :class:`semaug.LongTailed`; the loss is "ce" or "ldam".

    Raises:
        TypeError, ValueError: for arguments that are not so.
    """

    static = True

    def __init__(
        self,
        network: nn.Module,
        counts: Int64[Tensor, " C"],
        transforms: str = "rotation",
        inference: Inference = "aggregated",
        temperature: float | None = None,
        accumulate: bool = False,
        loss: Literal["ce", "ldam"] = "ce",
        beta: float = 0.0,
        defer: float = 0.0,
        max_margin: float = 0.5,
    ) -> None:
        check_choice("loss", loss, ("ce", "ldam"))
        long_tail.check_counts(counts, linear_head(network).out_features)
        super().__init__(network, transforms, inference, temperature, accumulate)
        self.balance(counts, loss, beta, max_margin)
        self.defer = self.settings["defer"] = check_number("defer", defer, 0, 1)

    def loss_of(self, target: Tensor, step: Step) -> Loss:
        """Cross-entropy under the margin of the class, weighted by the class; of the global batch if data-parallel."""
        share = long_tail.shares(long_tail.deferred(self.class_weight, step.progress, self.defer), target, step)

        def loss(logits: Tensor, labels: Tensor) -> Tensor:
            logits = at_least_float32(logits)
            margins = self.margins.repeat_interleave(logits.shape[1] // len(self.margins))
            losses = F.cross_entropy(long_tail.ldam_logits(logits, labels, margins), labels, reduction="none")
            return (share * losses).sum()

        return loss


def _distillation(logits: Tensor, aggregated: Tensor, temperature: float) -> Tensor:
    """distillation_loss of arguments known to fit: no value is read, for which a GPU would have to wait."""
    student, teacher = ((at_least_float32(each) / temperature).log_softmax(1) for each in (logits, aggregated.detach()))
    return temperature**2 * F.kl_div(student, teacher, reduction="batchmean", log_target=True)


def _head_like(head: nn.Linear, width: int) -> nn.Linear:
    """A new linear layer of the features of ``head``, with a bias where it has one, on its device, in its dtype."""
    return nn.Linear(head.in_features, width, head.bias is not None, head.weight.device, head.weight.dtype)


def _number_of_views(joint_logits: Tensor) -> int:
    """M; raises ValueError unless it divides the width."""
    shape = tuple(joint_logits.shape)
    if len(shape) != 3 or 0 in shape[1:] or shape[2] % shape[1]:
        raise ValueError(f"joint_logits: got shape {shape}; takes (N, M, C * M), C classes x M transformations")
    return shape[1]
