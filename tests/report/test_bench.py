"""The comparison with torch as tables and as a page: slower inputs and doubtful ratios are shown as such."""

import io
import math
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from rich.console import Console

from batchnorm.report.bench_page import page
from batchnorm.report.bench_table import show
from tests.support.browsers import chromium
from tests.support.screens import faults

STALL = "torch stalls: its median, 30 ms, is 83 times its shortest time"


def ratio(value: float, doubt: str | None = None) -> dict[str, Any]:
    return {"median": value, "low": 0.9 * value, "high": 1.1 * value, "doubt": doubt}


def case(shape: list[int], doubt: str | None = None, **ratios: float) -> dict[str, Any]:
    ms = {"torch": 2.0, "ours": 1.0, "forward": 0.5, "copy": 0.25, **dict.fromkeys(ratios, 2.0)}
    kind = {"dtype": "float32", "block": "relu", "layout": "contiguous", "group": "large", "shape": shape, "turns": 5}
    found = {name: ratio(value, doubt) for name, value in ratios.items()}
    return {**kind, "milliseconds": ms, "ratios": found, "copies": {"forward": ratio(2.0), "both": ratio(4.0)}}


def target(name: str, measured: float | None, verdict: str, **more: Any) -> dict[str, Any]:
    row = {"name": name, "kind": "mean", "unit": "×", "at_least": 3.5, "aim": 4.5, "measured": measured}
    row |= {"low": None, "high": None, "inputs": [], "left_out": [], "which": None, "how": None, "verdict": verdict}
    return row | more


