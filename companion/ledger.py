"""The ledger: the runs that the committed figures stand on, in order of worth, and what of them is there.

A figure is only as good as the runs behind it, and those take hours on two cores. Each run (room ``experiment``) is
named here once. ``python -m companion.ledger`` prints what is there and what is missing; with ``--minutes`` it runs the
next ones that fit.
"""

from __future__ import annotations

import argparse
import math
import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import product
from typing import Any

import torch

from companion.runs import GANRun, Run, complete
from semaug.methods.augmented import METHODS
from semaug.methods.sla import TRANSFORMS
from semaug.training.loop import MOST_TOGETHER, Recipe, resolve_device
from semaug.training.objective import Setting


def runs() -> Iterator[Run]:
    """Every run of the ledger, most worth first; within a tier all methods of one seed before the next seed."""
    yield from isda_runs()
    yield from long_tail_runs()
    yield from sla_runs()
    yield from gvae_runs()
    yield from mixing_runs()
    yield from gan_runs()


POLICIES = ("cutout16", "randaugment", "autoaugment")

"""Augmentations of pixels that ISDA is run beside."""


def isda_runs() -> Iterator[Run]:
    """Notebook 1: CE and ISDA over strength, form, data set and its size; strength is to be chosen on validation."""

    def method(text: str) -> tuple[str, dict[str, Setting]]:
        """'' is cross-entropy; 'form strength' ISDA, perhaps with a control or with decay."""
        if not text:
            return "CrossEntropy", {}
        form, strength, *option = text.split()
        settings: dict[str, Setting] = {"covariance": form, "strength": float(strength)}
        for name in option:
            settings |= {"decay": 0.99} if name == "decay" else {"control": name}
        return "ISDA", settings

    plain = Recipe(epochs=40, weight_decay=5e-4, evaluate_every=4)
    crop = replace(plain, augment="crop+flip")
    brief, short = replace(crop, epochs=20, evaluate_every=2), replace(plain, epochs=10, evaluate_every=1)
    embedded: dict[str, Any] = {"name": "embedded", "validation": 0.1}
    cifar10: dict[str, Any] = {"name": "cifar10", "validation": 0.1, "train_size": 10000}
    half = cifar10 | {"train_size": 5000}
    fashion: dict[str, Any] = {"name": "fashion", "validation": 0.1}
    few, forms = ("", "full 0.5"), ("", "full 0.5", "diagonal 2.5")
    strengths = ("full 0.1", "full 0.25", "full 1", "full 2.5", "diagonal 0.5", "diagonal 2.5", "diagonal 7.5")
    others = ("full 0.5 identity", "full 0.5 shared", "full 0.5 diagonal", "full 0.5 random", "full 0.5 decay")
    tiers: list[tuple[dict[str, Any], Recipe, float, tuple[str, ...], int]] = [  # set, recipe, seconds, methods, seeds
        (embedded, plain, 90.0, forms, 10),
        (embedded | {"train_size": 500}, plain, 8.0, forms, 10),
        (embedded | {"train_size": 2000}, plain, 25.0, forms, 10),
        (cifar10, crop, 170.0, few, 10),
        (cifar10, crop, 170.0, strengths, 10),
        (embedded, plain, 90.0, tuple(text for text in strengths if text not in forms), 10),
        (fashion, short, 160.0, forms, 5),
        (half, brief, 45.0, few, 5),
        *((half, replace(brief, augment=f"crop+flip+{policy}"), 60.0, few, 5) for policy in POLICIES),
        (half, brief, 45.0, others, 3),
    ]
    for of, recipe, seconds, methods, seeds in tiers:
        for seed, text in product(range(seeds), methods):
            objective, settings = method(text)
            yield Run("1_isda", "cpu", objective, "small", of, recipe, seconds, settings, seed)
    paper = Recipe.preset("isda/resnet", evaluate_every=10, precision="bfloat16")
    quick = Recipe.preset("fast/resnet9")
    for seed, name, text in product(range(5), ("cifar10", "cifar100"), few):
        objective, settings = method(text)
        yield Run("1_isda", "paper", objective, "resnet32", {"name": name}, paper, 230.0, settings, seed)
    for recipe, seed in product((quick, replace(quick, epochs=20)), range(5)):  # no notebook's: how fast a GPU is
        yield Run("fast", "paper", "Smoothed", "resnet9", {"name": "cifar10"}, recipe, 15.0, seed=seed)


