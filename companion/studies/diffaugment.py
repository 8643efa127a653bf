r"""DiffAugment: GANs by the place where a transformation T stands, and a classifier by what augments it.

Zhao et al., *Differentiable Augmentation for Data-Efficient GAN Training*, NeurIPS 2020
(https://arxiv.org/abs/2006.10738).

GANs are trained for as many steps at every number of images. Their records say more than their losses
(``semaug.measures.gans.Quality``), at several steps: FID and KID of features of a classifier trained here, what the
discriminator remembers, how near samples are to training images, and whether T leaks into them. Pictures of seed 0 lie
beside the records. A classifier is trained under no, fixed and learned augmentation of images and of features, and with
MixStyle, which mixes the styles of images, across two domains.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from companion.plots import BLUE, CYAN, GREEN, GREY, PURPLE, RED, YELLOW
from companion.studies import Arm, Setting, Study
from semaug.training.recipe import Recipe

NOTEBOOK = "4_diffaugment"

# ---------------------------------------------------------------------------------------------------------------------
# GANs by where T stands

_SLOWER: dict[str, Setting] = {"generator_lr": 5e-4}


def _gan(name: str, color: str, **settings: Setting) -> Arm:
    return Arm(name, "GAN", {**_SLOWER, **settings}, color)


BASELINE = "no augmentation"

NOWHERE = _gan(BASELINE, "black", where="nowhere")
REALS = _gan("reals only", RED, where="reals")
DISCRIMINATOR = _gan("discriminator only", YELLOW, where="discriminator")
EVERYWHERE = _gan("DiffAugment", BLUE, where="everywhere")

PLACES = (NOWHERE, REALS, DISCRIMINATOR, EVERYWHERE)

ADAPTIVE = replace(_gan("DiffAugment, adaptive", CYAN, ada_span=10000.0), seeds=3)
PENALISED = replace(_gan("no augmentation, R1 penalty", PURPLE, where="nowhere", r1=1.0), seeds=3)

_ADAM = Recipe(batch_size=32, optimizer="adam", lr=1e-3, momentum=0.5, schedule="constant", weight_decay=0.0)

_CLOTHES = {"name": "fashion-mini", "validation": 0.1}
_FACES = {"name": "portraits", "size": 32, "train_size": 100}
_PHOTOS = {"name": "cifar10", "validation": 0.1, "train_size": 1000, "test_size": 2000}

_OF_FACES = {"name": "strangers", "size": 32, "train_size": 3000}
_OF_PHOTOS = {**_PHOTOS, "train_size": 10000}


def _players(
    title: str,
    data: Mapping[str, Any],
    judge: Mapping[str, Any],
    arms: tuple[Arm, ...] = PLACES,
    seeds: int = 3,
    times: int = 1,
) -> Study:
    """1350 steps of the discriminator, or times as many, measured nine times (six, where they are six epochs).

    judge: the set whose classifier's features FID and KID are of; of a hundred images no classifier can be made.
    """
    images = data.get("train_size", 7200)
    epochs = round(times * 1350 / (images // _ADAM.batch_size))
    recipe = replace(_ADAM, epochs=epochs, evaluate_every=max(1, epochs // 9))
    name, longer = f"{data['name']}-{images}", f", {times} times the steps" if times > 1 else ""
    return Study(
        NOTEBOOK,
        f"{name}-{times}x" if times > 1 else name,
        f"{title}, {images} images{longer}",
        data,
        "dcgan",
        recipe,
        arms,
        seeds,
        times * (80.0 if judge is _CLOTHES else 110.0),
        judge=judge,
    )


_FEW = {**_CLOTHES, "train_size": 100}
_BOTH = (NOWHERE, EVERYWHERE)
_AT_100 = (NOWHERE, replace(REALS, seeds=3), replace(DISCRIMINATOR, seeds=3), EVERYWHERE, ADAPTIVE, PENALISED)

GREYS = (
    _players("fashion-mini", _FEW, _CLOTHES, _AT_100, seeds=5),
    _players("fashion-mini", {**_CLOTHES, "train_size": 200}, _CLOTHES),
    _players("fashion-mini", {**_CLOTHES, "train_size": 1000}, _CLOTHES),
    _players("fashion-mini", _CLOTHES, _CLOTHES),
)
"""Studies of clothing, in order of the number of images."""

COLOURED = (_players("portraits", _FACES, _OF_FACES), _players("CIFAR-10", _PHOTOS, _OF_PHOTOS))

LONGER = (
    _players("fashion-mini", _FEW, _CLOTHES, _BOTH, seeds=5, times=4),
    _players("portraits", _FACES, _OF_FACES, _BOTH, times=4),
)

_BIG = Recipe(batch_size=64, optimizer="adam", lr=2e-4, momentum=0.0, schedule="constant", weight_decay=0.0)


def _large(images: int, policy: str) -> Study:
    """CIFAR-10 by the paper's recipe: 200,000 steps of the discriminator, four for one of the generator."""
    epochs = 200000 // (images // _BIG.batch_size)
    usual: dict[str, Setting] = {"ratio": 4, "ema": 0.999}
    arms = tuple(
        replace(arm, settings={**usual, "where": where, **({} if arm is NOWHERE else {"policy": policy})})
        for arm, where in zip(PLACES, ("nowhere", "reals", "discriminator", "everywhere"), strict=True)
    )
    data = {"name": "cifar10", "validation": 0.1, "train_size": images}
    recipe = replace(_BIG, epochs=epochs, evaluate_every=epochs // 20)
    judge = {**data, "train_size": 45000}
    title, name = f"CIFAR-10, {images} images", f"cifar10-{images}-paper"
    return Study(NOTEBOOK, name, title, data, "dcgan-wide", recipe, arms, 3, 2400, "paper", judge)


LARGE = (_large(5000, "translation,cutout"), _large(10000, "translation,cutout"), _large(45000, "cutout"))

# ---------------------------------------------------------------------------------------------------------------------
# Classifiers

PLAIN = Arm("cross-entropy", "CrossEntropy", color="black")

_TAUGHT: dict[str, Setting] = {"ema": 0.99, "augmentation_lr": 1e-3}

SCALES = tuple(
    Arm(f"features, scale {scale:g}", "FeatureAugmentation", {"scale": scale}, CYAN)
    for scale in (0.0, 1e-4, 0.01, 0.1, 1.0, 10.0)
)
"""Learned augmentation of features, by the scale of the reversed gradient."""

CLASSIFIERS = Study(
    NOTEBOOK,
    "fashion-mini-classifiers",
    "fashion-mini, 2000 images, 40 epochs",
    {**_CLOTHES, "train_size": 2000},
    "small",
    Recipe(epochs=40, optimizer="adam", lr=2e-3, weight_decay=0.0, evaluate_every=4),  # the generators need Adam
    (
        PLAIN,
        Arm("crop", "CrossEntropy", color=GREY, recipe={"augment": "crop"}),
        Arm("crop and flip", "CrossEntropy", color=GREY, recipe={"augment": "crop+flip"}),
        Arm("T: color, translation, cutout", "FixedAugmentation", {"policy": "color,translation,cutout"}, GREEN),
        Arm("T: translation, cutout", "FixedAugmentation", {"policy": "translation,cutout"}, GREEN),
        Arm("ISDA, λ₀ = 0.5", "ISDA", {"strength": 0.5, "covariance": "full"}, BLUE),
        *SCALES,
        Arm("TeachAugment, reach 0.2", "TeachAugment", {**_TAUGHT, "reach": 0.2}, RED, passes=1.4, cost=1.5),
        Arm("TeachAugment, reach 0.5", "TeachAugment", _TAUGHT, RED, passes=1.4, cost=1.5),
    ),
    seeds=5,
    seconds=30,
)

DOMAINS = Study(
    NOTEBOOK,
    "hues",
    "hues, 1000 images",
    {"name": "hues", "validation": 0.1, "train_size": 1000},
    "small",
    Recipe(epochs=40, weight_decay=5e-4, evaluate_every=4),
    (
        PLAIN,
        Arm("MixStyle, stage 1", "MixStyle", {"last": 1}, CYAN),
        Arm("MixStyle, stages 1 and 2", "MixStyle", color=CYAN),
    ),
    seeds=5,
    seconds=20,
)

STUDIES = (GREYS[0], GREYS[2], CLASSIFIERS, DOMAINS, *COLOURED, GREYS[1], GREYS[3], *LONGER, *LARGE)
