"""Recipes: schedules as torch's, the papers' presets as published, and fields that say what they take."""

import dataclasses
import json
import math

import numpy as np
import pytest
import torch

from semaug.training.recipe import Recipe
from semaug.training.record import config_hash


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
        ({"epochs": 0}, r"Recipe.epochs: got 0; takes a whole number from 1"),
        ({"epochs": True}, r"Recipe.epochs: got True; takes a whole number from 1"),
        ({"batch_size": 2.5}, r"Recipe.batch_size: got 2.5"),
        ({"meta_batch_size": "8"}, r"Recipe.meta_batch_size: got '8'"),
        ({"padding": -1}, r"Recipe.padding: got -1; takes a whole number from 0"),
        ({"evaluate_every": math.nan}, r"Recipe.evaluate_every: got nan"),
        ({"lr": 0.0}, r"Recipe.lr: got 0.0; takes a finite number above 0"),
        ({"lr": math.nan}, r"Recipe.lr: got nan"),
        ({"lr": True}, r"Recipe.lr: got True"),
        ({"lr": torch.tensor(0.1)}, r"Recipe.lr: got tensor"),
        ({"factor": -1.0}, r"Recipe.factor: got -1.0; takes a finite number above 0"),
        ({"factor": math.nan}, r"Recipe.factor: got nan"),
        ({"factor": math.inf}, r"Recipe.factor: got inf"),
        ({"factor": "0.1"}, r"Recipe.factor: got '0.1'"),
        ({"momentum": 1.0}, r"Recipe.momentum: got 1.0; takes a finite number in \[0, 1\)"),
        ({"warmup": 1.0}, r"Recipe.warmup: got 1.0"),
        ({"warmup": math.nan}, r"Recipe.warmup: got nan"),
        ({"weight_decay": -1e-4}, r"Recipe.weight_decay: got -0.0001; takes a finite number from 0"),
        ({"nesterov": "no"}, r"Recipe.nesterov: got 'no'; takes True or False"),
        ({"nesterov": 1}, r"Recipe.nesterov: got 1"),
        ({"schedule": "cosin"}, r"Recipe.schedule: got 'cosin'; takes one of constant, cosine"),
        ({"schedule": ["cosine"]}, r"Recipe.schedule: got \['cosine'\]"),
        ({"optimizer": "lion"}, r"takes one of sgd, adam"),
        ({"precision": "float16"}, r"takes one of float32, bfloat16"),
        ({"padding_mode": None}, r"takes one of reflect, zeros"),
        ({"milestones": (80, 120)}, r"Recipe.milestones: got 80; takes a finite number in \(0, 1\)"),
        ({"milestones": 0.5}, r"Recipe.milestones: got 0.5; takes a sequence of fractions"),
        ({"milestones": "0.5"}, r"Recipe.milestones: got '0.5'"),
        ({"milestones": (0.5, "0.75")}, r"Recipe.milestones: got '0.75'"),
        ({"augment": "crop-flip"}, r"Recipe.augment: got 'crop-flip'; takes 'none', or crop, flip"),
        ({"augment": "crop+crop"}, r"each once"),
        ({"augment": "cutout8+cutout16"}, r"each once"),
        ({"augment": "cutout"}, r"cutout16 \(or another side\)"),
        ({"augment": "cutout0"}, r"Recipe.augment: got 'cutout0'"),
        ({"augment": "flip2"}, r"Recipe.augment: got 'flip2'"),
        ({"augment": "none+flip"}, r"Recipe.augment: got 'none\+flip'"),
        ({"augment": ""}, r"Recipe.augment: got ''"),
        ({"augment": None}, r"Recipe.augment: got None"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_bad_recipe(fields, message):
    with pytest.raises(ValueError, match=message):
        Recipe(**fields)


@pytest.mark.usefixtures("unchecked")
def test_every_field_is_checked():
    """Whatever is added later: a value of no field's type is refused."""
    for field in dataclasses.fields(Recipe):
        with pytest.raises(ValueError, match=f"Recipe.{field.name}: got .*; takes"):
            Recipe(**{field.name: b"bytes"})


def test_an_unknown_field_is_named():
    with pytest.raises(TypeError, match="'epoch'"):
        Recipe(epoch=3)


@pytest.mark.usefixtures("unchecked")
def test_numbers_of_numpy_become_plain():
    numbers = {"lr": np.float64(0.1), "epochs": np.int64(2), "batch_size": np.int32(4), "momentum": np.float32(0.5)}
    recipe = Recipe(**numbers, milestones=np.array([0.5, 0.75]), weight_decay=0, schedule=np.str_("step"))
    assert recipe == Recipe(epochs=2, batch_size=4, momentum=0.5, weight_decay=0.0, schedule="step")
    plain = dataclasses.asdict(recipe)
    assert {type(value) for value in plain.values()} == {int, float, bool, str, tuple}
    assert {type(value) for value in plain["milestones"]} == {float}
    assert config_hash(plain) == config_hash(dataclasses.asdict(Recipe(**json.loads(json.dumps(plain)))))


def test_ldam_preset_is_the_papers():
    """Rates in the middle of an epoch, of the 200 at which the released code sets them."""
    recipe = Recipe.preset("ldam/resnet")
    rates = {epoch: recipe.lr * recipe.lr_at((epoch + 0.5) / 200) for epoch in (0, 4, 5, 159, 160, 179, 180, 199)}
    assert rates == pytest.approx(
        {0: 0.01, 4: 0.09, 5: 0.1, 159: 0.1, 160: 1e-3, 179: 1e-3, 180: 1e-5, 199: 1e-5}, rel=1e-9
    )
    assert (recipe.epochs, recipe.batch_size, recipe.momentum, recipe.nesterov) == (200, 128, 0.9, False)
    assert (recipe.weight_decay, recipe.augment, recipe.padding_mode) == (2e-4, "crop+flip", "zeros")


def test_unknown_preset():
    with pytest.raises(ValueError, match=r"preset: got 'isda'; takes one of isda/resnet"):
        Recipe.preset("isda")
