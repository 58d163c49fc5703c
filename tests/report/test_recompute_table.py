"""The table of memory and time under recompute, in the terminal and in the documentation."""

import copy
import io
from typing import Any

from rich.console import Console

from batchnorm.report.recompute_table import markdown, show

SIZES = {
    "torch": 100 * 2**20,
    "fused": 70 * 2**20,
    "recompute": 36 * 2**20,
    "chain": 35 * 2**20,
    "checkpoint": 8 * 2**20,
}
TIME = {"median": 1.04, "low": 1.02, "high": 1.06, "doubt": None}
RESULT: dict[str, Any] = {
    "settings": {"quick": False, "seconds": 2.0, "recompute": True},
    "interrupted": False,
    "steps": [
        {
            "name": "MobileNetV2",
            "batch": 8,
            "pixels": 224,
            "kept": SIZES,
            "resident": SIZES | {"recompute": 45 * 2**20},
            "milliseconds": {"fused": 900.0},
            "times": {"recompute": TIME, "chain": TIME, "checkpoint": TIME | {"doubt": "checkpoint stalls"}},
            "turns": 5,
            "aim": 0.4,
            "time_aim": 1.05,
        }
    ],
    "notes": ["it was a busy machine"],
    "load": {"before": 0.1, "after": 1.9, "others": 0.02},
    "environment": {"date": "2026-11-24", "processor": "EPYC", "cores": 2, "torch": "2.13", "threads": 2},
}


def shown(result: dict[str, Any]) -> str:
    console = Console(file=io.StringIO(), width=120)
    show(result, console)
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_in_the_terminal() -> None:
    text = shown(RESULT)
    lines = [" ".join(line.split()) for line in text.splitlines()]
    assert "MobileNetV2 kept 100 MiB 0.70 0.36 0.35 0.08 0.40" in lines
    assert "resident 100 MiB 0.70 0.45 0.35 0.08 0.40" in lines
    assert any(line.startswith("time 1.04 (1.02–1.06) 1.04 (1.02–1.06) ?") for line in lines)
    assert "not to be trusted: MobileNetV2, checkpoint: checkpoint stalls" in lines
    assert "note: it was a busy machine" in lines


def test_without_resident_memory_and_interrupted() -> None:
    result = copy.deepcopy(RESULT)
    result["steps"][0]["resident"], result["interrupted"] = None, True
    text = shown(result)
    assert "100 MiB" in text
    assert "resident  " not in text
    assert "Interrupted: only what was measured until then is shown." in text
    assert "Interrupted" in shown(result | {"steps": []})


def test_in_the_documentation() -> None:
    text = markdown(RESULT)
    assert text.startswith("Measured on 2026-11-24: EPYC, 2 cores, torch 2.13, 2 threads.")
    assert "A step of 8 images of 224 px." in text
    assert "| MobileNetV2 | kept | 100 MiB | 0.70 | 0.36 | 0.35 | 0.08 | 0.40 |" in text
    assert "|  | time |  |  | 1.04 (1.02–1.06) | 1.04 (1.02–1.06) | ? | 1.05 |" in text
    assert "Note: it was a busy machine." in text
