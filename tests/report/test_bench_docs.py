"""The chart and the tables of performance.md: written from saved runs alone."""

import importlib.util
import json
import re
import xml.etree.ElementTree as ET
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from batchnorm.benchmark.cases import LAYOUTS, cases
from batchnorm.benchmark.targets import PAIRS, rows
from batchnorm.benchmark.totals import totals
from batchnorm.report import bench_markdown as markdown
from batchnorm.report.bench_chart import chart
from tests.report.test_recompute_table import RESULT

Result = dict[str, Any]
DOCS = Path(__file__).parents[2] / "docs"
STALL = "torch stalls: its median, 30 ms, is 83 times its shortest time"


@pytest.fixture(scope="module")
def figures() -> ModuleType:
    """docs/figures.py."""
    spec = importlib.util.spec_from_file_location("docs_figures", DOCS / "figures.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def ratio(value: float, doubt: str | None = None) -> Result:
    return {"median": value, "low": 0.9 * value, "high": 1.1 * value, "doubt": doubt}


def network(name: str, layout: str) -> Result:
    found = {"name": name, "layout": layout, "dtype": "float32", "batch": 16, "pixels": 224}
    return found | {"ratios": {"converted": ratio(1.1), "fused": ratio(1.6)}}


@pytest.fixture
def result() -> Result:
    """A whole run in which ours is twice as fast, but for one input on which torch stalls."""
    found = [
        {
            **case.facts,
            "ratios": {"torch": ratio(2.123456)},
            "milliseconds": {"torch": 12.3456, "ours": 6.1728},
            "copies": {"forward": ratio(1.26), "both": ratio(2.94)},
        }
        for case in cases(PAIRS, LAYOUTS)
    ]
    found[0]["ratios"]["torch"] = ratio(83.0, STALL)
    memory = [
        {"name": name, "activation": activation, "pixels": 224, "mebibytes": {"torch": 10.0, "fused": size}}
        for name in ("ResNet-50", "MobileNetV2")
        for activation, size in (("relu", 10.0), ("silu", 7.0))
    ]
    run = {
        "settings": {"quick": False, "targets": True},
        "interrupted": False,
        "cases": found,
        "totals": totals(found),
        "networks": [network(name, layout) for name in ("ResNet-50", "MobileNetV2") for layout in LAYOUTS],
        "memory": memory,
        "build": 33.3333333,
        "load": {"before": 0.1, "after": 1.9, "others": 0.02},
        "environment": {"date": "2026-11-24", "processor": "EPYC", "cores": 2, "torch": "2.13", "threads": 2},
    }
    return run | {"targets": rows(run)}


def compiled(result: Result) -> Result:
    """The same run beside torch.compile."""
    with_rival = [case | {"ratios": {"torch": ratio(2.0), "compiled": ratio(8.0)}} for case in result["cases"]]
    return result | {
        "settings": {"quick": False, "targets": False},
        "cases": with_rival,
        "totals": totals(with_rival),
    }


def test_the_pages_are_written_from_what_is_saved(figures: ModuleType) -> None:
    runs = figures.saved(DOCS / "measured")
    for path, sections in figures.PAGES:
        page = path.read_text(encoding="utf-8")
        assert figures.filled(page, runs, sections) == page, f"{path.name}: run python docs/figures.py"
        assert sorted(re.findall(r"<!-- figures: (\w+) -->", page)) == sorted(sections)
    if "targets" in runs:
        assert figures.CHART.read_text(encoding="utf-8") == chart(runs["targets"])


def test_every_section_has_its_place(figures: ModuleType) -> None:
    page = figures.PAGE.read_text(encoding="utf-8")
    places = re.findall(r"<!-- figures: (\w+) -->", page)
    assert places[0] == "chart", "where it stands comes first"
    assert page.count("<!-- end -->") == len(places)


def test_sections_are_replaced_whole(figures: ModuleType, result: Result) -> None:
    page = figures.PAGE.read_text(encoding="utf-8")
    runs = {"targets": result, "compiled": compiled(result)}
    written = figures.filled(page, runs)
    assert "Not measured yet" not in written
    assert "![How many times faster than torch's layers](images/bench.svg)" in written
    assert "| float32, contiguous | 2.12× | 2.12 to 2.12 | 3.50× | 4.50× | not enough, 1 left out |" in written
    assert "| build of the native kernels, one core | 33 s |  | 90 s | 40 s | aim reached |" in written
    assert "83.0" not in written
    assert figures.filled(written, runs) == written
    assert figures.filled(written, {}) == figures.filled(page, {})


def test_runs_are_taken_short_and_by_their_kind(figures: ModuleType, result: Result, tmp_path: Path) -> None:
    report, folder = tmp_path / "report.json", tmp_path / "measured"
    report.write_text(json.dumps(result), encoding="utf-8")
    figures.take(report, folder)
    report.write_text(json.dumps(compiled(result)), encoding="utf-8")
    figures.take(report, folder)
    assert {path.name for path in folder.iterdir()} == {"targets.json", "compiled.json"}
    taken = figures.saved(folder)["targets"]
    assert taken["build"] == 33.33
    assert taken["cases"][1]["ratios"]["torch"]["median"] == 2.123
    assert (folder / "targets.json").read_text(encoding="utf-8").count("\n") > len(result["cases"]), "readable diffs"


@pytest.mark.parametrize(
    "change",
    [
        {"settings": {"quick": True, "targets": True}},
        {"interrupted": True},
        {"settings": {"quick": False, "targets": False}},
    ],
)
def test_runs_that_show_nothing_are_refused(
    figures: ModuleType, result: Result, tmp_path: Path, change: Result
) -> None:
    report = tmp_path / "report.json"
    report.write_text(json.dumps(result | change), encoding="utf-8")
    with pytest.raises(SystemExit, match=r"report\.json: expected a whole run with --targets"):
        figures.take(report, tmp_path / "measured")
    assert not (tmp_path / "measured").exists()


def test_a_run_under_recompute_is_taken(figures: ModuleType, tmp_path: Path) -> None:
    report, folder = tmp_path / "report.json", tmp_path / "measured"
    report.write_text(json.dumps(RESULT), encoding="utf-8")
    figures.take(report, folder)
    runs = figures.saved(folder)
    written = figures.filled(figures.MEMORY_PAGE.read_text(encoding="utf-8"), runs, figures.MEMORY_SECTIONS)
    assert "| MobileNetV2 | kept | 100 MiB | 0.70 | 0.36 | 0.35 | 0.08 | 0.40 |" in written


def test_aims_are_those_of_today(figures: ModuleType, result: Result, tmp_path: Path) -> None:
    (tmp_path / "targets.json").write_text(json.dumps(result | {"targets": []}), encoding="utf-8")
    assert figures.saved(tmp_path)["targets"]["targets"] == rows(result)


def test_the_table_for_the_readme(
    figures: ModuleType, result: Result, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    figures.main(["--readme"], tmp_path)
    assert capsys.readouterr().out == "*Not measured yet.*\n"
    (tmp_path / "targets.json").write_text(json.dumps(result), encoding="utf-8")
    figures.main(["--readme"], tmp_path)
    assert capsys.readouterr().out.splitlines() == [
        "| times as fast as torch | contiguous | channels_last |",
        "| --- | --- | --- |",
        "| float32, plain | 2.1 (least 2.12; 1 left out) | 2.1 (least 2.12) |",
        "| float32, with ReLU | 2.1 (least 2.12) | 2.1 (least 2.12) |",
        "| float32, with residual and ReLU | 2.1 (least 2.12) | 2.1 (least 2.12) |",
    ]


def test_tables(result: Result) -> None:
    table = markdown.inputs(result, "float32", "plain", "contiguous")
    assert table.count("\n") == 2 + 24
    assert "| 32×64×112×112 | 12.3 | 6.17 | not to be trusted | 1.3 | 2.9 |" in table
    assert "| 32×64×56×56 | 12.3 | 6.17 | 2.12 (1.91–2.34) | 1.3 | 2.9 |" in table
    assert "| 2×8×100 | 12.3 | 6.17 | 2.12 (1.91–2.34) |  |  |" in table, "copies are for large inputs"
    assert "| ResNet-50, contiguous | 1.10 (0.99–1.21) | 1.60 (1.44–1.76) |" in markdown.networks(result)
    assert "| MobileNetV2 | 100% | 70% |" in markdown.memory(result)
    assert "| float32, with ReLU | 8.0 (least 8.00) | 8.0 (least 8.00) |" in markdown.totals(
        compiled(result), "compiled"
    )
    run = markdown.run(result)
    assert run.startswith("Measured on 2026-11-24: EPYC, 2 cores, torch 2.13, 2 threads. Load average 0.10 before")
    assert run.endswith("One ratio cannot be trusted and is left out.\n")
    result["environment"]["threads"] = 1
    assert "torch 2.13, 1 thread. Load" in markdown.run(result)


def test_chart(result: Result) -> None:
    result["targets"][0]["name"] = "a < b & c"
    picture = chart(result)
    root = ET.fromstring(picture)  # escaped: it parses
    texts = ["".join(text.itertext()) for text in root.iter("{http://www.w3.org/2000/svg}text")]
    assert "a < b & c" in texts
    assert "2.12× ?" in texts, "left-out inputs are marked"
    assert "not measured" in texts, "the MLP was not trained in this run"
    assert "prefers-color-scheme: dark" in picture
    dots = list(root.iter("{http://www.w3.org/2000/svg}circle"))
    means = [row for row in result["targets"] if row["kind"] == "mean"]
    assert len(dots) == 1 + sum(len(row["inputs"]) for row in means)  # and one in the legend
    assert {"1×", "2×", "4×"} <= set(texts)


def test_the_axis_is_logarithmic(result: Result) -> None:
    root = ET.fromstring(chart(result))
    at = {
        "".join(text.itertext()): float(text.get("x", "nan"))
        for text in root.iter("{http://www.w3.org/2000/svg}text")
        if text.get("text-anchor") == "middle"
    }
    assert at["2×"] - at["1×"] == pytest.approx(at["4×"] - at["2×"], abs=0.2)
