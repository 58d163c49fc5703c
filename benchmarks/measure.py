"""Timing side by side: the machine drifts, so peers take turns in one process and the ratio is of each turn."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 3e-2, torch.float16: 4e-3}


class DisagreementError(RuntimeError):
    """Two subjects of a benchmark compute different things, so their times mean nothing."""


@dataclass(frozen=True)
class Timing:
    """Median seconds of a call, per subject, and how many times the others take what `ours` takes."""

    seconds: dict[str, float]
    ratios: dict[str, float]


def agree(results: dict[str, tuple[Tensor, ...]], where: str) -> None:
    """Raise `DisagreementError` unless every subject returns the same tensors, to the dtype's rounding."""
    names = list(results)
    for name in names[1:]:
        for a, b in zip(results[names[0]], results[name], strict=True):
            error, scale = (a.double() - b.double()).abs().max().item(), a.double().abs().max().item()
            if not error <= TOLERANCE[a.dtype] * max(scale, 1e-3):
                raise DisagreementError(f"{names[0]} and {name} differ by {error:.2g} (scale {scale:.2g}) on {where}")


def alternate(subjects: dict[str, Callable[[], object]], rounds: int, least: float) -> Timing:
    """Time the subjects in turn, `rounds` times, each turn at least `least` seconds of calls."""
    calls = {}
    for name, run in subjects.items():
        run()
        start = time.perf_counter()
        run()
        calls[name] = max(1, round(least / max(time.perf_counter() - start, 1e-9)))
    times: dict[str, list[float]] = {name: [] for name in subjects}
    for turn in range(rounds):
        order = list(subjects.items())
        for name, run in order if turn % 2 else reversed(order):
            start = time.perf_counter()
            for _ in range(calls[name]):
                run()
            times[name].append((time.perf_counter() - start) / calls[name])
    ratios = {
        name: statistics.median(t / o for t, o in zip(times[name], times["ours"], strict=True))
        for name in subjects
        if name != "ours"
    }
    return Timing({name: statistics.median(t) for name, t in times.items()}, ratios)
