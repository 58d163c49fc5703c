"""The gate before every claim about training: did the network learn anything?"""

from __future__ import annotations

import math
import statistics

from .data import EVALUATION_LIMIT, Data
from .runs import Run, chance_score

DEVIATIONS = 3  # beyond chance that a test score must lie


def bar(data: Data) -> float:
    """The test score that a network which learned nothing hardly ever reaches.

    The best constant prediction's score p, plus three of its standard deviations √(p(1 − p)/n) on n test samples. For
    R², n samples of a prediction that has nothing to do with the target give at most about 1/n, the square of a
    correlation with standard deviation 1/√n: the bar is 9/n.
    """
    n = min(len(data.test), EVALUATION_LIMIT)
    if data.task == "regression":
        return DEVIATIONS**2 / n
    p = chance_score(data, "test")
    return p + DEVIATIONS * math.sqrt(p * (1 - p) / n)


def learned(runs: list[Run], data: Data) -> bool:
    """True if the median test score of these runs is above the bar."""
    return statistics.median(run.test_score for run in runs) > bar(data)
