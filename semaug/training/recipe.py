"""Recipes: how to train, apart from the objective, as plain values that go into every record."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import torch

from semaug._checks import check_choice, check_count, check_flag, check_number, require

SCHEDULES: dict[str, Callable[[Recipe, float], float]] = {
    "constant": lambda recipe, fraction: 1.0,
    "cosine": lambda recipe, fraction: 0.5 * (1 + math.cos(math.pi * fraction)),
    "linear": lambda recipe, fraction: 1 - fraction,
    "step": lambda recipe, fraction: recipe.factor ** sum(fraction > milestone for milestone in recipe.milestones),
}

"""Learning rate over its peak, as a function of the fraction of training done (after the warm-up) in [0, 1]."""

PRECISIONS = {"float32": None, "bfloat16": torch.bfloat16}

AUGMENTS = ("crop", "flip", "randaugment", "autoaugment", "cutout[1-9][0-9]*")


def _one_of(choices: Iterable[str]) -> Callable[[str, str], str]:
    return lambda name, value: str(check_choice(name, value, tuple(choices)))


# What each field takes, and returns as a plain value: a count, a number, a choice.
CHECKS: dict[str, Callable[[str, Any], Any]] = {
    **dict.fromkeys(("epochs", "batch_size", "meta_batch_size"), check_count),
    **dict.fromkeys(("padding", "evaluate_every"), partial(check_count, low=0)),
    **dict.fromkeys(("lr", "factor"), partial(check_number, low=0, without=(0,))),
    **dict.fromkeys(("warmup", "momentum"), partial(check_number, low=0, high=1, without=(1,))),
    "weight_decay": partial(check_number, low=0),
    "nesterov": check_flag,
    "optimizer": _one_of(("sgd", "adam")),
    "schedule": _one_of(SCHEDULES),
    "padding_mode": _one_of(("reflect", "zeros")),
    "precision": _one_of(PRECISIONS),
}


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How to train, apart from the objective; part of every record.

    Attributes:
        epochs: passes over the training set; the last, smaller batch of each is dropped (static shapes).
        batch_size, meta_batch_size: images a step in the two streams, over all ranks together.
        optimizer: 'sgd' (momentum, nesterov) or 'adam' (momentum is its first beta).
        lr: peak learning rate.
        schedule: 'constant', 'cosine', 'linear' or 'step' (times ``factor`` after each of ``milestones``).
        milestones: fractions, in (0, 1), of what follows the warm-up.
        warmup: the first fraction of training, in which lr rises linearly.
        weight_decay: L2, as in the papers.
        augment: 'none', or any of 'crop', 'flip', 'randaugment', 'autoaugment' (torchvision's, with its defaults) and
            'cutout16' (a black window of that side), joined by '+', as in 'crop+flip+cutout16'; they are applied in
            this order, whatever the order of the names.
        padding: pixels on each side before the crop.
        padding_mode: 'reflect' or 'zeros'.
        precision: 'float32', or 'bfloat16' (autocast).
        evaluate_every: epochs between evaluations on the validation split (the test split where there is none) during
            training; 0: only after the last epoch.

    Raises:
        ValueError: naming the field, what it got and what it takes.
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

    def __post_init__(self) -> None:
        """Hold every field to what it takes, as a plain value that a record and a checkpoint can hold."""
        plain = {name: check(f"Recipe.{name}", getattr(self, name)) for name, check in CHECKS.items()}
        listed = isinstance(self.milestones, Iterable) and not isinstance(self.milestones, str)
        require(listed, "Recipe.milestones", self.milestones, "a sequence of fractions in (0, 1)")
        plain["milestones"] = tuple(check_number("Recipe.milestones", one, 0, 1, (0, 1)) for one in self.milestones)
        plain["augment"] = augment = str(self.augment)
        part, names = f"({'|'.join(AUGMENTS)})", [part.rstrip("0123456789") for part in augment.split("+")]
        good = re.fullmatch(rf"none|{part}(\+{part})*", augment) is not None and len(set(names)) == len(names)
        takes = "'none', or crop, flip, randaugment, autoaugment, cutout16 (or another side) joined by '+', each once"
        require(good, "Recipe.augment", self.augment, takes)
        vars(self).update(plain)

    @classmethod
    def preset(cls, name: str, **changes: Any) -> Recipe:
        """A paper's recipe (see ``PRESETS``), with some fields changed."""
        return cls(**(PRESETS[check_choice("preset", name, tuple(PRESETS))] | changes))

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


STEPS = {"schedule": "step", "augment": "crop+flip"}

PRESETS: dict[str, dict[str, Any]] = {
    # Wang et al. (NeurIPS 2019) and their released code: Nesterov 0.9, reflect-pad-4 crop and flip, batch 128.
    "isda/resnet": {**STEPS, "epochs": 160},
    "isda/se-resnet": {**STEPS, "epochs": 200, "milestones": (0.4, 0.6, 0.8)},
    "isda/wide-resnet": {
        **STEPS,
        "epochs": 240,
        "milestones": (0.25, 0.5, 2 / 3, 5 / 6),
        "factor": 0.2,
        "weight_decay": 5e-4,
    },
    # Li et al. (CVPR 2021) and their released code: 200 epochs, lr times 0.01 at epochs 160 and 180.
    "metasaug/resnet": {
        **STEPS,
        "epochs": 200,
        "batch_size": 100,
        "meta_batch_size": 100,
        "milestones": (0.8, 0.9),
        "factor": 0.01,
        "weight_decay": 5e-4,
    },
    # Cao et al. (NeurIPS 2019) and their released code (kaidic/LDAM-DRW): zero-pad-4 crop and flip. The rate rises in 5
    # epochs (there at every epoch, here at every step) and falls to a hundredth after epochs 160 and 180.
    "ldam/resnet": {
        **STEPS,
        "epochs": 200,
        "warmup": 5 / 200,
        "milestones": (155 / 195, 175 / 195),
        "factor": 0.01,
        "nesterov": False,
        "weight_decay": 2e-4,
        "padding_mode": "zeros",
    },
    # Lee et al. (ICML 2020) and their released code: 80,000 steps of 128 images, zero-pad-4 crop and flip, no Nesterov.
    # 80,000 steps are 205 epochs of 50,000 images; the released split trains on 45,000, where they are 228.
    "sla/resnet": {**STEPS, "epochs": 205, "nesterov": False, "padding_mode": "zeros"},
    # Page (2018-2019): one rise and one fall of the rate, batches of 512, with the network ``networks.resnet9``.
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
