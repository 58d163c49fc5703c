"""`import batchnorm` loads torch and nothing heavy, and compiles nothing."""

import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

import batchnorm

HEAVY = {"numba", "llvmlite", "plotly", "pandas", "pyarrow", "sklearn", "scipy", "typer", "rich", "matplotlib", "onnx"}
HEAVY |= {"triton", "torch._inductor", "torch._dynamo"}


def loaded_by(statement: str) -> set[str]:
    """The heavy modules that a fresh process has loaded after `statement`, beyond those that torch itself loads."""
    program = f"import sys, torch; before = set(sys.modules); {statement}; print(*(set(sys.modules) - before))"
    done = subprocess.run([sys.executable, "-W", "error", "-c", program], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return {name for name in done.stdout.split() if name in HEAVY}


def test_import_loads_nothing_heavy():
    assert loaded_by("import batchnorm") == set()


def test_the_version_is_that_of_the_installed_package():
    assert batchnorm.__version__ == version("batchnorm")
    with pytest.raises(AttributeError, match="module 'batchnorm' has no attribute '_nothing'"):
        batchnorm._nothing  # noqa: B018


def test_a_first_call_loads_nothing_heavy():
    call = "import batchnorm; batchnorm.BatchNorm2d(3)(torch.ones(2, 3, 4, 4)).sum().backward()"
    assert loaded_by(call) == set()


@pytest.mark.parametrize("package", ["sklearn", "torch._dynamo"])
def test_the_check_can_fail(package):
    pytest.importorskip(package)
    assert package in loaded_by(f"import batchnorm, {package}")


def test_import_compiles_nothing(tmp_path: Path):
    """With an empty cache and a compiler that leaves a mark."""
    compiler, mark = tmp_path / "compiler", tmp_path / "called"
    compiler.write_text(f"#!/bin/sh\ntouch {mark}\nexit 1\n")
    compiler.chmod(0o755)
    cache = tmp_path / "cache"
    environment = os.environ | {"CXX": str(compiler), "BATCHNORM_CACHE": str(cache), "BATCHNORM_NATIVE": "1"}
    call = "batchnorm.BatchNorm2d(3)(torch.ones(2, 3, 4, 4))"
    for statement, compiles in {"import batchnorm": False, f"import torch, batchnorm; {call}": True}.items():
        done = subprocess.run([sys.executable, "-c", statement], env=environment, capture_output=True, timeout=120)
        assert done.returncode == 0, done.stderr
        assert (mark.exists(), cache.exists()) == (compiles, compiles)


def test_import_takes_little_longer_than_torch():
    """The processor's time of the package after torch against torch's own, in one process; the least of three."""
    program = """
import time
start = time.process_time()
import torch
middle = time.process_time()
import batchnorm
print((time.process_time() - middle) / (middle - start))
"""
    runs = [subprocess.run([sys.executable, "-c", program], capture_output=True, text=True) for _ in range(3)]
    assert min(float(run.stdout) for run in runs) < 0.25, runs


def test_public_names_are_there_and_documented():
    import batchnorm

    assert sorted(batchnorm.__all__) == sorted(set(batchnorm.__all__))
    for name in batchnorm.__all__:
        assert getattr(batchnorm, name).__doc__, name
