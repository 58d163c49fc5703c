"""Every kernel compiles for cards that are not here, within the limits of the smallest."""

import os
import re
import subprocess
import sys

import pytest

from batchnorm.backends import triton as backend

KERNELS = {"moments", "normalize", "reduce", "apply", "forward_whole", "backward_whole"}


pytestmark = [
    pytest.mark.skipif(not backend.installed(), reason="triton is not installed: pip install 'batchnorm[triton]'"),
    pytest.mark.skipif(os.environ.get("BATCHNORM_COMPILE") != "1", reason="a minute's work: run by `make gpu`"),
]


def fits(cell: str) -> bool:
    """True for registers/shared bytes, with at most one value that the assembler keeps in memory."""
    needs = re.fullmatch(r"(\d+)/(\d+)( \(8 in memory\))?", cell)
    return needs is not None and 0 < int(needs[1]) <= 512 and int(needs[2]) <= 48 * 1024


def compiled(which: str, count: int) -> list[list[str]]:
    """The rows of the table that the command prints: a specialisation, and a cell for each target."""
    command = [sys.executable, "-m", "batchnorm.backends.triton.compile", which]
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, done.stdout + done.stderr
    head, *rows, last = done.stdout.splitlines()
    assert head == f"{count} specialisations, registers/shared bytes on each of: sm_80, sm_90, sm_100, gfx942"
    assert last == "all compile, within the limits"
    tables = [row.split(" | ") for row in rows]
    assert len(tables) == count
    assert all(len(cells) == 5 for cells in tables)
    return tables


def test_every_kernel_compiles_for_every_target():
    tables = compiled("--sample", 13)
    kernels = {
        layout: {row[0].split()[0] for row in tables if ("ROWS" in row[0]) is layout} for layout in (True, False)
    }
    assert kernels == {True: KERNELS, False: KERNELS | {"population"}}
    for _, *cells in tables:
        assert all(fits(cell) for cell in cells)


def test_random_calls_compile_for_every_target():
    """TEST_SEED=n draws others."""
    tables = compiled(f"--random={os.environ.get('TEST_SEED', '0')}", 12)
    assert len({row[0].split()[0] for row in tables}) > 3
    assert all(fits(cell) for _, *cells in tables for cell in cells)
