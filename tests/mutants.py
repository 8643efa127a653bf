"""Mutants: small changes of a module that its own tests have to notice.

    python tests/mutants.py                         12 mutants of every module below
    python tests/mutants.py isda moments --count 30 --seed 1

Each mutant is one change, drawn from a seed: an operator, a comparison, a number, a dropped term or factor, swapped
arguments, a dropped call such as a clamp. It is written into a copy of the package, and the module's own tests run
against it until the first failure. Survivors are printed as diffs: each is a test that is missing, or a change that
makes no difference.
"""

from __future__ import annotations

import argparse
import ast
import copy
import difflib
import multiprocessing
import os
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
os.environ["OMP_NUM_THREADS"] = "1"

import beartype  # noqa: F401  (beartype and torch for the forks)
import pytest
import torch  # noqa: F401

ROOT = Path(__file__).resolve().parents[1]

MODULES = {
    "gaussian": ("core/gaussian", ["core/test_gaussian", "properties/test_core"]),
    "moments": ("core/moments", ["core/test_moments", "properties/test_core"]),
    "isda": ("methods/isda", ["methods/test_isda", "properties/test_methods"]),
    "mixing": ("methods/mixing", ["methods/test_mixing", "properties/test_methods"]),
    "sla": ("methods/sla", ["methods/test_sla", "properties/test_methods"]),
    "diffaugment": ("methods/diffaugment", ["methods/test_diffaugment", "properties/test_methods"]),
    "long_tail": ("methods/long_tail", ["methods/test_long_tail", "properties/test_methods"]),
    "metasaug": ("methods/metasaug", ["methods/test_metasaug", "properties/test_methods"]),
    "gvae": ("methods/gvae", ["methods/test_gvae", "properties/test_methods"]),
    "automix": ("methods/automix", ["methods/test_automix"]),
}

"""Each with its file and its tests."""

OPERATORS = {ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Div}
OPERATORS |= {ast.Pow: ast.Mult, ast.MatMult: ast.Mult, ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd}
COMPARISONS = {ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq}
COMPARISONS |= {ast.NotEq: ast.Eq, ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In}
DROPPED = {"clamp", "clamp_min", "clamp_max", "detach", "clone", "abs", "sqrt", "square", "exp", "log", "to", "double"}


def changes(tree: ast.Module) -> Iterator[tuple[int, str, ast.AST, ast.AST]]:
    """Every change: line, kind, the node, and what stands in its place. Annotations, docstrings, messages stay."""
    skipped = set[int]()
    for node in ast.walk(tree):
        parts: list[ast.AST | None] = []
        if isinstance(node, ast.FunctionDef):
            arguments = node.args
            every = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs, arguments.vararg, arguments.kwarg]
            parts += [node.returns, *(one.annotation for one in every if one is not None)]
        elif isinstance(node, ast.AnnAssign):
            parts += [node.annotation]
        elif isinstance(node, ast.Raise | ast.JoinedStr | ast.ImportFrom):
            parts += [node]
        for part in parts:
            skipped |= {id(inner) for inner in ast.walk(part)} if part is not None else set()
    for statement in tree.body:  # names of types
        if isinstance(statement, ast.Assign):
            skipped |= {id(inner) for inner in ast.walk(statement) if isinstance(inner, ast.BinOp)}
    for node in ast.walk(tree):
        if id(node) in skipped or not hasattr(node, "lineno"):
            continue
        for kind, other in replacements(node):
            yield node.lineno, kind, node, other


def replacements(node: ast.AST) -> Iterator[tuple[str, ast.AST]]:
    """What one node is replaced by."""
    if isinstance(node, ast.BinOp):
        if type(node.op) in OPERATORS:
            yield "operator", ast.BinOp(node.left, OPERATORS[type(node.op)](), node.right)
        if isinstance(node.op, ast.Add | ast.Sub | ast.Mult | ast.Div):
            yield "dropped term", node.left
    elif isinstance(node, ast.Compare) and len(node.ops) == 1 and type(node.ops[0]) in COMPARISONS:
        yield "comparison", ast.Compare(node.left, [COMPARISONS[type(node.ops[0])]()], node.comparators)
    elif isinstance(node, ast.Constant) and isinstance(node.value, int | float) and not isinstance(node.value, bool):
        yield "number", ast.Constant(node.value + 1)
    elif isinstance(node, ast.Constant) and isinstance(node.value, bool):
        yield "number", ast.Constant(not node.value)
    elif isinstance(node, ast.BoolOp):
        yield "condition", ast.BoolOp(ast.Or() if isinstance(node.op, ast.And) else ast.And(), node.values)
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub | ast.Not):
        yield "sign", node.operand
    elif isinstance(node, ast.Call):
        if len(node.args) > 1 and not any(isinstance(each, ast.Starred) for each in node.args):
            first, second, *others = node.args
            if ast.dump(first) != ast.dump(second):
                yield "swapped arguments", ast.Call(node.func, [second, first, *others], node.keywords)
        if isinstance(node.func, ast.Attribute) and node.func.attr.rstrip("_") in DROPPED:
            yield "dropped call", node.func.value
    elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
        yield "dropped statement", ast.Pass()


