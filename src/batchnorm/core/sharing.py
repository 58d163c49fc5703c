"""Who shares statistics: the ranks of a process group, and the micro-batches of one big batch, or both.

(Virtual batches are groups of samples within the kernels.) One packed collective each way, on any backend that
torch.distributed has; both are differentiable any number of times. The micro-batches of `bn.big_batch` run in threads
of their own and share in the same way, through an `Exchange`.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch import distributed as dist

from batchnorm.core.moments import Moments, at_least_something

Group = Any  # a torch.distributed.ProcessGroup, or MicroBatches; True stands for all ranks


class Exchange(Protocol):
    """One micro-batch's way to the others of its big batch. Every call waits until all have made the same one.

    `ranks` also share, with micro-batches of their own. `label` names the layer in errors.
    """

    first: bool  # runs before the others, and moves the running statistics

    def pooled(self, own: Moments, ranks: Group | None, label: str) -> Moments:
        """The moments (1, C) of all micro-batches' values together."""

    def summed(self, values: Tensor, ranks: Group | None, label: str) -> Tensor:
        """The sum of every micro-batch's `values`."""

    def holds(self, *tensors: Tensor | None) -> None:
        """The caller needs these after its next call of `summed`, and nobody needs them in the meantime."""

    def split(self, rows: int, size: int, label: str) -> bool:
        """True if virtual batches of `size` rows divide the big batch, and no micro-batch's rows end within one."""


@dataclass(frozen=True)
class MicroBatches:
    """The micro-batches of one big batch, as a group that shares; and the ranks that each of them shares with."""

    exchange: Exchange
    ranks: Group | None


open_exchanges = 0  # read by every layer, so that a call outside of `bn.big_batch` asks for nothing more
_count = threading.Lock()
_thread = threading.local()


@contextmanager
def exchanging(exchange: Exchange) -> Iterator[None]:
    """Batch norms that this thread calls share their statistics through `exchange`."""
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
    """The exchange of the micro-batch that this thread runs, if it runs one."""
    return getattr(_thread, "exchange", None) if open_exchanges else None


def remembers() -> bool:
    """True unless another micro-batch of the same big batch moves the running statistics."""
    exchange = exchange_of_this_thread()
    return exchange is None or exchange.first


def resolve(group: Group | None) -> Group | None:
    """Who to share with: a process group, or micro-batches. None where there is nobody."""
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
    """The same by two sums, which are differentiable."""
    count = torch.zeros_like(own.mean.detach()) + own.count
    total, weighted = summed_over_ranks(torch.stack([count, count * own.mean]), group, label).unbind()
    total = total.detach()
    mean = weighted / at_least_something(total)
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
