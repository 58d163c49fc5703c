"""The allocator of large outputs alone: its operators, and programs that use them in a separate process."""

import os
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from batchnorm.backends import native
from batchnorm.backends.native import build

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
    """The native library."""
    if not native.available():
        pytest.skip("needs the native library")
    return build.library()


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
