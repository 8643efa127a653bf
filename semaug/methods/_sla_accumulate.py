"""The sum of losses with the memory of one of them: what ``accumulate=True`` of the objectives of SLA does."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from semaug.core.tensors import with_gradients


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
    total, gradients = torch.zeros((), device=trained[0].device), [torch.zeros_like(p) for p in trained]
    for loss in losses:
        total = total + loss.detach()
        for gradient, new in zip(gradients, torch.autograd.grad(loss, trained, allow_unused=True), strict=True):
            if new is not None:
                gradient += new
    return with_gradients(total, trained, gradients, "accumulate=True differentiates once; take accumulate=False")
