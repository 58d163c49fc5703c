"""The resident memory of a step in micro-batches, each in a process of its own."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

PROGRAM = "from batchnorm.benchmark.big_batch_memory import main; main()"
STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
WAYS = ("one batch", "big_batch", "big_batch, offload")


def peak_of_a_step(name: str, way: str, samples: int, micro: int, pixels: int, threads: int) -> int | None:
    """Bytes that a step of the network needs at most above what stands before it; None where the system does not tell.

    Raises:
        RuntimeError: the step failed.
    """
    path = os.pathsep.join(filter(None, [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH")]))
    command = [sys.executable, "-c", PROGRAM, name, way, *map(str, (samples, micro, pixels, threads))]
    done = subprocess.run(command, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"a step of {name} ({way}) failed: {done.stderr.strip().rpartition(chr(10))[2]}")
    return int(done.stdout) if done.stdout.strip() else None


def main() -> None:
    """A step of one sample at a time, so that gradients are there and libraries are loaded; then the step itself."""
    import torch
    from torch.nn.functional import cross_entropy

    from batchnorm.benchmark import steps
    from batchnorm.benchmark.whole_networks import NETWORKS
    from batchnorm.tools.convert import convert
    from batchnorm.training.big_batch import big_batch

    name, way, *numbers = sys.argv[1:]
    samples, micro, pixels, threads = map(int, numbers)
    torch.set_num_threads(threads)
    model = convert(NETWORKS[name]())
    before = peak = None
    for count, size in ((2, 1), (samples, micro)):
        x, labels = steps.images(count, pixels, "contiguous")
        before = _from_now()
        if way == "one batch":
            cross_entropy(model(x), labels).backward()
        else:
            offload = tempfile.gettempdir() if way.endswith("offload") else None
            big_batch(model, cross_entropy, x, labels, micro_batch_size=size, offload=offload)
        peak = _read("VmHWM")
    if before is not None and peak is not None:
        print(peak - before)


def _from_now() -> int | None:
    """Let the highest mark start anew from what is resident now; returns that."""
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
