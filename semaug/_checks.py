"""Argument checks of the whole package, with one style of message: ``name: got X; takes Y``."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from numbers import Integral, Real
from typing import TypeVar

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from semaug.core.tensors import Covariance, Factored, at_least_float32, tracing


def require(condition: bool, name: str, got: object, takes: str, error: type[Exception] = ValueError) -> None:
    """Raise ``error`` with the message ``name: got X; takes Y`` unless the condition holds."""
    if not condition:
        raise error(f"{name}: got {got!r}; takes {takes}")


def check_count(name: str, value: int, low: int = 1) -> int:
    """A whole number from ``low`` as a plain int (NumPy's integers too); ValueError naming the argument otherwise."""
    whole = isinstance(value, Integral) and not isinstance(value, bool) and value >= low
    require(whole, name, value, f"a whole number from {low}")
    return int(value)


def check_number(
    name: str, value: float, low: float = -math.inf, high: float = math.inf, without: tuple[float, ...] = ()
) -> float:
    """A finite number in [low, high] as a plain float (NumPy's and whole numbers too).

    Args:
        without: ends of the interval that are not in it: ``check_number("lr", lr, low=0, without=(0,))``.

    Raises:
        ValueError: for a bool, text, NaN, infinity or a number outside.
    """
    number = isinstance(value, Real) and not isinstance(value, bool)
    inside = number and math.isfinite(value) and low <= value <= high and value not in without
    if not inside:
        opening, closing = "(" if low in without else "[", ")" if high in without else "]"
        bounds = f" in {opening}{low:g}, {high:g}{closing}" if math.isfinite(high) else ""
        bounds = bounds or (f" {'above' if low in without else 'from'} {low:g}" if math.isfinite(low) else "")
        require(False, name, value, f"a finite number{bounds}")
    return float(value)


def check_flag(name: str, value: bool) -> bool:
    """True or False; ValueError for anything else that counts as one, such as "no" or 1."""
    require(isinstance(value, bool), name, value, "True or False")
    return value


Choice = TypeVar("Choice")


def check_choice(name: str, value: Choice, choices: Collection[Choice]) -> Choice:
    """One of the choices; ValueError listing them otherwise."""
    require(value in choices, name, value, f"one of {', '.join(map(str, choices))}")
    return value


def check_shape(name: str, x: Tensor | None, takes: Sequence[int], why: str = "") -> Tensor:
    """The tensor, which has this shape; ValueError otherwise, and for None. The message ends with ``why``."""
    if x is None or x.shape != takes:
        got = None if x is None else f"shape {tuple(x.shape)}"
        raise ValueError(f"{name}: got {got}; takes {tuple(takes)}{why}")
    return x


def check_images(images: Tensor, name: str = "images") -> None:
    """Raise ValueError unless the images have four axes."""
    if images.ndim != 4:
        raise ValueError(f"{name}: got shape {tuple(images.shape)}; takes (N, channels, H, W)")


def check_one_each(images: Tensor, dtype: torch.dtype | None = torch.int64, **draws: Tensor) -> None:
    """Raise ValueError unless the draws are one number an image, of this dtype, or floats where it is None."""
    for name, draw in draws.items():
        fits = draw.is_floating_point() if dtype is None else draw.dtype == dtype
        if draw.shape != images.shape[:1] or not fits:
            takes = f"{'floats' if dtype is None else 'int64'} ({len(images)},), one an image"
            raise ValueError(f"{name}: got {draw.dtype} {tuple(draw.shape)}; takes {takes}")


def check_device(name: str, x: Tensor, like: Tensor, other: str) -> None:
    """Raise ValueError unless x is on the device of ``like``, which the message calls ``other``."""
    if x.device != like.device:
        raise ValueError(f"{name}: got {x.device}; takes {like.device}, the device of {other}")


def check_within(name: str, x: Tensor, low: float = 0, high: float = 1) -> Tensor:
    """The floats held to [low, high]: a few units in the last place beyond an end, as rounding leaves, count as it.

    Raises:
        ValueError: for NaN and what is further outside, with as many digits as the dtype tells apart.
    """
    little = 8 * torch.finfo(x.dtype).eps * max(abs(low), abs(high))
    if x.numel() and not bool(((x >= low - little) & (x <= high + little)).all()):  # NaN compares false
        numbers = x.detach()[~x.isnan()]
        ends = [at_least_float32(end).cpu().numpy() for end in (numbers.aminmax() if len(numbers) else ())]
        got = " to ".join(map(str, ends)) or "no number"
        raise ValueError(f"{name}: got {got} and {x.numel() - len(numbers)} NaN; takes values in [{low:g}, {high:g}]")
    return x.clamp(low, high)


class NotFiniteError(ValueError, FloatingPointError):
    """A value that is not finite: a bad argument, and in ``fit`` the FloatingPointError of training that diverged."""


def all_finite(x: Tensor) -> bool:
    """Whether all values are finite; True while tracing, where they may not be read."""
    # The sum is finite where all are, and takes a tenth of the time; only where it overflows is each value asked.
    return tracing(x) or math.isfinite(x.detach().sum().item()) or bool(x.isfinite().all())


def check_finite(name: str, x: Tensor) -> None:
    """Raise NotFiniteError unless all values are finite; they are not read while tracing."""
    if not all_finite(x):
        raise NotFiniteError(f"{name}: got values that are not finite; takes finite ones")


def check_result(result: Tensor, names: str) -> Tensor:
    """What was computed of the finite arguments ``names``; NotFiniteError where it overflowed, not while tracing."""
    if not all_finite(result):
        raise NotFiniteError(f"{names}: got values whose loss overflows {result.dtype}; takes smaller ones")
    return result


def check_batch(
    features: Tensor, target: Tensor, weight: Tensor, bias: Tensor | None = None, name: str = "features"
) -> None:
    """Raise ValueError or TypeError unless finite features fit the target and a finite classifier (C, A), (C,)."""
    if weight.ndim != 2 or not weight.is_floating_point():
        raise ValueError(f"weight: got {weight.dtype} {tuple(weight.shape)}; takes floats (C, A)")
    check_features(features, target, len(weight), weight.shape[1], name)
    if bias is not None:
        check_shape("bias", bias, weight.shape[:1])
    if weight.dtype != features.dtype and not torch.is_autocast_enabled(features.device.type):
        raise TypeError(f"weight: got {weight.dtype}; takes {features.dtype}, the dtype of {name}")
    for other, tensor in (("weight", weight), ("bias", bias)):
        if tensor is not None:
            check_device(other, tensor, features, name)
            check_finite(other, tensor)


def check_features(
    features: Tensor, target: Tensor, classes: int, width: int, name: str = "features", target_name: str = "target"
) -> None:
    """Raise ValueError or TypeError unless features are finite (N, A), N > 0, and target is (N,) int64 in [0, C).

    Args:
        name, target_name: what the message calls the two.
    """
    if features.ndim != 2 or features.shape[1] != width or len(features) == 0:
        raise ValueError(f"{name}: got shape {tuple(features.shape)}; takes (N, {width}) with N > 0")
    require(features.is_floating_point(), name, features.dtype, "floats", TypeError)
    require(target.dtype == torch.int64, target_name, target.dtype, "int64 class numbers", TypeError)
    check_shape(target_name, target, features.shape[:1], ", one class a row")
    check_device(target_name, target, features, name)
    check_classes(target, classes, target_name)
    check_finite(name, features)


def check_classes(target: Tensor, classes: int, name: str = "target") -> None:
    """Raise ValueError unless class numbers are in [0, classes); they are not read while tracing."""
    if target.numel() and not tracing(target):
        low, high = (int(value) for value in target.aminmax())
        if low < 0 or high >= classes:
            raise ValueError(f"{name}: got classes {low} to {high}; takes 0 to {classes - 1}")


def check_covariance(covariance: Covariance, weight: Tensor) -> None:
    """Raise ValueError or TypeError unless the covariance is of a known form, of floats, and fits the weight (C, A).

    Of a full one's symmetry only the two diagonals next to the main one are read, and nothing while tracing.
    """
    if not isinstance(covariance, Tensor | Factored):
        kind = f"{type(covariance).__module__}.{type(covariance).__qualname__}"
        raise TypeError(f"covariance: got {kind}; takes a tensor or Factored")
    C, A = weight.shape
    parts = covariance if isinstance(covariance, Factored) else (covariance,)
    shapes = [tuple(part.shape) for part in parts]
    rank = shapes[0][-1:]
    if shapes not in ([(C, A, A)], [(C, A)], [(C, A, *rank), (C, A)]) or 0 in rank:
        got = " and ".join(map(str, shapes))
        raise ValueError(f"covariance: got {got}; takes {(C, A, A)}, {(C, A)} or Factored ({C}, {A}, r) and {(C, A)}")
    for part in parts:
        check_device("covariance", part, weight, "weight")
        require(part.is_floating_point(), "covariance", part.dtype, "floats", TypeError)
    if isinstance(covariance, Tensor) and covariance.ndim == 3 and A > 1 and not tracing(covariance):
        upper, lower, main = (covariance.detach().diagonal(offset, 1, 2) for offset in (1, -1, 0))
        # Sums taken in another order round differently; 1e-4 of the largest variance is far above that.
        if torch.dist(upper, lower, math.inf).item() > 1e-4 * max(map(abs, torch.stack(main.aminmax()).tolist())):
            raise ValueError(
                "covariance: got other numbers above the main diagonal than below; takes symmetric matrices"
            )


def check_strength(strength: float | Tensor) -> float | Tensor:
    """One finite number from 0, as a plain float or the 0-d tensor given; ValueError otherwise."""
    if not isinstance(strength, Tensor):
        return check_number("strength", strength, low=0)
    if strength.ndim != 0:
        raise ValueError(f"strength: got a tensor {tuple(strength.shape)}; takes one number")
    if not tracing(strength):
        check_number("strength", float(strength.detach()), low=0)
    return strength


def check_class_weight(class_weight: Tensor, target: Tensor, classes: int, reduction: str = "mean") -> None:
    """Raise ValueError unless the weights are (C,), finite, from 0; their sum over the batch divides a "mean"."""
    check_shape("class_weight", class_weight, (classes,))
    check_device("class_weight", class_weight, target, "target")
    if tracing(class_weight):
        return
    bad = class_weight[~((class_weight >= 0) & class_weight.isfinite())]
    if len(bad):
        raise ValueError(f"class_weight: got {bad[0].item():.4g}; takes finite numbers from 0")
    if reduction == "mean" and not bool(class_weight.index_select(0, target).any()):
        raise ValueError("class_weight: got 0 for every class of the batch; takes a number above 0 for one at least")


Ratio = float | Float[Tensor, ""] | Float[Tensor, " N"]

Centre = int | Int64[Tensor, ""] | Int64[Tensor, " N"]


def check_floats(images: Tensor, name: str = "images") -> None:
    """Raise TypeError for what cannot be averaged."""
    require(images.is_floating_point(), name, images.dtype, "floats, bytes cannot be averaged", TypeError)


def check_draws(images: Tensor, lam: Ratio, permutation: Tensor, name: str = "images", **centres: Centre) -> Tensor:
    """Lam as a tensor, after the checks that :func:`mixup` names; name: of the images where they are maps."""
    check_images(images, name)
    check_one_each(images, permutation=permutation)
    if not isinstance(lam, Tensor):
        lam = torch.tensor(float(lam), dtype=torch.float64, device=images.device)
    if lam.shape not in (torch.Size(), images.shape[:1]) or not lam.is_floating_point():
        raise ValueError(f"lam: got {lam.dtype} {tuple(lam.shape)}; takes a number or floats ({len(images)},)")
    for axis, centre in centres.items():
        shapes = torch.Size(), images.shape[:1]
        fits = isinstance(centre, Tensor) and centre.dtype == torch.int64 and centre.shape in shapes
        if not (fits or isinstance(centre, int)):
            got = f"{centre.dtype} {tuple(centre.shape)}" if isinstance(centre, Tensor) else repr(centre)
            raise ValueError(f"{axis}: got {got}; takes a whole number or int64, 0-d or ({len(images)},)")
    if not tracing(images):
        if not bool(((lam >= 0) & (lam <= 1)).all()):
            raise ValueError(f"lam: got {lam.detach().tolist()}; takes numbers in [0, 1]")
        if len(images) and not 0 <= int(permutation.min()) <= int(permutation.max()) < len(images):
            raise ValueError(f"permutation: got {permutation.tolist()}; takes numbers in [0, {len(images)})")
    return lam
