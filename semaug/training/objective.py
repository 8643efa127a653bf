"""The contract between a paper and the training loop: one step of supervised training, and what a paper changes in it.

``fit`` (module ``loop``) owns the optimiser, the schedule, the data order and every random generator. A paper owns an
:class:`Objective`: the network with its heads, the loss and the prediction. Whatever it has to remember from one step
to the next (moments, an EMA copy, a Mix Block) lives in its buffers and submodules, at full shape from construction on,
so that a checkpoint is complete and data-parallel training sees it.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from numbers import Integral, Real
from typing import Any, ClassVar, NamedTuple, TypeVar

import torch
import torch.distributed as dist
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn import functional as F

from semaug._checks import check_flag, check_number, require
from semaug.core.metrics import Predict, accuracy, predictions
from semaug.core.tensors import at_least_float32, tracing
from semaug.data.sets import Data
from semaug.training.recipe import Recipe

Setting = int | float | str | bool | None

Target = Int64[Tensor, " N"] | Float[Tensor, "N C"]

Built = TypeVar("Built", bound="Objective")


class Batch(NamedTuple):
    """Images (N, channels, H, W), float in [0, 1], and their target: (N,) int64, or (N, C) soft."""

    images: Float[Tensor, "N channels H W"]
    target: Target


class Step(NamedTuple):
    """Where training stands.

    Attributes:
        progress: 0-d float32 tensor, (step + 1/2) / total steps: the fraction that schedules of a paper (ISDA's
            strength, an EMA's momentum, gradient reversal) are functions of. A tensor, so that a compiled objective is
            not compiled again at every step; the next step overwrites it.
        lr: the optimiser's learning rate now (of the first parameter group), a 0-d float32 tensor for the same reason.
        generator: for the objective's own draws, on the images' device; part of every checkpoint.
        meta: a batch of the second stream, for objectives whose ``streams`` ask for one.
        rank, world: which of how many data-parallel processes this is; ``generator`` is in the same state in all.
        phase: what :meth:`Objective.phase` says of this step, so that ``forward`` need not look at ``progress``.
    """

    progress: Float[Tensor, ""]
    lr: float | Float[Tensor, ""]
    generator: torch.Generator
    meta: Batch | None = None
    rank: int = 0
    world: int = 1
    phase: str | None = None

    def share(self, count: int, draw: Callable[[int], Tensor]) -> Tensor:
        """This process's ``count`` rows of what ``draw`` gives for the global batch: one draw, whatever the processes.

        >>> step = Step(torch.tensor(0.5), 0.1, torch.Generator().manual_seed(0))
        >>> step.share(4, lambda n: torch.rand(n, generator=step.generator)).shape
        torch.Size([4])
        """
        return draw(count * self.world)[self.rank * count : (self.rank + 1) * count]

    def mean(self, *tensors: Tensor) -> list[Tensor]:
        """Means over the processes, in one message, of what DDP does not see: gradients and sums taken inside forward.

        The tensors are of one dtype; those that come back are constants, but where there is one process the very same.
        """
        if self.world == 1:
            return list(tensors)
        joined = torch.cat([tensor.detach().flatten() for tensor in tensors])
        dist.all_reduce(joined)
        parts = (joined / self.world).split([tensor.numel() for tensor in tensors])
        return [part.view_as(tensor) for part, tensor in zip(parts, tensors, strict=True)]


class Objective(nn.Module):
    """What a paper changes about supervised training; owns its network and heads.

    A subclass overrides ``forward`` and, where the paper needs it, the rest. ``settings`` holds the
    hyper-parameters as plain values: they go into the record of every run. One that is None is left out: an option
    that came later does not make another experiment of the runs before it.
    """

    streams: ClassVar[tuple[str, ...]] = ("train",)
    """Data streams ``fit`` feeds: ``("train",)`` or ``("train", "meta")``."""

    static: ClassVar[bool] = False
    """Whether the Python of ``forward`` and ``after_step`` looks at no value and is the same at every step of a phase.

    On a GPU ``fit`` then captures the step of each phase as a CUDA graph (module ``capture``). Not inherited: a
    subclass that changes the step says it of itself.
    """

    pairs: ClassVar[bool] = False
    """Whether images are paired with others of their process's share of the batch.

    Two data-parallel processes then pair other images than one would: the same method, another run. Where False, two
    processes equal one.
    """

    def __init__(self, network: nn.Module, **settings: Setting) -> None:
        super().__init__()
        self.network = network
        self.settings: dict[str, Setting] = {n: _plain(value) for n, value in settings.items() if value is not None}

    @classmethod
    def build(cls: type[Built], network: nn.Module, dataset: Data, **settings: Setting) -> Built:
        """The objective for a data set. A method that needs its class counts or image shape overrides this.

        Args:
            network: what is trained.
            dataset: what it will be trained on.
            settings: hyper-parameters, as the class takes them.
        """
        return cls(network, **settings)

    def __call__(self, images: Tensor, target: Tensor, step: Step) -> tuple[Tensor, dict[str, Tensor]]:
        """``forward``, of images and a target that are such: here, once, for every method.

        Raises:
            TypeError: for images that are no floats, and a target that is neither int64 nor floats (N, C).
            ValueError: for no images, other shapes, and, where a look at them is free, classes that are not there.
        """
        _check_target(images, target, _num_classes(self.network))
        result: tuple[Tensor, dict[str, Tensor]] = super().__call__(images, target, step)
        return result

    @abstractmethod
    def forward(self, images: Tensor, target: Tensor, step: Step) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of one batch (0-d, differentiable) and its terms to log (detached scalars)."""
        raise NotImplementedError(f"{type(self).__name__} has to define forward(images, target, step)")

    def predict(self, images: Float[Tensor, "N channels H W"]) -> Float[Tensor, "N C"]:
        """Logits at inference."""
        return self.network(images)

    def parameter_groups(self, recipe: Recipe) -> list[dict[str, Any]]:
        """Groups for the optimiser; a group without ``lr`` trains at the recipe's. Default: one group of all."""
        return grouped((self, None))

    def phase(self, progress: float) -> str | None:
        """A name for what the Python of ``forward`` decides at this fraction of training; None: the step is not static.

        ``forward`` finds it in ``Step.phase``. See ``static``.
        """
        return "all"

    def after_step(self, step: Step) -> None:
        """Called after every optimiser step, without gradients: EMA copies and the like."""

    def metrics(self, data: Data) -> dict[str, float]:
        """What the record of a run says beside the accuracy of :meth:`predict`; called after training.

        The objective is in evaluation mode on its device, ``data`` as ``fit`` got it (``data.test.to(device)``).
        """
        return {}


def grouped(*parts: tuple[nn.Module, float | None]) -> list[dict[str, Any]]:
    """Groups for the optimiser, of what is to be trained of each module at its learning rate; None: the recipe's."""
    return [
        {"params": [p for p in module.parameters() if p.requires_grad], **({} if lr is None else {"lr": lr})}
        for module, lr in parts
    ]


def accuracies(data: Data, inferences: Mapping[str, Predict], device: torch.device) -> dict[str, float]:
    """Accuracy of every inference on the test split, and on the validation split where there is one."""
    splits = {"test": data.test, "validation": data.validation}
    return {
        f"{inference}_{name}_accuracy": accuracy(predict, split.to(device))
        for name, split in splits.items()
        if split is not None
        for inference, predict in inferences.items()
    }


def cross_entropy(logits: Float[Tensor, "N C"], target: Target) -> Float[Tensor, ""]:
    """The mean over the batch in nats, computed in float32 at least."""
    return F.cross_entropy(at_least_float32(logits), target)


def trainable(objective: Objective) -> torch.device:
    """The device of an objective; raises ValueError for one without parameters to train."""
    if not any(parameter.requires_grad for parameter in objective.parameters()):
        raise ValueError(f"objective: got {type(objective).__name__} without a parameter to train; takes one at least")
    return next(objective.parameters()).device


def check_fit(objective: Objective, data: Data, recipe: Recipe, world: int) -> None:
    """Raise ValueError where objective, data, recipe and the number of processes do not go together."""
    name, size, images = type(objective).__name__, recipe.batch_size, len(data.train)
    require(size <= images, "Recipe.batch_size", size, f"at most the {images} training images")
    require(size % world == 0, "Recipe.batch_size", size, f"a multiple of the {world} processes")
    unknown = sorted(set(objective.streams) - {"train", "meta"})
    require(not unknown, f"{name}.streams", unknown, "'train' and 'meta'")
    if "meta" in objective.streams and (data.meta is None or min(recipe.meta_batch_size, len(data.meta)) % world):
        got = "none" if data.meta is None else f"{len(data.meta)} images"
        takes = f"a second stream for {name} (load(..., meta=10)), a batch of which divides among {world} process(es)"
        raise ValueError(f"data.meta: got {got}; takes {takes}")
    named = {id(parameter): key for key, parameter in objective.named_parameters() if parameter.requires_grad}
    grouped = {id(parameter) for group in objective.parameter_groups(recipe) for parameter in group["params"]}
    left = ", ".join(key for parameter, key in named.items() if parameter not in grouped)
    if left:
        raise ValueError(f"{name}.parameter_groups: got none for {left}; takes all that are to be trained")
    few = data.test.take(slice(0, 2)).to(next(objective.parameters()).device)
    classes = predictions(objective.predict, few).shape[1]
    if classes != data.num_classes:
        takes = f"{data.num_classes} for data {data.name!r}"
        raise ValueError(f"{name}.predict: got logits of {classes} classes; takes {takes}")


def check_result(objective: Objective, loss: Tensor, terms: dict[str, Tensor]) -> None:
    """Raise ValueError unless a step gives a loss and terms by shape and name; no value is looked at."""
    name = f"{type(objective).__name__}.forward"
    if not isinstance(loss, Tensor) or loss.ndim != 0:
        got = tuple(loss.shape) if isinstance(loss, Tensor) else type(loss).__name__
        raise ValueError(f"{name}: got a loss of {got}; takes (loss, terms) with a 0-d tensor for the loss")
    if reserved := terms.keys() & {"train_loss", "lr", "validation_accuracy", "test_accuracy"}:
        raise ValueError(f"{name}: got a term named {sorted(reserved)[0]!r}; takes other names, fit logs this itself")
    for term, value in terms.items():
        if not isinstance(value, Tensor) or value.ndim != 0 or value.requires_grad:
            raise ValueError(f"{name}: got {value!r} for the term {term!r}; takes a detached 0-d tensor")


def linear_head(network: nn.Module) -> nn.Linear:
    """``network.head``, for papers that work on features; raises TypeError for a network without what they need."""
    head = getattr(network, "head", None)
    if not isinstance(head, nn.Linear) or not callable(getattr(network, "features", None)):
        got = f"{type(network).__name__} with a head of {type(head).__name__}"
        raise TypeError(f"network: got {got}; takes one with a method features(images) -> (N, A) and an nn.Linear head")
    return head


def _num_classes(network: nn.Module) -> int | None:
    classes = getattr(network, "num_classes", getattr(getattr(network, "head", None), "out_features", None))
    return classes if isinstance(classes, int) else None


def _check_target(images: Tensor, target: Tensor, classes: int | None) -> None:
    if images.ndim != 4 or len(images) == 0:
        raise ValueError(f"images: got shape {tuple(images.shape)}; takes (N, channels, H, W) with N > 0")
    if not images.is_floating_point():
        raise TypeError(f"images: got {images.dtype}; takes floats in [0, 1]")
    soft = target.ndim == 2 and target.is_floating_point()
    if not soft and target.dtype != torch.int64:
        raise TypeError(f"target: got {target.dtype} {tuple(target.shape)}; takes int64 (N,), or floats (N, C)")
    if target.shape[:1] != images.shape[:1] or target.ndim > 1 + soft:
        raise ValueError(f"target: got shape {tuple(target.shape)}; takes ({len(images)},), or (N, C) for soft labels")
    if not (soft or target.is_cuda or tracing(target)):  # on a GPU a look would wait for it
        low, high = (int(value) for value in target.aminmax())
        if low < 0 or (classes is not None and high >= classes):
            takes = f"0 to {classes - 1}" if classes is not None else "numbers from 0"
            raise ValueError(f"target: got classes {low} to {high}; takes {takes}")


def _plain(value: Setting) -> Setting:
    """NumPy's numbers as Python's own, which a record and a checkpoint can hold."""
    if isinstance(value, Real) and type(value) not in (bool, int, float):
        return int(value) if isinstance(value, Integral) else float(value)
    return value


class CrossEntropy(Objective):
    """Plain training, the baseline of every notebook; takes int64 or soft targets."""

    static = True

    def forward(self, images: Tensor, target: Tensor, step: Step) -> tuple[Tensor, dict[str, Tensor]]:
        """Cross-entropy, mean over the batch, in nats."""
        return cross_entropy(self.network(images), target), {}


class Smoothed(Objective):
    """Cross-entropy against smoothed labels; predictions are means over an image and its mirror image.

    Labels: Szegedy et al., CVPR 2016, https://arxiv.org/abs/1512.00567, section 7, $q'(k) = (1 - s)\\,[k = y] + s / C$.

    Args:
        network: what is trained.
        smoothing: $s$, in [0, 1).
        mirror: whether the mirror image is asked too.
    """

    static = True

    def __init__(self, network: nn.Module, smoothing: float = 0.2, mirror: bool = True) -> None:
        smoothing, mirror = check_number("smoothing", smoothing, 0, 1, without=(1,)), check_flag("mirror", mirror)
        super().__init__(network, smoothing=smoothing, mirror=mirror)
        self.smoothing, self.mirror = smoothing, mirror

    def forward(self, images: Tensor, target: Tensor, step: Step) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean over the batch of -sum_k q'(k) log p(k), in nats."""
        logits = at_least_float32(self.network(images))
        return F.cross_entropy(logits, target, label_smoothing=self.smoothing), {}

    def predict(self, images: Float[Tensor, "N channels H W"]) -> Float[Tensor, "N C"]:
        """The mean of the logits of both."""
        logits = self.network(images)
        return (logits + self.network(images.flip(-1))) / 2 if self.mirror else logits
