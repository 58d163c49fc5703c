"""The table of what has been compiled for sm_90 lists what the launcher can ask for today."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from batchnorm.backends import triton as backend

TABLE = Path(__file__).parents[3] / "docs" / "measured" / "compiled_sm_90.txt"
SPILLS = {"moments fp32 MASK=1 P=256 Q=4 MERGED=64 mask C%16": "spills 8 bytes"}  # docs/gpu.md says so


@pytest.mark.skipif(not backend.installed(), reason="triton is not installed: pip install 'batchnorm[triton]'")
@pytest.mark.skipif(os.environ.get("BATCHNORM_COMPILE") != "1", reason="half a minute's work: run by `make gpu`")
def test_the_table_is_of_todays_kernels():
    command = [sys.executable, "-m", "batchnorm.backends.triton.compile", "--pairs", "--list"]
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    rows = [row.split(" | ") for row in TABLE.read_text().splitlines()]
    assert [name for name, _ in rows] == done.stdout.splitlines()
    fits = {name: cell for name, cell in rows if name not in SPILLS}
    assert {name: cell for name, cell in rows if name in SPILLS} == SPILLS
    for cell in fits.values():
        registers, shared = map(int, cell.split("/"))
        assert 0 < registers <= 255
        assert 0 <= shared <= 48 * 1024
