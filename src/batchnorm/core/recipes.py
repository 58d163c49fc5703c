"""Recipes compute an output again, bit for bit, from tensors that are saved for the backward pass anyway.

Batch norms pass their recipes to the `listener` of the thread, if there is one; `bn.recompute` sets it.
"""

import threading
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor

from batchnorm.core import channel_math, ops
from batchnorm.core.channel_math import Details, Standard


class Listener(Protocol):
    """Receives the recipes of outputs."""

    def record(
        self,
        output: Tensor,
        compute: Callable[..., Tensor],
        inputs: Sequence[Tensor | None],
        residual: Tensor | None = None,
        keeps_residual: bool = False,
        differentiated: bool | None = None,
    ) -> None:
        """`output` equals ``compute(*inputs)``. `residual` is also among the inputs.

        `keeps_residual` and `differentiated` describe the output's autograd node, if it does not exist yet.
        """


class _OfThread(threading.local):
    listener: Listener | None = None


of_thread = _OfThread()


def plain(
    output: Tensor,
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    statistics: Tensor,
    activation: str | None,
) -> None:
    """Record an output of the operator `forward`; on CPU only, where `normalize` gives the same bits."""
    if (listener := of_thread.listener) is not None and x.is_cpu:
        listener.record(output, partial(_normalized, activation), (x, residual, weight, bias, statistics), residual)


def composed(
    output: Tensor,
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    standard: Standard,
    details: Details,
    differentiated: bool,
) -> None:
    """Record an output of `Composed`, before it has its autograd node."""
    if (listener := of_thread.listener) is not None and x.numel() > 0:
        inputs = x, residual, weight, bias, details.mask, *standard
        compute = partial(_composed, details.activation, details.virtual)
        keeps = details.activation is not None
        listener.record(output, compute, inputs, residual, keeps_residual=keeps, differentiated=differentiated)


def by_torch(
    output: Tensor, compute: Callable[..., Tensor], x: Tensor, residual: Tensor | None, *others: Tensor | None
) -> None:
    """Record an output of torch's own operator, which runs again for the backward pass."""
    if (listener := of_thread.listener) is not None:
        listener.record(output, compute, (x, residual, *others), residual)


def _normalized(
    activation: str | None,
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    statistics: Tensor,
) -> Tensor:
    mean, scale = statistics[:1], statistics[1:2]
    scale = scale if weight is None else scale * weight
    shift = torch.zeros_like(mean) if bias is None else bias.unsqueeze(0)
    return ops.normalize(x, mean, scale, shift, residual, activation)


def _composed(
    activation: str | None,
    virtual_batch_size: int,
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    mask: Tensor | None,
    *standard: Any,
) -> Tensor:
    details = Details(residual, activation, virtual_batch_size, mask)
    return channel_math.forward(ops, x, weight, bias, Standard(*standard), details)
