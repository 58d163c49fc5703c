"""`batchnorm warmup`, and the single notice on a machine without a compiler, in separate processes."""

import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest

import batchnorm
from tests.support.builds import Place

SOURCE = Path(batchnorm.__file__).parents[1]

WARM_UP = """
import sys
from functools import partial
from pathlib import Path
from batchnorm import cli
from batchnorm.backends.native import build
small = Path(sys.argv.pop())
build.library, build.describe = partial(build.library, small), partial(build.describe, small)
sys.argv[1:] = ["warmup"]
cli.main()
"""

# A plain layer and one with an option, forward and backward, twice each, also in another thread.
TRAIN = """
import threading, torch, batchnorm as bn
def train():
    for layer in (bn.BatchNorm2d(3), bn.BatchNorm2d(3, virtual_batch_size=2)):
        for _ in range(2):
            layer(torch.randn(4, 3, 5, 5, requires_grad=True)).sum().backward()
thread = threading.Thread(target=train)
train()
thread.start()
thread.join()
print("trained")
"""


def environment(place: Place, **changes: str) -> dict[str, str]:
    """The place's, with the real torch, and nothing of the caller's that bears on a build."""
    return place.environment | {"PYTHONPATH": str(SOURCE)} | changes


def warm_up(place: Place, **changes: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", WARM_UP, str(place.sources)]
    return subprocess.run(command, env=environment(place, **changes), capture_output=True, text=True, timeout=120)


def train(place: Place, *options: str, **changes: str) -> subprocess.CompletedProcess[str]:
    """Trains where there is no compiler."""
    command = [sys.executable, *options, "-c", TRAIN]
    found = environment(place, CXX="", PATH=str(place.folder), **changes)
    return subprocess.run(command, env=found, capture_output=True, text=True, timeout=120)


def test_warmup_builds_and_then_finds(place: Place) -> None:
    first = warm_up(place)
    assert first.returncode == 0, first.stderr
    path, duration = first.stdout.splitlines()
    assert [path] == [str(place.cache / name) for name in place.kept()]
    assert re.fullmatch(r"ready after \d+\.\d s", duration)
    assert first.stderr.count("compiling") == 1
    runs = place.log.read_text()
    second = warm_up(place)
    assert (second.returncode, second.stdout.splitlines()[0], second.stderr) == (0, path, "")
    assert place.log.read_text() == runs


def test_warmup_shows_a_spinner_in_a_terminal(place: Place) -> None:
    terminal, inside = pty.openpty()
    command = [sys.executable, "-c", WARM_UP, str(place.sources)]
    process = subprocess.Popen(
        command, env=environment(place, TERM="xterm", COLUMNS="120"), stdout=subprocess.PIPE, stderr=inside
    )
    os.close(inside)
    shown = b""
    while True:
        try:
            part = os.read(terminal, 1 << 16)
        except OSError:  # Linux: the other end is closed
            break
        if not part:
            break
        shown += part
    os.close(terminal)
    process.communicate(timeout=60)
    assert process.returncode == 0, shown
    assert b"compiling the CPU kernels for this machine, once" in shown
    assert b"batchnorm: compiling" not in shown, "two notices of one build"


def test_warmup_without_a_compiler_has_status_1_and_the_remedy(place: Place) -> None:
    done = warm_up(place, CXX="", PATH=str(place.folder))
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("batchnorm: no native CPU kernels: no C++ compiler on PATH")
    assert "apt install g++" in done.stderr


def test_warmup_tries_a_failed_build_again(place: Place) -> None:
    place.broken.touch()
    failed = warm_up(place)
    assert failed.returncode == 1
    assert "the moon is full" in failed.stderr
    place.broken.unlink()
    assert warm_up(place).returncode == 0


@pytest.mark.parametrize("options", [(), ("-W", "always")], ids=["by default", "every time"])
def test_without_a_compiler_one_notice_with_the_remedy(place: Place, options: tuple[str, ...]) -> None:
    done = train(place, *options)
    assert (done.returncode, done.stdout) == (0, "trained\n"), done.stderr
    assert done.stderr.count("RuntimeWarning: batchnorm runs without its native CPU kernels") == 1
    assert done.stderr.count("apt install g++") == 1
    assert "batchnorm warmup" in done.stderr


def test_switched_off_on_purpose_says_nothing(place: Place) -> None:
    done = train(place, "-W", "error", BATCHNORM_NATIVE="0")
    assert (done.returncode, done.stdout, done.stderr) == (0, "trained\n", "")


def test_as_an_error_it_comes_once_too(place: Place) -> None:
    """The first call raises it, and a program that goes on after that is left in peace."""
    program = TRAIN.replace("train()\n", "try:\n    train()\nexcept RuntimeWarning:\n    train()\n", 1)
    command = [sys.executable, "-W", "error", "-c", program]
    found = environment(place, CXX="", PATH=str(place.folder))
    done = subprocess.run(command, env=found, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (0, "trained\n"), done.stderr