RESULT: dict[str, Any] = {
    "settings": {"pairs": [["float32", "relu"]], "quick": False, "targets": True},
    "interrupted": False,
    "cases": [
        case([8, 4, 9, 9], torch=2.0, compiled=4.5),
        case([64, 8], torch=0.5),
        case([2, 16, 8, 8], STALL, torch=83.0),
    ],
    "totals": [
        {
            "dtype": "float32",
            "block": "relu",
            "layout": "contiguous",
            "group": "large",
            "cases": 3,
            "mean": {"torch": 1.0, "compiled": 4.5},
            "least": {"torch": 0.5, "compiled": 4.5},
            "slower": {"torch": 1, "compiled": 0},
            "left_out": {"torch": 1, "compiled": 0},
        }
    ],
    "networks": [
        {
            "name": "ResNet-18",
            "layout": "contiguous",
            "dtype": "float32",
            "batch": 4,
            "pixels": 64,
            "milliseconds": {"torch": 120.0, "converted": 130.0, "fused": 100.0},
            "ratios": {"converted": ratio(0.92), "fused": ratio(1.2)},
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
    "targets": [
        target(
            "with ReLU <large>", 1.0, "not enough", inputs=[{"label": "a", "ratio": 0.5}, {"label": "b", "ratio": 2}]
        ),
        target("step: ResNet-18", 5.0, "aim reached", kind="network", low=4.8, high=5.1),
        target("small", 4.0, "enough", inputs=[{"label": "a", "ratio": 4.0}], left_out=["2×16×8×8"]),
        target("build", 50.0, "enough", kind="build", unit="s", at_least=90, aim=40),
        target("make test", None, "not measured", kind="tests", unit="s", at_least=420, aim=300, how="time make test"),
    ],
    "load": {"before": 0.12, "after": 1.98, "others": 0.01},
    "build": 50.0,
    "notes": ["torch.compile <broke> [bold]here[/bold]"],
    "environment": {"torch": "2", "threads": 1},
}
NOTHING = (
    RESULT | {"interrupted": True} | {k: [] for k in ("cases", "totals", "networks", "memory", "notes", "targets")}
)


def shown(result: dict[str, Any], color: bool = False, width: int = 140) -> str:
    stream = io.StringIO()
    show(result, Console(file=stream, width=width, force_terminal=color, color_system="standard" if color else None))
    return stream.getvalue()


def test_tables() -> None:
    text = shown(RESULT)
    assert "relu, float32, contiguous" in text
    row = r"8×4×9×9 .* 2\.000 .* 2\.000 .* 1\.000 .* 2\.00× \(1\.80–2\.20\) .* 4\.50× \(4\.05–4\.95\) .* 2\.0 .* 4\.0"
    assert re.search(row, text)
    assert re.search(r"64×8 .* 0\.50× ", text)
    assert re.search(r"relu float32 contiguous large +1\.00× +0\.50× +1 of 2 +1 +4\.50× +4\.50× +0 of 3", text)
    assert "a training step of 4 images of 64 px, float32, ms" in text
    assert re.search(r"ResNet-18 contiguous .* 120 .* 130 .* 100 .* 0\.92× .* 1\.20×", text)
    assert re.search(r"ResNet-18 silu .* 10\.0 .* 10\.0 .* 6\.0 .* 60%", text)
    assert "note: torch.compile <broke> [bold]here[/bold]" in text
    assert "load average 0.12 before the run and 1.98 after it, its own threads included; other programs" in text
    assert "kept 0.01 cores busy" in text
    assert "Interrupted" not in text


def test_a_stall_is_named_and_not_printed_as_speed() -> None:
    text, html = shown(RESULT), page(RESULT)
    assert "83.00×" not in text
    assert re.search(r"2×16×8×8 .* \?", text)
    assert f"not to be trusted: relu 2×16×8×8 float32 contiguous: {STALL}" in text
    assert f"<li>relu 2×16×8×8 float32 contiguous: {STALL}</li>" in html
    assert "against torch 1.00× (least 0.50×; torch is faster on 1; 1 left out)" in html
    chart = drawing(html, "Torch's time over ours: relu, float32, contiguous")
    (cross,) = (path for path in chart.iter(f"{SVG}path") if path.findtext(f"{SVG}title") == STALL)
    assert "l8 8m0 -8l-8 8" in cross.attrib["d"]
    assert texts(chart)[-3:-1] == ["2×16×8×8", "?"], "and not its 83×"


def test_targets() -> None:
    text = shown(RESULT)
    assert re.search(r"with ReLU <large> +1\.00× +0\.50 to 2\.00 +3\.50× +4\.50× +not enough", text)
    assert re.search(r"step: ResNet-18 +5\.00× +\(4\.80–5\.10\) +3\.50× +4\.50× +aim reached", text)
    assert re.search(r"small +4\.00× .* enough, 1 left out", text)
    assert re.search(r"build +50 s +90 s +40 s +enough", text)
    assert re.search(r"make test +420 s +300 s +not measured, by time make test", text)
    partly = shown(RESULT | {"settings": {"targets": False}})
    assert "step: ResNet-18 " in partly
    assert "make test" not in partly, "a run without --targets shows the rows it has measured"


def test_a_narrow_terminal_cuts_nothing() -> None:
    text = shown(RESULT | {"cases": [case([32, 2048, 56, 56], torch=123.4, compiled=4.5)]}, width=80)
    assert "32×2048×56×56" in text
    assert "111–136" in text
    assert "…" not in text


def test_slower_is_red() -> None:
    text = shown(RESULT, color=True)
    assert re.search(r"\x1b\[1;31m *0\.50×", text)
    assert re.search(r"\x1b\[32m *2\.00×", text)
    assert re.search(r"\x1b\[1;31m *1 of 2", text)
    assert re.search(r"\x1b\[33m *\?", text)


def test_interrupted_at_once() -> None:
    text = shown(NOTHING)
    assert text.startswith("load average")
    assert text.strip().endswith("Interrupted: only what was measured until then is shown.")
    assert "Interrupted: only what was measured until then" in page(NOTHING)


def test_a_system_that_does_not_tell_its_load() -> None:
    unknown = {"before": None, "after": None, "others": None}
    assert "this system does not tell how busy it is" in shown(NOTHING | {"load": unknown})


def test_page() -> None:
    text = page(RESULT)
    assert "default-src 'none'" in text
    assert "against torch.compile 4.50× (least 4.50×)" in text
    assert "torch.compile &lt;broke&gt; [bold]here[/bold]" in text
    assert "<td>with ReLU &lt;large&gt;</td><td>1.00×</td><td>0.50 to 2.00</td>" in text
    assert text.count('class="plot"') == 5
    assert "plotly" not in text.lower()
    chart = drawing(text, "Torch's time over ours: relu, float32, contiguous")
    assert texts(chart)[:11] == ["1×", "1×", "4×", "4×", "16×", "16×", "64×", "64×", "8×4×9×9", "2.00×", "4.50×"]
    at = {text.text: float(text.attrib["x"]) for text in chart.iter(f"{SVG}text")}
    assert at["4×"] - at["1×"] == pytest.approx(at["64×"] - at["16×"], abs=0.2), "the axis is logarithmic"
    line, *others = (line for line in chart.iter(f"{SVG}line") if line.attrib["class"] == "one")
    assert not others
    assert float(line.attrib["x1"]) == at["1×"], "the line beyond which ours is faster"
    width = (at["64×"] - at["1×"]) / 6
    box = next(chart.iter(f"{SVG}rect"))
    assert float(box.attrib["x"]) == pytest.approx(at["1×"] + math.log2(1.8) * width, abs=0.2)
    assert float(box.attrib["width"]) == pytest.approx(math.log2(2.2 / 1.8) * width, abs=0.2)
    aims = [drawn for drawn in drawings(text) if drawn.attrib["aria-label"].endswith("compared with the aims")]
    assert [t for drawn in aims for t in texts(drawn) if t in ("5.00×", "1.00×", "4.00× ?", "50 s")] == [
        "1.00×",
        "5.00×",
        "4.00× ?",
    ], "seconds are not in the figure"
    places = [{t.text: t.attrib["x"] for t in drawn.iter(f"{SVG}text")} for drawn in aims]
    assert places[0]["1×"] == places[1]["1×"], "both halves have one axis"


SVG = "{http://www.w3.org/2000/svg}"


def drawings(html: str) -> list[ElementTree.Element]:
    found = re.findall(r'<svg class="chart.*?</svg>', html, re.DOTALL)
    return [ElementTree.fromstring(text.replace("<svg ", f'<svg xmlns="{SVG[1:-1]}" ', 1)) for text in found]


def drawing(html: str, name: str) -> ElementTree.Element:
    return next(found for found in drawings(html) if found.attrib["aria-label"] == name)


def texts(chart: ElementTree.Element) -> list[str]:
    return [text.text or "" for text in chart.iter(f"{SVG}text")]


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [1300, 390])
def test_everything_can_be_read(tmp_path: Path, width: int, theme: str) -> None:
    path = tmp_path / "bench.html"
    path.write_text(page(RESULT), encoding="utf-8")
    with chromium() as browser:
        tab = browser.new_page(viewport={"width": width, "height": 844}, color_scheme=theme)
        tab.goto(path.as_uri())
        tab.locator("details").evaluate_all("(all) => all.forEach((details) => { details.open = true; })")
        assert faults(tab) == []
