"""Precision and tracing of tensors, and the forms of a class covariance."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

Reduction = Literal["mean", "sum", "none"]

REDUCTIONS = ("mean", "sum", "none")


class Factored(NamedTuple):
    r"""A covariance for each class, of low rank plus a diagonal: $\Sigma_c = F_c F_c^\top + \mathrm{diag}(d_c)$."""

    factor: Float[Tensor, "C A r"]
    diagonal: Float[Tensor, "C A"]


Covariance = Float[Tensor, "C A A"] | Float[Tensor, "C A"] | Factored


def at_least_float32(x: Tensor) -> Tensor:
    """Half precision becomes float32; float32 and float64 stay."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def tracing(x: Tensor) -> bool:
    """Whether no value may be read: under torch.compile, a transform of torch.func, or the capture of a CUDA graph."""
    return torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active() or capturing(x)


def capturing(x: Tensor) -> bool:
    """Whether operations on x are being captured as a CUDA graph, and by neither torch.compile nor torch.func."""
    if not x.is_cuda or torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
        return False
    return torch.cuda.is_current_stream_capturing()
