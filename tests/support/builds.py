"""A separate build for each test: tiny sources, a logging compiler, a cache, and processes that start in 50 ms."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import batchnorm

NATIVE = Path(batchnorm.__file__).parent / "backends" / "native"

# Loads build.py without the batchnorm package and with a stand-in for torch: importing torch takes seconds.
CHILD = f"""
import ctypes, sys, types
package = types.ModuleType("native")
package.__path__ = [{str(NATIVE)!r}]
sys.modules["native"] = package
from pathlib import Path
from native import build
build.CPUINFO = Path(sys.argv[2])
try:
    path = build.library(Path(sys.argv[1]), retry="retry" in sys.argv)
except build.Unavailable as error:
    sys.exit(f"UNAVAILABLE {{error}}")
print(path, ctypes.CDLL(str(path)).answer(), flush=True)
"""

TORCH = """
__version__ = "2.99.0"
class version:
    git_version = "0"
def compiled_with_cxx11_abi():
    return True
"""

# While the file `slow` or `broken` exists, each compilation waits or fails. A line in the log is a run of the compiler.
COMPILER = """#!/bin/sh
echo "$$ $* TMPDIR=$TMPDIR" >> {folder}/log
case "$*" in *" -c "*)
    [ -e {folder}/slow ] && sleep 60
    [ -e {folder}/broken ] && {{ echo "kernels.cpp:1: error: the moon is full" >&2; exit 3; }};;
{refused}) exit 1;;
esac
exec {real} "$@"
"""

REAL = shutil.which("g++") or shutil.which("clang++") or ""


class Place:
    """A folder with all that a build reads and writes, and the environment of the processes that build there."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.sources, self.home = folder, folder / "sources", folder / "home"
        self.cache, self.temporary = self.home / ".cache" / "batchnorm", folder / "tmp"
        self.slow, self.broken = folder / "slow", folder / "broken"
        self.log, self.compiler, self.cpuinfo = folder / "log", folder / "compiler", folder / "cpuinfo"
        for directory in (self.sources, self.home, self.temporary, folder / "torch" / "lib"):
            directory.mkdir(parents=True)
        (folder / "torch" / "__init__.py").write_text(TORCH)
        for name in ("torch", "torch_cpu", "c10"):
            (folder / "torch" / "lib" / f"lib{name}.a").write_bytes(b"!<arch>\n")  # an empty archive
        (self.sources / "value.h").write_text("#define VALUE 42\n")
        (self.sources / "kernels.cpp").write_text('#include "value.h"\nint kernel() { return VALUE; }\n')
        exported = 'extern "C" __attribute__((visibility("default")))'
        (self.sources / "ops.cpp").write_text(f"int kernel();\n{exported} int answer() {{ return kernel(); }}\n")
        self.cpuinfo.write_text("processor\t: 0\nflags\t\t: fpu sse\ncpu MHz\t\t: 2000\n\nprocessor\t: 1\n")
        self.use_compiler()

    @property
    def environment(self) -> dict[str, str]:
        kept = {key: os.environ[key] for key in ("PATH", "LD_LIBRARY_PATH") if key in os.environ}
        return kept | {
            "HOME": str(self.home),
            "TMPDIR": str(self.temporary),
            "CXX": str(self.compiler),
            "PYTHONPATH": str(self.folder),
            "PYTHONDONTWRITEBYTECODE": "1",  # bytecode of the stand-in for torch would hide a change within a second
        }

    def use_compiler(self, refused: str = "nothing") -> None:
        """The logging compiler; it fails if its arguments match `refused`, a pattern of the shell."""
        self.compiler.write_text(COMPILER.format(folder=self.folder, real=REAL, refused=refused))
        self.compiler.chmod(0o755)

    def start(self, *arguments: str, prefix: tuple[str, ...] = (), **environment: str) -> subprocess.Popen[str]:
        """A process that finds or builds the library and calls it."""
        command = [*prefix, sys.executable, "-S", "-c", CHILD, str(self.sources), str(self.cpuinfo), *arguments]
        pipe = subprocess.PIPE
        return subprocess.Popen(command, env=self.environment | environment, stdout=pipe, stderr=pipe, text=True)

    def build(self, *arguments: str, **environment: str) -> tuple[Path, str]:
        """The library that a separate process found or built, and its notices."""
        path, answer, notices = finish(self.start(*arguments, **environment))
        assert answer == 42
        return path, notices

    def refused(self, *arguments: str, prefix: tuple[str, ...] = (), **environment: str) -> str:
        """The message of `Unavailable` in a separate process."""
        out, err = self.start(*arguments, prefix=prefix, **environment).communicate(timeout=60)
        assert out == ""
        assert "UNAVAILABLE" in err, err
        return err.partition("UNAVAILABLE ")[2]

    def compiled(self) -> list[tuple[int, str]]:
        """The process, which leads a process group, and the source of each compilation."""
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        runs = [line.split() for line in lines if " -c " in line]
        return [(int(words[0]), Path(words[words.index("-c") + 1]).name) for words in runs]

    def kept(self) -> list[str]:
        """The names in the cache."""
        return sorted(path.name for path in self.cache.iterdir())


def finish(process: subprocess.Popen[str]) -> tuple[Path, int, str]:
    """Path of the library, its answer, and the notices on stderr."""
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    path, answer = out.rsplit(maxsplit=1)
    return Path(path), int(answer), err


def until(condition: Callable[[], object]) -> None:
    """Waits for the condition, 30 s at most."""
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def alive(group: int) -> bool:
    """True while a process of the group runs or sleeps; a zombie has ended."""
    for file in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, its_group = file.read_text().rpartition(")")[2].split()[:3]
        except OSError:  # it has ended meanwhile
            continue
        if int(its_group) == group and state != "Z":
            return True
    return False
