r"""Evaluation: what a trained objective gets right on a split, overall and by class.

With the confusion matrix :math:`K_{yz}`, the number of images of class :math:`y` that are called :math:`z`,

.. math:: \text{accuracy} = \frac{\sum_y K_{yy}}{\sum_{yz} K_{yz}}, \qquad
          \text{accuracy of class } y = \frac{K_{yy}}{\sum_z K_{yz}}, \qquad
          \text{balanced accuracy} = \text{its mean over the classes present}.

The balanced form is the one to read where the split is long-tailed (K. H. Brodersen, C. S. Ong, K. E. Stephan,
J. M. Buhmann, "The balanced accuracy and its posterior distribution", ICPR 2010).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from semaug.data import Split

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
    with torch.no_grad(), _evaluating(predict):
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


def many_medium_few(
    accuracy: Float[Tensor, " C"], train_counts: Int64[Tensor, " C"], few: int = 20, many: int = 100
) -> dict[str, float]:
    """Mean accuracy of the classes with more than ``many`` training images, with fewer than ``few``, and of the others.

    accuracy: of each class, from :func:`class_accuracy` or a record; train_counts: training images of each class. NaN
    for a group without a class. The split of a long tail in three and its bounds are those of Liu et al., "Large-Scale
    Long-Tailed Recognition in an Open World", CVPR 2019, https://arxiv.org/abs/1904.05160. Raises ValueError for
    lengths that differ and bounds that are not 0 < few <= many.
    """
    if accuracy.ndim != 1 or accuracy.shape != train_counts.shape:
        got = f"{tuple(accuracy.shape)} and {tuple(train_counts.shape)}"
        raise ValueError(f"accuracy and train_counts: got shapes {got}; takes (C,) and (C,)")
    if not 0 < few <= many:
        raise ValueError(f"few and many: got {few} and {many}; takes 0 < few <= many")
    groups = {"many": train_counts > many, "medium": (few <= train_counts) & (train_counts <= many)}
    groups["few"] = train_counts < few
    return {name: float(accuracy[chosen].double().mean()) for name, chosen in groups.items()}


@contextmanager
def _evaluating(predict: Predict) -> Iterator[None]:
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
