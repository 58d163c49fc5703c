"""Tests the package with the Python and the torch that run this file, and writes the outcome into compatibility.md.

    nox -s compatibility                    # each Python that is installed with each release of torch
    python docs/compatibility.py            # this Python with its torch
    python docs/compatibility.py --write    # writes the table again from docs/measured/compatibility.json

Arguments other than --write go to pytest.
"""

import json
import platform
import re
import subprocess
import sys
import tempfile
from datetime import date
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

HERE = Path(__file__).parent
PAGE, KEPT = HERE / "compatibility.md", HERE / "measured" / "compatibility.json"
SECTION = re.compile(r"(<!-- (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)

# They test operators, kernels, layers, conversion, and torch's own tools, in a few minutes. All tests of a pair:
# `nox -s tests`.
TESTS = (
    "tests/core",
    "tests/backends/native/test_operators.py",
    "tests/backends/test_aten.py",
    "tests/backends/test_device_table.py",
    "tests/backends/test_reference.py",
    "tests/clients/test_amp.py",
    "tests/clients/test_export.py",
    "tests/clients/test_func.py",
    "tests/test_functional.py",
    "tests/test_layers.py",
    "tests/tools/test_convert.py",
)

Run = dict[str, Any]


def measure(arguments: list[str]) -> Run:
    """Run the tests once, in a separate process."""
    import torch

    from batchnorm.backends import native

    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [sys.executable, "-m", "pytest", f"--junitxml={report}", *TESTS, *arguments]
        subprocess.run(command, cwd=HERE.parent, check=False)
        if not report.exists():
            sys.exit("pytest ended without a report: nothing is recorded")
        passed, failed, skipped = outcomes(report)
    return {
        "date": str(date.today()),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "native": native.available(),
        "passed": passed,
        "failed": failed,
        "skipped": skipped,
    }


def outcomes(report: Path) -> tuple[int, list[str], int]:
    """The number of tests that passed, the names of those that failed, and the number of those skipped."""
    passed, failed, skipped = 0, [], 0
    for case in ElementTree.parse(report).iter("testcase"):
        kinds = {child.tag for child in case}
        if kinds & {"failure", "error"}:
            failed.append(f"{case.get('classname')}::{case.get('name')}")
        elif "skipped" in kinds:
            skipped += 1
        else:
            passed += 1
    return passed, failed, skipped


def keep(run: Run, runs: list[Run]) -> list[Run]:
    """The runs in the order of the table. This one replaces an older one of the same Python and torch."""

    def pair(run: Run) -> tuple[str, str]:
        return run["python"].rpartition(".")[0], run["torch"]

    def order(run: Run) -> tuple[list[int], list[int]]:
        python, torch = pair(run)
        return [int(n) for n in python.split(".")], [int(n) for n in torch.partition("+")[0].split(".")]

    return sorted([r for r in runs if pair(r) != pair(run)] + [run], key=order)


def table(runs: list[Run]) -> str:
    """The runs in Markdown, and the names of tests that failed."""
    lines = ["| Python | torch | system | native kernels | passed | failed | skipped | date |", "|---" * 8 + "|"]
    for r in runs:
        cells = [r["python"], r["torch"], r["system"], "built" if r["native"] else "no"]
        cells += [f"{r['passed']:,}", f"{len(r['failed']):,}", f"{r['skipped']:,}", r["date"]]
        lines.append("| " + " | ".join(cells) + " |")
    for r in runs:
        if r["failed"]:
            lines += ["", f"Failed with Python {r['python']} and torch {r['torch']}:", ""]
            lines += [f"- `{name}`" for name in r["failed"]]
    return "\n".join(lines)


def filled(page: str, runs: list[Run]) -> str:
    """The page with the table and the list of tests written anew."""
    sections = {"runs": table(runs), "tests": "\n".join(f"- `{name}`" for name in TESTS)}
    return SECTION.sub(lambda match: f"{match[1]}\n{sections[match[2]]}\n\n{match[3]}", page)


def main(arguments: list[str]) -> None:
    run = None if arguments == ["--write"] else measure(arguments)
    runs = json.loads(KEPT.read_text(encoding="utf-8")) if KEPT.exists() else []  # another run may have ended meanwhile
    if run:
        runs = keep(run, runs)
        KEPT.write_text(json.dumps(runs, indent=1) + "\n", encoding="utf-8")
    PAGE.write_text(filled(PAGE.read_text(encoding="utf-8"), runs), encoding="utf-8")
    sys.exit(1 if run and run["failed"] else 0)


if __name__ == "__main__":
    main(sys.argv[1:])
