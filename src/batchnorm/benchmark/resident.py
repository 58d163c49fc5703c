"""The resident memory that a step takes above what stands before it, in a process of its own."""

import os
import subprocess
import sys
from pathlib import Path

PROGRAM = "from batchnorm.benchmark.resident import main; main()"
STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def peak_of_a_step(name: str, kind: str, batch: int, pixels: int, threads: int) -> int | None:
    """Bytes; None on systems that do not tell (others than Linux)."""
    return printed_by(PROGRAM, name, kind, batch, pixels, threads)


def printed_by(program: str, name: str, kind: str, *numbers: int) -> int | None:
    """The bytes that a program prints, in a process of its own, for a step of the network `name`; None if it prints
    nothing.

    Raises:
        RuntimeError: the step failed.
    """
    path = os.pathsep.join(filter(None, [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH")]))
    command = [sys.executable, "-c", program, name, kind, *map(str, numbers)]
    done = subprocess.run(command, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"a step of {name} ({kind}) failed: {done.stderr.strip().rpartition(chr(10))[2]}")
    return int(done.stdout) if done.stdout.strip() else None


def main() -> None:
    """A small step, so that gradients are there and libraries are loaded; then the step itself."""
    import torch

    from batchnorm.benchmark import steps
    from batchnorm.benchmark.memory_networks import variant

    name, kind, batch, pixels, threads = sys.argv[1:]
    torch.set_num_threads(int(threads))
    model = variant(name, kind)
    for images, size in ((1, 64), (int(batch), int(pixels))):
        x, labels = steps.images(images, size, "contiguous")
        before = from_now()
        torch.nn.functional.cross_entropy(model(x), labels).backward()
        peak = highest()
    if before is not None and peak is not None:
        print(peak - before)


def from_now() -> int | None:
    """Let the highest mark start from what is resident now, and return that."""
    try:
        CLEAR.write_text("5")
    except OSError:
        return None
    return _read("VmRSS")


def highest() -> int | None:
    """The highest mark of resident memory."""
    return _read("VmHWM")


def _read(field: str) -> int | None:
    try:
        lines = STATUS.read_text().splitlines()
    except OSError:
        return None
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith(field + ":")), None)