class _Replace(ast.NodeTransformer):
    """The node at one place in a walk replaced; ``ast.walk`` of a copy goes through it in the same order."""

    def __init__(self, node: ast.AST, other: ast.AST) -> None:
        self.node, self.other = node, other

    def visit(self, node: ast.AST) -> ast.AST:
        return self.other if node is self.node else self.generic_visit(node)


def mutated(source: str, index: int) -> tuple[int, str, str]:
    """Line, kind and the source, as ``ast.unparse`` writes it, with one change made."""
    tree = ast.parse(source)
    line, kind, node, other = list(changes(tree))[index]
    tree = _Replace(node, copy.deepcopy(other)).visit(tree)
    return line, kind, ast.unparse(ast.fix_missing_locations(tree))


def sample(source: str, count: int, seed: int) -> list[int]:
    """Numbers of changes, drawn from a seed, no two of one line as far as there are lines."""
    lines = [line for line, *_ in changes(ast.parse(source))]
    order, seen = list(range(len(lines))), set[int]()
    random.Random(seed).shuffle(order)
    first = []
    for number in order:
        if lines[number] not in seen:
            seen.add(lines[number])
            first.append(number)
    return (first + [number for number in order if number not in set(first)])[:count]


def run(folder: Path, tests: list[str], seconds: float) -> bool:
    """Whether the tests pass in this copy; a mutant that takes ten times as long is noticed too.

    In a fork of this process, which has torch and pytest imported already: most of a short run is that.
    """
    child = multiprocessing.get_context("fork").Process(target=_run, args=(folder, tests))
    child.start()
    child.join(seconds)
    if child.is_alive():
        child.kill()
        child.join()
    return child.exitcode == 0


def _run(folder: Path, tests: list[str]) -> None:
    os.chdir(folder)
    sys.path[:] = [str(folder), *(entry for entry in sys.path if Path(entry or ".").resolve() != ROOT)]
    os.environ["PYTHONPATH"] = str(folder)
    log = os.open(folder / "log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for stream in (1, 2):
        os.dup2(log, stream)
    files = [f"tests/semaug/{name}.py" for name in tests]
    os._exit(pytest.main(["-x", "-q", "--no-header", "--tb=short", *files]))


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("modules", nargs="*", help=f"of {', '.join(MODULES)}; all by default")
    parser.add_argument("--count", type=int, default=12, help="mutants of each module")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if unknown := set(options.modules) - MODULES.keys():
        parser.error(f"modules: got {', '.join(sorted(unknown))}; takes {', '.join(MODULES)}")
    totals, survivors = [0, 0], list[str]()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "checkout"
        folder.mkdir()
        for part in ("semaug", "companion", "tests", "notebooks"):
            shutil.copytree(ROOT / part, folder / part, ignore=shutil.ignore_patterns("__pycache__", "*.ipynb"))
        shutil.copy(ROOT / "pyproject.toml", folder)
        for module in options.modules or MODULES:
            place, tests = MODULES[module]
            path = folder / "semaug" / f"{place}.py"
            source = path.read_text()
            plain, started = ast.unparse(ast.parse(source)), time.monotonic()
            path.write_text(plain)
            if not run(folder, tests, 3600):
                print(f"{module}: its tests fail without a mutant", (folder / "log").read_text()[-3000:], sep="\n")
                return 1
            seconds = 10 * (time.monotonic() - started)
            killed, numbers = 0, sample(source, options.count, options.seed)
            for number in numbers:
                line, kind, text = mutated(source, number)
                path.write_text(text)
                lives = run(folder, tests, seconds)
                killed += not lives
                diff = list(difflib.unified_diff(plain.splitlines(), text.splitlines(), lineterm="", n=0))[3:]
                print(f"{'SURVIVED' if lives else 'killed  '} {module}:{line} {kind}", flush=True)
                if lives:
                    survivors.append("\n".join([f"{module}:{line} {kind}", *diff]))
                    print("\n".join(f"    {each}" for each in diff), flush=True)
            path.write_text(source)
            totals = [totals[0] + killed, totals[1] + len(numbers)]
            print(f"{module}: {killed} of {len(numbers)} killed", flush=True)
    print("\n\n".join([f"{totals[0]} of {totals[1]} mutants killed", *survivors]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
