"""A sixth paper is new files only: a method and a study in a folder of their own are taken up by all that there is."""

import os
import subprocess
import sys

import pytest

from companion.records import FIGURES

METHOD = '''
"""LogitMix: logits of two images are mixed, and so are their labels."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from semaug._checks import check_number
from semaug.core.tensors import at_least_float32
from semaug.training.objective import Objective, Step


class LogitMix(Objective):
    """Cross-entropy of the mean of two images' logits against both labels."""

    static = True
    pairs = True

    def __init__(self, network: nn.Module, weight: float = 0.7) -> None:
        super().__init__(network, weight=check_number("weight", weight, 0, 1))
        self.weight = weight

    def forward(self, images: Tensor, target: Tensor, step: Step) -> tuple[Tensor, dict[str, Tensor]]:
        logits = at_least_float32(self.network(images))
        partner = logits.flip(0), target.flip(0)
        mixed = self.weight * logits + (1 - self.weight) * partner[0]
        loss = self.weight * F.cross_entropy(mixed, target) + (1 - self.weight) * F.cross_entropy(mixed, partner[1])
        return loss, {}
'''

STUDY = '''
"""LogitMix beside cross-entropy."""

from companion.plots import Picture, comparison
from companion.records import Index
from companion.studies import Arm, Study
from semaug.training.recipe import Recipe

NOTEBOOK = "6_logitmix"
ARMS = (Arm("cross-entropy", "CrossEntropy", color="black"), Arm("LogitMix", "LogitMix", {"weight": 0.8}))
STUDIES = (
    Study(NOTEBOOK, "tiny", "300 images", {"name": "fashion-mini", "train_size": 300, "test_size": 100}, "small",
          Recipe(epochs=1, batch_size=50), ARMS, seeds=3, seconds=1.0),
)
PAPER = [("CIFAR-10, 10 epochs, n = 1", "LogitMix 12.34", "nobody")]


def accuracy(index: Index) -> Picture:
    """Test accuracy."""
    return comparison(index.blocks(STUDIES, "cross-entropy and LogitMix"))


FIGURES = {"accuracy": accuracy}
'''

PLUGIN = """
import pkgutil

ADDED = {{"semaug/methods": {methods!r}, "companion/studies": {studies!r}}}
listed = pkgutil.iter_modules


def iter_modules(path=None, prefix=""):
    '''What a copied file would do: the folder is on the package's path before its modules are listed.'''
    for end, folder in ADDED.items():
        if path and str(path[0]).endswith(end) and folder not in path:
            path.append(folder)
    return listed(path, prefix)


pkgutil.iter_modules = iter_modules
"""

USE = """
import sys
from pathlib import Path
from companion import __main__, leaderboard, records, runs
records.FIGURES = runs.FIGURES = Path(sys.argv[1])
runs.state_folder = lambda: Path(sys.argv[1]) / "state"
assert __main__.main(["runs", "6_logitmix"]) == 0
assert __main__.main(["run", "6_logitmix", "--minutes", "5"]) == 0
assert __main__.main(["runs", "6_logitmix"]) == 0
assert __main__.main(["figures", "6_logitmix", "--folder", sys.argv[1]]) == 0
print(leaderboard.table("6_logitmix"))
print(leaderboard.papers("6_logitmix"))
"""


@pytest.fixture
def environment(tmp_path):
    """A folder with the sixth paper's files, and the environment of a process that sees them."""
    for name, text in (("methods", METHOD), ("studies", STUDY)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "logitmix.py").write_text(text)
    text = PLUGIN.format(methods=str(tmp_path / "methods"), studies=str(tmp_path / "studies"))
    (tmp_path / "sitecustomize.py").write_text(text)  # imported by every process
    path = os.pathsep.join([str(tmp_path), str(FIGURES.parent)])
    return {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}


def process(environment, *arguments):
    command = [sys.executable, *map(str, arguments)]
    run = subprocess.run(command, env=environment, cwd=FIGURES.parent, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout[-2000:] + run.stderr[-2000:]
    return run.stdout


def test_runs_figures_and_leaderboard_take_it_up(environment, tmp_path):
    output = process(environment, "-c", USE, tmp_path / "out")
    assert output.count("missing    ") == 6
    assert output.count("saved      ") == 6
    assert output.count("  6_logitmix tiny: LogitMix, seed ") >= 3
    assert "drew     6_logitmix/accuracy from 6 records" in output
    assert "| LogitMix | 3 | " in output
    assert "| 6_logitmix | CIFAR-10, 10 epochs, n = 1 | LogitMix 12.34 | nobody |" in output
    assert (tmp_path / "out" / "6_logitmix" / "accuracy.png").exists()


@pytest.mark.slow
def test_contract_tests_take_it_up(environment):
    options = ("-q", "-k", "LogitMix")
    output = process(environment, "-m", "pytest", "tests/semaug/test_contract.py", *options)
    assert int(output.rsplit(" passed", 1)[0].split()[-1]) >= 6
