"""The plain case through the launcher, with the signature of `F.batch_norm`, and calls of both its passes."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from batchnorm.backends.reference import BY_OUTPUT
from tests.support.material import LAYOUTS, drifting


class _Plain(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, residual: Tensor | None, weight: Tensor | None, bias: Tensor | None, *rest: Any
    ) -> Tensor:
        from batchnorm.backends.triton import launch

        y, statistics = launch.forward(x, residual, weight, bias, *rest)
        activation, eps, constant = rest[-2], rest[-3], rest[0] is not None
        extra = (y if activation in BY_OUTPUT else residual) if residual is not None and activation else None
        ctx.save_for_backward(x, extra, weight, bias, statistics)
        ctx.rest = eps, activation, constant
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        from batchnorm.backends.triton import launch

        needs = ctx.needs_input_grad[:4]
        grads = launch.backward(grad, *ctx.saved_tensors, *ctx.rest, needs)
        return *(g if need else None for g, need in zip(grads, needs, strict=True)), *[None] * 10


def batch_norm(
    x: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    training: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
    residual: Tensor | None = None,
    activation: str | None = None,
) -> Tensor:
    given = (None, None, running_mean, running_var) if training else (running_mean, running_var, None, None)
    return _Plain.apply(x, residual, weight, bias, *given, None, None, momentum, eps, activation, True)


def parameters(channels: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """running_mean, running_var, weight, bias: none of them trivial."""
    mean, bias = torch.randn(2, channels, dtype=torch.float64)
    var, weight = torch.rand(2, channels, dtype=torch.float64) * 2 + 0.5
    weight[::2] *= -1
    return [t.to(dtype, copy=True) for t in (mean, var, weight, bias)]


def tensors(shape: Sequence[int], dtype: torch.dtype, place: str) -> list[Tensor]:
    """x, a residual and a gradient."""
    return [LAYOUTS[place](drifting(*shape, dtype=dtype, offset=offset)) for offset in (3.0, 1.0, 0.3)]
