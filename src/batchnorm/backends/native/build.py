"""The shared library of the C++ kernels: found in the user's cache, or compiled once and kept there.

A library's name holds a digest of everything that decides whether this process can use it:

- torch's version and C++ ABI, because the operators use torch's C++ classes. Python's version is not in it, because
  they do not use Python.
- The processor, because the code is for this processor alone. Different machines may share a home directory.
- The C library's version, because a library made on a newer system does not load on an older one.
- The sources and the flags, `$CXXFLAGS` included.

The compiler is not in it: this process can use a library from any compiler, even on a machine without one (an image
built in stages), and running a compiler takes longer than everything else here. To try another compiler, set CXX and
BATCHNORM_CACHE.
"""

import contextlib
import hashlib
import os
import platform
import shlex
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from . import cache, compiler
from .compiler import Unavailable

__all__ = ["Status", "SwitchedOff", "Unavailable", "describe", "library"]

SWITCHED_OFF = "switched off by BATCHNORM_NATIVE=0"

FOLDER = Path(__file__).parent
CPUINFO = Path("/proc/cpuinfo")

# Loops with selections are vectorised only without errno and floating-point traps; results are the same. Compilation
# stops at the first error, so that the end of the output shows it.
FLAGS = ["-O3", "-std=c++20", "-fPIC", "-fvisibility=hidden", "-fno-semantic-interposition", "-fno-math-errno"]
FLAGS += ["-fno-trapping-math", "-Wfatal-errors"]

# Lines of /proc/cpuinfo, on x86, ARM, POWER, RISC-V and s390, that decide which instructions a program may use.
_TRAITS = {"vendor_id", "cpu family", "model", "flags", "features", "cpu", "isa", "uarch"}
_TRAITS |= {"cpu implementer", "cpu architecture", "cpu variant", "cpu part"}

_known: dict[Path, Path | str] = {}  # by source folder: the library, or the message of `Unavailable`


class SwitchedOff(Unavailable):
    """`BATCHNORM_NATIVE=0`: the user has switched the native kernels off."""


@dataclass(frozen=True)
class Status:
    """The state of the native library on this machine."""

    built: bool
    path: Path | None  # of the library, built or not; None if no directory can be written
    digest: str
    compiler: str | None  # the command; None if there is none
    reason: str | None  # why `library` would raise, if that is known without a build


def library(sources: Path = FOLDER, *, retry: bool = False, quiet: bool = False) -> Path:
    """The shared library of all `*.cpp` in `sources`, compiled if it is in no cache (about 1 ms if it is).

    The first build writes one line to stderr. Processes that start together build once: one compiles, the others wait.

    Args:
        sources: the folder of the C++ files.
        retry: build again after a failure. Otherwise this process does not try again, and other processes with the same
            compiler try again after ten minutes.
        quiet: write no line to stderr.

    Raises:
        Unavailable: it cannot be built; the message says what to install.
        SwitchedOff: `BATCHNORM_NATIVE=0`.
    """
    if os.environ.get("BATCHNORM_NATIVE") == "0":
        raise SwitchedOff(SWITCHED_OFF)
    known = _known.get(sources)
    if known is None or (retry and isinstance(known, str)):
        try:
            known = _find_or_build(sources, retry, quiet)
        except Unavailable as error:
            known = str(error)
        _known[sources] = known
    if isinstance(known, str):
        raise Unavailable(known)
    return known


def describe(sources: Path = FOLDER) -> Status:
    """The state of the library, without building it. Makes the cache directory, to see if it can be written."""
    digest = _digest(sources)
    path = cache.find(_name(digest))
    built, command, reason = path is not None, None, None
    try:
        command = compiler.find()
        if not path:
            path = cache.writable_directory() / _name(digest)
            reason = cache.failure(path, compiler.identity(command), time.time() - cache.FAILURE_LASTS)
    except (Unavailable, OSError) as error:
        reason = None if built else str(error)
    if os.environ.get("BATCHNORM_NATIVE") == "0":
        reason = SWITCHED_OFF
    return Status(built, path, digest, shlex.join(command) if command else None, reason)


