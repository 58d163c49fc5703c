"""The runs of a sweep over learning rates, and the quantities that claims take from them."""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import product

from .data import Data
from .learned import learned
from .runs import Arm, Run, chance_score
from .verdict import NotMeasured

WORKS = 0.9  # of the way from chance to the best score of either arm; a rate that works reaches this
MOST_ADDED = 3  # rates that may be added at each end of a sweep


@dataclass
class Sweep:
    """The runs of several arms over the same learning rates and seeds; only seeds with all of their runs count.

    The first two arms are compared. Further arms are trained and shown beside them.
    """

    data: Data
    arms: tuple[Arm, ...]
    rates: tuple[float, ...]
    runs: list[Run] = field(default_factory=list)
    added: tuple[float, ...] = ()  # rates by which the sweep grew, lowest first

    @property
    def pair(self) -> tuple[Arm, ...]:
        return self.arms[:2]

    @property
    def by_key(self) -> dict[tuple[Arm, float, int], Run]:
        return {(run.setting.arm, run.setting.rate, run.setting.seed): run for run in self.runs}

    @property
    def seeds(self) -> list[int]:
        keys = self.by_key.keys()
        started = sorted({seed for _, _, seed in keys})
        pairs = list(product(self.arms, self.rates))
        complete = [seed for seed in started if all((arm, rate, seed) in keys for arm, rate in pairs)]
        if not complete:
            raise NotMeasured("the study was interrupted before a seed's runs were complete")
        return complete

    def at(self, arm: Arm, rate: float) -> list[Run]:
        runs = self.by_key
        return [runs[arm, rate, seed] for seed in self.seeds]

    def best_rate(self, arm: Arm) -> float:
        """The rate with the highest mean validation score at the end; within noise of it, the steadier rate.

        Noise is the standard deviation over seeds of the highest scoring rate, or one validation sample if that is
        more. The steadier rate has fewer diverged runs, then the better worst seed, then the higher mean score over
        the whole training.
        """
        runs = {rate: self.at(arm, rate) for rate in self.rates}
        mean = {rate: statistics.fmean(r.score for r in found) for rate, found in runs.items()}
        top = max(self.rates, key=lambda rate: mean[rate])
        scores = [r.score for r in runs[top]]
        noise = max(statistics.stdev(scores) if len(scores) > 1 else 0.0, 1 / len(self.data.validation))

        def steadiness(rate: float) -> tuple[float, float, float]:
            worst = min(r.score for r in runs[rate])
            whole = statistics.fmean(statistics.fmean(r.curve) for r in runs[rate])
            return -sum(r.diverged for r in runs[rate]), worst, whole

        return max((rate for rate in self.rates if mean[rate] >= mean[top] - noise), key=steadiness)

    def best(self, arm: Arm) -> list[Run]:
        """The arm's runs at its own best rate, one per seed."""
        return self.at(arm, self.best_rate(arm))

    def at_edge(self) -> dict[Arm, float]:
        """The arms whose best rate is the lowest or the highest of the sweep, so that a better one may lie beyond."""
        best = {arm: self.best_rate(arm) for arm in self.arms}
        return {arm: rate for arm, rate in best.items() if rate in (self.rates[0], self.rates[-1])}

    def beyond(self) -> tuple[float, ...]:
        """The next rates to try: one beyond each end that is an arm's best rate, up to `MOST_ADDED` per end."""
        edges = set(self.at_edge().values())
        lowest, highest = self.rates[0], self.rates[-1]
        ratio = self.rates[1] / lowest if len(self.rates) > 1 else 10.0
        room = {
            lowest / ratio: sum(rate < min(set(self.rates) - set(self.added)) for rate in self.added),
            highest * ratio: sum(rate > max(set(self.rates) - set(self.added)) for rate in self.added),
        }
        wanted = [lowest / ratio] * (lowest in edges) + [highest * ratio] * (highest in edges)
        return tuple(float(f"{rate:.2g}") for rate in wanted if room[rate] < MOST_ADDED)

    def grow(self, rates: Iterable[float]) -> None:
        """Adds rates to the sweep; their runs must be added before any other method is called."""
        new = set(rates) - set(self.rates)
        self.rates = tuple(sorted({*self.rates, *new}))
        self.added = tuple(sorted({*self.added, *new}))

    def learned(self, arm: Arm) -> bool:
        """True if the arm, at its best rate, predicts the test part better than the best constant does."""
        return learned(self.best(arm), self.data)

    def scores(self) -> dict[str, dict[str, object]]:
        """Each arm at its best rate: final validation and test scores, one per seed. Empty if no seed is complete."""
        try:
            best = {arm: self.best(arm) for arm in self.arms}
        except NotMeasured:
            return {}
        return {
            arm: {
                "rate": runs[0].setting.rate,
                "learned": learned(runs, self.data),
                "validation": [run.score for run in runs],
                "test": [run.test_score for run in runs],
            }
            for arm, runs in best.items()
        }

    def bar(self) -> float:
        """The score a run must end with to count as working."""
        chance = chance_score(self.data)
        best = max(statistics.median(r.score for r in self.best(arm)) for arm in self.pair)
        return chance + WORKS * (best - chance)

    def working(self, arm: Arm) -> list[list[float]]:
        """Per seed, the rates at which the run did not diverge and ended above the bar."""
        runs, bar = self.by_key, self.bar()
        return [
            [rate for rate in self.rates if not (run := runs[arm, rate, seed]).diverged and run.score >= bar]
            for seed in self.seeds
        ]
