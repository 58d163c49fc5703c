"""The tables of what has been compiled list what the launcher can ask for now."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from batchnorm.backends import triton as backend
from tests.backends.triton.test_compile import fits

TABLES = Path(__file__).parents[3] / "docs" / "measured"


@pytest.mark.skipif(not backend.installed(), reason="triton is not installed: pip install 'batchnorm[triton]'")
@pytest.mark.skipif(os.environ.get("BATCHNORM_COMPILE") != "1", reason="half a minute's work: run by `make gpu`")
def test_the_tables_are_of_todays_kernels():
    command = [sys.executable, "-m", "batchnorm.backends.triton.compile", "--pairs", "--list"]
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    for target in ("sm_80", "sm_90", "sm_100", "gfx942"):
        head, *lines, last = (TABLES / f"compiled_{target}.txt").read_text().splitlines()
        rows = [line.split(" | ") for line in lines]
        assert head == f"{len(rows)} specialisations, registers/shared bytes on each of: {target}"
        assert last == "all compile, within the limits"
        assert [name for name, _ in rows] == done.stdout.splitlines()
        assert all(fits(cell) for _, cell in rows)