def processor() -> str:
    """The kind and instructions of the processor, found without a compiler.

    Linux: the first processor's lines in /proc/cpuinfo. They hold for all processors, because the kernel lists only
    features that all of them have. Elsewhere: the architecture.
    """
    traits = [platform.machine()]
    with contextlib.suppress(OSError), CPUINFO.open() as lines:
        for line in lines:
            key, colon, value = line.partition(":")
            if not colon and len(traits) > 1:
                break
            if key.strip().lower() in _TRAITS:
                traits.append(value.strip())
    return "\n".join(traits)


def _digest(sources: Path) -> str:
    c_library = os.confstr("CS_GNU_LIBC_VERSION") if sys.platform == "linux" else None
    torch_build = (torch.__version__, torch.version.git_version, torch.compiled_with_cxx11_abi())
    digest = hashlib.sha256(repr((torch_build, processor(), c_library, _flags())).encode())
    for path in sorted([*sources.glob("*.cpp"), *sources.glob("*.h")]):
        text = path.read_bytes()
        digest.update(f"{path.name} {len(text)}\n".encode() + text)
    return digest.hexdigest()[:24]


def _name(digest: str) -> str:
    return f"torch-{torch.__version__}-{digest}.so"


def _flags() -> list[str]:
    # `$CXXFLAGS` come first, so that our flags win a conflict: conda's activation sets -march=nocona -O2.
    abi = f"-D_GLIBCXX_USE_CXX11_ABI={int(torch.compiled_with_cxx11_abi())}"
    return [*shlex.split(os.environ.get("CXXFLAGS", "")), *FLAGS, abi]


def _find_or_build(sources: Path, retry: bool, quiet: bool) -> Path:
    name = _name(_digest(sources))
    if found := cache.find(name):
        return found
    command = compiler.find()
    identity = compiler.identity(command)
    since = time.time() - (0 if retry else cache.FAILURE_LASTS)
    try:
        target = cache.writable_directory() / name
        with cache.locked(target.with_suffix(".lock")) as held:
            if target.is_file():  # another process has built it meanwhile
                return target
            if message := cache.failure(target, identity, since):
                raise Unavailable(f"{message}\n(Tried in the last minutes; `batchnorm warmup` tries again at once.)")
            notice = contextlib.nullcontext() if quiet else _notice(target.parent)
            with cache.working_folder(target, held) as folder, notice:
                try:
                    _compile(sources, command, folder / name)
                except Unavailable as error:
                    cache.keep_failure(target, identity, str(error))
                    raise
                cache.publish(folder / name, target)
            for leftover in (".lock", ".failed"):  # a process that waits for the lock then finds the library
                target.with_suffix(leftover).unlink(missing_ok=True)
            return target
    except OSError as error:
        raise Unavailable(f"no place for the compiled kernels: {error}; set BATCHNORM_CACHE to a directory") from error


def _compile(sources: Path, command: list[str], target: Path) -> None:
    torch_folder = Path(torch.__file__).parent
    include = torch_folder / "include"
    flags = [*_flags(), f"-isystem{include}", f"-isystem{include / 'torch/csrc/api/include'}"]
    # torch's libraries are loaded already when ours is, so ours needs no path to them.
    unused = ["-undefined", "dynamic_lookup"] if sys.platform == "darwin" else ["-Wl,--as-needed"]
    link = [*unused, f"-L{torch_folder / 'lib'}", "-ltorch", "-ltorch_cpu", "-lc10"]
    compiler.compile_library(command, sorted(sources.glob("*.cpp")), target, flags, link)


@contextlib.contextmanager
def _notice(directory: Path) -> Iterator[None]:
    """Write one line to stderr: that a build begins, then how it ended."""
    place = "" if directory == cache.user_directory() else f"; in {directory} until that is emptied"
    line = f"batchnorm: compiling its CPU kernels for this machine, once (about 40 s{place})..."
    print(line, end="", file=sys.stderr, flush=True)
    start, end = time.monotonic(), " not finished"
    try:
        yield
        end = f" done in {time.monotonic() - start:.0f} s"
    finally:
        print(end, file=sys.stderr, flush=True)
