"""Flips of verdicts over seeds are counted as they are defined, and a clear effect does not flip."""

from typing import Any

import pytest

from batchnorm.experiment.flips import Flips, flips
from tests.experiment.test_claims import FAST, SLOW, claim

HOLDS, SPREAD, NOT = "holds", "within its spread", "does not hold here"


@pytest.mark.parametrize(
    ("verdicts", "expected"),
    [
        ([HOLDS] * 10, Flips(HOLDS, 0.0, 0.0)),
        ([HOLDS] * 8 + [SPREAD] * 2, Flips(HOLDS, 0.2, 0.0)),
        ([HOLDS] * 7 + [SPREAD, NOT, NOT], Flips(HOLDS, 0.3, 0.2)),
        ([NOT] * 5 + [HOLDS], Flips(NOT, 1 / 6, 1 / 6)),
        ([SPREAD] * 3 + [HOLDS], Flips(SPREAD, 0.25, 0.0)),
    ],
)
def test_counting(verdicts: list[Any], expected: Flips) -> None:
    found = flips(verdicts)
    assert (found.usual, found.other, found.opposite) == (
        expected.usual,
        pytest.approx(expected.other),
        pytest.approx(expected.opposite),
    )


def test_a_clear_effect_does_not_flip_over_ten_seeds() -> None:
    """Ten studies with planted runs that differ by one marked step, either way."""
    verdicts = [
        claim(1, {"curve": [0.5] * (1 + i % 2) + FAST[: 4 - i % 2]}, {"curve": SLOW}).verdict for i in range(10)
    ]
    assert flips(verdicts) == Flips("holds", 0.0, 0.0)
