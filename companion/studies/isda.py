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


def isda(form: str, strength: float, change: str = "", **settings: Setting) -> Arm:
    """ISDA with covariances of a form at a strength, and with a ``change`` of its other settings."""
    name, color = f"ISDA {form}, λ₀ = {strength:g}{change}", BLUE if form == "full" else CYAN
    settings = {"covariance": form, "strength": strength, **settings}
    return Arm(name, "ISDA", settings, color, seeds=3 if change else None, variant=bool(change))


CROSS_ENTROPY = Arm("cross-entropy", "CrossEntropy", color="black")
FULL = tuple(isda("full", strength) for strength in (0.1, 0.25, 0.5, 1.0, 2.5))
DIAGONAL = tuple(isda("diagonal", strength) for strength in (0.5, 2.5, 7.5))
STRENGTHS = (CROSS_ENTROPY, *FULL, *DIAGONAL)
PAIR = (CROSS_ENTROPY, isda("full", 0.5))
FORMS = (*PAIR, isda("diagonal", 2.5))
CONTROLS = (  # other covariances of equal trace, and moments that forget
    *(isda("full", 0.5, f", control {name}", control=name) for name in ("diagonal", "identity", "random", "shared")),
    isda("full", 0.5, ", decay 0.99", decay=0.99),
)

# ---------------------------------------------------------------------------------------------------------------------
# Studies

PLAIN = Recipe(epochs=40, weight_decay=5e-4, evaluate_every=4)
CROP = replace(PLAIN, augment="crop+flip")
SHORT = replace(PLAIN, epochs=10, evaluate_every=1)
BRIEF = replace(CROP, epochs=20, evaluate_every=2)
RELEASED = Recipe.preset("isda/resnet", evaluate_every=10, precision="bfloat16")

MINI = {"name": "fashion-mini", "validation": 0.1}
MINI_500, MINI_2000 = MINI | {"train_size": 500}, MINI | {"train_size": 2000}
FASHION = {"name": "fashion", "validation": 0.1}
CIFAR_10000 = {"name": "cifar10", "validation": 0.1, "train_size": 10000}
CIFAR_5000 = CIFAR_10000 | {"train_size": 5000}

SMALL = Study(NOTEBOOK, "fashion-mini", "fashion-mini", MINI, "small", PLAIN, STRENGTHS, 10, 90.0)
SIZES = (  # the whole of fashion-mini is the third
    Study(NOTEBOOK, "fashion-mini-500", "fashion-mini, 500 images", MINI_500, "small", PLAIN, FORMS, 10, 8.0),
    Study(NOTEBOOK, "fashion-mini-2000", "fashion-mini, 2,000 images", MINI_2000, "small", PLAIN, FORMS, 10, 25.0),
)
COLOUR = Study(
    NOTEBOOK, "cifar10-10000", "CIFAR-10, 10,000 images", CIFAR_10000, "small", CROP, STRENGTHS, 10, seconds=170.0
)
WHOLE = Study(NOTEBOOK, "fashion", "Fashion-MNIST", FASHION, "small", SHORT, FORMS, 5, 160.0)
PIXELS = tuple(
    Study(NOTEBOOK, name, title, CIFAR_5000, "small", replace(BRIEF, augment=augment), arms, 5, seconds)
    for name, title, augment, arms, seconds in (
        ("cifar10-5000", "CIFAR-10, 5,000 images", "crop+flip", (*PAIR, *CONTROLS), 45.0),
        ("cifar10-5000-cutout16", "CIFAR-10, 5,000 images, Cutout", "crop+flip+cutout16", PAIR, 60.0),
        ("cifar10-5000-randaugment", "CIFAR-10, 5,000 images, RandAugment", "crop+flip+randaugment", PAIR, 60.0),
        ("cifar10-5000-autoaugment", "CIFAR-10, 5,000 images, AutoAugment", "crop+flip+autoaugment", PAIR, 60.0),
    )
)
PAPER_SETTING = tuple(
    Study(NOTEBOOK, f"{name}-resnet32", title, {"name": name}, "resnet32", RELEASED, PAIR, 5, 230.0, "paper")
    for name, title in (("cifar10", "CIFAR-10, ResNet-32"), ("cifar100", "CIFAR-100, ResNet-32"))
)
STUDIES = (SMALL, *SIZES, COLOUR, WHOLE, *PIXELS, *PAPER_SETTING)
