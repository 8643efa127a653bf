r"""Predictions of a split and what they get right: accuracy, confusion matrix, accuracy by class.

With the confusion matrix :math:`K_{yz}`, the number of images of class :math:`y` that are predicted as :math:`z`,

.. math:: \text{accuracy} = \frac{\sum_y K_{yy}}{\sum_{yz} K_{yz}}, \qquad
          \text{accuracy of class } y = \frac{K_{yy}}{\sum_z K_{yz}}.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

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


def accuracy(predict: Predict, split: Labelled, batch_size: int = 500) -> float:
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
