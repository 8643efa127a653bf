"""The studies: one module a paper, which names its arms once, plans their runs and draws their figures.

A study is one experiment: a data set, a network and a recipe, under which several arms are trained on the same seeds.
An arm is a method with its settings. A module of this package offers

    NOTEBOOK                the notebook whose figures it draws
    STUDIES                 its studies, in the order of their worth
    FIGURES                 by file name, a function from an :class:`~companion.records.Index` to a picture
    PAPER                   what the paper reports: (setting, numbers, source)

and, where accuracies are not all there is to say, ``results(index)`` for the leaderboard and ``table(index)``. Such a
module is found here by itself: no list of them is kept.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import ModuleType
from typing import TYPE_CHECKING, Any

import torch

from semaug.training.recipe import Recipe

if TYPE_CHECKING:
    import numpy as np

    from semaug.data.sets import Data
    from semaug.training.record import Record

Setting = int | float | str | bool | None
Measured = tuple[dict[str, float], dict[str, list[float]]]
"""Metrics and curves."""


@dataclass(frozen=True)
class Arm:
    """A method as a study trains it.

    Args:
        name: what its records, legends and tables call it; unique within a study.
        objective: the class of the objective, such as "ISDA"; "GAN" for two players.
        settings: of the objective, where they differ from its defaults.
        color: in all figures.
        recipe: what differs from the study's recipe; ``{"times": 3}`` stands for three times the epochs.
        seeds: how many, where they differ from the study's.
        passes: passes over the network, forward and back, for each image and epoch; those of cross-entropy are 1.
        cost: estimated seconds over those of cross-entropy, where this differs from ``passes``.
        variant: whether it changes one setting of another arm; the leaderboard leaves it to the study's own figures.
    """

    name: str
    objective: str
    settings: Mapping[str, Setting] = field(default_factory=dict)
    color: str = "#777777"
    recipe: Mapping[str, Any] = field(default_factory=dict)
    seeds: int | None = None
    passes: float = 1.0
    cost: float | None = None
    variant: bool = False


@dataclass(frozen=True)
class Study:
    """One experiment: arms trained on one data set, by one recipe, on the same seeds.

    Args:
        name: short and unique among the studies of its notebook; part of its records.
        title: what figures call it.
        data: arguments of ``semaug.load``.
        network: a name in ``companion.runs.NETWORKS`` (for GANs in ``PLAYERS``).
        arms: the first is the baseline.
        seconds: estimate for one run of the baseline, on one core or one GPU.
        profile: "cpu" or "paper".
        judge: for GANs, arguments of ``semaug.load`` for the set whose classifier measures FID and KID.
        frames: for GANs, of how many codes the images are kept beside the records, at every measurement.
        measure: what a record says beside accuracy, of a trained objective.
        pictures: arrays to be kept beside the record of seed 0.
        execute: for a study whose arms are not trained by ``semaug.fit``, from a run (``companion.runs.Run``) and the
            folder of the data to its record and the arrays beside it.
    """

    notebook: str
    name: str
    title: str
    data: Mapping[str, Any]
    network: str
    recipe: Recipe
    arms: Sequence[Arm]
    seeds: int
    seconds: float
    profile: str = "cpu"
    judge: Mapping[str, Any] | None = None
    frames: int = 0
    measure: Callable[[Any, Data, torch.device], Measured] | None = None
    pictures: Callable[[Any, Data], dict[str, np.ndarray]] | None = None
    execute: Callable[[Any, str | None], tuple[Record, dict[str, np.ndarray]]] | None = None

    def __post_init__(self) -> None:
        """Refuse two arms of one name."""
        names = [arm.name for arm in self.arms]
        if len(set(names)) < len(names):
            raise ValueError(f"arms of study {self.name!r}: got {', '.join(names)}; takes each name once")

    @property
    def baseline(self) -> Arm:
        """The arm that differences are taken from."""
        return self.arms[0]

    def arm(self, name: str) -> Arm:
        """The arm of a name; ValueError listing them otherwise."""
        for arm in self.arms:
            if arm.name == name:
                return arm
        raise ValueError(f"arm: got {name!r}; takes one of {', '.join(arm.name for arm in self.arms)}")

    def recipe_of(self, arm: Arm) -> Recipe:
        """The recipe that an arm is trained by."""
        changes = dict(arm.recipe)
        times = changes.pop("times", 1)
        longer = {"epochs": times * self.recipe.epochs, "evaluate_every": times * self.recipe.evaluate_every}
        return replace(self.recipe, **{**longer, **changes})

    def seeds_of(self, arm: Arm) -> range:
        """The seeds that an arm is planned for."""
        return range(self.seeds if arm.seeds is None else arm.seeds)


class NothingToDraw(LookupError):
    """The records do not hold what a figure needs; the message says what that is."""


def modules() -> dict[str, ModuleType]:
    """The modules of this package by the notebook they belong to, in order of their names."""
    found = [importlib.import_module(f"{__name__}.{info.name}") for info in pkgutil.iter_modules(__path__)]
    return {module.NOTEBOOK: module for module in sorted(found, key=lambda module: str(module.NOTEBOOK))}


def studies(notebook: str | None = None, profile: str | None = None) -> Iterator[Study]:
    """All studies, or those of a notebook or a profile."""
    for module in modules().values():
        for study in module.STUDIES:
            if notebook in (None, study.notebook) and profile in (None, study.profile):
                yield study
