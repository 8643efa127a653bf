"""What fit asks of an objective and of what it is trained on: said before the first step, and at every step."""

from __future__ import annotations

import torch
from torch import Tensor

from semaug._checks import require
from semaug.core.metrics import predictions
from semaug.data.sets import Data
from semaug.training.objective import Objective
from semaug.training.recipe import Recipe


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
