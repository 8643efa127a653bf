"""Recipes: how to train, apart from the objective, as plain values that go into every record."""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch

SCHEDULES: dict[str, Callable[[Recipe, float], float]] = {
    "constant": lambda recipe, fraction: 1.0,
    "cosine": lambda recipe, fraction: 0.5 * (1 + math.cos(math.pi * fraction)),
    "linear": lambda recipe, fraction: 1 - fraction,
    "step": lambda recipe, fraction: recipe.factor ** sum(fraction > milestone for milestone in recipe.milestones),
}

"""Learning rate over its peak, as a function of the fraction of training done (after the warm-up) in [0, 1]."""

OPTIMIZERS = ("sgd", "adam")

AUGMENTS = ("crop", "flip", "randaugment", "autoaugment", "cutout")

PRECISIONS = {"float32": None, "bfloat16": torch.bfloat16}


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How to train, apart from the objective; part of every record.

    epochs: passes over the training set; the last, smaller batch of each is dropped (static shapes).
    batch_size, meta_batch_size: images a step in the two streams, over all ranks together.
    optimizer: 'sgd' (momentum, nesterov) or 'adam' (momentum is its first beta). weight_decay: L2, as in the papers.
    lr: peak learning rate. schedule: 'constant', 'cosine', 'linear' or 'step' (times ``factor`` after each of
        ``milestones``, fractions of what follows the warm-up). warmup: the first fraction of training, in which lr
        rises linearly.
    augment: 'none', or any of 'crop', 'flip', 'randaugment', 'autoaugment' (torchvision's, with its defaults) and
        'cutout16' (a black window of that side), joined by '+', as in 'crop+flip+cutout16'; they are applied in this
        order, whatever the order of the names. padding: pixels on each side before the crop; padding_mode:
        'reflect' or 'zeros'.
    precision: 'float32', or 'bfloat16' (autocast).
    evaluate_every: epochs between evaluations on the validation split (the test split where there is none) during
        training; 0: only after the last epoch.
    """

    epochs: int = 20
    batch_size: int = 128
    meta_batch_size: int = 128
    optimizer: str = "sgd"
    lr: float = 0.1
    schedule: str = "cosine"
    milestones: Sequence[float] = (0.5, 0.75)
    factor: float = 0.1
    warmup: float = 0.0
    momentum: float = 0.9
    nesterov: bool = True
    weight_decay: float = 1e-4
    augment: str = "none"
    padding: int = 4
    padding_mode: str = "reflect"
    precision: str = "float32"
    evaluate_every: int = 0

    def __new__(cls, *args: Any, **fields: Any) -> Recipe:
        """Name an unknown field, and the one that was probably meant, before the dataclass sees it."""
        known = [field.name for field in dataclasses.fields(cls)]
        for name in fields:
            if name not in known:
                close = difflib.get_close_matches(name, known, n=1)
                hint = f"did you mean {close[0]!r}?" if close else f"it has {', '.join(known)}"
                raise TypeError(f"Recipe has no field {name!r}; {hint}")
        return super().__new__(cls)

    def __post_init__(self) -> None:
        """Check every field; raises ValueError naming the field, what it got and what it takes."""
        object.__setattr__(self, "milestones", tuple(self.milestones))
        for name in ("epochs", "batch_size", "meta_batch_size"):
            _require(
                isinstance(getattr(self, name), int) and getattr(self, name) >= 1, self, name, "a whole number from 1"
            )
        for name in ("padding", "evaluate_every"):
            _require(
                isinstance(getattr(self, name), int) and getattr(self, name) >= 0, self, name, "a whole number from 0"
            )
        _require(math.isfinite(self.lr) and self.lr > 0, self, "lr", "a finite number above 0")
        _require(0 <= self.momentum < 1, self, "momentum", "a number in [0, 1)")
        _require(0 <= self.warmup < 1, self, "warmup", "a fraction in [0, 1)")
        _require(math.isfinite(self.weight_decay) and self.weight_decay >= 0, self, "weight_decay", "a number from 0")
        _require(all(0 < m < 1 for m in self.milestones), self, "milestones", "fractions of training in (0, 1)")
        names = [part.rstrip("0123456789") for part in self.augments]
        known = set(names) <= set(AUGMENTS) and len(names) == len(set(names))
        sized = all((name == part) != (name == "cutout") for name, part in zip(names, self.augments, strict=True))
        takes = f"'none', or {', '.join(AUGMENTS)} (with its side, as cutout16) joined by '+', each once"
        _require(self.augment == "none" or (known and sized), self, "augment", takes)
        choices = {"optimizer": OPTIMIZERS, "schedule": tuple(SCHEDULES)}
        choices |= {"precision": tuple(PRECISIONS), "padding_mode": ("reflect", "zeros")}
        for name, allowed in choices.items():
            _require(getattr(self, name) in allowed, self, name, f"one of {', '.join(allowed)}")

    @classmethod
    def preset(cls, name: str, **changes: Any) -> Recipe:
        """A paper's recipe (see ``PRESETS``), with some fields changed."""
        if name not in PRESETS:
            raise ValueError(f"preset: got {name!r}, takes one of {', '.join(PRESETS)}")
        return cls(**(PRESETS[name] | changes))

    @property
    def augments(self) -> tuple[str, ...]:
        """The parts of ``augment``."""
        return () if self.augment == "none" else tuple(self.augment.split("+"))

    @property
    def cutout(self) -> int:
        """Side of the window of Cutout, 0 for none."""
        return next((int(part.removeprefix("cutout")) for part in self.augments if part.startswith("cutout")), 0)

    def lr_at(self, progress: float) -> float:
        """Learning rate over its peak at a fraction of training in [0, 1]."""
        if progress < self.warmup:
            return progress / self.warmup
        return SCHEDULES[self.schedule](self, (progress - self.warmup) / (1 - self.warmup))


def _require(condition: bool, recipe: Recipe, name: str, takes: str) -> None:
    if not condition:
        raise ValueError(f"Recipe.{name}: got {getattr(recipe, name)!r}, takes {takes}")


PRESETS: dict[str, dict[str, Any]] = {
    # Wang et al. (NeurIPS 2019) and their released code: Nesterov 0.9, reflect-pad-4 crop and flip, batch 128.
    "isda/resnet": {"epochs": 160, "schedule": "step", "augment": "crop+flip"},
    "isda/se-resnet": {"epochs": 200, "schedule": "step", "milestones": (0.4, 0.6, 0.8), "augment": "crop+flip"},
    "isda/wide-resnet": {
        "epochs": 240,
        "schedule": "step",
        "milestones": (0.25, 0.5, 2 / 3, 5 / 6),
        "factor": 0.2,
        "weight_decay": 5e-4,
        "augment": "crop+flip",
    },
    # Li et al. (CVPR 2021) and their released code: 200 epochs, lr times 0.01 at epochs 160 and 180.
    "metasaug/resnet": {
        "epochs": 200,
        "batch_size": 100,
        "meta_batch_size": 100,
        "schedule": "step",
        "milestones": (0.8, 0.9),
        "factor": 0.01,
        "weight_decay": 5e-4,
        "augment": "crop+flip",
    },
    # Lee et al. (ICML 2020) and their released code: 80,000 steps of 128 images, zero-pad-4 crop and flip, no Nesterov.
    "sla/resnet": {
        "epochs": 205,
        "schedule": "step",
        "nesterov": False,
        "augment": "crop+flip",
        "padding_mode": "zeros",
    },
    # Page (2018-2019): one rise and one fall of the rate, batches of 512; room ``fast``.
    "fast/resnet9": {
        "epochs": 16,
        "batch_size": 512,
        "lr": 0.4,
        "schedule": "linear",
        "warmup": 0.2,
        "weight_decay": 5e-4,
        "augment": "crop+flip+cutout8",
        "precision": "bfloat16",
    },
    # Liu et al. (ECCV 2022), the CIFAR benchmark of the released code (openmixup), the shortest of its lengths.
    "openmixup/cifar": {"epochs": 200, "batch_size": 100, "nesterov": False, "augment": "crop+flip"},
}
