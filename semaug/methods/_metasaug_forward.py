r"""Forward mode through a network with BatchNorm: what the meta gradient of MetaSAug, equation (19), takes of it.

torch's own rule for BatchNorm in forward mode takes about twenty passes over the maps; the one here takes four. With
$\hat x = (x - \mu) / \sigma$ of the batch, $y = \gamma \hat x + \beta$ has the derivative

$$\dot y = J \dot x + \dot\gamma \hat x + \dot\beta.$$

The Jacobian $J$ of $y$ by $x$ is symmetric, so torch's backward pass of BatchNorm gives $J \dot x$.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode


def derivative(
    function: Callable[[Sequence[Tensor]], Tensor], point: Sequence[Tensor], direction: Sequence[Tensor]
) -> Tensor:
    r"""$\frac{d}{dt} f(p + t v)$ at $t = 0$, in one pass without a graph.

    Args:
        function: $f$, of tensors such as the parameters of a network.
        point: $p$.
        direction: $v$, of the same shapes.

    Returns:
        A tensor of the shape of $f(p)$.
    """
    with forward_ad.dual_level(), BatchNorm():
        value = function([forward_ad.make_dual(p.detach(), v) for p, v in zip(point, direction, strict=True)])
        primal, tangent = forward_ad.unpack_dual(value)
    return torch.zeros_like(primal) if tangent is None else tangent  # None: f does not depend on p


class BatchNorm(TorchFunctionMode):
    """Within it F.batch_norm goes through :func:`batch_norm`."""

    def __torch_function__(
        self,
        function: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        return (batch_norm if function is F.batch_norm else function)(*args, **(kwargs or {}))


def batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """F.batch_norm, by the same arguments; the short way where the batch normalises and all three have tangents."""
    duals = [forward_ad.unpack_dual(tensor) for tensor in (input, weight, bias) if tensor is not None]
    if not training or len(duals) < 3 or any(dual.tangent is None for dual in duals):
        return F.batch_norm(input, running_mean, running_var, weight, bias, training, momentum, eps)
    (x, x_dot), (gamma, gamma_dot), (beta, beta_dot) = duals
    native = cast(Any, torch.native_batch_norm)
    y, mean, inverse = native(x, gamma, beta, running_mean, running_var, True, momentum, eps)
    arguments = (x_dot, x, gamma, None, None, mean, inverse, True, eps, [True, False, False])
    y_dot = torch.ops.aten.native_batch_norm_backward(*arguments)[0]
    slope, shape = gamma_dot * inverse, (-1, *(1 for _ in x.shape[2:]))
    y_dot.addcmul_(x, slope.view(shape)).add_((beta_dot - slope * mean).view(shape))
    return forward_ad.make_dual(y, y_dot)
