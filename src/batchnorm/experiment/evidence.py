"""The finished runs of a study, and the questions that claims ask of them."""

from __future__ import annotations

import statistics
from dataclasses import dataclass, field
from functools import cached_property

from .data import Data
from .runs import Arm, Run, chance_score
from .verdict import NotMeasured

WORKS = 0.9  # of the way from chance to the best score of either arm


@dataclass
class Sweep:
    """Two arms over the same learning rates and seeds; only seeds with all of their runs count."""

    data: Data
    arms: tuple[Arm, Arm]
    rates: tuple[float, ...]
    runs: list[Run] = field(default_factory=list)

    @cached_property
    def by_key(self) -> dict[tuple[Arm, float, int], Run]:
        return {(run.setting.arm, run.setting.rate, run.setting.seed): run for run in self.runs}

    @cached_property
    def seeds(self) -> list[int]:
        started = sorted({run.setting.seed for run in self.runs})
        keys = self.by_key.keys()
        complete = [s for s in started if all((arm, rate, s) in keys for arm in self.arms for rate in self.rates)]
        if not complete:
            raise NotMeasured("the study was interrupted before a seed's runs were complete")
        return complete

    def at(self, arm: Arm, rate: float) -> list[Run]:
        return [self.by_key[arm, rate, seed] for seed in self.seeds]

    def best_rate(self, arm: Arm) -> float:
        """Highest mean final validation score over seeds; between equals, the higher mean over the whole training."""

        def merit(rate: float) -> tuple[float, float]:
            runs = self.at(arm, rate)
            return statistics.fmean(r.score for r in runs), statistics.fmean(statistics.fmean(r.curve) for r in runs)

        return max(self.rates, key=merit)

    def best(self, arm: Arm) -> list[Run]:
        """The arm's runs at its own best rate, one a seed."""
        return self.at(arm, self.best_rate(arm))

    def scores(self) -> dict[str, dict[str, object]]:
        """Each arm at its own best rate: final validation and test scores, one a seed. Empty if no seed is complete."""
        try:
            best = {arm: self.best(arm) for arm in self.arms}
        except NotMeasured:
            return {}
        return {
            arm: {
                "rate": runs[0].setting.rate,
                "validation": [run.score for run in runs],
                "test": [run.test_score for run in runs],
            }
            for arm, runs in best.items()
        }

    def bar(self) -> float:
        """The score a run must end with to count as working."""
        chance = chance_score(self.data)
        best = max(statistics.median(r.score for r in self.best(arm)) for arm in self.arms)
        return chance + WORKS * (best - chance)

    def working(self, arm: Arm, seed: int) -> list[float]:
        """The rates at which this seed's run did not diverge and ended above the bar."""
        runs = [self.by_key[arm, rate, seed] for rate in self.rates]
        return [run.setting.rate for run in runs if not run.diverged and run.score >= self.bar()]


@dataclass
class Evidence:
    """All that was run: the sweep, the same network on a raw and a normalised table, and small batches."""

    main: Sweep
    scales: Sweep | None
    batches: list[Run] = field(default_factory=list)
    scales_missing: str = ""  # why there is no sweep over scales


def steps_to(run: Run, target: float) -> int | None:
    """The first marked step whose validation score is at least the target."""
    return next((step for step, score in zip(run.steps, run.curve, strict=True) if score >= target), None)


def race(slow: list[Run], fast: list[Run], chance: float) -> list[tuple[int, int, bool]]:
    """Per seed: steps of each run to the target, and whether the fast one got there.

    The target is the slow run's best score, but at least halfway from chance to the best of both: a network that never
    left chance has set no mark. A run that does not reach it counts with all of its steps, fewer than it would need.
    """
    laps = []
    for a, b in zip(slow, fast, strict=True):
        best = max(a.curve)
        target = max(best, (chance + max(best, *b.curve)) / 2)
        steps = [steps_to(run, target) for run in (a, b)]
        counted = [max(run.setting.steps if n is None else n, 1) for run, n in zip((a, b), steps, strict=True)]
        laps.append((counted[0], counted[1], steps[1] is not None))
    return laps