def long_tail_runs() -> Iterator[Run]:
    """Notebook 1, second part: the long tail, all methods on the same images, those of the meta set taken out.

    The methods first, then MetaSAug with one thing changed, cheaper methods given as many passes, its strength, then
    what keeping, projecting and repeating do to a meta step long enough to show it.
    """
    margins: dict[str, Setting] = {"loss": "ldam", "beta": 0.9999}
    drw: dict[str, Setting] = {**margins, "defer": 0.8}
    meta: dict[str, Setting] = {"strength": 0.75}
    methods: list[tuple[str, dict[str, Setting]]] = [
        ("CrossEntropy", {}),
        ("LongTailed", {"beta": 0.9999}),
        ("LongTailed", {"beta": 0.9999, "defer": 0.8}),
        ("LongTailed", {"loss": "focal"}),
        ("LongTailed", {"loss": "ldam"}),
        ("LongTailed", drw),
        ("LongTailed", {**drw, "scale": 30.0, "normalised": True}),  # as its own paper has it
        ("ISDA", {"strength": 0.5, "covariance": "full"}),
        ("MetaSAug", meta),
        ("MetaSAug", {**meta, "loss": "ce"}),
        ("MetaSAug", {**meta, "covariance": "diagonal"}),
    ]
    changes: list[dict[str, Setting]] = [
        {"meta_steps": 0},
        {"loss": "ce", "meta_steps": 0},
        {"meta_steps": 3},
        {"psd": True},
        {"keep": True},
        {"meta_lr": 100.0, "psd": True},  # a step a thousand times as long as the released one
        {"meta_lr": 10000.0, "psd": True},
        {"stage": 0.4},  # two thirds of the second stage at the full learning rate
        {"stage": 0.4, "meta_steps": 0},
    ]
    ablations: list[tuple[str, dict[str, Setting]]] = [("MetaSAug", {**meta, **change}) for change in changes]
    ablations.append(("LongTailed", {**drw, "defer": 0.4}))
    strengths: list[tuple[str, dict[str, Setting]]] = [("MetaSAug", {"strength": s}) for s in (0.25, 0.5, 1.0)]
    far: dict[str, Setting] = {**meta, "meta_lr": 10000.0}  # where keeping and projecting can show: a step of 1e-6 not
    options: list[dict[str, Setting]] = [{"psd": True, "keep": True}, {}, {"psd": True, "meta_steps": 3}]
    large: list[tuple[str, dict[str, Setting]]] = [("MetaSAug", {**far, **option}) for option in options]

    paper = Recipe.preset("metasaug/resnet", evaluate_every=20, precision="bfloat16")
    short = replace(paper, epochs=40, evaluate_every=4, precision="float32")
    embedded: dict[str, Any] = {"name": "embedded", "validation": 0.1, "imbalance": 100, "meta": 10}
    cifar10: dict[str, Any] = {"name": "cifar10", "validation": 0.1, "train_size": 10000, "meta": 10}
    small: tuple[Any, ...] = embedded, replace(short, augment="none"), 25.0
    steep: tuple[Any, ...] = cifar10 | {"imbalance": 100}, short, 30.0
    mild: tuple[Any, ...] = cifar10 | {"imbalance": 10}, short, 50.0
    longer = embedded, replace(short, augment="none", epochs=62), 39.0  # MetaSAug's passes over the network in 40
    cheap: list[tuple[str, dict[str, Setting]]] = [("LongTailed", {"beta": 0.9999}), ("LongTailed", drw)]
    tiers = [(small, methods), (small, ablations), (steep, methods), (longer, cheap)]
    tiers += [(small, strengths), (small, large), (steep, ablations)]
    for seeds in (range(3), range(3, 5)):  # three of everything first
        for (of, recipe, seconds), tier in [*tiers, (mild, methods)]:
            for seed, (objective, settings) in product(seeds, tier):
                yield Run("1_metasaug", "cpu", objective, "small", of, recipe, seconds, settings, seed)
    for seed, name, (objective, settings) in product(range(3), ("cifar10", "cifar100"), methods + ablations):
        of = {"name": name, "imbalance": 100, "meta": 10}
        yield Run("1_metasaug", "paper", objective, "resnet32", of, paper, 80.0, settings, seed)


