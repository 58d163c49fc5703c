"""The condition of every claim about training: a network must have learned something."""

from __future__ import annotations

import math
import statistics

from .data import EVALUATION_LIMIT, Data
from .runs import Run, chance_score

DEVIATIONS = 3  # standard deviations by which a test score must be above chance


def bar(data: Data) -> float:
    """The test score that a network hardly ever reaches if it learned nothing.

    For accuracy it is the score p of the best constant prediction plus three standard deviations √(p(1 − p)/n), with n
    test samples. For R² it is 9/n: a prediction that is independent of the target has a correlation with standard
    deviation 1/√n, so its R² is at most about the square, 1/n.
    """
    n = min(len(data.test), EVALUATION_LIMIT)
    if data.task == "regression":
        return DEVIATIONS**2 / n
    p = chance_score(data, "test")
    return p + DEVIATIONS * math.sqrt(p * (1 - p) / n)


def learned(runs: list[Run], data: Data) -> bool:
    """True if the median test score of these runs is above the bar."""
    return statistics.median(run.test_score for run in runs) > bar(data)
