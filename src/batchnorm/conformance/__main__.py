"""Run the suite on several batch norms, and print a table of outcomes: ``python -m batchnorm.conformance``."""

import argparse
import ast
import os
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

HERE = Path(__file__).parent


class Subject(NamedTuple):
    """A batch norm to test, and the module that has to be installed for it."""

    label: str
    implementation: str
    sync: str | None
    needs: str


SUBJECTS = (
    Subject("batchnorm", "batchnorm:BatchNorm2d", "batchnorm:SyncBatchNorm", "batchnorm"),
    Subject("torch.nn", "torch.nn:BatchNorm2d", "torch.nn:SyncBatchNorm", "torch"),
    Subject("timm BatchNormAct2d", "batchnorm.conformance.adapters:TimmBatchNorm", None, "timm"),
    Subject("Keras, torch backend", "batchnorm.conformance.adapters:KerasBatchNorm", None, "keras"),
    Subject("Flax", "batchnorm.conformance.adapters:FlaxBatchNorm", None, "flax"),
)

Outcomes = dict[str, list[str]]  # test → "passed", "failed" or "skipped" for each of its cases


def run(subject: Subject) -> Outcomes | None:
    """The outcomes of the suite, or None if the package is not installed."""
    environment = os.environ | {"KERAS_BACKEND": "torch"}
    probe = [sys.executable, "-c", f"import {subject.needs}"]
    if subprocess.run(probe, env=environment, capture_output=True, check=False).returncode:
        return None
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-p",
            "no:cacheprovider",
            "-W",
            "ignore",
            f"--junitxml={report}",
        ]
        command += ["--pyargs", "batchnorm.conformance", "--impl", subject.implementation]
        command += ["--sync", subject.sync] if subject.sync else []
        subprocess.run(command, cwd=folder, env=environment, capture_output=True, check=False)
        outcomes: Outcomes = defaultdict(list)
        for case in ElementTree.parse(report).iter("testcase"):
            kinds = {child.tag for child in case}
            outcome = "failed" if kinds & {"failure", "error"} else "skipped" if "skipped" in kinds else "passed"
            outcomes[str(case.get("name")).partition("[")[0]].append(outcome)
    return outcomes


def descriptions() -> dict[str, str]:
    """Test → what it asks for, in the order of the files."""
    found = {}
    for path in sorted(HERE.glob("test_*.py")):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                words = (ast.get_docstring(node) or "").split("\n")[0]
                found[node.name] = words or node.name.removeprefix("test_").replace("_", " ").capitalize() + "."
    return found


def cell(cases: list[str]) -> str:
    """The table cell for the cases of one test."""
    failed, passed = cases.count("failed"), cases.count("passed")
    if failed == passed == 0:
        return "not offered"
    if not failed:
        return "passes"
    return f"**fails** {failed} of {failed + passed}" if passed else "**fails**"


def table(results: dict[str, Outcomes]) -> str:
    """The outcomes in Markdown."""
    lines = ["| | " + " | ".join(results) + " |", "|---" * (len(results) + 1) + "|"]
    for name, words in descriptions().items():
        lines.append(f"| {words} | " + " | ".join(cell(outcomes.get(name, [])) for outcomes in results.values()) + " |")
    return "\n".join(lines)


def main() -> None:
    arguments = argparse.ArgumentParser(
        prog="python -m batchnorm.conformance",
        description="Runs the conformance suite on each of these batch norms that is installed, and prints who passes "
        f"what, in Markdown: {', '.join(subject.label for subject in SUBJECTS)}.",
        epilog="For a class of your own: pytest --pyargs batchnorm.conformance --impl package:Class",
    )
    arguments.parse_args()
    results = {}
    for subject in SUBJECTS:
        print(f"{subject.label} ...", file=sys.stderr)
        outcomes = run(subject)
        if outcomes is None:
            print(f"{subject.label}: left out, {subject.needs} cannot be imported", file=sys.stderr)
        else:
            results[subject.label] = outcomes
    print(table(results))


if __name__ == "__main__":
    main()