def sla_runs() -> Iterator[Run]:
    """Notebook 5: views of every image as data, as a second task and as joint labels, of several sets of images.

    Cross-entropy is run for as many epochs, and for M times as many: as many passes; so are class weights and margins
    on a long tail. A run of one objective on views
    records both its inferences. Then sets of transformations, where separability before training can be held against
    the accuracy after it; then the long tail.
    """
    distilled: dict[str, Setting] = {"temperature": 1.0, "inference": "single"}
    ways: list[tuple[str, dict[str, Setting]]] = [("DataAugmentation", {}), ("MultiTask", {}), ("SLA", {})]
    ways.append(("SLA", distilled))

    def tier(
        of: dict[str, Any],
        recipe: Recipe,
        seconds: float,
        transforms: str,
        methods: list[tuple[str, dict[str, Setting]]],
        passes: tuple[int, ...] = (),
        where: tuple[str, str, int] = ("cpu", "small", 5),
    ) -> Iterator[Run]:
        """Runs of all seeds; ``seconds`` of one epoch of cross-entropy, ``passes``: epochs of it over the recipe's."""
        profile, network, seeds = where
        for seed in range(seeds):
            for times in passes:
                longer = replace(recipe, epochs=times * recipe.epochs, evaluate_every=times * recipe.evaluate_every)
                cost = seconds * longer.epochs
                yield Run("5_sla", profile, "CrossEntropy", network, of, longer, cost, seed=seed)
            cost = 1.1 * len(TRANSFORMS[transforms]) * seconds * recipe.epochs
            for objective, settings in methods:
                settings = {"transforms": transforms, **settings}
                yield Run("5_sla", profile, objective, network, of, recipe, cost, settings, seed)

    plain = Recipe(epochs=20, weight_decay=5e-4, evaluate_every=5)
    crop = replace(plain, augment="crop+flip")
    embedded: dict[str, Any] = {"name": "embedded", "validation": 0.1}
    cifar10: dict[str, Any] = {"name": "cifar10", "validation": 0.1}
    clothes = embedded | {"train_size": 2000}, plain, 0.5
    figures = {"name": "shapes", "validation": 0.1, "train_size": 1000}, plain, 0.4
    digits = {"name": "mnist", "validation": 0.1, "train_size": 1000}, plain, 0.3
    photos = cifar10 | {"train_size": 2000}, crop, 0.8
    for of, recipe, seconds in (clothes, digits, figures):
        yield from tier(of, recipe, seconds, "rotation", ways, (1, 4))
    for of, recipe, seconds in (clothes, digits, figures):
        yield from tier(of, recipe, seconds, "rotation", [("SLA", {**distilled, "distillation": 0.0})])

    def of_views(of: dict[str, Any], recipe: Recipe, seconds: float, *views: str) -> Iterator[Run]:
        for transforms in views:
            methods: list[tuple[str, dict[str, Setting]]] = [("DataAugmentation", {}), ("SLA", {})]
            yield from tier(of, recipe, seconds, transforms, methods, (len(TRANSFORMS[transforms]),))

    yield from of_views(*clothes, "rotation2")
    yield from of_views(*figures, "rotation2", "color_perm3", "color_perm")

    weights: dict[str, Setting] = {"beta": 0.9999, "defer": 0.8}
    margins: dict[str, Setting] = {**weights, "loss": "ldam"}
    tails: list[tuple[str, dict[str, Setting]]] = [("SLA", {}), ("SLA", distilled)]
    tails += [("LongTailedSLA", weights), ("LongTailedSLA", margins)]

    def long_tail(of: dict[str, Any], recipe: Recipe, seconds: float) -> Iterator[Run]:
        yield from tier(of, recipe, seconds, "rotation", tails, (1,))
        longer = replace(recipe, epochs=4 * recipe.epochs, evaluate_every=4 * recipe.evaluate_every)
        for length, seed, settings in product((recipe, longer), range(5), (weights, margins)):
            yield Run("5_sla", "cpu", "LongTailed", "small", of, length, length.epochs * seconds, settings, seed)

    yield from tier(*photos, "rotation", ways, (1, 4))
    yield from long_tail(embedded | {"imbalance": 100}, replace(plain, epochs=40), 0.5)
    yield from of_views(*photos, "rotation2", "color_perm3", "color_perm")
    yield from of_views(*figures, "rotation+color_perm3")
    yield from long_tail(cifar10 | {"train_size": 10000, "imbalance": 100}, replace(crop, epochs=40), 0.9)

    paper, there = Recipe.preset("sla/resnet", evaluate_every=10, precision="bfloat16"), ("paper", "resnet32", 3)
    for name in ("cifar10", "cifar100"):
        yield from tier({"name": name}, paper, 3.0, "rotation", ways, (1, 4), there)
        yield from tier({"name": name}, paper, 3.0, "color_perm", ways[2:], (), there)


