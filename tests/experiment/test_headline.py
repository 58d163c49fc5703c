"""The sentences at the top of a report."""

from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from batchnorm.experiment.data import split
from batchnorm.experiment.headline import headline
from batchnorm.experiment.verdict import Claim
from batchnorm.experiment.wording import WORDING

DATA = split("planted", torch.arange(80.0).reshape(40, 2), torch.arange(40) % 2)
LEARNED = {arm: {"test": [score], "learned": True} for arm, score in (("batch norm", 0.9), ("plain", 0.8))}


def claims(**verdicts: str) -> list[Claim]:
    """All nine claims hold but those named, such as `c3="not measured"`."""
    found: Any = [
        SimpleNamespace(verdict=verdicts.get(f"c{number}", "holds"), kind=WORDING[number].kind) for number in WORDING
    ]
    return cast(list[Claim], found)


@pytest.mark.parametrize(
    ("verdicts", "ending"),
    [
        (
            {},
            "6 of the 6 benefits that could be judged hold here. Small batches cost the network with batch norm more "
            "than the one without.",
        ),
        ({"c9": "does not hold here"}, "6 of the 6 benefits that could be judged hold here."),
        (
            {"c1": "not measured", "c8": "within its spread", "c9": "not measured"},
            "4 of the 5 benefits that could be judged hold here.",
        ),
        ({"c4": "not measured", "c9": "not measured"}, "6 of the 6 benefits that could be judged hold here."),
    ],
    ids=["all", "no cost", "some", "construction"],
)
def test_a_cost_and_what_is_true_by_construction_are_no_benefits(verdicts: dict[str, str], ending: str) -> None:
    text = headline(DATA, LEARNED, claims(**verdicts))
    assert text == f"Test accuracy: 0.900 with batch norm and 0.800 without. {ending}"
