"""The table in the terminal."""

import io
from typing import Any

import pytest
from rich.console import Console

from batchnorm.report.terminal import show
from tests.support.studies import quick


def shown(result: dict[str, Any], width: int) -> str:
    stream = io.StringIO()
    show(result, Console(file=stream, width=width))
    return stream.getvalue()


@pytest.mark.parametrize("width", [60, 160])
def test_every_claim_has_a_row_that_fits(width: int) -> None:
    result = quick().to_dict()
    text = shown(result, width)
    assert all(claim["title"] in text for claim in result["claims"])
    assert max(map(len, text.splitlines())) <= width
    assert ("effect ± spread" in text) == (width == 160)


def test_verdicts_that_need_it_are_explained() -> None:
    result = quick().to_dict()
    claims = [claim | {"verdict": "holds", "reason": None} for claim in result["claims"]]
    text = shown(result | {"claims": claims}, 160)
    assert "true by construction: the arithmetic of the layer" in text
    assert "within its spread" not in text
    claims[0] |= {"verdict": "within its spread"}
    claims[1] |= {"verdict": "not measured", "sentence": "", "reason": "there is one seed only"}
    text = shown(result | {"claims": claims}, 160)
    assert "within its spread: other seeds could give the opposite answer." in text
    assert "There is one seed only." in text


def test_names_are_text_and_not_markup() -> None:
    result = quick().to_dict() | {"network": "[bold]mine[/bold]"}
    assert "[bold]mine[/bold]" in shown(result, 120)


def test_an_interrupted_study_says_so() -> None:
    result = quick().to_dict()
    assert "Interrupted" not in shown(result, 120)
    assert "Interrupted: 3 of 9 runs" in shown(
        result | {"interrupted": True, "runs_finished": 3, "runs_planned": 9}, 120
    )
