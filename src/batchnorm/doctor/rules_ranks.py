"""The rule that all ranks of a process group have the same running statistics."""

from __future__ import annotations

from typing import Any

from torch import distributed as dist

from .findings import Evidence, rule
from .states import LayerState

APART = 0.1  # for means in σ; for standard deviations the relative difference

ByRank = list[list[LayerState]]


def gather(own: list[LayerState], group: Any) -> ByRank:
    """Gathers the states of all ranks on every rank."""
    everyone: list[Any] = [None] * dist.get_world_size(group)
    dist.all_gather_object(everyone, own, group=group)
    return everyone


@rule(
    "ranks-disagree", "warning", f"statistics differ by over {APART:g} σ between ranks: each evaluates differently",
    "each rank updates its running statistics from its own data only, and nothing is broadcast",
    "bn.convert(model, process_group=True) to train; bn.calibrate(model, batches, process_group=True) now",
)  # fmt: skip
def ranks_disagree(ranks: ByRank) -> Evidence:
    """With a broadcast at each step, ranks differ by one update: momentum 0.1 times a batch's noise, below 0.1 σ."""
    first, *others = ({s.name: s for s in rank} for rank in ranks)
    distance = {name: max((_gap(s, other.get(name)) for other in others), default=0.0) for name, s in first.items()}
    return {name: {"σ apart": d} for name, d in distance.items() if d > APART}


def _gap(one: LayerState, other: LayerState | None) -> float:
    """The largest difference over channels; infinite if the other rank has no such layer."""
    if other is None or one.mean.shape != other.mean.shape:
        return float("inf")
    sigma, theirs = ((s.var.clamp(min=0) + s.known_eps).sqrt() for s in (one, other))
    return float(max(((one.mean - other.mean).abs() / sigma).max(), (theirs / sigma - 1).abs().max()))


RULES = (ranks_disagree,)
