"""The tables of `big_batch` beside one big batch."""

import io
from typing import Any

import pytest
from rich.console import Console

from batchnorm.report import big_batch_table


def ratio(median: float, doubt: str | None = None) -> dict[str, Any]:
    return {"median": median, "low": 0.9 * median, "high": 1.1 * median, "doubt": doubt}


@pytest.fixture
def result() -> dict[str, Any]:
    environment = {"date": "2026-01-02", "processor": "a processor", "cores": 2, "torch": "2.13", "threads": 2}
    times = {"name": "ResNet-18", "milliseconds": 1234.0, "big_batch": ratio(1.1)}
    memory = {"name": "ResNet-18", "micro_batches": 16, "inputs": 13.5}
    return {
        "settings": {"exact": [12, 5, 64], "timed": [64, 16, 64], "micro_batch": 8, "pixels": 96},
        "interrupted": False,
        "exact": [{"name": "ResNet-18", "big_batch": 1.3e-14, "accumulation": 1.2}],
        "times": [times | {"big_batch, offload": ratio(2.5, "turns disagree")}],
        "memory": [memory | {"one batch": 992.4, "big_batch": 1031.0, "big_batch, offload": None}],
        "notes": ["something to know"],
        "load": {"before": 0.1, "after": 0.2, "others": 0.0},
        "environment": environment,
    }


def test_every_figure_is_in_both(result: dict[str, Any]) -> None:
    out = io.StringIO()
    big_batch_table.show(result, Console(file=out, width=160))
    for text in (out.getvalue(), big_batch_table.markdown(result)):
        for figure in ("1e-14", "120%", "1234", "1.10", "992", "1031", "13.5", "micro-batches of 5", "aim without"):
            assert figure in text, (figure, text)
        assert "something to know" in text
    assert "not to be trusted: ResNet-18, big_batch, offload: turns disagree" in out.getvalue()
    assert "2.50" not in big_batch_table.markdown(result)


def test_interrupted(result: dict[str, Any]) -> None:
    out = io.StringIO()
    big_batch_table.show(result | {"interrupted": True, "times": [], "memory": []}, Console(file=out, width=160))
    assert "Interrupted: only what was measured" in out.getvalue()
    assert "time of a step" not in out.getvalue()
