"""ISDA beside cross-entropy, over its strength, its two forms of covariance, data sets and their sizes.

Wang et al., "Regularizing Deep Networks with Semantic Data Augmentation", TPAMI 2021, https://arxiv.org/abs/2007.10538.
"""

from __future__ import annotations

from dataclasses import replace

from companion.plots import BLUE, CYAN
from companion.studies import Arm, Setting, Study
from semaug.training.recipe import Recipe

NOTEBOOK = "1_isda"

# ---------------------------------------------------------------------------------------------------------------------
# Arms


def isda(form: str, strength: float, more: str = "", **changes: Setting) -> Arm:
    """ISDA with covariances of a form at a strength; ``more`` names what else of it ``changes``."""
    settings = {"covariance": form, "strength": strength, **changes}
    name = f"ISDA {form}, λ₀ = {strength:g}{more}"
    return Arm(name, "ISDA", settings, BLUE if form == "full" else CYAN, variant=bool(changes))


CROSS_ENTROPY = Arm("cross-entropy", "CrossEntropy", color="black")
FULL = tuple(isda("full", strength) for strength in (0.1, 0.25, 0.5, 1.0, 2.5))
DIAGONAL = tuple(isda("diagonal", strength) for strength in (0.5, 2.5, 7.5))
USUAL = isda("full", 0.5)
PAIR = (CROSS_ENTROPY, USUAL)
FORMS = (*PAIR, isda("diagonal", 2.5))
STRENGTHS = (CROSS_ENTROPY, *FULL, *DIAGONAL)
CONTROLS = (
    *(isda("full", 0.5, f", control {name}", control=name) for name in ("diagonal", "identity", "random", "shared")),
    isda("full", 0.5, ", decay 0.99", decay=0.99),
)

# ---------------------------------------------------------------------------------------------------------------------
# Studies

PLAIN = Recipe(epochs=40, weight_decay=5e-4, evaluate_every=4)
CROP = replace(PLAIN, augment="crop+flip")
SHORT = replace(PLAIN, epochs=10, evaluate_every=1)
BRIEF = replace(CROP, epochs=20, evaluate_every=2)
PAPERS_OWN = Recipe.preset("isda/resnet", evaluate_every=10, precision="bfloat16")

MINI = {"name": "fashion-mini", "validation": 0.1}
CIFAR = {"name": "cifar10", "validation": 0.1}
FEW = CIFAR | {"train_size": 5000}

POLICIES = {"cutout16": "Cutout", "randaugment": "RandAugment", "autoaugment": "AutoAugment"}

SWEPT = (
    Study(NOTEBOOK, "fashion-mini", "fashion-mini", MINI, "small", PLAIN, STRENGTHS, 10, 90.0),
    Study(
        *(NOTEBOOK, "cifar10-10000", "CIFAR-10, 10,000 images", CIFAR | {"train_size": 10000}),
        *("small", CROP, STRENGTHS, 10, 170.0),
    ),
)
SIZES = (
    *(
        Study(
            *(NOTEBOOK, f"fashion-mini-{size}", f"fashion-mini, {size:,} images", MINI | {"train_size": size}),
            *("small", PLAIN, FORMS, 10, seconds),
        )
        for size, seconds in ((500, 8.0), (2000, 25.0))
    ),
    SWEPT[0],
)
WHOLE = Study(
    NOTEBOOK, "fashion", "Fashion-MNIST", {"name": "fashion", "validation": 0.1}, "small", SHORT, FORMS, 5, 160.0
)
AUGMENTED = (
    Study(
        *(NOTEBOOK, "cifar10-5000", "CIFAR-10, 5,000 images", FEW, "small", BRIEF),
        *((*PAIR, *(replace(arm, seeds=3) for arm in CONTROLS)), 5, 45.0),
    ),
    *(
        Study(
            *(NOTEBOOK, f"cifar10-5000-{policy}", f"CIFAR-10, 5,000 images, {name}", FEW, "small"),
            *(replace(BRIEF, augment=f"crop+flip+{policy}"), PAIR, 5, 60.0),
        )
        for policy, name in POLICIES.items()
    ),
)
PAPER_SETTING = tuple(
    Study(
        NOTEBOOK,
        f"{name}-resnet32",
        f"{title}, ResNet-32",
        {"name": name},
        "resnet32",
        PAPERS_OWN,
        PAIR,
        5,
        230.0,
        "paper",
    )
    for name, title in (("cifar10", "CIFAR-10"), ("cifar100", "CIFAR-100"))
)
STUDIES = (*SWEPT, *SIZES[:2], WHOLE, *AUGMENTED, *PAPER_SETTING)
