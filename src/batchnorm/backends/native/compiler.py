"""The C++ compiler: found, and run on several files at once."""

import contextlib
import os
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

TIME_LIMIT = 900.0  # seconds that a build may take; an idle core needs about 40
OUTPUT_LINES = 12  # lines of the compiler's output in an error

_INSTALL = (
    "install g++ (Debian, Ubuntu: apt install g++; Fedora: dnf install gcc-c++; conda: conda install cxx-compiler; "
    "macOS: xcode-select --install) or set CXX to a compiler of C++20, then run `batchnorm warmup`"
)


class Unavailable(RuntimeError):  # noqa: N818  (a state of the machine rather than a mistake)
    """The native kernels are not available on this machine; the message gives the reason and the remedy."""


def find() -> list[str]:
    """The C++ compiler's command: `$CXX`, else the first of g++, clang++ and c++ on PATH (macOS: clang++, c++, g++).

    torch.compile takes `$CXX`, else g++ (macOS: clang++), and has no third choice (torch 2.13,
    `torch._inductor.config.cpp.cxx`; importing that takes over a second). Both therefore run the same compiler
    wherever torch.compile finds one. Two exceptions: `$CXX` with arguments ("ccache g++") works here only, and the
    compiler that TORCH_INDUCTOR_INSTALL_GXX downloads serves torch.compile only.

    Raises:
        Unavailable: there is none, or `$CXX` is not one; an explicit choice is never replaced.
    """
    if sys.platform == "win32":
        raise Unavailable("the native kernels are for Linux and macOS")
    chosen = shlex.split(os.environ.get("CXX", ""))
    if chosen:
        if shutil.which(chosen[0]) is None:
            raise Unavailable(f"CXX={os.environ['CXX']} is no command that can be run: {_INSTALL}")
        return chosen
    names = ("clang++", "c++", "g++") if sys.platform == "darwin" else ("g++", "clang++", "c++")
    for name in names:
        if path := shutil.which(name):
            return [path]
    raise Unavailable(f"no C++ compiler on PATH ({', '.join(names)}): {_INSTALL}")


def identity(command: Sequence[str]) -> str:
    """A text that changes when the compiler is replaced or updated; cheap, because the compiler is not run."""
    parts = []
    for word in command:
        with contextlib.suppress(OSError):
            found = os.stat(shutil.which(word) or word)
            word = f"{word} {found.st_size} {found.st_mtime_ns}"
        parts.append(word)
    return " ".join(parts)


def compile_library(
    command: Sequence[str], sources: Sequence[Path], target: Path, flags: Sequence[str], link: Sequence[str]
) -> None:
    """Compiles every source, several at once, and links them to the shared library `target`, all in its folder.

    Raises:
        Unavailable: with the end of the compiler's output.
    """
    folder = target.parent
    deadline = time.monotonic() + TIME_LIMIT
    flags = [*flags, *_processor_flags(command, folder, deadline)]
    objects = [str(folder / f"{source.stem}.o") for source in sources]
    pairs = zip(sources, objects, strict=True)
    _run([[*command, *flags, "-c", str(source), "-o", object] for source, object in pairs], folder, deadline)
    _run([[*command, *flags, "-shared", *objects, "-o", str(target), *link]], folder, deadline)


def _processor_flags(command: Sequence[str], folder: Path, deadline: float) -> list[str]:
    """The flag for code of this processor; some compilers for ARM and POWER accept only -mcpu, or no such flag."""
    source = folder / "empty.cpp"
    source.touch()
    for flags in (["-march=native"], ["-mcpu=native"]):
        with contextlib.suppress(Unavailable):
            _run([[*command, *flags, "-E", str(source), "-o", str(folder / "empty.i")]], folder, deadline)
            return flags
    return []


def _run(commands: Sequence[Sequence[str]], folder: Path, deadline: float) -> None:
    """Runs the commands, at most one a core and four at once (each takes up to 1 GB of memory).

    The first failure, Ctrl-C and the deadline end those that still run. The compilers are started and ended in
    threads, because Ctrl-C reaches only the main thread: it cannot interrupt between a start and its recording.
    """
    stop = threading.Event()
    with ThreadPoolExecutor(min(os.cpu_count() or 1, 4)) as pool:
        try:
            logs = [folder / f"{number}.log" for number in range(len(commands))]
            runs = [pool.submit(_run_one, *pair, stop, deadline) for pair in zip(commands, logs, strict=True)]
            for run in as_completed(runs):
                run.result()
        finally:
            stop.set()


def _run_one(command: Sequence[str], log: Path, stop: threading.Event, deadline: float) -> None:
    if stop.is_set():
        return
    environment = {
        **os.environ,
        "TMPDIR": str(log.parent),
    }  # intermediate files of a killed compiler go with the folder
    none, merged = subprocess.DEVNULL, subprocess.STDOUT
    with log.open("wb") as output:
        try:
            # In a separate process group: killing only the compiler's driver would leave the compiler itself running.
            process = subprocess.Popen(
                command, stdin=none, stdout=output, stderr=merged, env=environment, process_group=0
            )
        except OSError as error:
            raise Unavailable(f"the C++ compiler cannot be run: {error}; {_INSTALL}") from error
    while process.poll() is None:
        late = time.monotonic() > deadline
        if late or stop.wait(0.01):
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            if late:
                raise Unavailable(f"the C++ compiler did not end within {TIME_LIMIT / 60:.0f} minutes")
            return
    if process.returncode:
        lines = log.read_text(errors="replace").splitlines()[-OUTPUT_LINES:]
        raise Unavailable(
            f"the C++ compiler failed (status {process.returncode}):\n"
            + "".join(f"    {line}\n" for line in lines)
            + f"Command: {shlex.join(command)}\nRepair it or choose another: {_INSTALL}"
        )
