"""What every training loop does alike: configuration, seed, generators, device, optimiser, memory."""

from __future__ import annotations

import dataclasses
import math
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from numbers import Integral
from typing import Any

import torch

from semaug._checks import require
from semaug.data.sets import Data
from semaug.training.recipe import Recipe


def configuration(
    objective: str, settings: Mapping[str, object], network: str, data: Data, recipe: Recipe
) -> dict[str, Any]:
    """What decides a run's result besides its seed, as plain values for its record.

    Identity is content: beside the name and the settings of the data stands the digest of their images and labels.

    Raises:
        TypeError: for a setting that JSON lacks.
    """
    for part, values in (("settings", settings), ("data", data.settings)):
        for name, value in values.items():
            finite = type(value) is not float or math.isfinite(value)
            plain = type(value) in (int, float, str, bool, type(None)) and finite
            require(plain, f"{part}[{name!r}]", value, "a finite number, a string, True, False or None", TypeError)
    return {
        "objective": objective,
        "settings": dict(settings),
        "network": network,
        "data": data.identity,
        "recipe": dataclasses.asdict(recipe) | {"milestones": list(recipe.milestones)},
    }


def check_seed(seed: int) -> int:
    """The seed as a plain whole number (NumPy's too); raises TypeError for anything else."""
    require(isinstance(seed, Integral) and not isinstance(seed, bool), "seed", seed, "a whole number", TypeError)
    return int(seed)


def global_generators(device: torch.device) -> list[torch.Generator]:
    """The generators that dropout and the like draw from; torch.manual_seed would change every other device's too."""
    generators = [torch.default_generator]
    if device.type == "cuda":
        index = torch.cuda.current_device() if device.index is None else device.index
        generators.append(torch.cuda.default_generators[index])
    return generators


@contextmanager
def prepared(device: torch.device) -> Iterator[None]:
    """The global generators forked; a GPU made the current one, its fastest way of each convolution looked for.

    Not where the user asked for deterministic algorithms, by torch or for cuDNN alone: another choice rounds otherwise.
    """
    cuda, before = device.type == "cuda", torch.backends.cudnn.benchmark
    exact = torch.are_deterministic_algorithms_enabled() or torch.backends.cudnn.deterministic
    with torch.random.fork_rng(devices=[device] if cuda else []), torch.cuda.device(device) if cuda else nullcontext():
        torch.backends.cudnn.benchmark = not exact
        try:
            yield
        finally:
            torch.backends.cudnn.benchmark = before


def make_optimizer(groups: list[dict[str, Any]], recipe: Recipe, device: torch.device) -> torch.optim.Optimizer:
    """On a GPU fused: one kernel in place of several for each group, and a learning rate that may be a tensor."""
    options: dict[str, Any] = {"lr": recipe.lr, "weight_decay": recipe.weight_decay}
    options |= {"fused": True} if device.type == "cuda" else {}
    if recipe.optimizer == "adam":
        return torch.optim.Adam(groups, betas=(recipe.momentum, 0.999), **options)
    nesterov = recipe.nesterov and recipe.momentum > 0
    return torch.optim.SGD(groups, momentum=recipe.momentum, nesterov=nesterov, **options)


def peak_memory(device: torch.device) -> int:
    """Bytes: a GPU's peak allocation, or on the CPU the process's peak resident memory (0 on Windows: not asked)."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource  # here, not at the top: Windows has none
    except ImportError:
        return 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
