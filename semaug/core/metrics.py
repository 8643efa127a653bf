r"""Predictions of a split and what they get right: accuracy, confusion matrix, accuracy by class.

With the confusion matrix $K_{yz}$, the number of images of class $y$ that are predicted as $z$,

$$\text{accuracy} = \frac{\sum_y K_{yy}}{\sum_{yz} K_{yz}}, \qquad
  \text{accuracy of class } y = \frac{K_{yy}}{\sum_z K_{yz}}.$$
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from semaug._checks import NotFiniteError, check_classes, check_count, require

Predict = Callable[[Tensor], Tensor]


@runtime_checkable
class Labelled(Protocol):
    """Images with a class each, as :class:`semaug.Split` holds them."""

    @property
    def target(self) -> Tensor:
        """Their classes, (N,) int64."""

    def __len__(self) -> int:
        """How many images there are."""

    def floats(self, index: slice | Tensor | None = None) -> Tensor:
        """The images at ``index``, float32 in [0, 1]."""


def predictions(predict: Predict, split: Labelled, batch_size: int = 500) -> Float[Tensor, "N C"]:
    """Logits of every image of a split, in its order, without gradients.

    Args:
        predict: from images (n, channels, H, W), float32 in [0, 1], to logits (n, C): ``objective.predict``, a network,
            or any function. A module, or the module whose method it is, runs in evaluation mode and gets back the mode
            it had; the modules inside any other function are for the caller to switch.
        split: on the device of the module.
        batch_size: images in one call of ``predict``.

    Returns:
        The logits (N, C).

    Raises:
        ValueError: for an empty split, a batch size below 1, logits of a wrong shape, or logits that are NaN.
    """
    if len(split) == 0:
        raise ValueError("split: got 0 images; takes at least one")
    batch_size = check_count("batch_size", batch_size)
    batches = []
    with torch.no_grad(), evaluating(predict):
        for start in range(0, len(split), batch_size):
            images = split.floats(slice(start, start + batch_size))
            batches.append(predict(images))
            if batches[-1].ndim != 2 or len(batches[-1]) != len(images):
                got, takes = tuple(batches[-1].shape), f"logits (N, C) for {len(images)} images"
                raise ValueError(f"predict: got a result of shape {got}; takes {takes}")
    return check_logits(torch.cat(batches), "predict")


def check_logits(logits: Tensor, name: str) -> Tensor:
    """The logits; NotFiniteError where one is NaN, since argmax would call that class the largest."""
    if bad := int(logits.isnan().any(1).sum()):
        raise NotFiniteError(f"{name}: got logits that are NaN for {bad} of {len(logits)} images; takes numbers")
    return logits


def accuracy(predict: Predict, split: Labelled, batch_size: int = 500) -> float:
    """Share of the split's images whose largest logit is their class; arguments and errors of :func:`predictions`."""
    predicted = predictions(predict, split, batch_size).argmax(1)
    return int((predicted == split.target).sum()) / len(split)


def confusion(logits: Float[Tensor, "N C"], target: Int64[Tensor, " N"]) -> Int64[Tensor, "C C"]:
    """Counts by true class (row) and predicted class (column).

    Args:
        logits: (N, C).
        target: (N,) int64 class numbers.

    Raises:
        ValueError, TypeError: where the lengths differ, a logit is NaN or a target is no class number in [0, C).
    """
    if logits.ndim != 2 or target.shape != logits.shape[:1]:
        got = f"{tuple(logits.shape)} and {tuple(target.shape)}"
        raise ValueError(f"logits and target: got shapes {got}; takes (N, C) and (N,)")
    require(target.dtype == torch.int64, "target", target.dtype, "int64 class numbers", TypeError)
    check_classes(target, classes := logits.shape[1])
    pairs = target * classes + check_logits(logits, "logits").argmax(1)
    return torch.bincount(pairs, minlength=classes * classes).reshape(classes, classes)


def class_accuracy(counts: Int64[Tensor, "C C"]) -> Float[Tensor, " C"]:
    """Accuracy of each class from a confusion matrix, float64; NaN for a class without images."""
    return counts.diagonal().double() / counts.sum(1).double()


@contextmanager
def evaluating(predict: Predict | nn.Module) -> Iterator[None]:
    """Evaluation mode for the module behind ``predict``, if there is one; afterwards each part has its own mode again.

    A forgotten ``eval()`` raises no error, but puts test images into BatchNorm's running statistics.
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
