"""SLA (notebook 5): views of every image as data, as a second task and as joint labels.

H. Lee, S. J. Hwang, J. Shin, "Self-supervised label augmentation via input transformations", ICML 2020,
arXiv:1910.05872. Compared with cross-entropy for as many epochs, and for M times as many, which are as many passes.
A network trained on views infers in two ways, from the image as it is, in one pass, and from all M views together, in
M; one run records both, so a record stands in two rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from companion.plots import BLUE, GREEN, PURPLE, RED, YELLOW
from companion.studies import Arm, Setting, Study
from semaug.methods.sla import TRANSFORMS
from semaug.training.recipe import Recipe

NOTEBOOK = "5_sla"

# -- arms and studies --------------------------------------------------------------------------------------------------

BASELINE = Arm("cross-entropy", "CrossEntropy", color="black")
DISTILLED: dict[str, Setting] = {"temperature": 1.0, "inference": "single"}
WEIGHTS: dict[str, Setting] = {"beta": 0.9999, "defer": 0.8}
MARGINS: dict[str, Setting] = {**WEIGHTS, "loss": "ldam"}
METHODS: dict[str, tuple[str, dict[str, Setting], str]] = {
    "DA": ("DataAugmentation", {}, BLUE),
    "MT": ("MultiTask", {}, GREEN),
    "SLA": ("SLA", {}, RED),
    "SLA+SD": ("SLA", DISTILLED, PURPLE),
    "SLA+SD, no KL": ("SLA", {**DISTILLED, "distillation": 0.0}, PURPLE),
    "SLA, CE-DRW": ("LongTailedSLA", WEIGHTS, YELLOW),
    "SLA, LDAM-DRW": ("LongTailedSLA", MARGINS, YELLOW),
}


def on_views(*methods: str, transforms: str = "rotation") -> tuple[Arm, ...]:
    """Arms trained on the views of a set of transformations, which a name says where it is not the rotations."""
    arms, M = [], len(TRANSFORMS[transforms])
    for method in methods:
        name = method if transforms == "rotation" else f"{method}, {transforms}"
        objective, settings, color = METHODS[method]
        settings = {"transforms": transforms, **settings}
        arms.append(Arm(name, objective, settings, color, passes=M, cost=1.1 * M))
    return tuple(arms)


def longer(arm: Arm, times: int) -> Arm:
    """An arm for ``times`` as many epochs."""
    return replace(arm, name=f"{arm.name}, {times}x epochs", recipe={"times": times})


def of_views(*sets: str) -> tuple[Arm, ...]:
    """DA, SLA and cross-entropy with as many passes for several sets of transformations."""
    arms = []
    for transforms in sets:
        arms += [longer(BASELINE, len(TRANSFORMS[transforms])), *on_views("DA", "SLA", transforms=transforms)]
    return tuple(arms)


ROTATED = (BASELINE, longer(BASELINE, 4), *on_views("DA", "MT", "SLA", "SLA+SD"))
ALONE = on_views("SLA+SD, no KL")
WEIGHTED = (Arm("CE-DRW", "LongTailed", WEIGHTS, YELLOW), Arm("LDAM-DRW", "LongTailed", MARGINS, YELLOW))
TAIL = (
    BASELINE,
    *WEIGHTED,
    *(longer(arm, 4) for arm in WEIGHTED),
    *on_views("SLA", "SLA+SD", "SLA, CE-DRW", "SLA, LDAM-DRW"),
)

PLAIN = Recipe(epochs=20, weight_decay=5e-4, evaluate_every=5)
CROP = replace(PLAIN, augment="crop+flip")
FULL = Recipe.preset("sla/resnet", evaluate_every=10, precision="bfloat16")


def _study(
    name: str, title: str, data: Mapping[str, Any], recipe: Recipe, arms: tuple[Arm, ...], seconds: float
) -> Study:
    """Five seeds of the small network; ``seconds`` of an epoch of cross-entropy."""
    data = {"validation": 0.1, **data}
    return Study(NOTEBOOK, name, title, data, "small", recipe, arms, 5, seconds * recipe.epochs)


def _full(name: str, title: str) -> Study:
    arms = (*ROTATED, *on_views("SLA", "SLA+SD", transforms="color_perm"))
    seconds = 3.0 * FULL.epochs
    return Study(NOTEBOOK, f"{name}-resnet32", title, {"name": name}, "resnet32", FULL, arms, 3, seconds, "paper")


STUDIES = (
    _study(
        "fashion-mini",
        "fashion-mini, 2000 images",
        {"name": "fashion-mini", "train_size": 2000},
        PLAIN,
        (*ROTATED, *ALONE, *of_views("rotation2")),
        0.5,
    ),
    _study("mnist", "MNIST, 1000 images", {"name": "mnist", "train_size": 1000}, PLAIN, (*ROTATED, *ALONE), 0.3),
    _study(
        "shapes",
        "shapes, 1000 images",
        {"name": "shapes", "train_size": 1000},
        PLAIN,
        (*ROTATED, *ALONE, *of_views("rotation2", "color_perm3", "color_perm", "rotation+color_perm3")),
        0.4,
    ),
    _study(
        "cifar10",
        "CIFAR-10, 2000 images",
        {"name": "cifar10", "train_size": 2000},
        CROP,
        (*ROTATED, *of_views("rotation2", "color_perm3", "color_perm")),
        0.8,
    ),
    _study(
        "fashion-mini-tail",
        "fashion-mini, ρ = 100",
        {"name": "fashion-mini", "imbalance": 100},
        replace(PLAIN, epochs=40),
        TAIL,
        0.5,
    ),
    _study(
        "cifar10-tail",
        "CIFAR-10, ρ = 100",
        {"name": "cifar10", "train_size": 10000, "imbalance": 100},
        replace(CROP, epochs=40),
        TAIL,
        0.9,
    ),
    _full("cifar10", "CIFAR-10, ResNet-32"),
    _full("cifar100", "CIFAR-100, ResNet-32"),
)
