"""The runs that claims are measured on, and the race between two arms."""

from __future__ import annotations

from dataclasses import dataclass, field

from .runs import Run
from .sweep import Sweep
from .verdict import NotMeasured

NOTHING = "neither network learned anything, so there is no training to judge"


@dataclass
class Evidence:
    """All runs of a study: the sweep, the sweep on raw and normalised columns, few samples, and small batches."""

    main: Sweep
    scales: Sweep | None
    few: list[Run] = field(default_factory=list)
    batches: list[Run] = field(default_factory=list)
    scales_missing: str = ""  # the reason if there is no sweep over scales


@dataclass(frozen=True)
class Lap:
    """One seed of a race: the target score, each run's steps to it, and True for each run that reached it."""

    target: float
    slow: int
    fast: int
    slow_reached: bool
    fast_reached: bool


def need_learning(sweep: Sweep, otherwise: str = NOTHING) -> None:
    """Raises NotMeasured unless one of the two arms learned; `otherwise` is the reason."""
    if not any(sweep.learned(arm) for arm in sweep.pair):
        raise NotMeasured(otherwise)


def steps_to(run: Run, target: float) -> int | None:
    """The first scored step at which the validation score is at least the target; None if there is none."""
    return next((step for step, score in zip(run.steps, run.curve, strict=True) if score >= target), None)


def race(slow: list[Run], fast: list[Run], chance: float) -> list[Lap]:
    """The steps that each run needs to reach the target, seed by seed.

    The target is the slow run's best score, but at least halfway from chance to the best score of both runs, because
    the score of a network that stays at chance is no target. A run that does not reach the target counts with all of
    its steps, fewer than it would need.
    """
    laps = []
    for a, b in zip(slow, fast, strict=True):
        best = max(a.curve)
        target = max(best, (chance + max(best, *b.curve)) / 2)
        steps = [steps_to(run, target) for run in (a, b)]
        counted = [max(run.setting.steps if n is None else n, 1) for run, n in zip((a, b), steps, strict=True)]
        laps.append(Lap(target, counted[0], counted[1], steps[0] is not None, steps[1] is not None))
    return laps
