r"""SLA: the class of an image and what was done to it, learned as one label.

A network $f$ sees every image through $M$ transformations, $z_j = f(t_j(x))$, where $t_0$ is the identity. A classifier
$u$ of the classes can ignore which one it was (data augmentation, which asks $f$ to be invariant), a second one $v$ can
name it beside (multi-task), or one joint classifier $w$ of $C M$ rows tells both:

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

import math
from collections.abc import Callable, Iterator
from itertools import product
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor, nn
from torch.nn import functional as F

from semaug.core.metrics import accuracy
from semaug.core.pixels import Images
from semaug.core.tensors import at_least_float32
from semaug.data.sets import Data
from semaug.methods.long_tail import class_balanced_weights, deferred, ldam_logits, ldam_margins, shares
from semaug.training.objective import Objective, Step, linear_head

Views = Float[Tensor, "N M channels H W"] | UInt8[Tensor, "N M channels H W"]

Loss = Callable[[Tensor, Tensor], Tensor]

Inference = Literal["single", "aggregated"]

INFERENCES = ("single", "aggregated")


class Transform(NamedTuple):
    """Quarter turns, counter-clockwise, then an order of the three channels (None: left as they are)."""

    turns: int = 0
    order: tuple[int, int, int] | None = None

    def __call__(self, images: Images) -> Images:
        """The batch transformed: values move, none is computed. Raises ValueError for images it does not fit."""
        if images.ndim != 4:
            raise ValueError(f"images: got shape {tuple(images.shape)}; takes (N, channels, H, W)")
        channels, height, width = images.shape[1:]
        if self.turns % 2 and height != width:
            raise ValueError(f"images: got {height} x {width} pixels; takes square ones to turn by 90 degrees")
        if self.order is not None and channels != 3:
            raise ValueError(f"images: got {channels} channel(s); takes 3 to permute colours")
        turned = torch.rot90(images, self.turns, (2, 3))
        # A list as an index would be copied to the GPU, which waits for it.
        return turned if self.order is None else torch.stack([turned[:, channel] for channel in self.order], 1)


def _products(turns: tuple[int, ...] = (0,), orders: tuple[Any, ...] = (None,)) -> tuple[Transform, ...]:
    return tuple(Transform(*each) for each in product(turns, orders))


_QUARTERS, _HALVES = (0, 1, 2, 3), (0, 2)

_ORDERS = ((0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0))

_CYCLES = ((0, 1, 2), (1, 2, 0), (2, 0, 1))

TRANSFORMS: dict[str, tuple[Transform, ...]] = {
    "none": _products(),
    "rotation": _products(_QUARTERS),
    "rotation2": _products(_HALVES),
    "color_perm": _products(orders=_ORDERS),
    "color_perm3": _products(orders=_CYCLES),
    "rotation2+color_perm3": _products(_HALVES, _CYCLES),
    "rotation+color_perm3": _products(_QUARTERS, _CYCLES),
    "rotation+color_perm": _products(_QUARTERS, _ORDERS),
}

"""Sets of M = 1, 4, 2, 6, 3, 6, 12 and 24; the identity is the first of each. In a product turns come before orders."""


def views(images: Images, transforms: str) -> Views:
    """Every image through every transformation of a set of ``TRANSFORMS``, in its order; exact and differentiable.

    Raises ValueError for a set it does not know, images that are not square where a set turns them by 90 degrees, and
    images that have not three channels where it permutes them.
    """
    return torch.stack([transform(images) for transform in _known(transforms)], 1)


def rotations(images: Images) -> Views:
    """Views by 0, 90, 180 and 270 degrees, counter-clockwise; raises as :func:`views`."""
    return views(images, "rotation")


def color_permutations(images: Images) -> Views:
    """Views by the six orders of the channels, 012 021 102 120 201 210; raises as :func:`views`."""
    return views(images, "color_perm")


def joint_labels(target: Int64[Tensor, " N"], M: int) -> Int64[Tensor, "N M"]:
    """The label $y M + j$ of every view, which counts the pairs (class, transformation).

    Raises ValueError for targets that are not class numbers, (N,) int64.
    """
    if target.ndim != 1 or target.dtype != torch.int64:
        raise ValueError(f"target: got {target.dtype} {tuple(target.shape)}; takes class numbers, int64 (N,)")
    return target[:, None] * M + torch.arange(M, device=target.device)


def sla_loss(joint_logits: Float[Tensor, "N M CM"], target: Int64[Tensor, " N"]) -> Float[Tensor, ""]:
    """The loss (22) in nats, mean over images and views; ``joint_logits[n, j]`` are the C*M logits of view j.

    Raises ValueError where the last axis is no multiple of the number of views, and as :func:`joint_labels`.
    """
    labels = joint_labels(target, _check_joint(joint_logits))
    return _cross_entropy(joint_logits.flatten(0, 1), labels.flatten())


def aggregate(joint_logits: Float[Tensor, "N M CM"]) -> Float[Tensor, "N C"]:
    """The logits $s$ of (23): of view j the C logits of column j, averaged over the views. Raises as sla_loss."""
    by_class = at_least_float32(joint_logits).unflatten(2, (-1, _check_joint(joint_logits)))
    return by_class.diagonal(dim1=1, dim2=3).mean(2)


def distillation_loss(
    logits: Float[Tensor, "N C"], aggregated: Float[Tensor, "N C"], temperature: float = 1.0
) -> Float[Tensor, ""]:
    r"""The last term of (24) in nats, $T^2 \mathrm{KL}$, mean over the images; no gradient reaches ``aggregated``.

    $T^2$ keeps the size of the gradient by ``logits`` about the same for every temperature. Raises ValueError for
    shapes that differ and a temperature that is not above 0.
    """
    _check_temperature(temperature)
    if logits.shape != aggregated.shape:
        raise ValueError(
            f"aggregated: got shape {tuple(aggregated.shape)}; takes that of logits, {tuple(logits.shape)}"
        )
    student, teacher = ((at_least_float32(each) / temperature).log_softmax(1) for each in (logits, aggregated.detach()))
    return temperature**2 * F.kl_div(student, teacher, reduction="batchmean", log_target=True)


class DataAugmentation(Objective):
    """The loss (20): every view is of the class of its image. And what training on views is in all three objectives.

    network: gives ``features(images)`` (N, A) and has ``head``, a Linear from A to C (room ``networks``).
    transforms: a set of ``TRANSFORMS``. inference: what ``predict`` gives: "single", the network's own logits of the
        image as it is, or "aggregated", the mean of the class logits of its M views, in M passes.
    accumulate: one view after the other, with the memory of one of them: gradients are taken inside ``forward``, those
        of parameters alone. The same to rounding, except for BatchNorm: there each view is normalised by its own
        statistics in place of those of all views together, and the running ones are updated M times a step, by the
        identity last. The loss then differentiates once.

    Logs ``class_loss``, the cross-entropy of the class where the transformation is known: the same in all three.
    """

    static = True
    network: Any

    def __init__(
        self,
        network: nn.Module,
        transforms: str = "rotation",
        inference: Inference = "single",
        accumulate: bool = False,
    ) -> None:
        linear_head(network)
        self.M = len(_known(transforms))
        if inference not in INFERENCES:
            raise ValueError(f"inference: got {inference!r}; takes one of {', '.join(INFERENCES)}")
        super().__init__(network, transforms=transforms, inference=inference, accumulate=accumulate)
        self.transforms, self.inference, self.accumulate = transforms, inference, accumulate

    def forward(self, images: Tensor, target: Tensor, step: Step) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of all views of a batch.

        Raises ValueError for soft targets, images that do not fit the set, and, with ``accumulate``, images that ask
        for a gradient.
        """
        joint_labels(target, self.M)
        terms: dict[str, Tensor] = {}
        loss = self.loss_of(target, step)
        if self.accumulate:
            each = (self.network.features(transform(images)) for transform in reversed(TRANSFORMS[self.transforms]))
            parameters = [parameter for parameter in self.parameters() if parameter.requires_grad]
            if torch.is_grad_enabled() and parameters:
                if images.requires_grad:
                    raise ValueError("images: got some that ask for a gradient; accumulate=True takes none")
                return _Accumulated.apply(self.view_losses(each, target, loss, terms), *parameters), terms
        else:
            features = self.network.features(views(images, self.transforms).flatten(0, 1))
            each = reversed(features.unflatten(0, (len(images), self.M)).unbind(1))
        return torch.stack(list(self.view_losses(each, target, loss, terms))).sum(), terms

    def loss_of(self, target: Tensor, step: Step) -> Loss:
        """What is taken of logits and labels of this batch, (N, labels) and (N,): here the cross-entropy."""
        return _cross_entropy

    def view_losses(
        self, features: Iterator[Tensor], target: Tensor, loss: Loss, terms: dict[str, Tensor]
    ) -> Iterator[Tensor]:
        """What each view adds to the loss, for the features (N, A) of view M - 1, ..., 0; adds to ``terms``.

        With ``accumulate`` a part is differentiated before the next features are computed: what it takes from earlier
        views has to be detached.
        """
        for z in features:
            part = loss(self.network.head(z), target) / self.M
            _add(terms, "class_loss", part)
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
        device, found = next(self.parameters()).device, {}
        for name, split in (("test", data.test), ("validation", data.validation)):
            for inference, logits in (("single", self.network), ("aggregated", self.aggregated)):
                if split is not None:
                    found[f"{inference}_{name}_accuracy"] = accuracy(logits, split.to(device))
        return found


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

    def view_losses(
        self, features: Iterator[Tensor], target: Tensor, loss: Loss, terms: dict[str, Tensor]
    ) -> Iterator[Tensor]:
        """The class and the transformation of each view."""
        for j, z in zip(reversed(range(self.M)), features, strict=True):
            part = loss(self.network.head(z), target) / self.M
            _add(terms, "class_loss", part)
            yield part + loss(self.transform_head(z), torch.full_like(target, j)) / self.M


