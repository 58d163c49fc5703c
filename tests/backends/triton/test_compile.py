"""Every kernel compiles for cards that are not here, without spills, within the smallest card's limits."""

import os
import subprocess
import sys

import pytest

from batchnorm.backends import triton as backend

KERNELS = {"moments", "normalize", "reduce", "apply", "forward_whole", "backward_whole"}


@pytest.mark.skipif(not backend.installed(), reason="triton is not installed: pip install 'batchnorm[triton]'")
@pytest.mark.skipif(os.environ.get("BATCHNORM_COMPILE") != "1", reason="a minute's work: run by `make gpu`")
def test_every_kernel_compiles_for_every_target():
    command = [sys.executable, "-m", "batchnorm.backends.triton.compile", "--sample"]
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, done.stdout + done.stderr
    head, *rows, last = done.stdout.splitlines()
    assert head == "13 specialisations, registers/shared bytes on each of: sm_80, sm_90, sm_100, gfx942"
    assert last == "all compile, without spills, within the limits"
    tables = [row.split(" | ") for row in rows]
    kernels = {
        layout: {row[0].split()[0] for row in tables if ("ROWS" in row[0]) is layout} for layout in (True, False)
    }
    assert kernels == {True: KERNELS, False: KERNELS | {"population"}}
    for _, *cells in tables:
        needs = [tuple(map(int, cell.split("/"))) for cell in cells]
        assert len(needs) == 4
        assert all(0 < registers <= 512 and 0 <= shared <= 48 * 1024 for registers, shared in needs)