def gvae_runs() -> Iterator[Run]:
    """Notebook 2: G-VAE beside VAE and conditional VAE on each set, what it is for, and one setting changed at a time.

    The class weight is told in nats a nat: 30 with a deviation of 0.27 is 4.4 beside 1 on squares and 0.15 on KL.
    """
    usual: dict[str, Setting] = {"deviation": 0.27}
    gvae: dict[str, Setting] = {**usual, "class_weight": 30.0}
    three: list[tuple[str, dict[str, Setting]]] = [("GVAE", gvae), ("VAE", usual), ("ConditionalVAE", usual)]
    changes: list[dict[str, Setting]] = [
        {"deviation": 0.035},
        {"deviation": 0.1},
        {"deviation": 0.5},
        {"class_weight": 1.0},
        {"class_weight": 100.0},
        {"reconstruction": "l1"},
        {"balance": "learned"},
        {"deviation": 0.035, "class_weight": 400.0},  # the author's code on MNIST
        {"deviation": 0.0079, "class_weight": 400.0},  # the author's note
    ]
    arms: list[dict[str, Setting]] = [{"method": "none"}, {"method": "noise", "strength": 0.1}]
    arms += [{"method": method, "deviation": 0.27} for method in ("vae", "cvae")]
    arms += [{"method": "gvae", **gvae}, {"method": "gvae", **gvae, "residual": True}]

    adam = Recipe(epochs=30, batch_size=64, optimizer="adam", lr=3e-3, schedule="linear", weight_decay=0.0)
    long, fine = replace(adam, epochs=60), replace(adam, batch_size=32)  # steps, not images, are what 64 pixels lack
    embedded: dict[str, Any] = {"name": "embedded", "validation": 0.1, "train_size": 2000}
    digits: dict[str, Any] = {"name": "mnist", "validation": 0.1, "train_size": 2000}
    figures: dict[str, Any] = {"name": "shapes", "validation": 0.1, "train_size": 2000}
    faces: dict[str, Any] = {"name": "lfw64", "validation": 0.1, "train_size": 1500}
    photos: dict[str, Any] = {"name": "cifar10", "validation": 0.1, "train_size": 3000}
    learning: list[tuple[Any, ...]] = [  # set, network, recipe, class weight (about as the pixels), seconds, seeds
        (embedded, "autoencoder16", adam, 30.0, 70.0, 5),
        (digits, "autoencoder16", adam, 30.0, 70.0, 3),
        (faces, "autoencoder64", replace(fine, epochs=25), 300.0, 280.0, 3),
        (figures, "autoencoder16", fine, 100.0, 90.0, 3),
        (photos, "autoencoder64", replace(fine, epochs=20), 100.0, 110.0, 3),
    ]
    training = (embedded, adam, 80.0), (embedded | {"train_size": 500}, long, 40.0)
    for seeds in (range(1), range(1, 3), range(3, 5)):  # a first look at everything
        for (of, network, recipe, weight, seconds, limit), seed, (objective, settings) in product(
            learning, seeds, three
        ):
            if seed < limit and not (of is faces and objective == "ConditionalVAE"):  # faces are the dearest
                settings = settings | ({"class_weight": weight} if objective == "GVAE" else {})
                yield Run("2_gvae", "cpu", objective, network, of, recipe, seconds, settings, seed)
        for (of, recipe, seconds), seed, settings in product(training, seeds, arms):
            cost = seconds if settings["method"] in METHODS else seconds / 3
            yield Run("2_gvae", "cpu", "Augmented", "small", of, recipe, cost, settings, seed)
        for seed, change in product(seeds, changes):
            if seed < 3:
                yield Run("2_gvae", "cpu", "GVAE", "autoencoder16", embedded, adam, 70.0, {**gvae, **change}, seed)

    code: dict[str, Setting] = {"deviation": 0.035}  # weights 1 and 2.5e-3; the class's is 1 on digits, or 20
    full: list[tuple[Any, ...]] = [  # 30 epochs x 20 repeats, 5 x 20 and 10, as in the author's code
        ("mnist", "autoencoder128", replace(adam, epochs=600, batch_size=128, lr=5e-4, schedule="constant"), 400.0),
        ("cifar10", "autoencoder2048", replace(adam, epochs=100, batch_size=128, lr=5e-4, schedule="cosine"), 8000.0),
        (
            "celeba",
            "autoencoder2048-faces",
            replace(adam, epochs=10, batch_size=32, lr=5e-4, schedule="cosine"),
            8000.0,
        ),
    ]
    for seed, (name, network, recipe, weight) in product(range(3), full):
        mended = {"deviation": 0.27, "class_weight": 30.0}
        for objective, settings in (("GVAE", code | {"class_weight": weight}), ("GVAE", mended), *three[1:]):
            yield Run("2_gvae", "paper", objective, network, {"name": name}, recipe, 3600.0, settings, seed)


