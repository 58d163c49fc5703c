"""docs/compatibility.md: written from kept runs alone."""

import importlib.util
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def compatibility() -> ModuleType:
    """docs/compatibility.py."""
    spec = importlib.util.spec_from_file_location("docs_compatibility", ROOT / "docs" / "compatibility.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run(python: str, torch: str, **more: Any) -> dict[str, Any]:
    kept = {"date": "2026-11-28", "system": "Linux x86_64", "python": python, "torch": torch, "native": True}
    return kept | {"passed": 1234, "failed": [], "skipped": 5} | more


def test_the_page_is_that_of_the_kept_runs(compatibility: ModuleType) -> None:
    page, runs = compatibility.PAGE.read_text(encoding="utf-8"), json.loads(compatibility.KEPT.read_text())
    assert compatibility.filled(page, runs) == page
    assert {"2.13", "2.14"} <= {r["torch"].rpartition(".")[0] for r in runs}


def test_the_tests_that_are_named_are_there(compatibility: ModuleType) -> None:
    assert all((ROOT / name).exists() for name in compatibility.TESTS)


def test_a_run_takes_the_place_of_an_older_one(compatibility: ModuleType) -> None:
    runs = [run("3.11.7", "2.13.0+cpu"), run("3.12.1", "2.8.0")]
    runs = compatibility.keep(run("3.11.9", "2.13.0+cpu", date="2026-12-01"), runs)
    runs = compatibility.keep(run("3.11.9", "2.9.1"), runs)
    assert [(r["python"], r["torch"]) for r in runs] == [
        ("3.11.9", "2.9.1"), ("3.11.9", "2.13.0+cpu"), ("3.12.1", "2.8.0"),
    ]  # fmt: skip
    assert runs[1]["date"] == "2026-12-01"


def test_the_table(compatibility: ModuleType) -> None:
    text = compatibility.table([run("3.11.7", "2.13.0+cpu"), run("3.12.1", "2.8.0", failed=["a::b"], native=False)])
    assert "| 3.11.7 | 2.13.0+cpu | Linux x86_64 | built | 1,234 | 0 | 5 | 2026-11-28 |" in text
    assert "| 3.12.1 | 2.8.0 | Linux x86_64 | no | 1,234 | 1 | 5 | 2026-11-28 |" in text
    assert text.endswith("Failed with Python 3.12.1 and torch 2.8.0:\n\n- `a::b`")


def test_outcomes_of_a_report(compatibility: ModuleType, tmp_path: Path) -> None:
    report = tmp_path / "report.xml"
    cases = "<testcase name='a'/><testcase name='b'><skipped/></testcase>"
    cases += "<testcase classname='m' name='c'><failure/></testcase>"
    cases += "<testcase classname='m' name='d'><error/></testcase>"
    report.write_text(f"<testsuites><testsuite>{cases}</testsuite></testsuites>")
    assert compatibility.outcomes(report) == (1, ["m::c", "m::d"], 1)
