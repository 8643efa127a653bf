"""The package is laid out as its docstring says: rooms in import order, each with a docstring and tests."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import semaug

FOLDER = Path(semaug.__file__).parent
WITHIN_A_LINE = {("metasaug", "isda")}
HEAVY = {"matplotlib", "torchvision", "scipy", "sklearn", "PIL", "papermill", "jupytext", "IPython", "ipywidgets"}


def listed():
    """Lines of rooms, as the docstring has them."""
    assert semaug.__doc__ is not None
    text = semaug.__doc__.split("to this list:\n")[1].split("``import semaug``")[0]
    return [line.split() for line in text.splitlines() if line.strip()]


LINES = listed()
ROOMS = [room for line in LINES for room in line]


def imports(tree):
    """Rooms that a module imports, also inside functions, but not for type checkers alone."""
    if isinstance(tree, ast.If) and isinstance(tree.test, ast.Name) and tree.test.id == "TYPE_CHECKING":
        return {room for node in tree.orelse for room in imports(node)}
    found = set()
    if isinstance(tree, ast.Import):
        found = {alias.name.split(".")[1] for alias in tree.names if alias.name.startswith("semaug.")}
    elif isinstance(tree, ast.ImportFrom):
        names = [tree.module or ""] if tree.module != "semaug" else [f"semaug.{alias.name}" for alias in tree.names]
        names = [f"semaug.{name}" for name in names] if tree.level else names
        found = {name.split(".")[1] for name in names if name.startswith("semaug.")}
    return found.union(*(imports(child) for child in ast.iter_child_nodes(tree)))


def test_the_list_is_of_the_rooms_there_are():
    assert len(ROOMS) >= 10
    assert len(set(ROOMS)) == len(ROOMS)
    assert set(ROOMS) == {path.stem for path in FOLDER.glob("*.py")} - {"__init__"}
    assert sorted(semaug.__all__) == sorted(ROOMS)


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_only_from_the_lines_above(room):
    line = next(number for number, line in enumerate(LINES) if room in line)
    above = {other for line in LINES[:line] for other in line} | {b for a, b in WITHIN_A_LINE if a == room}
    tree = ast.parse((FOLDER / f"{room}.py").read_text())
    assert imports(tree) <= above
    assert ast.get_docstring(tree)


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_has_tests(room):
    text = (Path(__file__).parent / f"test_{room}.py").read_text()
    assert "def test_" in text


def test_the_parser_of_imports_sees_every_form():
    code = """
import semaug.isda
from semaug import moments, data as d
from semaug.networks import QuickNet
from .records import Record
from torch import nn
if TYPE_CHECKING:
    from semaug.training import Recipe
else:
    import semaug.gaussian
def f():
    from semaug.plots import slider
"""
    assert imports(ast.parse(code)) == {"isda", "moments", "data", "networks", "records", "gaussian", "plots"}


def loaded_by(code):
    """Names of the top-level modules that a fresh interpreter has after running ``code``."""
    code += "; import sys; print(*{name.split('.')[0] for name in sys.modules})"
    run = subprocess.run([sys.executable, "-c", code], cwd=FOLDER.parent, capture_output=True, text=True, check=True)
    return set(run.stdout.split())


def test_importing_the_package_loads_no_room():
    assert not loaded_by("import semaug") & (HEAVY | {"torch", "jaxtyping"})


def test_importing_the_methods_costs_torch_alone():
    rooms = [
        room
        for room in ROOMS
        if room not in ("plots", "rerun", "leaderboard", "lesson", "redraw") and not room.endswith("figures")
    ]
    loaded = loaded_by(f"from semaug import {', '.join(rooms)}")
    assert "torch" in loaded
    assert not loaded & HEAVY


def test_an_unknown_room_is_named():
    with pytest.raises(AttributeError, match=r"no attribute 'nothing'; its rooms are .*moments"):
        semaug.nothing  # noqa: B018
    assert set(ROOMS) <= set(dir(semaug))
