"""Timing side by side: a machine drifts, so the subjects take turns in one process and ratios are those of a turn."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

TURN = 2e-3  # seconds that a turn takes at least: neither the clock nor the first call after another subject shows


@dataclass(frozen=True)
class Times:
    """The seconds a call took in every turn, by subject."""

    turns: dict[str, list[float]]

    def seconds(self, name: str) -> float:
        return statistics.median(self.turns[name])

    def ratio(self, name: str, over: str) -> float:
        """How many times what `over` takes `name` takes: the median over turns."""
        return statistics.median(a / b for a, b in zip(self.turns[name], self.turns[over], strict=True))


def alternate(subjects: dict[str, Callable[[], object]], seconds: float, least: int = 5) -> Times:
    """Time the subjects in turn, every other round in reverse, for so many seconds and at least so many rounds."""
    calls = {name: _calls(run) for name, run in subjects.items()}
    turns: dict[str, list[float]] = {name: [] for name in subjects}
    order, end, done = list(subjects.items()), time.perf_counter() + seconds, 0
    while done < least or time.perf_counter() < end:
        for name, run in reversed(order) if done % 2 else order:
            turns[name].append(_time(run, calls[name]) / calls[name])
        done += 1
    return Times(turns)


def _calls(run: Callable[[], object]) -> int:
    """How many calls fill a turn. The first call compiles and warms up, and does not count."""
    run()
    calls = 1
    while _time(run, calls) < TURN:
        calls *= 2
    return calls


def _time(run: Callable[[], object], calls: int) -> float:
    start = time.perf_counter()
    for _ in range(calls):
        run()
    return time.perf_counter() - start
