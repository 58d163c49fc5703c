"""Counts how often the verdicts of a study change with the seed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from .verdict import Verdict


@dataclass(frozen=True)
class Flips:
    """One claim over several studies.

    usual: the most frequent verdict. other: the share of studies with another verdict. opposite: the share of studies
    with the opposite verdict; "holds" and "does not hold here" are opposites.
    """

    usual: Verdict
    other: float
    opposite: float


OPPOSITES = {"holds": "does not hold here", "does not hold here": "holds"}


def flips(verdicts: Sequence[Verdict]) -> Flips:
    """Counts the verdicts on one claim; of equally frequent verdicts, the first in the list is the usual one.

    Examples:
        >>> flips(["holds", "holds", "within its spread", "does not hold here"])
        Flips(usual='holds', other=0.5, opposite=0.25)
    """
    counts = Counter(verdicts)
    usual, times = counts.most_common(1)[0]
    total = len(verdicts)
    return Flips(usual, 1 - times / total, counts.get(OPPOSITES.get(usual, ""), 0) / total)  # type: ignore[call-overload]