def mixing_runs() -> Iterator[Run]:
    """Notebook 3: all that mix, under one budget; then AutoMix with one thing changed; then other networks.

    But for Co-Mixup, whose solvers take 5 seconds a batch of 128: about a minute an epoch of the embedded set.
    AutoMix takes about three times the passes of the others: cross-entropy and mixup are run three times as long too.
    Its copy follows at a momentum that suits some hundred steps, and its block starts with weights (std) of which the
    masks have a shape after a few epochs at all. At the classifier's own learning rate and the mask loss's usual weight
    (``driven``) no seed of three kept that shape; the block's rate and the weight, ten times as large, were then chosen
    by the masks of seed 0 over 30 epochs (curves ``mask_spread``, and whether their mean follows the ratio), not by
    accuracy.
    """
    driven: dict[str, Setting] = {"momentum": 0.9, "std": 0.3, "block_rate": 1.0, "mask_weight": 0.1}
    automix: dict[str, Setting] = {**driven, "block_rate": 0.3, "mask_weight": 1.0}
    methods: list[tuple[str, dict[str, Setting]]] = [
        ("CrossEntropy", {}),
        ("Mixup", {}),
        ("CutMix", {}),
        ("AutoMix", automix),
        ("ManifoldMixup", {}),
        ("PuzzleMix", {}),
        ("Cutout", {"size": 8}),
        ("ResizeMix", {}),
        ("SaliencyMix", {}),
        ("MixStyle", {}),
    ]
    times = {"AutoMix": 3.0, "PuzzleMix": 5.0, "ManifoldMixup": 1.2, "SaliencyMix": 1.1}
    longer: list[tuple[str, dict[str, Setting]]] = [("CrossEntropy", {}), ("Mixup", {})]
    fixed: dict[str, Setting] = {"momentum": 0.9}
    changes: list[dict[str, Setting]] = [
        driven,
        {**automix, "block_rate": 1.0},
        {**automix, "mask_weight": 0.1},
        {**fixed, "policy": "mixup"},
        {**fixed, "policy": "cutmix"},
        {**automix, "pipeline": False},
        {**automix, "momentum": 0.0},
        {**automix, "one_hot": False},
        {**automix, "mask_weight": 0.0},
        {**automix, "lambda_channel": False},
        {**automix, "attention": False},
        {**automix, "std": 0.01},
        {**automix, "every": 4},
        {**automix, "alpha": 1.0},
        {**automix, "alpha": 4.0},
        {**automix, "stage": 1},
        {**automix, "stage": 2},
    ]
    plain = Recipe(epochs=40, weight_decay=5e-4, evaluate_every=4)
    crop = replace(plain, epochs=30, augment="crop+flip", evaluate_every=3)
    embedded: dict[str, Any] = {"name": "embedded", "validation": 0.1, "train_size": 2000}
    cifar10: dict[str, Any] = {"name": "cifar10", "validation": 0.1, "train_size": 5000, "test_size": 2000}

    def tier(
        of: dict[str, Any],
        recipe: Recipe,
        seconds: float,
        runs: list[tuple[str, dict[str, Setting]]],
        seeds: Sequence[int] = range(3),
        network: str = "small",
    ) -> Iterator[Run]:
        """``seconds`` of an epoch of cross-entropy, and twelve for the measures."""
        for seed, (objective, settings) in product(seeds, runs):
            cost = 12 + times.get(objective, 1.0) * seconds * recipe.epochs
            yield Run("3_automix", "cpu", objective, network, of, recipe, cost, settings, seed)

    def thrice(recipe: Recipe) -> Recipe:
        return replace(recipe, epochs=3 * recipe.epochs, evaluate_every=3 * recipe.evaluate_every)

    ablation = [("AutoMix", change) for change in changes]
    adam = replace(plain, epochs=20, optimizer="adam", lr=1e-3, weight_decay=0.0, warmup=0.1)
    yield from tier(embedded, plain, 0.5, methods)
    yield from tier(embedded, thrice(plain), 0.5, longer)
    yield from tier(embedded, plain, 0.5, ablation, range(1))  # a first look
    yield from tier(cifar10, crop, 1.8, methods)
    yield from tier(embedded, adam, 1.6, methods[:4], network="vit")
    yield from tier(cifar10, thrice(crop), 1.8, longer)
    yield from tier(embedded, plain, 0.5, ablation, range(1, 3))

    paper = Recipe.preset("openmixup/cifar", evaluate_every=10, precision="bfloat16")
    of_paper: list[tuple[str, dict[str, Setting]]] = [
        *((name, {} if name == "AutoMix" else settings) for name, settings in methods),
        ("AutoMix", {"policy": "mixup"}),
        ("AutoMix", {"policy": "cutmix"}),
        ("AutoMix", {"pipeline": False}),
    ]
    for seed, name, (objective, settings) in product(range(3), ("cifar100", "cifar10"), of_paper):
        settings = {"size": 16} if objective == "Cutout" and name == "cifar10" else settings
        cost = 1500 * times.get(objective, 1.0)
        yield Run("3_automix", "paper", objective, "resnet18", {"name": name}, paper, cost, settings, seed)
    for seed, (objective, settings) in product(range(3), of_paper[:4]):
        cost = 6000 * times.get(objective, 1.0)
        yield Run("3_automix", "paper", objective, "resnext50", {"name": "cifar100"}, paper, cost, settings, seed)


