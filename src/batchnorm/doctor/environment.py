"""The parts of this machine that batch norms depend on: versions, processor, native kernels, a backend per device."""

from __future__ import annotations

import contextlib
import os
import platform
import shlex
import subprocess
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from batchnorm import functional
from batchnorm.backends import native
from batchnorm.backends.native import build, cache

CPUINFO = Path("/proc/cpuinfo")
BACKENDS = {"operators": ("native", "native"), "aten": ("aten", "reference"), "open": ("reference", "reference")}
CPU_BECAUSE = {
    "ready": "the native kernels serve every call",
    "not built yet": "the native kernels serve every call, once the first has built them",
    "unavailable": "no native kernels, for the reason above",
}


@dataclass(frozen=True)
class Native:
    """The native library."""

    state: str  # a key of `CPU_BECAUSE`
    library: str | None  # the file, built or not; None if no directory can be written
    reason: str | None  # the reason if it is unavailable


@dataclass(frozen=True)
class DeviceBackends:
    """The backends that serve one kind of device."""

    device: str
    plain: str  # a batch norm with torch's options only
    options: str  # masks, virtual batches, shared statistics, renormalisation
    why: str


@dataclass(frozen=True)
class Environment:
    """A machine and its software, as this process finds them."""

    batchnorm: str
    python: str
    torch: str
    processor: str
    instructions: str  # the vector instructions that torch uses
    cores: int  # number that this process may use
    threads: int  # number that torch, and so this package, uses
    compiler: str | None  # command and version; None if there is none
    cache: str | None  # the directory of the native library; None if none can be written
    native: Native
    devices: tuple[DeviceBackends, ...]

    def to_dict(self) -> dict[str, Any]:
        """The environment as plain values."""
        return asdict(self)


def environment() -> Environment:
    """Describes this machine. A native library that is built is loaded, to test it; nothing is built."""
    status = build.describe()
    library = _native(status)
    directory = status.path.parent if status.path else cache.user_directory()
    return Environment(
        batchnorm=metadata.version("batchnorm"),
        python=platform.python_version(),
        torch=str(torch.__version__),
        processor=_processor(),
        instructions=torch.backends.cpu.get_cpu_capability(),
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        threads=torch.get_num_threads(),
        compiler=_compiler(status.compiler),
        cache=None if directory is None else str(directory),
        native=library,
        devices=tuple(_devices(library.state)),
    )


def _native(status: build.Status) -> Native:
    library, reason = (None if status.path is None else str(status.path)), status.reason
    if reason is None and status.built:
        try:
            native.load()
        except build.Unavailable as error:
            reason = str(error)
    state = "unavailable" if reason else "ready" if status.built else "not built yet"
    return Native(state, library, reason)


def _devices(native_state: str) -> Iterator[DeviceBackends]:
    """The backends of the CPU, of the accelerator that torch finds, and of all other devices."""
    cpu = BACKENDS["aten" if native_state == "unavailable" else "operators"]
    yield DeviceBackends("cpu", *cpu, CPU_BECAUSE[native_state])
    others = {"any other": "meta"}
    if torch.accelerator.is_available():
        found = str(torch.accelerator.current_accelerator())
        others = {found: found} | others
    for name, device in others.items():
        route = functional._route(torch.empty(0, device=device))
        why = "torch's own operator, where it serves; bn.backend('triton') on CUDA, ROCm and XPU"
        yield DeviceBackends(name, *BACKENDS[route], why)


def _processor() -> str:
    """The processor's name, else its architecture."""
    with contextlib.suppress(OSError), CPUINFO.open() as lines:
        for line in lines:
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                return value.strip()
    return platform.processor() or platform.machine()


def _compiler(command: str | None) -> str | None:
    """The compiler's command, with the first line that it prints about its version."""
    if command is None:
        return None
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        done = subprocess.run([*shlex.split(command), "--version"], capture_output=True, text=True, timeout=30)
        if lines := done.stdout.splitlines():
            return f"{command}: {lines[0]}"
    return command
