"""G-VAE (notebook 2): a VAE whose posterior is trained by ISDA's loss, beside a VAE and a conditional VAE.

Wu Tianyang, "ML algorithm exploration", 2023, code: https://github.com/wty-yy/KataCV. Compared are codes (a linear
probe), decoded images (class consistency over movement, squared error), one setting of G-VAE changed at a time, and
what the source proposes the method for: images that a classifier is trained on.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch

from companion.plots import CYAN, GREEN, GREY, PURPLE, RED, YELLOW
from companion.studies import Arm, Measured, Setting, Study
from semaug.data.sets import Data
from semaug.measures import codes
from semaug.training.recipe import Recipe

NOTEBOOK = "2_gvae"

# -- arms and studies --------------------------------------------------------------------------------------------------

USUAL: dict[str, Setting] = {"deviation": 0.27}
VAE = Arm("VAE", "VAE", USUAL, "black")
CONDITIONAL = Arm("conditional VAE", "ConditionalVAE", USUAL, GREEN)


def gvae(class_weight: float) -> Arm:
    """G-VAE with the usual deviation of the decoder; the class weight is in nats a nat."""
    return Arm("G-VAE", "GVAE", {**USUAL, "class_weight": class_weight}, RED)


def changed(what: str, **settings: Setting) -> Arm:
    """G-VAE on fashion-mini with one setting changed, or two."""
    merged = {**USUAL, "class_weight": 30.0, **settings}
    return Arm(f"G-VAE, {what}", "GVAE", merged, CYAN, seeds=3, variant=True)


CHANGES = (
    changed("s = 0.035", deviation=0.035),
    changed("s = 0.1", deviation=0.1),
    changed("s = 0.5", deviation=0.5),
    changed("c = 1", class_weight=1.0),
    changed("c = 100", class_weight=100.0),
    changed("s = 0.0079, c = 400", deviation=0.0079, class_weight=400.0),  # the author's note
    changed("s = 0.035, c = 400", deviation=0.035, class_weight=400.0),  # the author's code on digits
    changed("learned s, c", balance="learned"),
    changed("L1", reconstruction="l1"),
)


def augmented_by(name: str, color: str, cost: float = 1.0, **settings: Setting) -> Arm:
    """A classifier trained on images of a generator trained beside it."""
    return Arm(name, "Augmented", settings, color, cost=cost)


AUGMENTED = (
    augmented_by("none", GREY, method="none"),
    augmented_by("Gaussian noise", YELLOW, method="noise", strength=0.1),
    augmented_by("VAE", "black", 3, method="vae", deviation=0.27),
    augmented_by("conditional VAE", GREEN, 3, method="cvae", deviation=0.27),
    augmented_by("G-VAE", RED, 3, method="gvae", deviation=0.27, class_weight=30.0),
    augmented_by("G-VAE, difference", PURPLE, 3, method="gvae", deviation=0.27, class_weight=30.0, residual=True),
)

ADAM = Recipe(epochs=30, batch_size=64, optimizer="adam", lr=3e-3, schedule="linear", weight_decay=0.0)
FINE = replace(ADAM, batch_size=32)  # steps, not images, are what larger images lack
FULL = replace(ADAM, batch_size=128, lr=5e-4)


def _measure(objective: Any, dataset: Data, device: torch.device) -> Measured:
    return codes.measures(objective, dataset, device), {}


def _pictures(objective: Any, dataset: Data) -> dict[str, np.ndarray]:
    return codes.pictures(objective, dataset)


def _study(
    name: str, title: str, data: dict[str, Any], network: str, recipe: Recipe, arms: tuple[Arm, ...], **rest: Any
) -> Study:
    hooks = {} if arms is AUGMENTED else {"measure": _measure, "pictures": _pictures}
    return Study(NOTEBOOK, name, title, data, network, recipe, arms, **hooks, **rest)


def _part(name: str, images: int) -> dict[str, Any]:
    return {"name": name, "validation": 0.1, "train_size": images}


def _paper(weight: float) -> tuple[Arm, ...]:
    code = {"deviation": 0.035, "class_weight": weight}  # weights 1 of the squares and 2.5e-3 of KL; c is 1, or 20
    author = Arm(f"G-VAE, s = 0.035, c = {weight:g}", "GVAE", code, CYAN, variant=True)
    return VAE, CONDITIONAL, gvae(30.0), author


FASHION = _study(
    "fashion-mini",
    "fashion-mini, 2000 images",
    _part("fashion-mini", 2000),
    "autoencoder16",
    ADAM,
    (VAE, CONDITIONAL, gvae(30.0), *CHANGES),
    seeds=5,
    seconds=70,
)
DIGITS = _study(
    "mnist",
    "MNIST, 2000 images",
    _part("mnist", 2000),
    "autoencoder16",
    ADAM,
    (VAE, CONDITIONAL, gvae(30.0)),
    seeds=3,
    seconds=70,
)
FACES = _study(  # without a conditional VAE: they cost most
    "faces",
    "LFW faces, 1500 images",
    _part("lfw64", 1500),
    "autoencoder64",
    replace(FINE, epochs=25),
    (VAE, gvae(300.0)),
    seeds=3,
    seconds=280,
)
SHAPES = _study(
    "shapes",
    "shapes, 2000 images",
    _part("shapes", 2000),
    "autoencoder16",
    FINE,
    (VAE, CONDITIONAL, gvae(100.0)),
    seeds=3,
    seconds=90,
)
PHOTOS = _study(
    "cifar10",
    "CIFAR-10, 3000 images",
    _part("cifar10", 3000),
    "autoencoder64",
    replace(FINE, epochs=20),
    (VAE, CONDITIONAL, gvae(100.0)),
    seeds=3,
    seconds=110,
)
CLASSIFIERS = (
    _study(
        "fashion-mini-augmented",
        "fashion-mini, 2000 images",
        _part("fashion-mini", 2000),
        "small",
        ADAM,
        AUGMENTED,
        seeds=5,
        seconds=27,
    ),
    _study(
        "fashion-mini-500-augmented",
        "fashion-mini, 500 images",
        _part("fashion-mini", 500),
        "small",
        replace(ADAM, epochs=60),
        AUGMENTED,
        seeds=5,
        seconds=13,
    ),
)
PAPER_STUDIES = (  # 30 epochs x 20 repeats, 5 x 20 and 10, as in the author's code
    _study(
        "mnist-full",
        "MNIST, all images",
        {"name": "mnist"},
        "autoencoder128",
        replace(FULL, epochs=600, schedule="constant"),
        _paper(400.0),
        seeds=3,
        seconds=3600,
        profile="paper",
    ),
    _study(
        "cifar10-full",
        "CIFAR-10, all images",
        {"name": "cifar10"},
        "autoencoder2048",
        replace(FULL, epochs=100, schedule="cosine"),
        _paper(8000.0),
        seeds=3,
        seconds=3600,
        profile="paper",
    ),
    _study(
        "celeba",
        "CelebA, all images",
        {"name": "celeba"},
        "autoencoder2048-faces",
        replace(FULL, epochs=10, batch_size=32, schedule="cosine"),
        _paper(8000.0),
        seeds=3,
        seconds=3600,
        profile="paper",
    ),
)
LEARNING = (FASHION, DIGITS, FACES, SHAPES, PHOTOS)
STUDIES = (*LEARNING, *CLASSIFIERS, *PAPER_STUDIES)
