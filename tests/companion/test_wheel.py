"""The wheel is the library alone, and works outside a checkout."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
USE = """
import os, sys
from pathlib import Path
import torch
import semaug
from semaug import CrossEntropy, ISDA, Recipe, Record, fit, load, networks
assert Path(semaug.__file__).is_relative_to(sys.argv[1]), semaug.__file__
dataset = load("fashion-mini", train_size=100, test_size=50)
network = networks.small(dataset.num_classes, 1)
record = fit(ISDA(network), dataset, Recipe(epochs=1, batch_size=50), resume="state.pt", progress=False)
path = record.save("records")
assert Record.read(path) == record
assert record.environment["commit"] == "unknown"
print(*sorted(str(path) for path in Path().rglob("*") if path.is_file()))
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """The wheel's files, as pip would lay them."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"  # a build writes beside the source, and takes in what an earlier one left there
    for name in ("semaug", "companion"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-q", "-w", folder, source]
    subprocess.run(command, check=True, capture_output=True, text=True)
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "site")
    return folder / "site"


def test_it_holds_the_library_and_nothing_else(installed):
    names = {path.relative_to(installed).parts[0] for path in installed.rglob("*") if path.is_file()}
    assert {name for name in names if not name.endswith(".dist-info")} == {"semaug"}
    library = {str(path.relative_to(ROOT)) for path in (ROOT / "semaug").rglob("*.py")}
    assert library == {str(path.relative_to(installed)) for path in installed.rglob("*.py")}
    for name in ("__init__.pyi", "py.typed", "data/embedded/fashion.xz"):
        assert (installed / "semaug" / name).exists()


def test_it_works_elsewhere_and_writes_where_it_is_told(installed, tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(installed), "OMP_NUM_THREADS": "1"}
    before = {path for path in installed.rglob("*") if "__pycache__" not in path.parts}
    command = [sys.executable, "-c", USE, str(installed)]
    run = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert {name.split("/")[0] for name in run.stdout.split()} == {"records", "state.pt"}
    assert {path for path in installed.rglob("*") if "__pycache__" not in path.parts} == before
