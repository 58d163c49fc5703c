"""The comparison with torch, as tables and as a page: where torch is faster both say so."""

import copy
import io
import json
import re
from typing import Any

import pytest
from rich.console import Console

from batchnorm.report.bench_page import page
from batchnorm.report.bench_table import show


def case(shape: list[int], **times: float) -> dict[str, Any]:
    ms = {"torch": 2.0, "ours": 1.0, "forward": 0.5, "copy": 0.25, **dict.fromkeys(times, 2.0)}
    large = {"block": "relu", "layout": "contiguous", "group": "large", "shape": shape, "turns": 5}
    return {**large, "milliseconds": ms, "times": times, "copies": {"forward": 2.0, "both": 4.0}}


RESULT: dict[str, Any] = {
    "settings": {"dtype": "float32", "blocks": ["relu"], "quick": False},
    "interrupted": False,
    "cases": [case([8, 4, 9, 9], torch=2.0, compiled=4.5), case([64, 8], torch=0.5)],
    "totals": [
        {
            "block": "relu",
            "layout": "contiguous",
            "group": "large",
            "cases": 2,
            "mean": {"torch": 1.0, "compiled": 4.5},
            "least": {"torch": 0.5, "compiled": 4.5},
            "slower": {"torch": 1, "compiled": 0},
        }
    ],
    "networks": [
        {
            "name": "ResNet-18",
            "layout": "contiguous",
            "batch": 4,
            "pixels": 64,
            "milliseconds": {"torch": 120.0, "converted": 130.0, "fused": 100.0},
            "times": {"converted": 0.92, "fused": 1.2},
        }
    ],
    "memory": [
        {
            "name": "ResNet-18",
            "activation": "silu",
            "pixels": 64,
            "mebibytes": {"torch": 10.0, "converted": 10.0, "fused": 6.0},
        }
    ],
    "notes": ["torch.compile <broke> [bold]here[/bold]"],
    "environment": {"torch": "2", "threads": 1},
}


def shown(result: dict[str, Any], color: bool = False) -> str:
    stream = io.StringIO()
    show(result, Console(file=stream, width=140, force_terminal=color, color_system="standard" if color else None))
    return stream.getvalue()


def test_tables() -> None:
    text = shown(RESULT)
    assert "relu, float32, contiguous" in text
    assert re.search(r"8×4×9×9 .* 2\.000 .* 2\.000 .* 1\.000 .* 2\.00× .* 4\.50× .* 2\.0 .* 4\.0", text)
    assert re.search(r"64×8 .* 0\.50× ", text)
    assert re.search(r"× +torch +× +compiled *\n inputs +torch +least +faster +compiled +least +faster", text)
    assert re.search(r"relu contiguous large +1\.00× +0\.50× +1 of 2 +4\.50× +4\.50× +0 of 2", text)
    assert "a training step of 4 images of 64 px" in text
    assert re.search(r"ResNet-18 contiguous .* 120 .* 130 .* 100 .* 0\.92× .* 1\.20×", text)
    assert re.search(r"ResNet-18 silu .* 10\.0 .* 10\.0 .* 6\.0 .* 60%", text)
    assert "note: torch.compile <broke> [bold]here[/bold]" in text
    assert "Interrupted" not in text


def test_a_narrow_terminal_cuts_nothing() -> None:
    stream = io.StringIO()
    show(RESULT | {"cases": [case([32, 2048, 56, 56], torch=123.4, compiled=4.5)]}, Console(file=stream, width=80))
    assert "32×2048×56×56" in stream.getvalue()
    assert "…" not in stream.getvalue()


def test_slower_is_red() -> None:
    text = shown(RESULT, color=True)
    assert re.search(r"\x1b\[1;31m *0\.50×", text)
    assert re.search(r"\x1b\[32m *2\.00×", text)
    assert re.search(r"\x1b\[1;31m *1 of 2", text)


def test_interrupted_at_once() -> None:
    nothing = RESULT | {"interrupted": True, "cases": [], "totals": [], "networks": [], "memory": [], "notes": []}
    assert shown(nothing).strip() == "Interrupted: only what was measured until then is shown."
    assert "Interrupted: only what was measured until then" in page(nothing)


def test_page() -> None:
    text = page(RESULT)
    assert "default-src 'none'" in text
    assert "against torch 1.00× (least 0.50×; torch is faster on 1)" in text
    assert "against torch.compile 4.50× (least 4.50×)" in text
    assert "torch.compile &lt;broke&gt; [bold]here[/bold]" in text
    assert text.count('class="plot"') == 3
    figures = json.loads(re.search(r"const FIGURES = (.*);\n", text)[1])
    bars = {bar["name"]: bar["y"] for bar in figures["figure-0"]["data"]}
    assert bars == {"torch": [2.0, 0.5], "torch.compile": [4.5, None]}
    assert figures["figure-0"]["layout"]["shapes"][0]["y0"] == 1, "the line above which ours is faster"
    assert {bar["name"] for bar in figures["figure-2"]["data"]} == {"torch", "converted", "fused"}


def test_without_plotly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "plotly.graph_objects", None)
    with pytest.raises(ImportError, match=r"the report needs plotly: pip install 'batchnorm\[study\]'"):
        page(copy.deepcopy(RESULT))
