"""Precision and tracing of tensors, and the forms of a class covariance."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

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


@torch.no_grad()
def follow(average: nn.Module, network: nn.Module, rate: float | Float[Tensor, ""], buffers: bool = True) -> None:
    """Move an average of a network's parameters towards them; buffers: whether it takes the network's as they are."""
    for mine, theirs in zip(average.parameters(), network.parameters(), strict=True):
        mine.lerp_(theirs, rate.to(mine) if isinstance(rate, Tensor) else rate)
    for running, current in zip(average.buffers(), network.buffers(), strict=True) if buffers else ():
        running.copy_(current)


class _Known(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, value: Tensor, gradients: Sequence[Tensor | None], refusal: str, *inputs: Tensor | None
    ) -> Tensor:
        ctx.gradients, ctx.refusal = gradients, refusal
        return value.clone()

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor | None, ...]:
        refuse_second_order(ctx.refusal)
        return None, None, None, *(None if gradient is None else slope * gradient for gradient in ctx.gradients)


def with_gradients(
    value: Tensor, inputs: Sequence[Tensor | None], gradients: Sequence[Tensor | None], refusal: str
) -> Tensor:
    """The 0-d value of a function of ``inputs`` whose gradients are known; RuntimeError(refusal) where asked twice."""
    return _Known.apply(value, gradients, refusal, *inputs)


def refuse_second_order(refusal: str) -> None:
    """RuntimeError in a backward pass under create_graph=True: gradients that are computed have no graph."""
    if torch.is_grad_enabled():
        raise RuntimeError(refusal)


def tracing(x: Tensor) -> bool:
    """Whether no value may be read: under torch.compile, a transform of torch.func, or the capture of a CUDA graph."""
    return torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active() or capturing(x)


def capturing(x: Tensor) -> bool:
    """Whether operations on x are being captured as a CUDA graph, and by neither torch.compile nor torch.func."""
    if not x.is_cuda or torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
        return False
    return torch.cuda.is_current_stream_capturing()