class SLA(DataAugmentation):
    """The loss (22), or (24): one head, ``joint_head``, names class and transformation of a view together.

    temperature: $T$ of self-distillation into the network's own head, the paper's is 1; None: none, (22). Then the
        network's own head, frozen here, is where the joint head's rows for the identity start from, and takes their
        values after every step: in either case the network alone is single inference.
    distillation: weight of the last term of (24); at 0 the network's own head learns from labels alone, which tells
        what distillation adds to them. Needs a temperature.

    "aggregated" inference computes of view j the C logits of column j alone, not all C * M.
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
    ) -> None:
        if temperature is not None:
            _check_temperature(temperature)
        if not 0 <= distillation < math.inf:
            raise ValueError(f"distillation: got {distillation}; takes a finite number from 0")
        if temperature is None and distillation != 1:
            raise ValueError(f"temperature: got None for distillation {distillation}; takes a finite number above 0")
        super().__init__(network, transforms, inference, accumulate)
        self.settings |= {} if temperature is None else {"temperature": temperature, "distillation": distillation}
        self.temperature, self.distillation, head = temperature, distillation, linear_head(network)
        self.joint_head = _head_like(head, head.out_features * self.M)
        head.requires_grad_(temperature is not None)
        if temperature is None:
            with torch.no_grad():
                for own, joint in zip(head.parameters(), self.joint_head.parameters(), strict=True):
                    joint[:: self.M] = own

    def view_losses(
        self, features: Iterator[Tensor], target: Tensor, loss: Loss, terms: dict[str, Tensor]
    ) -> Iterator[Tensor]:
        """The joint label of each view; with the identity, which comes last, what distillation adds.

        Raises ValueError for a joint head whose width is not C * M.
        """
        self._check_width()
        labels, summed = joint_labels(target, self.M), torch.zeros((), device=target.device)
        for j, z in zip(reversed(range(self.M)), features, strict=True):
            logits = at_least_float32(self.joint_head(z))
            part, of_class = loss(logits, labels[:, j]) / self.M, logits.detach()[:, j :: self.M]
            _add(terms, "class_loss", _cross_entropy(of_class, target) / self.M)
            if self.temperature is not None:
                summed = summed + of_class
                if j == 0:
                    single = self.network.head(z)
                    distillation = distillation_loss(single, summed / self.M, self.temperature)
                    _add(terms, "distillation", distillation)
                    part = part + loss(single, target) + self.distillation * distillation
            yield part

    def class_logits(self, features: Tensor, j: int) -> Tensor:
        """Logits (N, C) of the class from the features of view j, by the rows y M + j of the joint head.

        Raises ValueError for a joint head whose width is not C * M.
        """
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


class LongTailedSLA(SLA):
    """SLA on a long tail: the cross-entropies of (22) or (24) under the weights and margins of room ``imbalance``.

    counts: training images of each class (``Data.counts``); every transformation of a class has as many, so that the
        weights (13) and the margins (15) of a class are those of its M joint labels.
    loss: "ce", or "ldam" with ``max_margin``. beta: of the weights; 0 weighs all classes alike. defer: the fraction of
        training after which they hold.
    """

    static = True
    class_weight: Tensor
    margins: Tensor

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
        if loss not in ("ce", "ldam"):
            raise ValueError(f"loss: got {loss!r}; takes ce or ldam")
        if not 0 <= defer <= 1:
            raise ValueError(f"defer: got {defer!r}; takes a fraction in [0, 1]")
        super().__init__(network, transforms, inference, temperature, accumulate)
        if len(counts) != (classes := linear_head(network).out_features):
            raise ValueError(f"counts: got {len(counts)} classes; takes {classes}, as the network has")
        self.settings |= {"loss": loss, "beta": beta, "defer": defer}
        self.settings |= {"max_margin": max_margin} if loss == "ldam" else {}
        self.defer = defer
        margins = ldam_margins(counts, max_margin) if loss == "ldam" else torch.zeros(len(counts))
        # Given again at every construction: no part of a checkpoint.
        self.register_buffer("class_weight", class_balanced_weights(counts, beta), persistent=False)
        self.register_buffer("margins", margins, persistent=False)

    def loss_of(self, target: Tensor, step: Step) -> Loss:
        """Cross-entropy less the margin of the class, weighted by the class; of the global batch if data-parallel."""
        share = shares(deferred(self.class_weight, step.progress, self.defer), target, step)

        def loss(logits: Tensor, labels: Tensor) -> Tensor:
            logits = at_least_float32(logits)
            margins = self.margins.repeat_interleave(logits.shape[1] // len(self.margins))
            losses = F.cross_entropy(ldam_logits(logits, labels, margins), labels, reduction="none")
            return (share * losses).sum()

        return loss


class _Accumulated(torch.autograd.Function):
    """The sum of losses that come one after the other; the gradients are taken, and the graph freed, before the next.

    A parameter of the function, so that its gradient passes where others do: through DDP's reduction, into ``.grad``.
    """

    @staticmethod
    def forward(ctx: Any, losses: Iterator[Tensor], *parameters: Tensor) -> Tensor:
        """The sum; ``losses`` computes each of them here."""
        total, gradients = torch.zeros((), device=parameters[0].device), [torch.zeros_like(p) for p in parameters]
        with torch.enable_grad():
            for loss in losses:
                total = total + loss.detach()
                for mine, new in zip(gradients, torch.autograd.grad(loss, parameters, allow_unused=True), strict=True):
                    if new is not None:
                        mine += new
        ctx.gradients = gradients
        return total

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor | None, ...]:
        """The gradients, times that of what follows."""
        if torch.is_grad_enabled():  # create_graph=True: these gradients have no graph
            raise RuntimeError("accumulate=True differentiates once; take accumulate=False")
        return None, *(slope * gradient for gradient in ctx.gradients)


def _cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    return F.cross_entropy(at_least_float32(logits), target)


def _add(terms: dict[str, Tensor], name: str, value: Tensor) -> None:
    terms[name] = terms[name] + value.detach() if name in terms else value.detach()


def _head_like(head: nn.Linear, width: int) -> nn.Linear:
    """A new linear layer of the features of ``head``, with a bias where it has one, on its device, in its dtype."""
    options: dict[str, Any] = {"device": head.weight.device, "dtype": head.weight.dtype}
    return nn.Linear(head.in_features, width, head.bias is not None, **options)


def _known(transforms: str) -> tuple[Transform, ...]:
    if transforms not in TRANSFORMS:
        raise ValueError(f"transforms: got {transforms!r}; takes one of {', '.join(TRANSFORMS)}")
    return TRANSFORMS[transforms]


def _check_joint(joint_logits: Tensor) -> int:
    """M; raises ValueError unless it divides the width."""
    if joint_logits.ndim != 3 or 0 in joint_logits.shape[1:] or joint_logits.shape[2] % joint_logits.shape[1]:
        raise ValueError(
            f"joint_logits: got shape {tuple(joint_logits.shape)}; takes (N, M, C * M), C classes x M transformations"
        )
    return joint_logits.shape[1]


def _check_temperature(temperature: float) -> None:
    if not 0 < temperature < math.inf:
        raise ValueError(f"temperature: got {temperature}; takes a finite number above 0")
