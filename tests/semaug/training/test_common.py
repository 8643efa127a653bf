"""What the training loops share: a configuration is plain and holds the data's digest, imports work everywhere."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import throwaway
from semaug.training import common
from semaug.training.recipe import Recipe

WINDOWS = """
import sys
for name in ("resource", "fcntl", "pwd", "grp", "termios"):
    sys.modules[name] = None  # an import raises ImportError
from importlib import import_module
from pkgutil import walk_packages
import semaug, throwaway
for module in walk_packages(semaug.__path__, "semaug."):
    import_module(module.name)
from semaug.training.loop import fit
record = fit(throwaway.build("CrossEntropy"), throwaway.data(), throwaway.RECIPE, progress=False)
assert record.peak_memory == 0
print("imported and trained")
"""


def test_the_library_imports_and_trains_where_unix_modules_are_missing():
    root = Path(__file__).parents[3]
    environment = {**os.environ, "PYTHONPATH": f"{root}{os.pathsep}{root / 'tests'}"}
    run = subprocess.run([sys.executable, "-c", WINDOWS], env=environment, capture_output=True, text=True, timeout=300)
    assert run.stdout.strip() == "imported and trained", run.stderr[-2000:]


def test_peak_memory_is_of_the_process():
    before = common.peak_memory(torch.device("cpu"))
    held = torch.ones(64 * 2**20 // 4)
    assert common.peak_memory(torch.device("cpu")) >= max(before, held.nbytes)


def test_configuration_is_plain_and_says_the_digest_of_the_data():
    data, recipe = throwaway.data(), Recipe(epochs=2)
    config = common.configuration("CrossEntropy", {"strength": 0.5}, "small", data, recipe)
    assert config["data"] == {"name": "quadrants", "digest": data.digest}
    assert config["recipe"]["milestones"] == [0.5, 0.75]
    assert json.loads(json.dumps(config)) == config


@pytest.mark.parametrize("value", [math.inf, math.nan, torch.tensor(0.5), np.float64(0.5), [1, 2], b"a"])
def test_what_json_lacks_is_no_setting(value):
    with pytest.raises(TypeError, match=r"settings\['strength'\]: got .*; takes a finite number, a string"):
        common.configuration("CrossEntropy", {"strength": value}, "small", throwaway.data(), Recipe())


@pytest.mark.usefixtures("unchecked")
def test_a_seed_is_a_whole_number():
    assert common.check_seed(np.int64(3)) == 3
    assert type(common.check_seed(np.int64(3))) is int
    for seed in (1.5, "1", True, None):
        with pytest.raises(TypeError, match=f"seed: got {seed!r}; takes a whole number"):
            common.check_seed(seed)


def test_prepared_leaves_the_generators_and_cudnn_as_they_were():
    state, benchmark = torch.get_rng_state(), torch.backends.cudnn.benchmark
    with common.prepared(torch.device("cpu")):
        (generator,) = common.global_generators(torch.device("cpu"))
        generator.manual_seed(3)
        torch.rand(4)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.backends.cudnn.benchmark == benchmark


def test_optimizers():
    def options(**fields):
        groups = [{"params": [torch.zeros(2, requires_grad=True)]}]
        return common.make_optimizer(groups, Recipe(**fields), torch.device("cpu")).param_groups[0]

    sgd = options(lr=0.3, momentum=0.5)
    assert (sgd["lr"], sgd["momentum"], sgd["nesterov"], sgd["weight_decay"]) == (0.3, 0.5, True, 1e-4)
    assert not options(momentum=0.0)["nesterov"], "which SGD takes with a momentum alone"
    assert options(optimizer="adam", momentum=0.8)["betas"] == (0.8, 0.999)
