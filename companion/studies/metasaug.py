"""MetaSAug on long tails, beside ISDA and the losses and weights of the long tail; then one setting at a time.

Li et al., "MetaSAug: Meta Semantic Augmentation for Long-Tailed Visual Recognition", CVPR 2021,
https://arxiv.org/abs/2103.12579. All methods are trained on the same images, those of the meta set taken out, and
tested on a balanced set.
"""

from __future__ import annotations

from dataclasses import replace

from companion.plots import BLUE, GREEN, RED, YELLOW
from companion.studies import Arm, Setting, Study
from semaug.training.recipe import Recipe

NOTEBOOK = "1_metasaug"

# ---------------------------------------------------------------------------------------------------------------------
# Arms


def metasaug(change: str = "", meta_steps: int = 1, stage: float = 0.8, **settings: Setting) -> Arm:
    """MetaSAug as released but for a ``change``; its second stage begins after a part ``stage`` of training.

    There each meta step takes 8/3 passes over the network (``semaug.methods.metasaug``).
    """
    settings = {"strength": 0.75, **settings}
    settings |= {} if meta_steps == 1 else {"meta_steps": meta_steps}
    settings |= {} if stage == 0.8 else {"stage": stage}
    variant = not settings.keys() <= {"strength", "loss", "covariance"} or settings["strength"] != 0.75
    name, passes = f"MetaSAug, {change}" if change else "MetaSAug", 1 + (1 - stage) * meta_steps * 8 / 3
    return Arm(name, "MetaSAug", settings, RED, passes=passes, variant=variant)


CROSS_ENTROPY = Arm("cross-entropy", "CrossEntropy", color="black")
WEIGHTED = Arm("class weights", "LongTailed", {"beta": 0.9999}, YELLOW)
LDAM_DRW = Arm("LDAM-DRW", "LongTailed", {"loss": "ldam", "beta": 0.9999, "defer": 0.8}, GREEN)
METHODS = (
    CROSS_ENTROPY,
    WEIGHTED,
    Arm("CE-DRW", "LongTailed", {"beta": 0.9999, "defer": 0.8}, GREEN),
    Arm("focal loss", "LongTailed", {"loss": "focal"}, YELLOW),
    Arm("LDAM", "LongTailed", {"loss": "ldam"}, YELLOW),
    LDAM_DRW,
    Arm(
        "LDAM-DRW, s = 30", "LongTailed", {**LDAM_DRW.settings, "scale": 30.0, "normalised": True}, GREEN
    ),  # its paper's
    Arm("ISDA", "ISDA", {"strength": 0.5, "covariance": "full"}, BLUE),
    metasaug(),
    metasaug("CE", loss="ce"),
    metasaug("diagonal", covariance="diagonal"),
)
ABLATIONS = (
    metasaug("no meta step", meta_steps=0),
    metasaug("CE, no meta step", loss="ce", meta_steps=0),
    metasaug("3 meta steps", meta_steps=3),
    metasaug("Σ′ projected", psd=True),
    metasaug("Σ′ kept", keep=True),
    metasaug("α = 100, Σ′ projected", meta_lr=100.0, psd=True),  # the released step is 0.1
    metasaug("α = 10,000, Σ′ projected", meta_lr=10000.0, psd=True),
    metasaug("stage 2 from 40%", stage=0.4),  # two thirds of the second stage at the full learning rate
    metasaug("stage 2 from 40%, no meta step", stage=0.4, meta_steps=0),
    replace(LDAM_DRW, name="LDAM-DRW, stage 2 from 40%", settings={**LDAM_DRW.settings, "defer": 0.4}, variant=True),
)
STRENGTHS = tuple(metasaug(f"λ₀ = {strength:g}", strength=strength) for strength in (0.25, 0.5, 1.0))
LONG_STEPS = (
    metasaug("α = 10,000", meta_lr=10000.0),
    metasaug("α = 10,000, Σ′ projected and kept", meta_lr=10000.0, psd=True, keep=True),
    metasaug("α = 10,000, Σ′ projected, 3 meta steps", meta_lr=10000.0, psd=True, meta_steps=3),
)
LONGER = tuple(  # as many passes over the network as MetaSAug's 40 epochs take
    replace(arm, name=f"{arm.name}, 62 epochs", recipe={"epochs": 62}, variant=True) for arm in (WEIGHTED, LDAM_DRW)
)

# ---------------------------------------------------------------------------------------------------------------------
# Studies

RELEASED = Recipe.preset("metasaug/resnet", evaluate_every=20, precision="bfloat16")
CROP = replace(RELEASED, epochs=40, evaluate_every=4, precision="float32")
PLAIN = replace(CROP, augment="none")

MINI = {"name": "fashion-mini", "validation": 0.1, "imbalance": 100, "meta": 10}
CIFAR_10 = {"name": "cifar10", "validation": 0.1, "train_size": 10000, "imbalance": 10, "meta": 10}
CIFAR_100 = CIFAR_10 | {"imbalance": 100}

ALL = (*METHODS, *ABLATIONS, *LONGER, *STRENGTHS, *LONG_STEPS)
SMALL = Study(NOTEBOOK, "fashion-mini-100", "fashion-mini, ρ = 100", MINI, "small", PLAIN, ALL, 5, 25.0)
STEEP = Study(NOTEBOOK, "cifar10-100", "CIFAR-10, ρ = 100", CIFAR_100, "small", CROP, (*METHODS, *ABLATIONS), 5, 30.0)
MILD = Study(NOTEBOOK, "cifar10-10", "CIFAR-10, ρ = 10", CIFAR_10, "small", CROP, METHODS, 5, 50.0)
PAPER_SETTING = tuple(
    Study(NOTEBOOK, f"{name}-100-resnet32", title, data, "resnet32", RELEASED, (*METHODS, *ABLATIONS), 3, 80.0, "paper")
    for name, title, data in (
        ("cifar10", "CIFAR-10, ρ = 100, ResNet-32", {"name": "cifar10", "imbalance": 100, "meta": 10}),
        ("cifar100", "CIFAR-100, ρ = 100, ResNet-32", {"name": "cifar100", "imbalance": 100, "meta": 10}),
    )
)
STUDIES = (SMALL, STEEP, MILD, *PAPER_SETTING)
