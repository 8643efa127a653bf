"""Recipes: schedules as torch's, the papers' presets as published, and fields that say what they take."""

import math

import pytest
import torch

from semaug.training.recipe import Recipe


def test_schedules_against_torch():
    for schedule, reference in {
        "cosine": lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, 100),
        "linear": lambda o: torch.optim.lr_scheduler.LinearLR(o, 1.0, 1e-12, 100),
        "step": lambda o: torch.optim.lr_scheduler.MultiStepLR(o, [50, 75], 0.1),
        "constant": lambda o: torch.optim.lr_scheduler.ConstantLR(o, 1.0, 100),
    }.items():
        optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0)
        scheduler = reference(optimizer)
        recipe = Recipe(schedule=schedule)
        for step in range(100):
            # torch's value at a step's start; ours is taken at its middle, except for the steps' own edges
            at = (step + 0.5) / 100 if schedule == "step" else step / 100
            assert recipe.lr_at(at) == pytest.approx(optimizer.param_groups[0]["lr"], abs=1e-9)
            optimizer.step()
            scheduler.step()


def test_sla_preset_is_the_papers():
    """80,000 steps of 128 of 50,000 images, the last part of an epoch left out; lr a tenth at 40,000 and at 60,000."""
    recipe, total = Recipe.preset("sla/resnet"), 80_000
    assert abs(recipe.epochs * (50_000 // recipe.batch_size) - total) < 390 / 2
    rates = [recipe.lr * recipe.lr_at((step + 0.5) / total) for step in (0, 39_999, 40_000, 59_999, 60_000, 79_999)]
    assert rates == pytest.approx([0.1, 0.1, 0.01, 0.01, 0.001, 0.001])
    assert (recipe.momentum, recipe.nesterov, recipe.weight_decay) == (0.9, False, 1e-4)
    assert (recipe.augment, recipe.padding, recipe.padding_mode) == ("crop+flip", 4, "zeros")


def test_openmixup_preset_is_the_benchmarks():
    recipe = Recipe.preset("openmixup/cifar")
    assert (recipe.epochs, recipe.batch_size, recipe.lr, recipe.weight_decay) == (200, 100, 0.1, 1e-4)
    assert (recipe.optimizer, recipe.momentum, recipe.nesterov, recipe.schedule) == ("sgd", 0.9, False, "cosine")
    assert (recipe.augments, recipe.padding, recipe.padding_mode) == (("crop", "flip"), 4, "reflect")


def test_isda_preset_is_the_papers():
    recipe = Recipe.preset("isda/resnet")
    total = 160
    rates = [recipe.lr * recipe.lr_at((epoch + 0.5) / total) for epoch in range(total)]
    assert rates[0] == rates[79] == 0.1
    assert rates[80] == rates[119] == pytest.approx(0.01)
    assert rates[120] == rates[159] == pytest.approx(0.001)
    wide = Recipe.preset("isda/wide-resnet")
    drops = [epoch for epoch in range(1, 240) if wide.lr_at((epoch + 0.5) / 240) < wide.lr_at((epoch - 0.5) / 240)]
    assert drops == [60, 120, 160, 200]


def test_warmup_rises_linearly_to_the_peak():
    recipe = Recipe(warmup=0.2, schedule="cosine")
    assert recipe.lr_at(0.1) == 0.5
    assert recipe.lr_at(0.2) == 1.0
    assert recipe.lr_at(1.0) == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"epoch": 3}, r"no field 'epoch'; did you mean 'epochs'\?"),
        ({"zzz": 3}, r"no field 'zzz'; it has epochs, batch_size"),
        ({"epochs": 0}, r"Recipe.epochs: got 0, takes a whole number from 1"),
        ({"batch_size": 2.5}, r"Recipe.batch_size: got 2.5"),
        ({"lr": 0.0}, r"Recipe.lr: got 0.0, takes a finite number above 0"),
        ({"lr": math.nan}, r"Recipe.lr: got nan"),
        ({"momentum": 1.0}, r"Recipe.momentum: got 1.0"),
        ({"schedule": "cosin"}, r"Recipe.schedule: got 'cosin', takes one of constant, cosine"),
        ({"optimizer": "lion"}, r"takes one of sgd, adam"),
        ({"precision": "float16"}, r"takes one of float32, bfloat16"),
        ({"augment": "crop-flip"}, r"Recipe.augment: got 'crop-flip', takes 'none', or crop, flip"),
        ({"augment": "crop+crop"}, r"each once"),
        ({"augment": "cutout"}, r"as cutout16"),
        ({"augment": "flip2"}, r"Recipe.augment: got 'flip2'"),
        ({"milestones": (80, 120)}, r"takes fractions of training"),
        ({"padding": -1}, r"Recipe.padding: got -1"),
        ({"weight_decay": -1e-4}, r"Recipe.weight_decay"),
        ({"warmup": 1.0}, r"Recipe.warmup"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_bad_recipe(fields, message):
    with pytest.raises((ValueError, TypeError), match=message):
        Recipe(**fields)


def test_unknown_preset():
    with pytest.raises(ValueError, match=r"preset: got 'isda', takes one of isda/resnet"):
        Recipe.preset("isda")
