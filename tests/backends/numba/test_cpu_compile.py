"""Machine code on disk: cold starts together, places that cannot be written, files that are not what they were."""

import os
import subprocess
import sys
from pathlib import Path

SCRIPT = """
import sys, torch
from batchnorm.backends.numba import cpu
assert "numba" not in sys.modules and "llvmlite" in sys.modules
torch.manual_seed(0)
y, *_ = cpu.forward(torch.randn(4, 6, 5, 5), None, None, None, 1e-5, None)
print(y.double().sum().item(), "numba" in sys.modules)
"""


def start(cache: Path | str) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "BATCHNORM_CACHE_DIR": str(cache)}
    command = [sys.executable, "-W", "ignore", "-c", SCRIPT]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(process: subprocess.Popen[str]) -> tuple[str, bool]:
    """The number printed, and whether Numba was needed."""
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    number, compiled = out.split()
    return number, compiled == "True"


def test_cold_together_then_warm_then_damaged(tmp_path: Path) -> None:
    cold = [finish(process) for process in [start(tmp_path) for _ in range(3)]]
    assert len({number for number, _ in cold}) == 1
    assert any(compiled for _, compiled in cold)
    (code,) = tmp_path.iterdir()  # one kernel, and nothing half written beside it

    number, compiled = finish(start(tmp_path))
    assert number == cold[0][0]
    assert not compiled, "with the code on disk, Numba need not load"

    code.write_bytes(code.read_bytes()[:-100])
    number, compiled = finish(start(tmp_path))
    assert number == cold[0][0]
    assert compiled


def test_a_cache_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    number, compiled = finish(start(tmp_path / "file" / "below"))
    assert float(number) == float(number)
    assert compiled
