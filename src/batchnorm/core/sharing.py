"""Shared statistics: between the ranks of a process group, the micro-batches of one big batch, or both.

Ranks use one packed collective in each direction, on any backend of torch.distributed. Both collectives are
differentiable any number of times. The micro-batches of `bn.big_batch` run in one thread each and share through
an `Exchange`. (Virtual batches are groups of samples within the kernels.)
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch import distributed as dist

from batchnorm.core.moments import Moments, at_least_one

Group = Any  # a torch.distributed.ProcessGroup, or MicroBatches; True stands for all ranks


class Exchange(Protocol):
    """The connection of one micro-batch to the others of its big batch. A call waits until all have made the same call.

    `ranks` share as well; each has its own micro-batches. `label` names the layer in errors.
    """

    first: bool  # True for the micro-batch that updates the running statistics

    def pooled(self, own: Moments, ranks: Group | None, label: str) -> Moments:
        """The moments (1, C) of all micro-batches' values together."""

    def summed(self, values: Tensor, ranks: Group | None, label: str) -> Tensor:
        """The sum of every micro-batch's `values`."""

    def holds(self, *tensors: Tensor | None) -> None:
        """Announce tensors that the caller needs only after its next call of `summed`: they can leave memory."""

    def split(self, rows: int, size: int, label: str) -> bool:
        """True if virtual batches of `size` rows divide the big batch, and no micro-batch's rows end within one."""


@dataclass(frozen=True)
class MicroBatches:
    """The micro-batches of one big batch as a group that shares, and the ranks that share with them."""

    exchange: Exchange
    ranks: Group | None


open_exchanges = 0  # read by every layer, so that a call outside of `bn.big_batch` checks nothing else
_count = threading.Lock()
_thread = threading.local()


@contextmanager
def exchanging(exchange: Exchange) -> Iterator[None]:
    """Have the batch norms that this thread calls share their statistics through `exchange`."""
    global open_exchanges
    with _count:
        open_exchanges += 1
    _thread.exchange = exchange
    try:
        yield
    finally:
        _thread.exchange = None
        with _count:
            open_exchanges -= 1


def exchange_of_this_thread() -> Exchange | None:
    """The exchange of this thread's micro-batch, or None."""
    return getattr(_thread, "exchange", None) if open_exchanges else None


def updates_running_statistics() -> bool:
    """True unless another micro-batch of the same big batch updates the running statistics."""
    exchange = exchange_of_this_thread()
    return exchange is None or exchange.first


def resolve(group: Group | None) -> Group | None:
    """The process group or micro-batches to share with; None if there is no group, or only one rank."""
    ranks = None
    if group is not None and group is not False and dist.is_available() and dist.is_initialized():
        ranks = dist.group.WORLD if group is True else group
        ranks = ranks if dist.get_world_size(ranks) > 1 else None
    exchange = exchange_of_this_thread()
    return ranks if exchange is None else MicroBatches(exchange, ranks)


class SharingError(RuntimeError):
    """The ranks could not exchange their statistics: one has stopped, is stuck, or did not run the layer."""


def pooled_over_ranks(own: Moments, group: Group, label: str) -> Moments:
    """The moments of all ranks' values together, from each rank's own (1, C): 3·C float64 sent per rank.

    Ranks may hold different numbers of values, or none. `label` names the layer in errors.
    """
    if isinstance(group, MicroBatches):
        if torch.is_grad_enabled():
            return _pooled_by_sums(own, group, label)
        return group.exchange.pooled(own, group.ranks, label)
    count = torch.zeros_like(own.mean) + own.count
    packed = _Gather.apply(torch.stack([count, own.mean, own.m2]), group, label)
    count, mean, m2 = packed.squeeze(2).unbind(1)
    return Moments(count.detach(), mean, m2).pooled()


def _pooled_by_sums(own: Moments, group: Group, label: str) -> Moments:
    """The same result from two sums over ranks, which are differentiable."""
    count = torch.zeros_like(own.mean.detach()) + own.count
    total, weighted = summed_over_ranks(torch.stack([count, count * own.mean]), group, label).unbind()
    total = total.detach()
    mean = weighted / at_least_one(total)
    return Moments(total, mean, summed_over_ranks(own.m2 + count * (own.mean - mean).square(), group, label))


def summed_over_ranks(values: Tensor, group: Group, label: str) -> Tensor:
    """The sum of every rank's `values`: 2·C float64 in a backward pass."""
    return _Sum.apply(values, group, label)


class _Sum(torch.autograd.Function):
    """Sum over ranks; its gradient is the sum over ranks of the gradient."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, group: Group, label: str) -> Tensor:
        ctx.group, ctx.label = group, label
        if isinstance(group, MicroBatches):
            return group.exchange.summed(values, group.ranks, label).clone()
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
        # torch 2.13 renamed the function, and warns about the old name
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
    except (RuntimeError, ValueError) as error:  # torch raises a ValueError for a group that was destroyed
        raise SharingError(
            f"{label}: rank {group.rank()} of {group.size()} could not exchange statistics. "
            "Another rank has stopped, is stuck beyond the group's timeout, or did not run this layer. A forward pass "
            f"that fails leaves this layer's running statistics as they were. torch says: {str(error).splitlines()[0]}"
        ) from error
