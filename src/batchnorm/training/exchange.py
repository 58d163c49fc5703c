"""Exchange of statistics between micro-batches: each sends its own and receives those of the whole batch."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from batchnorm.core.moments import Moments
from batchnorm.core.sharing import Group, pooled_over_ranks, summed_over_ranks
from batchnorm.training.baton import Coroutine
from batchnorm.training.parking import Parked


class Meeting(NamedTuple):
    """The message of a micro-batch that waits at a batch norm for all others."""

    where: str
    label: str
    own: Any
    combine: Callable[[Sequence[Any]], Any]

    @property
    def place(self) -> str:
        """For errors."""
        return f"at {self.label!r} in its {self.where} pass"


class MicroBatchExchange:
    """`core.sharing.Exchange` for a micro-batch that runs in a `Coroutine`."""

    def __init__(self, coroutine: Coroutine, number: int, parked: Parked | None) -> None:
        self.coroutine, self.first, self.parked = coroutine, number == 0, parked

    def pooled(self, own: Moments, ranks: Group | None, label: str) -> Moments:
        """The moments (1, C) of all micro-batches' values together."""
        return self._meet("forward", label, own, lambda owns: _pooled(owns, ranks, label))

    def summed(self, values: Tensor, ranks: Group | None, label: str) -> Tensor:
        """The sum of every micro-batch's `values`."""
        values = values.detach()  # a second reference, so that `parked` does not move it out
        return self._meet("backward", label, values, lambda owns: _summed(owns, ranks, label))

    def holds(self, *tensors: Tensor | None) -> None:
        """Allow these tensors to be moved out of memory while the micro-batch waits."""
        if self.parked is not None:
            for t in tensors:
                if t is not None:
                    self.parked.see(t)

    def split(self, rows: int, size: int, label: str) -> bool:
        """True if the big batch is divided into virtual batches of `size` rows.

        Raises:
            ValueError: a virtual batch would have rows of two micro-batches.
        """
        return self._meet("forward", label, rows, lambda owns: _split(owns, size, label))

    def _meet(self, where: str, label: str, own: Any, combine: Callable[[Sequence[Any]], Any]) -> Any:
        meeting = Meeting(where, label, own, combine)
        if self.parked is None:
            return self.coroutine.wait(meeting)
        self.parked.leave()
        answer = self.coroutine.wait(meeting)
        self.parked.come_back()
        return answer


def combined(meetings: Sequence[Meeting]) -> Any:
    """The result of the exchange, which is the same for all micro-batches."""
    with torch.no_grad():
        return meetings[0].combine([meeting.own for meeting in meetings])


def _pooled(owns: Sequence[Moments], ranks: Group | None, label: str) -> Moments:
    counts = torch.cat([torch.zeros_like(own.mean) + own.count for own in owns])
    moments = Moments(counts, torch.cat([own.mean for own in owns]), torch.cat([own.m2 for own in owns])).pooled()
    return moments if ranks is None else pooled_over_ranks(moments, ranks, label)


def _summed(values: Sequence[Tensor], ranks: Group | None, label: str) -> Tensor:
    total = torch.stack(list(values)).sum(0)
    return total if ranks is None else summed_over_ranks(total, ranks, label)


def _split(rows: Sequence[int], size: int, label: str) -> bool:
    if size >= sum(rows):
        return False
    if any(own % size for own in rows[:-1]):
        raise ValueError(
            f"{label}: micro-batches of {', '.join(map(str, rows))} rows cut its virtual batches of {size}; choose a "
            f"micro_batch_size that is a multiple of {size}"
        )
    return True
