"""Measures the cost of sharing a layer's statistics: collectives, their bytes, and time, over gloo on this machine.

    python benchmarks/sync.py [--ranks 2] [--channels 64 --channels 256] [--seconds 2]

The bytes are those that one rank passes to torch.distributed. The times are medians over turns of a shared and a plain
layer, forward and backward, on (8, C, 28, 28) float32 for each rank.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch import distributed as dist

import batchnorm as bn
from batchnorm.core import sharing


@contextmanager
def counted() -> Iterator[list[int]]:
    """Yields a list of the bytes that each collective within the `with` takes from this rank."""
    sizes: list[int] = []
    exchange = sharing._exchange

    def count(collective: Any, group: Any, label: str, *tensors: torch.Tensor) -> None:
        sizes.append(tensors[-1].nbytes)  # the last tensor is the input; of two, the first gets the inputs of all ranks
        exchange(collective, group, label, *tensors)

    with mock.patch("batchnorm.core.sharing._exchange", count):
        yield sizes


def measure(channels: int, seconds: float) -> tuple[list[int], list[int], float, float]:
    """The collectives of a forward and of a backward pass, and the seconds of both with and without sharing."""
    x = torch.randn(8, channels, 28, 28, requires_grad=True)
    layers = [bn.BatchNorm2d(channels, process_group=group) for group in (True, None)]
    with counted() as forward:
        y = layers[0](x)
    with counted() as backward:
        y.sum().backward()
    times: list[list[float]] = [[], []]
    turns = 0
    end = time.monotonic() + seconds
    more = torch.ones(1)
    while more:  # all ranks stop together
        for layer, taken in zip(layers, times, strict=True):
            dist.barrier()
            started = time.perf_counter()
            layer(x).sum().backward()
            taken.append(time.perf_counter() - started)
        turns += 1
        more.fill_(float(time.monotonic() < end or turns < 5))
        dist.broadcast(more, 0)
    return forward, backward, statistics.median(times[0]), statistics.median(times[1])


def run(rank: int, options: argparse.Namespace, meeting: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=options.ranks)
    if rank == 0:
        print(f"{options.ranks} ranks, one thread each")
        print(f"{'channels':>8} {'forward':>26} {'backward':>26} {'shared ms':>10} {'plain ms':>9} {'difference':>11}")
    for channels in options.channels or [64, 256, 1024]:
        *ways, shared, plain = measure(channels, options.seconds)
        words = [f"{len(sizes)} collective, {sum(sizes)} bytes" for sizes in ways]
        if rank == 0:
            figures = f"{shared * 1e3:10.2f} {plain * 1e3:9.2f} {(shared - plain) * 1e3:11.2f}"
            print(f"{channels:8} {words[0]:>26} {words[1]:>26} {figures}", flush=True)
    dist.destroy_process_group()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--channels", type=int, action="append")
    parser.add_argument("--seconds", type=float, default=2.0, help="for each number of channels")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(run, (options, f"{folder}/meeting"), nprocs=options.ranks)


if __name__ == "__main__":
    main()
