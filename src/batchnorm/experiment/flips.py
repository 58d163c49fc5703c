"""Counts how often the verdicts of a study change with the seed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from .verdict import Verdict


@dataclass(frozen=True)
class Flips:
    """One claim over several studies.

    usual: the most frequent verdict. other: the share of studies with another one. opposite: the share that holds where
    the claim usually does not, or the other way round; a verdict within its spread is neither.
    """

    usual: Verdict
    other: float
    opposite: float


OPPOSITES = {"holds": "does not hold here", "does not hold here": "holds"}


def flips(verdicts: Sequence[Verdict]) -> Flips:
    """Counts the verdicts on one claim; of equally frequent ones the first met is the usual one.

    Examples:
        >>> flips(["holds", "holds", "within its spread", "does not hold here"])
        Flips(usual='holds', other=0.5, opposite=0.25)
    """
    counts = Counter(verdicts)
    usual, times = counts.most_common(1)[0]
    total = len(verdicts)
    return Flips(usual, 1 - times / total, counts.get(OPPOSITES.get(usual, ""), 0) / total)  # type: ignore[call-overload]
