"""The sum of losses with the memory of one of them: what ``accumulate=True`` of the objectives of SLA does."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor


def accumulated(losses: Iterator[Tensor], parameters: Iterable[Tensor]) -> Tensor:
    """The sum of losses; each is differentiated, and its graph freed, before the next one is computed.

    Args:
        losses: computes each 0-d loss when it is asked for.
        parameters: all that the losses depend on.

    Returns:
        The sum, differentiable once, and by the parameters alone. Their gradients pass where others do: through the
        reduction of a data-parallel run, into ``.grad``.
    """
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    if not (trained and torch.is_grad_enabled()):
        return torch.stack(list(losses)).sum()
    return _Accumulated.apply(losses, *trained)


class _Accumulated(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, losses: Iterator[Tensor], *parameters: Tensor) -> Tensor:
        total, gradients = torch.zeros((), device=parameters[0].device), [torch.zeros_like(p) for p in parameters]
        with torch.enable_grad():
            for loss in losses:
                total = total + loss.detach()
                for gradient, new in zip(
                    gradients, torch.autograd.grad(loss, parameters, allow_unused=True), strict=True
                ):
                    if new is not None:
                        gradient += new
        ctx.gradients = gradients
        return total

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():  # create_graph=True: these gradients have no graph
            raise RuntimeError("accumulate=True differentiates once; take accumulate=False")
        return None, *(slope * gradient for gradient in ctx.gradients)