PLACES: dict[str, dict[str, Setting]] = {
    "none": {"where": "nowhere"},
    "reals only": {"where": "reals"},
    "discriminator only": {"where": "discriminator"},
    "DiffAugment": {"where": "everywhere"},
}

"""Where T stands, as the figures call it."""


def gan_runs() -> Iterator[Run]:
    """Notebook 4: where the transformation stands, over the number of images; learned, fixed and no augmentation of a
    classifier's images; styles across domains.

    A GAN's steps are as many for all sizes of a set. One seed of everything first.
    """
    adam = Recipe(batch_size=32, optimizer="adam", lr=1e-3, momentum=0.5, schedule="constant", weight_decay=0.0)
    slower: dict[str, Setting] = {"generator_lr": 5e-4}
    clothes: dict[str, Any] = {"name": "embedded", "validation": 0.1}
    faces: dict[str, Any] = {"name": "portraits", "size": 32, "train_size": 100}
    photos: dict[str, Any] = {"name": "cifar10", "validation": 0.1, "train_size": 1000, "test_size": 2000}
    judges = {"embedded": clothes, "portraits": {"name": "strangers", "size": 32, "train_size": 3000}}
    judges["cifar10"] = photos | {"train_size": 10000}

    def players(
        of: dict[str, Any], images: int, seed: int, settings: dict[str, Setting], times: int = 1
    ) -> Iterator[Run]:
        """1350 steps, or times as many, measured nine times (six, where they are six epochs)."""
        epochs = round(times * 1350 / (images // adam.batch_size))
        recipe = replace(adam, epochs=epochs, evaluate_every=max(1, epochs // 9))
        seconds = times * (80.0 if of["name"] == "embedded" else 110.0)
        settings = slower | settings
        yield GANRun("4_diffaugment", "cpu", "GAN", "dcgan", of, recipe, seconds, settings, seed, judges[of["name"]])

    plain = Recipe(epochs=40, weight_decay=5e-4, evaluate_every=4)
    both = Recipe(epochs=40, optimizer="adam", lr=2e-3, weight_decay=0.0, evaluate_every=4)  # the generators need Adam
    few: dict[str, Any] = {"name": "embedded", "validation": 0.1, "train_size": 2000}
    domains: dict[str, Any] = {"name": "hues", "validation": 0.1, "train_size": 1000}
    taught: dict[str, Setting] = {"ema": 0.99, "augmentation_lr": 1e-3}
    methods: list[tuple[str, str, dict[str, Setting]]] = [
        ("none", "CrossEntropy", {}),
        ("crop", "CrossEntropy", {}),
        ("crop+flip", "CrossEntropy", {}),
        ("none", "FixedAugmentation", {"policy": "translation,cutout"}),
        ("none", "FixedAugmentation", {"policy": "color,translation,cutout"}),
        ("none", "ISDA", {"strength": 0.5, "covariance": "full"}),
        ("none", "TeachAugment", taught),
        ("none", "TeachAugment", {**taught, "reach": 0.2}),
    ]
    methods += [("none", "FeatureAugmentation", {"scale": scale}) for scale in (0.0, 1e-4, 0.01, 0.1, 1.0, 10.0)]

    def classifiers(seed: int) -> Iterator[Run]:
        for augment, objective, settings in methods:
            recipe, cost = replace(both, augment=augment), 45.0 if objective == "TeachAugment" else 30.0
            yield Run("4_diffaugment", "cpu", objective, "small", few, recipe, cost, settings, seed)

    def across(seed: int) -> Iterator[Run]:
        styles: list[tuple[str, dict[str, Setting]]] = [
            ("CrossEntropy", {}),
            ("MixStyle", {}),
            ("MixStyle", {"last": 1}),
        ]
        for objective, settings in styles:
            yield Run("4_diffaugment", "cpu", objective, "small", domains, plain, 20.0, settings, seed)

    def of_sizes(seed: int, *sizes: int) -> Iterator[Run]:
        for images, where in product(sizes, PLACES.values()):
            size = {} if images == 7200 else {"train_size": images}
            yield from players(clothes | size, images, seed, where)

    for seed in range(3):
        yield from of_sizes(seed, 100, 1000)
        yield from classifiers(seed)
        yield from across(seed)
        for of, where in product((faces, photos), PLACES.values()):
            yield from players(of, of["train_size"], seed, where)
        yield from of_sizes(seed, 200, 7200)
        for name in ("none", "DiffAugment"):
            yield from players(clothes | {"train_size": 100}, 100, seed, PLACES[name], times=4)
    for seed in range(3, 5):
        yield from across(seed)
        yield from classifiers(seed)
        for name in ("none", "DiffAugment"):
            yield from players(clothes | {"train_size": 100}, 100, seed, PLACES[name])
    for seed in range(3):
        yield from players(clothes | {"train_size": 100}, 100, seed, {"ada_span": 10000.0})
        yield from players(clothes | {"train_size": 100}, 100, seed, {"where": "nowhere", "r1": 1.0})
    for seed, name in product(range(3), ("none", "DiffAugment")):
        yield from players(faces, 100, seed, PLACES[name], times=4)
    for seed, name in product(range(3, 5), ("none", "DiffAugment")):  # of the comparison that tells most, five seeds
        yield from players(clothes | {"train_size": 100}, 100, seed, PLACES[name], times=4)

    big = Recipe(batch_size=64, optimizer="adam", lr=2e-4, momentum=0.0, schedule="constant", weight_decay=0.0)
    sizes = {5000: "translation,cutout", 10000: "translation,cutout", 45000: "cutout"}
    for seed, (images, policy) in product(range(3), sizes.items()):
        part = photos | {"train_size": images, "test_size": None}
        epochs = 200000 // (images // big.batch_size)
        recipe = replace(big, epochs=epochs, evaluate_every=epochs // 20)
        for where in PLACES.values():
            settings: dict[str, Setting] = {**where, "ratio": 4, "ema": 0.999}
            settings |= {} if where["where"] == "nowhere" else {"policy": policy}
            judge = part | {"train_size": 45000}
            yield GANRun("4_diffaugment", "paper", "GAN", "dcgan-wide", part, recipe, 2400.0, settings, seed, judge)


def _alike(run: Run, wanted: Sequence[Run], most: int) -> list[Run]:
    """The run, and those after it that are missing and could be executed together with it."""
    later = wanted[wanted.index(run) + 1 :] if most > 1 and type(run) is Run else []
    same = [one for one in later if (one.notebook, one.of, one.recipe) == (run.notebook, run.of, run.recipe)]
    return [run, *[one for one in same if not one.done()][: most - 1]]


def _seconds(runs: Sequence[Run], device: str) -> float:
    """Estimate for runs executed together: on a GPU each after the first is a third of one alone (``make bench``)."""
    more = 1 if resolve_device(device).type == "cpu" else 1 / 3
    return max(run.left() for run in runs) * (1 + (len(runs) - 1) * more)


ERRORS = (OSError, ValueError, RuntimeError, ArithmeticError)

"""What a run may fail with, and the next one is tried."""


def main(arguments: list[str] | None = None) -> int:
    """Print the ledger, or run what fits into ``--minutes``."""
    parser = argparse.ArgumentParser(prog="python -m companion.ledger", description=__doc__.split("\n")[0])
    parser.add_argument("--profile", choices=("cpu", "paper"), default="cpu")
    known = sorted({run.notebook for run in runs()})
    parser.add_argument("--notebook", choices=known, help="only this one's runs")
    parser.add_argument("--minutes", type=float, default=0.0, help="run the next ones for about so long (0: only list)")
    together = "runs of one set and recipe at a time, as a GPU has room for with small networks"
    parser.add_argument("--together", type=int, default=1, help=together)
    parser.add_argument("--device", help="default: cpu for the profile cpu, whose runs are paired, else the GPU")
    parser.add_argument("--root", help="folder of the data sets (default: $SEMAUG_DATA or the user's cache)")
    options = parser.parse_args(arguments)
    if not 0 <= options.minutes < float("inf"):
        parser.error(f"--minutes: got {options.minutes}, takes a finite number from 0")
    if not 1 <= options.together <= MOST_TOGETHER:
        parser.error(f"--together: got {options.together}, takes a whole number from 1 to {MOST_TOGETHER}")
    device = options.device or ("cpu" if options.profile == "cpu" else "auto")
    if options.minutes and options.profile == "paper" and not options.device and resolve_device().type == "cpu":
        parser.error("--profile: got paper where torch sees no GPU; with --device cpu it runs all the same, for weeks")

    wanted = [run for run in runs() if run.profile == options.profile and options.notebook in (None, run.notebook)]
    if not options.minutes:
        missing = 0.0
        for run in wanted:
            there = run.done()
            missing += 0 if there else run.seconds
            print(f"{'there  ' if there else 'missing'} {run.seconds:6.0f} s  {run.name}")
        print(f"missing: about {missing / 3600:.1f} hours")
        return 0
    end = time.monotonic() + 60 * options.minutes
    ran, failed, waiting = 0, list[Run](), []
    with _time_up(60 * options.minutes):
        for run in wanted:
            if run.done():
                continue
            try:
                some = [one for one in _alike(run, wanted, options.together) if one not in failed]
                while time.monotonic() + (left := _seconds(some, device)) > end and len(some) > 1:
                    some.pop()
                if time.monotonic() + left > end:
                    waiting.append(left)
                    continue  # a shorter one further down may still fit
                try:
                    found = complete(some, device, options.root)
                except ERRORS as error:
                    if len(some) == 1:
                        raise
                    print(f"alone, as one of {len(some)} failed together ({error}): {run.name}", flush=True)
                    found = complete([run], device, options.root)
            except ERRORS as error:  # the others may still run
                failed.append(run)
                print(f"FAILED  {run.name}: {type(error).__name__}: {error}", flush=True)
                continue
            ran += len(found)
            for one, record in found:
                score = record.metrics.get("test_accuracy", record.metrics.get("fid", math.nan))
                print(f"{record.seconds:6.0f} s  {score:.4f}  {one.name}", flush=True)
    if waiting and not ran:
        print(f"{len(waiting)} runs are longer than that; the shortest takes about {min(waiting) / 60:.0f} minutes")
    return int(len(failed) > 0)


@contextmanager
def _time_up(seconds: float) -> Iterator[None]:
    """What stands inside ends after so many seconds, also where an estimate was wrong: a run's checkpoint is there."""

    class TimeUp(BaseException):
        pass

    def stop(*_: object) -> None:
        raise TimeUp

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    except TimeUp:
        print("time is up; what was running goes on from its last epoch next time", flush=True)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    torch.set_num_threads(1)
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # make records | head
    sys.exit(main())
