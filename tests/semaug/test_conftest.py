"""The shape checks really check, and ``unchecked`` really lets a function's own error through."""

import importlib
import sys
import textwrap

import jaxtyping
import pytest
import torch

SOURCE = """
from __future__ import annotations
import dataclasses
from jaxtyping import Float
from torch import Tensor

@dataclasses.dataclass
class Settings:
    width: int = 3
    def __post_init__(self):
        if not isinstance(self.width, int):
            raise ValueError(f"width: got {self.width!r}, takes an int")

class Module:
    def __init__(self, rows: int = 1) -> None:
        if not isinstance(rows, int):
            raise ValueError(f"rows: got {rows!r}, takes an int")
    def __call__(self, x: Float[Tensor, "N A"], weight: Float[Tensor, "C A"]) -> Float[Tensor, "N C"]:
        return scores(x, weight)

def scores(x: Float[Tensor, "N A"], weight: Float[Tensor, "C A"], strength: float = 1.0) -> Float[Tensor, "N C"]:
    if x.ndim != 2 or x.shape[1] != weight.shape[1]:
        raise ValueError(f"x: got {tuple(x.shape)}, takes (N, {weight.shape[1]})")
    if not isinstance(strength, float):
        raise TypeError(f"strength: got {strength!r}, takes a float")
    return x @ weight.T * strength

def half(x: float) -> float:
    return x / 2

def wrong_output(x: Float[Tensor, "N A"]) -> Float[Tensor, " N"]:
    return x
"""


@pytest.fixture(scope="module")
def module(tmp_path_factory):
    """A module of its own, imported under the same hook as the package."""
    folder = tmp_path_factory.mktemp("hooked")
    (folder / "hooked_module.py").write_text(textwrap.dedent(SOURCE))
    sys.path.insert(0, str(folder))
    try:
        with jaxtyping.install_import_hook("hooked_module", typechecker="semaug_checker.check"):
            yield importlib.import_module("hooked_module")
    finally:
        sys.path.remove(str(folder))


CASES = [
    (lambda module: module.scores(torch.ones(2, 4), torch.ones(5, 3)), ValueError, "x: got"),
    (lambda module: module.scores(torch.ones(2), torch.ones(5, 3)), ValueError, "x: got"),
    (lambda module: module.scores(torch.ones(2, 3), torch.ones(5, 3), "1"), TypeError, "strength: got '1'"),
    (lambda module: module.Module()(torch.ones(2, 4), torch.ones(5, 3)), ValueError, "x: got"),
    (lambda module: module.Module("1"), ValueError, "rows: got '1'"),
    (lambda module: module.Settings("3"), ValueError, "width: got '3'"),
]


@pytest.mark.parametrize(("call", "error", "message"), CASES)
def test_unchecked_reaches_the_own_error(module, unchecked, call, error, message):
    with pytest.raises(error, match=message):
        call(module)


@pytest.mark.parametrize("case", CASES)
def test_checked_stops_before_it(module, case):
    with pytest.raises(jaxtyping.TypeCheckError):
        case[0](module)


def test_output_shapes_are_checked(module):
    with pytest.raises(jaxtyping.TypeCheckError, match="return value"):
        module.wrong_output(torch.ones(2, 3))
    assert module.scores(torch.ones(2, 3), torch.ones(5, 3)).shape == (2, 5)


def test_a_whole_number_is_a_float(module):
    """As for mypy and for users: ``strength=1`` is no error."""
    assert module.half(1) == 0.5


def test_the_package_itself_is_hooked():
    """Without this, an installed finder that wins over the hook would switch every check off unseen."""
    from semaug.training import record

    with pytest.raises(jaxtyping.TypeCheckError):
        record.config_hash(3)


def test_every_test_starts_from_the_same_seed():
    assert torch.initial_seed() == 0
    assert torch.get_num_threads() == 1
