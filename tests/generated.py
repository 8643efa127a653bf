"""Generated arguments for the property tests, and what every public function promises of them.

Sound arguments give what the definition gives, computed in float64 by plain loops, and are left as they were. Damaged
ones (a NaN, an infinity, a number near the end of its dtype, an empty batch) give a right value or an error that names
an argument: never a NaN that nobody mentions.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from hypothesis import settings, strategies as st
from torch import Tensor

FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
DAMAGE = ("nan", "inf", "-inf", "huge")

# A tenth of the profile's examples for each of the functions: 10, and 400 with HYPOTHESIS_PROFILE=deep.
examples = settings(max_examples=max(1, settings.default.max_examples // 10))
DATA = st.data()


class Draw:
    """Arguments of one example: sizes, tensors in any dtype and memory layout, damage."""

    def __init__(self, data: st.DataObject, dtypes: Sequence[torch.dtype] = FLOATS) -> None:
        self.data = data
        self.dtype = self.one_of(dtypes)
        self.generator = torch.Generator().manual_seed(data.draw(st.integers(0, 2**31), label="seed"))

    def one_of(self, choices: Sequence[Any]) -> Any:
        return self.data.draw(st.sampled_from(list(choices)))

    def size(self, high: int = 7, low: int = 1) -> int:
        return self.data.draw(st.integers(low, high))

    def number(self, low: float, high: float) -> float:
        return self.data.draw(st.floats(low, high, allow_nan=False, width=32))

    def normal(self, *shape: int, scale: float = 1.0) -> Tensor:
        return self.placed((scale * torch.randn(shape, generator=self.generator, dtype=torch.float64)).to(self.dtype))

    def uniform(self, *shape: int, low: float = 0.0, high: float = 1.0, dtype: torch.dtype | None = None) -> Tensor:
        values = low + (high - low) * torch.rand(shape, generator=self.generator, dtype=torch.float64)
        return self.placed(values.to(dtype or self.dtype).clamp(low, high))

    def whole(self, high: int, *shape: int, low: int = 0) -> Tensor:
        return self.placed(torch.randint(low, high, shape, generator=self.generator))

    def bytes(self, *shape: int) -> Tensor:
        return self.placed(torch.randint(256, shape, generator=self.generator, dtype=torch.uint8))

    def permutation(self, n: int) -> Tensor:
        return torch.randperm(n, generator=self.generator)

    def covariances(self, C: int, A: int) -> Tensor:
        root = torch.randn(C, A, self.size(A), generator=self.generator, dtype=torch.float64) / A**0.5
        return self.placed((root @ root.mT).to(self.dtype))

    def placed(self, x: Tensor) -> Tensor:
        """The same values, laid out in memory in another way."""
        way = self.one_of(("as it is", "transposed", "every second", "channels last"))
        if way == "transposed" and x.ndim > 1:
            return x.transpose(0, -1).contiguous().transpose(0, -1)
        if way == "every second":
            wide = torch.zeros(*x.shape[:-1], 2 * x.shape[-1], dtype=x.dtype) if x.ndim else x
            return x if x.ndim == 0 else wide[..., ::2].copy_(x)
        return x.contiguous(memory_format=torch.channels_last) if way == "channels last" and x.ndim == 4 else x

    def damaged(
        self, arguments: Mapping[str, Any], names: Sequence[str] | None = None, kinds: Sequence[str] = DAMAGE
    ) -> tuple[dict[str, Any], str]:
        """The arguments, one of their floats changed where this example is of that kind, and the kind ("": sound)."""
        kind = self.one_of(("", "", "", *kinds))
        floats = [
            (name, place)
            for name, value in arguments.items()
            for place, part in enumerate(value if isinstance(value, tuple) else (value,))
            if isinstance(part, Tensor) and part.is_floating_point() and part.numel() and name in (names or [name])
        ]
        if not kind or not floats:
            return dict(arguments), ""
        name, part = self.one_of(floats)
        whole = arguments[name]
        value = (whole[part] if isinstance(whole, tuple) else whole).clone()
        place = tuple(self.data.draw(st.integers(0, side - 1)) for side in value.shape)
        value[place] = torch.finfo(value.dtype).max / 2 if kind == "huge" else float(kind)
        if isinstance(whole, tuple):  # Factored
            value = type(whole)(*whole[:part], value, *whole[part + 1 :])
        return {**arguments, name: value}, kind


def wide(value: Any) -> Any:
    """Floats in float64, all else as it is."""
    if isinstance(value, Tensor):
        return value.double() if value.is_floating_point() else value
    if isinstance(value, tuple):
        parts = [wide(part) for part in value]
        return type(value)(*parts) if hasattr(value, "_fields") else tuple(parts)
    return value


def tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, tuple | list):
        return [part for each in value for part in tensors(each)]
    if isinstance(value, dict):
        return tensors(list(value.values()))
    return [torch.tensor(float(value), dtype=torch.float64)] if isinstance(value, int | float) else []


def holds(
    draw: Draw,
    function: Callable[..., Any],
    definition: Callable[..., Any],
    arguments: Mapping[str, Any],
    *,
    damage: Sequence[str] | None = None,
    kinds: Sequence[str] = DAMAGE,
    through: bool = False,
    empty: bool = False,
    tolerance: float = 2e-4,
) -> None:
    """What the module says, of one example.

    Args:
        damage: the arguments that may be damaged; all floats by default, () for none.
        kinds: of damage.
        through: a value that is not finite may come out where the definition has one, as of a pixel.
        empty: the batch may be empty: an error is one of the answers.
    """
    arguments, kind = (dict(arguments), "") if damage == () else draw.damaged(arguments, damage, kinds)
    before = [each.clone() for each in tensors(arguments)]
    try:
        result = function(**arguments)
    except (ValueError, TypeError) as error:
        message = str(error)
        assert kind or empty, f"refused sound arguments: {message}"
        named = message.partition(": got")[0]
        assert any(re.search(rf"\b{name}\b", named) for name in arguments), f"{message} names none of {[*arguments]}"
        result = None
    for was, now in zip(before, tensors(arguments), strict=True):
        assert torch.equal(was.nan_to_num(nan=-77.0), now.nan_to_num(nan=-77.0)), "an argument changed in place"
    if result is None:
        return
    with torch.no_grad():
        wanted = definition(**{name: wide(value) for name, value in arguments.items()})
    results, wants = tensors(result), tensors(wanted)
    assert len(results) == len(wants)
    for got, want in zip(results, wants, strict=True):
        same(got, want, kind, through, tolerance)


def same(got: Tensor, want: Tensor, kind: str = "", through: bool = False, tolerance: float = 2e-4) -> None:
    """Equal to rounding; where something was damaged, not finite at most where the definition is not."""
    assert got.shape == want.shape
    if not got.is_floating_point():
        if not kind:
            assert torch.equal(got.to(want.dtype), want)
        return
    precision = 8 * torch.finfo(got.dtype).eps
    loose = precision if got.dtype in (torch.float16, torch.bfloat16) else 0.0
    got, want, largest = got.detach().double(), want.detach().double(), torch.finfo(got.dtype).max
    if through:
        assert torch.equal(got.isnan(), want.isnan()), f"NaN at other places than by definition, after {kind}"
    else:
        assert not bool(got.isnan().any()), f"a NaN came out, after {kind or 'sound arguments'}"
    if kind != "huge":
        both = got.isfinite() & want.isfinite()
        assert both.all() or kind or through, "not finite"
        size = 1 + float(want[both].abs().max()) if bool(both.any()) else 1.0
        close = (got[both] - want[both]).abs() <= max(tolerance, loose) * size
        assert bool(close.all()), f"got {got.tolist()}, by definition {want.tolist()}"
    beyond = ~got.isfinite() & ~got.isnan()
    assert bool((want[beyond].abs() > 1e-3 * largest).all()), f"overflow where the definition is {want[beyond]}"
