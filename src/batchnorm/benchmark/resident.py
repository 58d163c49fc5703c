"""The resident memory that a step takes above what stands before it, in a process of its own."""

import os
import subprocess
import sys
from pathlib import Path

PROGRAM = "from batchnorm.benchmark.resident import main; main()"
STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def peak_of_a_step(name: str, kind: str, batch: int, pixels: int, threads: int) -> int | None:
    """Bytes; None on systems that do not tell (others than Linux)."""
    path = os.pathsep.join(filter(None, [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH")]))
    arguments = [name, kind, *map(str, (batch, pixels, threads))]
    command = [sys.executable, "-c", PROGRAM, *arguments]
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
        before = _reset()
        torch.nn.functional.cross_entropy(model(x), labels).backward()
        peak = _read("VmHWM")
    if before is not None and peak is not None:
        print(peak - before)


def _reset() -> int | None:
    """Let the highest mark start from what is resident now, and return that."""
    try:
        CLEAR.write_text("5")
    except OSError:
        return None
    return _read("VmRSS")


def _read(field: str) -> int | None:
    try:
        lines = STATUS.read_text().splitlines()
    except OSError:
        return None
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith(field + ":")), None)
