"""Sdist and wheel are the library alone; installed from them it works outside a checkout, as README says."""

import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
REPOSITORY = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["urls"]["Repository"]
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
def sdist(tmp_path_factory):
    """The archive of sources."""
    folder = tmp_path_factory.mktemp("sdist")
    source = folder / "source"  # a build writes beside the source, and takes in what an earlier one left there
    for name in ("semaug", "companion", "tests"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE", "CONTRIBUTING.md", "Makefile"):
        shutil.copy(ROOT / name, source)
    build = "import sys; from setuptools import build_meta; build_meta.build_sdist(sys.argv[1])"
    subprocess.run([sys.executable, "-c", build, folder], cwd=source, check=True, capture_output=True, text=True)
    (archive,) = folder.glob("*.tar.gz")
    return archive


@pytest.fixture(scope="module")
def installed(sdist, tmp_path_factory):
    """The files of the wheel that is built from the sdist, as pip would lay them."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-q", "-w", folder, sdist]
    subprocess.run(command, check=True, capture_output=True, text=True)
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "site")
    return folder / "site"


def test_the_sdist_holds_the_library_and_what_builds_it(sdist):
    with tarfile.open(sdist) as archive:
        names = {Path(*Path(name).parts[1:]) for name in archive.getnames()}
    top = {path.parts[0] for path in names if path.parts}
    assert top == {
        "semaug",
        "semaug.egg-info",
        "LICENSE",
        "PKG-INFO",
        "README.md",
        "pyproject.toml",
        "setup.cfg",
        "setup.py",
    }
    assert {path.relative_to(ROOT) for path in (ROOT / "semaug").rglob("*.py")} < names
    assert sdist.stat().st_size < 5 * 2**20


def test_the_page_of_the_package_links_from_anywhere(installed):
    (metadata,) = installed.glob("*.dist-info/METADATA")
    text = metadata.read_text("utf-8")
    links = re.findall(r"\]\(([^)]+)\)", text.split("\n\n", 1)[1])
    assert len(links) == len(re.findall(r"\]\(([^)]+)\)", (ROOT / "README.md").read_text("utf-8")))
    assert [link for link in links if not link.startswith("https://")] == []
    assert f"{REPOSITORY}/blob/main/notebooks/1_isda.ipynb" in links
    assert f"{REPOSITORY}/raw/main/figures/1_isda/directions.png" in links
    assert "Description-Content-Type: text/markdown" in text


def test_what_readme_shows_runs_elsewhere(installed, tmp_path):
    text = (ROOT / "README.md").read_text("utf-8")
    code = "".join(re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL))
    code += "import semaug, sys; assert semaug.__file__.startswith(sys.argv[1]), semaug.__file__"
    environment = {**os.environ, "PYTHONPATH": str(installed), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", code, str(installed)]
    run = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert "ISDA {" in run.stdout


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
