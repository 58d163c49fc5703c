"""Timing in turns: the subjects take turns in one process, because the speed of a machine drifts.

A ratio compares two subjects within one turn. Its median over all turns is reported with its quartiles.
"""

import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

TURN = 4e-3  # least seconds of a turn: long compared with reading the clock and a first call in a cold cache
WARM = 0.25  # seconds for which a subject is called before it is timed, at least twice
STALLED = 3.0  # a median over so many times the least cannot be trusted
APART = 2.0  # a ratio cannot be trusted if its upper quartile is over so many times the lower one

Subjects = dict[str, Callable[[], object]]


@dataclass(frozen=True)
class Spread:
    """Median and quartiles of a time or a ratio over turns; `doubt` is the reason not to trust them."""

    median: float
    low: float
    high: float
    doubt: str | None = None


@dataclass(frozen=True)
class Times:
    """By subject: the seconds per call in every turn, and the least seconds of any call."""

    turns: dict[str, list[float]]
    least: dict[str, float]

    def seconds(self, name: str) -> Spread:
        return replace(_spread(self.turns[name]), doubt=self.doubt(name))

    def ratio(self, name: str, over: str) -> Spread:
        """The time of the subject `name` as a multiple of the time of `over`."""
        found = _spread([a / b for a, b in zip(self.turns[name], self.turns[over], strict=True)])
        doubt = self.doubt(name) or self.doubt(over)
        if doubt is None and found.high > APART * found.low:
            doubt = f"turns of {name} and {over} disagree: quartiles of the ratio {found.low:.2g} and {found.high:.2g}"
        return replace(found, doubt=doubt)

    def doubt(self, name: str) -> str | None:
        """The reason not to trust the times of a subject, or None.

        If a thread has to wait for a core, a call takes milliseconds, whatever it computes: torch's layer then takes
        30 ms on a small input. If that happens in most turns, the median is not the cost of the layer.
        """
        median, least = statistics.median(self.turns[name]), self.least[name]
        if median <= STALLED * least:
            return None
        return f"{name} stalls: its median, {1e3 * median:.3g} ms, is {median / least:.0f} times its shortest time"


def _spread(values: list[float]) -> Spread:
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return Spread(median, low, high)


def alternate(subjects: Subjects, seconds: float, least: int = 5) -> Times:
    """Time the subjects in turn, every other round in reverse order, for `seconds` and at least `least` rounds.

    Before that, every subject is called until it is warm. A turn is as many calls as fill `TURN`.
    """
    best = {name: _warm(run) for name, run in subjects.items()}
    calls = {name: max(1, math.ceil(TURN / max(time, 1e-9))) for name, time in best.items()}
    turns: dict[str, list[float]] = {name: [] for name in subjects}
    order, end, done = list(subjects.items()), time.perf_counter() + seconds, 0
    while done < least or time.perf_counter() < end:
        for name, run in reversed(order) if done % 2 else order:
            turns[name].append(_time(run, calls[name]) / calls[name])
        done += 1
    return Times(turns, {name: min(best[name], *turns[name]) for name in subjects})


def _warm(run: Callable[[], object]) -> float:
    """Call until caches are full and libraries are loaded; returns the least seconds of a call."""
    end, found = time.perf_counter() + WARM, list[float]()
    while len(found) < 2 or time.perf_counter() < end:
        found.append(_time(run, 1))
    return min(found)


def _time(run: Callable[[], object], calls: int) -> float:
    start = time.perf_counter()
    for _ in range(calls):
        run()
    return time.perf_counter() - start
