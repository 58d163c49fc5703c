"""The allocator of large outputs by itself: its operators, and programs that use them in a process of their own."""

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import batchnorm

NATIVE = Path(batchnorm.__file__).parent / "backends" / "native"
MIB = 1 << 20

# The first lines of a program in a process of its own.
PRELUDE = """
import sys, threading, torch
torch.set_num_threads(1)  # a team of OpenMP threads does not survive fork
torch.ops.load_library(sys.argv[1])
memory = torch.ops.batchnorm_memory
MIB = 1 << 20
one = torch.empty(1, dtype=torch.uint8)
def output(mib): return memory.empty_like(one.expand(int(mib * MIB)))
def status(name): return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(name)) << 10
"""


@cache
def library() -> Path:
    """The shared library of the allocator, compiled once for all workers and runs."""
    sources = [NATIVE / f"{name}.cpp" for name in ("limit", "memory", "pages", "pool")]
    compiler = shutil.which("g++")
    if not sys.platform.startswith("linux") or compiler is None:
        pytest.skip("needs Linux and g++")
    root = Path(torch.__file__).parent
    flags = [
        "-O3",
        "-std=c++20",
        "-fPIC",
        "-shared",
        f"-D_GLIBCXX_USE_CXX11_ABI={int(torch.compiled_with_cxx11_abi())}",
    ]
    flags += ["-isystem", str(root / "include"), f"-L{root / 'lib'}"]
    parts = [torch.__version__, *flags, *(p.read_text() for p in [*sources, *sorted(NATIVE.glob("*.h"))])]
    digest = hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]
    path = Path(tempfile.gettempdir()) / f"batchnorm-memory-{os.getuid()}-{digest}.so"
    with path.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not path.exists():
            unfinished = path.with_suffix(".part")
            links = ["-ltorch", "-ltorch_cpu", "-lc10"]
            subprocess.run([compiler, *flags, *map(str, sources), "-o", str(unfinished), *links], check=True)
            unfinished.replace(path)
    return path


@cache
def operators() -> Any:
    torch.ops.load_library(library())
    return torch.ops.batchnorm_memory


def output(mib: float, value: float | None = None) -> Tensor:
    """An output of so many MiB, as the kernels get it."""
    x = torch.empty(1).expand(int(mib * MIB) // 4)
    y: Tensor = operators().empty_like(x)
    return y if value is None else y.fill_(value)


def live() -> int:
    return int(operators().statistics()[0])


def idle() -> int:
    return int(operators().statistics()[1])


def mapped() -> int:
    """How many outputs got new memory so far."""
    return int(operators().statistics()[2])


def resident() -> int:
    """Bytes of this process in physical memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def program(code: str, *arguments: str, **environment: str) -> str:
    """Runs the code after `PRELUDE` in a process of its own, one minute at most; returns what it prints."""
    command = [sys.executable, "-c", PRELUDE + code, str(library()), *arguments]
    done = subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout
