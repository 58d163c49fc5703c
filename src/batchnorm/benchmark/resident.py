"""The resident memory that a step adds, measured in a separate process."""

import os
import subprocess
import sys
from pathlib import Path

PROGRAM = "from batchnorm.benchmark.resident import main; main()"
STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def peak_of_a_step(name: str, kind: str, batch: int, pixels: int, threads: int) -> int | None:
    """The most bytes that a step adds to the resident memory; None on systems other than Linux."""
    return printed_by(PROGRAM, name, kind, batch, pixels, threads)


def printed_by(program: str, name: str, kind: str, *numbers: int) -> int | None:
    """The bytes that `program`, run in a separate process, prints for a step of a network; None if it prints nothing.

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
    """Prints the bytes of a step. A small step runs first, so that gradients exist and libraries are loaded."""
    import torch

    from batchnorm.benchmark import steps
    from batchnorm.benchmark.memory_networks import variant

    name, kind, batch, pixels, threads = sys.argv[1:]
    torch.set_num_threads(int(threads))
    model = variant(name, kind)
    for images, size in ((1, 64), (int(batch), int(pixels))):
        x, labels = steps.images(images, size, "contiguous")
        before = reset_peak()
        torch.nn.functional.cross_entropy(model(x), labels).backward()
        peak = peak_memory()
    if before is not None and peak is not None:
        print(peak - before)


def reset_peak() -> int | None:
    """Reset the peak to the memory that is resident now, and return this number."""
    try:
        CLEAR.write_text("5")
    except OSError:
        return None
    return _read("VmRSS")


def peak_memory() -> int | None:
    """The peak of resident memory since the last reset."""
    return _read("VmHWM")


def _read(field: str) -> int | None:
    try:
        lines = STATUS.read_text().splitlines()
    except OSError:
        return None
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith(field + ":")), None)
