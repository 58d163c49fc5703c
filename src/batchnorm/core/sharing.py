"""Who shares statistics: the ranks of a process group. (Virtual batches are groups of samples within the kernels.)

One packed collective each way, on any backend that torch.distributed has; both are differentiable any number of times.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist

from batchnorm.core.moments import Moments

Group = Any  # a torch.distributed.ProcessGroup; True stands for all ranks


def resolve(group: Group | None) -> Group | None:
    """The process group to share with, or None where there is nobody to share with."""
    if group is None or group is False or not (dist.is_available() and dist.is_initialized()):
        return None
    group = dist.group.WORLD if group is True else group
    return group if dist.get_world_size(group) > 1 else None


class SharingError(RuntimeError):
    """The ranks could not exchange their statistics: one has stopped, is stuck, or did not run the layer."""


def pooled_over_ranks(own: Moments, group: Group, label: str) -> Moments:
    """The moments of all ranks' values together, from each rank's own (1, C): 3·C float64 sent per rank.

    Ranks may hold different numbers of values, or none. `label` names the layer in errors.
    """
    count = torch.zeros_like(own.mean) + own.count
    packed = _Gather.apply(torch.stack([count, own.mean, own.m2]), group, label)
    count, mean, m2 = packed.squeeze(2).unbind(1)
    return Moments(count.detach(), mean, m2).pooled()


def summed_over_ranks(values: Tensor, group: Group, label: str) -> Tensor:
    """The sum of every rank's `values`: 2·C float64 in a backward pass."""
    return _Sum.apply(values, group, label)


class _Sum(torch.autograd.Function):
    """Sum over ranks; its gradient is the sum over ranks of the gradient."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, group: Group, label: str) -> Tensor:
        ctx.group, ctx.label = group, label
        total = values.contiguous().clone()
        _exchange(dist.all_reduce, group, label, total)
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return _Sum.apply(grad, ctx.group, ctx.label), None, None


class _Gather(torch.autograd.Function):
    """Every rank's `values`, stacked; its gradient is this rank's part of the summed gradient."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, group: Group, label: str) -> Tensor:
        ctx.group, ctx.label = group, label
        ranks = dist.get_world_size(group)
        everyone = values.new_empty(ranks * values.numel())
        # torch 2.13 has a new name for it, and warns of the old one
        gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
        _exchange(gather, group, label, everyone, values.flatten())
        return everyone.view(ranks, *values.shape)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return _Sum.apply(grad, ctx.group, ctx.label)[dist.get_rank(ctx.group)], None, None


def _exchange(collective: Callable[..., Any], group: Group, label: str, *tensors: Tensor) -> None:
    if torch.compiler.is_compiling():
        collective(*tensors, group=group)
        return
    try:
        collective(*tensors, group=group)
    except (RuntimeError, ValueError) as error:  # a group that was destroyed is a ValueError to torch
        raise SharingError(
            f"{label}: rank {group.rank()} of {group.size()} could not exchange statistics. "
            "Another rank has stopped, is stuck beyond the group's timeout, or did not run this layer. A forward pass "
            f"that fails leaves this layer's running statistics as they were. torch says: {str(error).splitlines()[0]}"
        ) from error
