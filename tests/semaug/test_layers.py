"""The import rule: core <- data and networks <- training <- methods <- measures <- companion <- notebooks."""

import ast
import importlib
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import semaug

ROOT = Path(semaug.__file__).parents[1]
LAYERS = {"_checks": 0, "core": 0, "data": 1, "networks": 1, "training": 2, "methods": 3, "measures": 4}
COMPANION = 5
HEAVY = {"matplotlib", "torchvision", "scipy", "sklearn", "PIL", "papermill", "jupytext", "IPython", "ipywidgets"}
LIBRARY = sorted((ROOT / "semaug").rglob("*.py"))
SOURCES = [*LIBRARY, *sorted((ROOT / "companion").rglob("*.py"))]


def module(path, root=ROOT):
    """The dotted name of a file."""
    return ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__")


def imports(tree):
    """Modules of semaug and companion that a file imports, also inside functions, but not for type checkers alone."""
    if isinstance(tree, ast.If) and isinstance(tree.test, ast.Name) and tree.test.id == "TYPE_CHECKING":
        return {name for node in tree.orelse for name in imports(node)}
    found = set()
    if isinstance(tree, ast.Import):
        found = {alias.name for alias in tree.names}
    elif isinstance(tree, ast.ImportFrom):
        assert not tree.level, "imports are absolute"
        found = {tree.module, *(f"{tree.module}.{alias.name}" for alias in tree.names)}
    found = {name for name in found if name.split(".")[0] in ("semaug", "companion")}
    return found.union(*(imports(child) for child in ast.iter_child_nodes(tree)))


def layer(name):
    """The number of the layer that a dotted name is of; None for the packages themselves."""
    first, *rest = name.split(".")
    if first == "companion":
        return COMPANION
    return LAYERS[rest[0]] if rest and rest[0] in LAYERS else None


@pytest.mark.parametrize("path", SOURCES, ids=module)
def test_a_module_imports_only_downward(path):
    own = COMPANION + 1 if module(path) == "companion" else layer(module(path))
    for name in imports(ast.parse(path.read_text())):
        below = layer(name)
        if below is None:  # the names offered at the top are for users: inside, a module says where a name lives
            assert own == COMPANION or name == "semaug" or not hasattr(semaug, name.removeprefix("semaug.")), name
        elif own is not None:
            assert below <= own, f"{module(path)} imports {name}"


def test_every_module_of_the_library_has_a_layer():
    assert {path.relative_to(ROOT / "semaug").parts[0].removesuffix(".py") for path in LIBRARY} == {
        *LAYERS,
        "__init__",
    }


def test_no_module_imports_itself_by_a_detour():
    """Within a layer too: a cycle has no reading order."""
    files = {module(path): path for path in SOURCES if path.name != "__init__.py"}
    arrows = {name: imports(ast.parse(path.read_text())) & files.keys() - {name} for name, path in files.items()}
    done = set()
    while arrows:
        free = {name for name, targets in arrows.items() if targets <= done}
        assert free, f"a cycle among {sorted(arrows)}"
        done |= free
        for name in free:
            del arrows[name]


@pytest.mark.parametrize("path", SOURCES, ids=module)
def test_a_module_has_a_docstring(path):
    assert ast.get_docstring(ast.parse(path.read_text()))


def test_the_parser_of_imports_sees_every_form():
    code = """
import semaug.core.moments
from semaug import networks, data as d
from semaug.methods.isda import ISDA
from torch import nn
if TYPE_CHECKING:
    from semaug.training.recipe import Recipe
else:
    import semaug.core.gaussian
def f():
    from companion.plots import slider
"""
    assert {name for name in imports(ast.parse(code)) if layer(name) is not None} == {
        *("semaug.core.moments", "semaug.networks", "semaug.data", "semaug.methods.isda", "semaug.methods.isda.ISDA"),
        *("semaug.core.gaussian", "companion.plots", "companion.plots.slider"),
    }


def loaded_by(code):
    """Names of the top-level modules that a fresh interpreter has after running ``code``."""
    code += "; import sys; print(*{name.split('.')[0] for name in sys.modules})"
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    return set(run.stdout.split())


def test_importing_the_package_loads_nothing_else():
    assert not loaded_by("import semaug") & (HEAVY | {"torch", "jaxtyping"})


def test_importing_the_whole_library_costs_torch_alone():
    names = [f"semaug.{info.name}" for info in pkgutil.iter_modules(semaug.__path__)]
    for package in ("core", "data", "training", "methods", "measures"):
        folder = importlib.import_module(f"semaug.{package}").__path__
        names += [f"semaug.{package}.{info.name}" for info in pkgutil.iter_modules(folder)]
    assert len(names) > 30
    loaded = loaded_by(f"import {', '.join(names)}")
    assert "torch" in loaded
    assert not loaded & HEAVY


@pytest.mark.parametrize("name", semaug.__all__)
def test_a_name_at_the_top_is_the_one_of_its_module(name):
    value = getattr(semaug, name)
    assert getattr(importlib.import_module(value.__module__), name) is value
    assert name in dir(semaug)


def test_a_name_that_is_not_there_says_which_are():
    with pytest.raises(ImportError, match=r"semaug has no 'Isda'; it offers .*ISDA.*isda_loss"):
        from semaug import Isda  # noqa: F401
    with pytest.raises(AttributeError, match="semaug has no 'Isda'"):
        semaug.Isda  # noqa: B018
    assert not hasattr(semaug, "Isda")
    from semaug import methods  # a package is not a name of the list

    assert methods.__name__ == "semaug.methods"
