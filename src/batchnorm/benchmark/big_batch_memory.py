"""The resident memory of a step in micro-batches, measured in a separate process."""

import sys
import tempfile

from batchnorm.benchmark.resident import peak_memory, printed_by, reset_peak

PROGRAM = "from batchnorm.benchmark.big_batch_memory import main; main()"
WAYS = ("one batch", "big_batch", "big_batch, offload")


def peak_of_a_step(name: str, way: str, samples: int, micro: int, pixels: int, threads: int) -> int | None:
    """The most bytes that a step adds to the resident memory; None if the system does not report this.

    Raises:
        RuntimeError: the step failed.
    """
    return printed_by(PROGRAM, name, way, samples, micro, pixels, threads)


def main() -> None:
    """Prints the bytes of a step. A small step runs first, so that gradients exist and libraries are loaded."""
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
        before = reset_peak()
        if way == "one batch":
            cross_entropy(model(x), labels).backward()
        else:
            offload = tempfile.gettempdir() if way.endswith("offload") else None
            big_batch(model, cross_entropy, x, labels, micro_batch_size=size, offload=offload)
        peak = peak_memory()
    if before is not None and peak is not None:
        print(peak - before)
