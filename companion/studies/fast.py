"""The fast recipe on CIFAR-10: how little time a GPU needs for 94% of accuracy. No notebook's, and without figures."""

from __future__ import annotations

from companion.studies import Arm, Study
from semaug.training.recipe import Recipe

NOTEBOOK = "fast"

RECIPE = Recipe.preset("fast/resnet9")
ARMS = (Arm("16 epochs", "Smoothed"), Arm("20 epochs", "Smoothed", recipe={"epochs": 20}))
CIFAR = {"name": "cifar10"}
STUDIES = (Study(NOTEBOOK, "cifar10", "CIFAR-10, ResNet-9", CIFAR, "resnet9", RECIPE, ARMS, 5, 15.0, "paper"),)
FIGURES: dict[str, object] = {}
PAPER: tuple[tuple[str, str, str], ...] = ()
