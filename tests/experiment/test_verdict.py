"""The one rule: a claim holds if the median effect is above 0 by more than the spread over seeds."""

import pytest

from batchnorm.experiment.verdict import Claim, judge


@pytest.mark.parametrize(
    ("effects", "verdict", "reason"),
    [
        ([2.0, 2.1, 1.9], "holds", "beyond its spread"),
        ([2.0, 8.0, 0.1], "within its spread", "other seeds could differ"),
        ([-2.0, -8.0, -0.1], "within its spread", "other seeds could differ"),
        ([-0.1, 0.0, 0.1], "within its spread", "other seeds could differ"),
        ([-2.0, -2.1, -1.9], "does not hold here", "is not above 0"),
        ([0.0, 0.0, 0.0], "does not hold here", "is not above 0"),
        ([5.0], "not measured", "one seed has no spread"),
    ],
)
def test_verdict(effects: list[float], verdict: str, reason: str) -> None:
    claim = judge(Claim(1, effects=effects))
    assert claim.verdict == verdict
    assert reason in claim.reason


def test_median_and_spread_are_over_seeds() -> None:
    claim = judge(Claim(1, effects=[1.0, 2.0, 6.0]))
    assert claim.median == 2.0
    assert claim.spread == pytest.approx(7**0.5)


def test_a_claim_carries_its_wording() -> None:
    claim = Claim(9)
    assert claim.to_dict()["title"] == claim.title == "Where it hurts"
    assert claim.to_dict()["unit"] == claim.unit
