"""What is installed is what is said: pyproject, constraints, environment.yml and the tools agree."""

import importlib.util
import json
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
ELSEWHERE = ("slurm", "pretrained", "site", "browser")  # for a cluster, new features, the web pages, their tests
HERE = [name for name in EXTRAS if name not in ELSEWHERE]
DIRECT = [Requirement(text) for text in [*PROJECT["dependencies"], *(text for name in HERE for text in EXTRAS[name])]]
PINS = dict(
    line.split("==")
    for line in (ROOT / "constraints.txt").read_text().splitlines()
    if line and not line.startswith("#")
)
LARGEST = 30 * 2**20
"""Bytes of the tracked files, which travel to a GPU beside the archive of a data set; a clone stays quick, too."""
PINNED = {canonicalize_name(name): version for name, version in PINS.items()}


def load(name):
    """A script of tools/, which is no package."""
    spec = importlib.util.spec_from_file_location(f"tools_{name}", ROOT / "tools" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_floors():
    floors = {requirement.name: str(requirement.specifier) for requirement in DIRECT}
    assert floors["torch"] == ">=2.11"
    assert floors["torchvision"] == ">=0.26"
    assert PROJECT["requires-python"] == ">=3.11"
    assert all(specifier.startswith(">=") for specifier in floors.values()), "a floor each, and no ceiling"


@pytest.mark.parametrize("requirement", DIRECT, ids=lambda requirement: requirement.name)
def test_every_direct_dependency_is_pinned_above_its_floor(requirement):
    assert PINNED[canonicalize_name(requirement.name)] in requirement.specifier


def test_every_pin_is_one_version_of_one_package():
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    assert len(PINNED) == len(PINS) == sum(not line.startswith("#") for line in lines) > 100
    assert all(re.fullmatch(r"[0-9][0-9a-z.]*", version) for version in PINS.values())
    assert (PINS["torch"], PINS["torchvision"]) == ("2.13.0", "0.28.0")


def test_conda_environment_is_the_same_one():
    conda = yaml.safe_load((ROOT / "environment.yml").read_text())
    *packages, pip = conda["dependencies"]
    python = next(package for package in packages if package.startswith("python="))
    assert python.removeprefix("python=") + ".0" in SpecifierSet(PROJECT["requires-python"])
    assert "pip" in packages
    constraints, editable = pip["pip"]
    assert constraints == "-c constraints.txt"
    extras = re.fullmatch(r"-e \.\[([\w,]+)\]", editable)[1].split(",")
    assert extras == HERE
    assert conda["name"] == PROJECT["name"]


def test_the_version_is_said_once():
    import semaug

    assert semaug.__version__ == PROJECT["version"]
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == PROJECT["version"]


def test_torchvision_can_be_imported_without_a_warning():
    code = "import torchvision.datasets, torchvision.transforms.v2"
    run = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


# tools/environment.py


@pytest.fixture
def environment(tmp_path, monkeypatch):
    """The tool in a folder of its own; ``ran`` collects the commands it would run."""
    tool = load("environment")
    monkeypatch.setattr(tool, "ROOT", tmp_path)
    monkeypatch.setattr(tool, "VENV", tmp_path / ".venv")
    monkeypatch.setattr(tool, "STAMP", tmp_path / ".venv" / "complete.json")
    monkeypatch.delenv("PYTHON", raising=False)
    for name in tool.DECIDING:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    tool.ran = []

    def run(what, *command):
        tool.ran.append(what)
        if what == "venv":
            tool.VENV.mkdir(exist_ok=True)
            tool.STAMP.unlink(missing_ok=True)

    monkeypatch.setattr(tool, "run", run)
    return tool


FRESH = ["venv", "pip", "torchvision"]


def test_environment_is_made_once(environment):
    environment.make()
    assert environment.ran == FRESH
    environment.make()
    assert environment.ran == FRESH


def test_environment_interrupted_is_made_again(environment, monkeypatch):
    def interrupted(what, *command):
        environment.ran.append(what)
        if what == "pip":
            raise KeyboardInterrupt

    whole = environment.run
    environment.make()
    (environment.ROOT / "constraints.txt").write_text("changed")
    monkeypatch.setattr(environment, "run", interrupted)
    with pytest.raises(KeyboardInterrupt):
        environment.make()
    assert environment.found() == {}
    monkeypatch.setattr(environment, "run", whole)
    environment.ran.clear()
    environment.make()
    assert environment.ran == FRESH


def test_environment_is_updated_when_a_deciding_file_changes(environment):
    environment.make()
    environment.ran.clear()
    (environment.ROOT / "pyproject.toml").write_text("changed")
    environment.make()
    assert environment.ran == FRESH[1:]


@pytest.mark.parametrize("change", [{"folder": "/elsewhere"}, {"python": "3.0"}])
def test_environment_moved_or_of_another_python_is_made_again(environment, monkeypatch, change):
    environment.make()
    environment.ran.clear()
    environment.STAMP.write_text(json.dumps(environment.found() | change))
    monkeypatch.setenv("PYTHON", sys.executable)
    environment.make()
    assert environment.ran == FRESH


def test_environment_of_another_python_stays_unless_one_is_asked_for(environment):
    environment.make()
    environment.ran.clear()
    environment.STAMP.write_text(json.dumps(environment.found() | {"python": "3.99"}))
    environment.make()
    assert environment.ran == []


def test_environment_floor_and_files():
    tool = load("environment")
    assert ">=" + ".".join(map(str, tool.FLOOR)) == PROJECT["requires-python"]
    assert all((ROOT / name).is_file() for name in tool.DECIDING)


def test_environment_shows_why_a_command_failed(capsys):
    tool = load("environment")
    tool.run("quiet", sys.executable, "-c", "print('all is well')")
    assert capsys.readouterr().out == ""
    with pytest.raises(SystemExit, match=r"environment: loud failed \(exit status 3\)"):
        tool.run("loud", sys.executable, "-c", "print('no space left'); raise SystemExit(3)")
    assert capsys.readouterr().out == "no space left\n"


# tools/test.py and the commands


REPORT = '<testsuites><testsuite tests="5" failures="1" errors="1" skipped="2"/></testsuites>'


def test_stages_all_run_and_the_end_names_those_that_failed(tmp_path, monkeypatch, capfd):
    tool = load("test")
    code = f"from pathlib import Path; Path('unit.xml').write_text({REPORT!r}); raise SystemExit(1)"
    (tmp_path / "unit_stage.py").write_text(code)
    monkeypatch.setattr(tool, "ROOT", tmp_path)
    monkeypatch.setattr(tool, "REPORTS", tmp_path)
    monkeypatch.setattr(tool, "STAGES", {"types": ["no_such_module"], "unit": ["unit_stage"], "style": ["this"]})
    assert tool.main([]) == 1
    lines = capfd.readouterr().out.splitlines()
    summary = lines[lines.index("==> summary") + 1 :]
    assert [line.split()[:2] for line in summary[:3]] == [["FAILED", "types"], ["FAILED", "unit"], ["ok", "style"]]
    assert summary[1].endswith("1 passed, 2 failed, 2 skipped")
    assert summary[3:] == ["FAILED: types, unit", "1 passed, 2 failed, 2 skipped"]

    assert tool.main(["style"]) == 0
    assert capfd.readouterr().out.splitlines()[-2:] == ["all stages passed", "0 passed, 0 failed, 0 skipped"]
    assert tool.main(["unit", "lint"]) == 2
    assert "stage: got 'lint', takes some of types, unit, style" in capfd.readouterr().err


def test_tests_never_see_a_gpu(tmp_path, monkeypatch, capfd):
    tool = load("test")
    (tmp_path / "unit_stage.py").write_text("import os; print('visible:', repr(os.environ['CUDA_VISIBLE_DEVICES']))")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    monkeypatch.setattr(tool, "ROOT", tmp_path)
    monkeypatch.setattr(tool, "STAGES", {"unit": ["unit_stage"]})
    monkeypatch.setattr(tool, "REPORTS", tmp_path / "reports")
    assert tool.main([]) == 0
    assert "visible: ''" in capfd.readouterr().out


def test_ci_runs_the_one_command():
    for file in (".ci/run", ".github/workflows/ci.yml"):
        assert re.search(r"^[\s\-a-z:]*make test$", (ROOT / file).read_text(), re.MULTILINE), file


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
def test_make_help_lists_every_target():
    text = (ROOT / "Makefile").read_text()
    phony = re.search(r"^\.PHONY: (.*)$", text, re.MULTILINE)[1].split()
    run = subprocess.run(["make", "-s", "help"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert [line.split()[0] for line in run.stdout.splitlines()] == phony


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="not a checkout")
def test_the_tracked_files_stay_small():
    names = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    sizes = {name: (ROOT / name).stat().st_size for name in names.split("\0") if (ROOT / name).is_file()}
    assert len(sizes) > 500  # git was asked in the right place
    largest = ", ".join(f"{name} {sizes[name]}" for name in sorted(sizes, key=sizes.__getitem__)[-5:])
    assert sum(sizes.values()) < LARGEST, largest
