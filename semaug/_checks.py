"""Argument checks of the whole package, with one style of message: ``name: got X; takes Y``."""

from __future__ import annotations

import math
from collections.abc import Collection
from numbers import Integral, Real
from typing import TypeVar

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from semaug.core.tensors import REDUCTIONS, Covariance, Factored, tracing


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


def check_batch(
    features: Tensor, target: Tensor, weight: Tensor, bias: Tensor | None = None, name: str = "features"
) -> None:
    """Raise ValueError or TypeError unless the features fit the target and a classifier of weight (C, A), bias (C,)."""
    if weight.ndim != 2 or not weight.is_floating_point():
        raise ValueError(f"weight must be float (C, A), got {tuple(weight.shape)} of {weight.dtype}")
    check_features(features, target, len(weight), weight.shape[1], name)
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f"bias must be (C,) = ({len(weight)},), got {tuple(bias.shape)}")
    for other, tensor in (("weight", weight), ("bias", bias)):
        if tensor is not None and tensor.device != features.device:
            raise ValueError(f"{other} is on {tensor.device} but {name} on {features.device}; put both on one device")
    if weight.dtype != features.dtype and not torch.is_autocast_enabled(features.device.type):
        raise TypeError(f"{name} and weight must have one dtype, got {features.dtype} and {weight.dtype}")


def check_features(
    features: Tensor, target: Tensor, classes: int, width: int, name: str = "features", of: str = "target"
) -> None:
    """Raise ValueError or TypeError unless features are finite (N, A), N > 0, and target is (N,) int64 in [0, C).

    name, of: what the message calls the two.
    """
    if features.ndim != 2 or features.shape[1] != width or len(features) == 0:
        raise ValueError(f"{name} must be (N, A) with N > 0 and A = {width}, got {tuple(features.shape)}")
    if not features.is_floating_point():
        raise TypeError(f"{name} must be floating point, got {features.dtype}")
    if target.dtype != torch.int64:
        raise TypeError(f"{of} must be int64 class numbers, got {target.dtype}")
    if target.shape != features.shape[:1]:
        raise ValueError(f"{of} must be (N,) = ({len(features)},) class numbers, got {tuple(target.shape)}")
    if target.device != features.device:
        raise ValueError(f"{of} is on {target.device} but {name} on {features.device}; put both on one device")
    if tracing(features):
        return
    low, high = (int(value) for value in target.aminmax())
    if low < 0 or high >= classes:
        raise ValueError(f"{of} must lie in [0, {classes}), got values from {low} to {high}")
    # The sum is finite where all are, and ten times cheaper than asking each; only its overflow needs the second look.
    if not (math.isfinite(features.sum().item()) or bool(features.isfinite().all())):
        raise ValueError(f"{name} has values that are not finite")


def check_covariance(covariance: Covariance, weight: Tensor) -> None:
    """Raise ValueError unless the covariance is of a known form, fits the weight (C, A) and is on its device."""
    C, A = weight.shape
    parts = covariance if isinstance(covariance, Factored) else (covariance,)
    shapes = [tuple(part.shape) for part in parts]
    fits = (
        len(shapes[0]) == 3 and shapes[0][:2] == (C, A) and shapes[0][2] >= 1 and shapes[1] == (C, A)
        if isinstance(covariance, Factored)
        else shapes[0] in ((C, A, A), (C, A))
    )
    if not fits:
        raise ValueError(
            f"covariance must be (C, A, A), (C, A) or Factored (C, A, r) and (C, A), with C, A = {C}, {A}; "
            f"got {', '.join(map(str, shapes))}"
        )
    for part in parts:
        if part.device != weight.device:
            raise ValueError(f"covariance is on {part.device} but weight on {weight.device}; put both on one device")
        if not part.is_floating_point():
            raise TypeError(f"covariance must be floating point, got {part.dtype}")


def check_strength(strength: float | Tensor) -> None:
    """Raise ValueError unless the strength is one finite number from 0."""
    if isinstance(strength, Tensor):
        if strength.ndim != 0:
            raise ValueError(f"strength must be one number, got a tensor of shape {tuple(strength.shape)}")
        if tracing(strength):
            return
    value = float(strength.detach() if isinstance(strength, Tensor) else strength)
    if not (math.isfinite(value) and value >= 0):
        raise ValueError(f"strength must be a finite number from 0, got {value}")


def check_reduction(reduction: str) -> None:
    """Raise ValueError unless the reduction is known."""
    if reduction not in REDUCTIONS:
        raise ValueError(f"reduction must be one of {', '.join(REDUCTIONS)}, got {reduction!r}")


Ratio = float | Float[Tensor, ""] | Float[Tensor, " N"]

Centre = int | Int64[Tensor, ""] | Int64[Tensor, " N"]


def check_floats(images: Tensor, name: str = "images") -> None:
    """Raise TypeError for what cannot be averaged."""
    if not images.is_floating_point():
        raise TypeError(f"{name}: got {images.dtype}; takes floats, bytes cannot be averaged")


def check_draws(images: Tensor, lam: Ratio, permutation: Tensor, name: str = "images", **centres: Centre) -> Tensor:
    """Lam as a tensor, after the checks that :func:`mixup` names; name: of the images where they are maps."""
    if images.ndim != 4:
        raise ValueError(f"{name}: got shape {tuple(images.shape)}; takes (N, channels, H, W)")
    if permutation.shape != images.shape[:1] or permutation.dtype != torch.int64:
        got = f"{permutation.dtype} {tuple(permutation.shape)}"
        raise ValueError(f"permutation: got {got}; takes int64 ({len(images)},), a partner for each image")
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
