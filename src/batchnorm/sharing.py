"""Who shares statistics: the ranks of a process group. (Virtual batches are groups of samples within the kernels.)

One packed collective each way, on any backend that torch.distributed has; both are differentiable any number of times.
"""

from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist

from batchnorm.moments import Moments

Group = Any  # a torch.distributed.ProcessGroup; True stands for all ranks


def resolve(group: Group | None) -> Group | None:
    """The process group to share with, or None where there is nobody to share with."""
    if group is None or group is False or not (dist.is_available() and dist.is_initialized()):
        return None
    group = dist.group.WORLD if group is True else group
    return group if dist.get_world_size(group) > 1 else None


def pooled_over_ranks(own: Moments, group: Group) -> Moments:
    """The moments of all ranks' values together, from each rank's own (1, C): 3·C float64 sent per rank.

    Ranks may hold different numbers of values, or none.
    """
    count = torch.as_tensor(own.count, dtype=own.mean.dtype, device=own.mean.device).expand_as(own.mean)
    packed = _Gather.apply(torch.stack([count, own.mean, own.m2]), group)
    count, mean, m2 = packed.squeeze(2).unbind(1)
    return Moments(count.detach(), mean, m2).pooled()


def summed_over_ranks(values: Tensor, group: Group) -> Tensor:
    """The sum of every rank's `values`."""
    return _Sum.apply(values, group)


class _Sum(torch.autograd.Function):
    """Sum over ranks; its gradient is the sum over ranks of the gradient."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, group: Group) -> Tensor:
        ctx.group = group
        total = values.contiguous().clone()
        dist.all_reduce(total, group=group)
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return _Sum.apply(grad, ctx.group), None


class _Gather(torch.autograd.Function):
    """Every rank's `values`, stacked; its gradient is this rank's part of the summed gradient."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, group: Group) -> Tensor:
        ctx.group = group
        everyone = values.new_empty(dist.get_world_size(group), *values.shape)
        dist.all_gather_into_tensor(everyone, values.contiguous(), group=group)
        return everyone

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return _Sum.apply(grad, ctx.group)[dist.get_rank(ctx.group)], None
