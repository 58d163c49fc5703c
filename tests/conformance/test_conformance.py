"""The conformance suite, by the command of the docs: our layer passes whole, torch's fails as the docs list."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from batchnorm.conformance.__main__ import cell, descriptions, table
from tests.support.backends import NATIVE

# What torch's own layer fails: with each of these gone, the table in the docs is out of date.
TORCH_FAILS = {
    "test_offsets",
    "test_constant_channels",
    "test_ranks",
    "test_batches_that_are_not_finite",
    "test_recomputation",
    "test_one_value",
}


def suite(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-W", "ignore"]
    command += ["--pyargs", "batchnorm.conformance", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=folder, timeout=300)


@pytest.mark.skipif(not NATIVE, reason="without a compiler torch's own operator serves, and is as exact as torch")
def test_ours_passes(tmp_path: Path) -> None:
    ran = suite(tmp_path, "--impl", "batchnorm:BatchNorm2d", "--sync", "batchnorm:SyncBatchNorm")
    assert ran.returncode == 0, ran.stdout
    assert re.search(r"^\d\d passed|\[100%\]", ran.stdout, re.M)
    assert "skipped" not in ran.stdout


def test_torchs_fails_where_it_is_known_to(tmp_path: Path) -> None:
    ran = suite(tmp_path, "--impl", "torch.nn:BatchNorm2d", "--sync", "torch.nn:SyncBatchNorm")
    assert set(re.findall(r"FAILED \S+::(\w+)", ran.stdout)) == TORCH_FAILS


def test_a_class_that_is_not_there(tmp_path: Path) -> None:
    for wrong in ("torch.nn", "torch.nn:Nothing", "no.such.package:Class"):
        assert "--impl torch.nn:BatchNorm2d" in (said := suite(tmp_path, "--impl", wrong).stdout) or wrong in said


def test_other_runs_of_pytest_do_not_see_the_options(tmp_path: Path) -> None:
    (tmp_path / "conftest.py").write_text("def pytest_addoption(parser): parser.addoption('--impl')")
    (tmp_path / "test_theirs.py").write_text(
        "def test_it(pytestconfig): assert pytestconfig.getoption('--impl') == 'a'"
    )
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--impl", "a"]
    ran = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=100)
    assert ran.returncode == 0, ran.stdout


def test_the_table() -> None:
    assert [cell(c) for c in ([], ["skipped"], ["passed"], ["failed"], ["passed", "failed"])] == [
        "not offered", "not offered", "passes", "**fails**", "**fails** 1 of 2",
    ]  # fmt: skip
    drawn = table({"one": {name: ["passed"] for name in descriptions()}, "none": {}})
    assert drawn.count("| passes | not offered |") == len(descriptions()) == 15
