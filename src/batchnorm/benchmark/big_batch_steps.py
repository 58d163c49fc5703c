"""Compares `big_batch` with one big batch: errors of the gradients, time and memory of a step."""

import contextlib
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from batchnorm.benchmark import load, steps, timing
from batchnorm.benchmark.big_batch_memory import WAYS, peak_of_a_step
from batchnorm.benchmark.comparison import environment
from batchnorm.benchmark.whole_networks import NETWORKS
from batchnorm.tools.convert import convert
from batchnorm.training.big_batch import big_batch

Result = dict[str, Any]
Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class Sizes:
    """The samples, and the pixels per side, of each measurement."""

    exact: tuple[int, int, int] = (12, 5, 64)  # samples, micro-batch, pixels
    timed: tuple[int, int, int] = (64, 16, 64)
    micro_batch: int = 8  # in the measurement of memory
    pixels: int = 96
    counts: tuple[int, ...] = (1, 4, 16)  # of micro-batches
    measured: tuple[str, ...] = ("ResNet-18", "MobileNetV2")  # networks whose memory is measured
    networks: tuple[str, ...] = tuple(NETWORKS)


QUICK = Sizes((6, 3, 64), (4, 2, 32), 2, 32, (1, 2), ("MobileNetV2",), ("MobileNetV2",))


def measure(seconds: float, quick: bool, progress: Progress = lambda done, total, what: None) -> Result:
    """Runs all measurements in order. Ctrl-C ends the run, and the result is what was measured until then."""
    sizes = QUICK if quick else Sizes()
    found: dict[str, list[Result]] = {"exact": [], "times": [], "memory": []}
    before, others, interrupted = load.average(), load.Others(), True
    jobs: list[tuple[str, str, Callable[[], Result]]] = []
    for name in sizes.networks:
        jobs.append(("exact", f"{name}, errors", partial(_exact, name, sizes)))
        jobs.append(("times", f"{name}, times", partial(_times, name, sizes, seconds, others)))
    for name in sizes.measured:
        for count in sizes.counts:
            jobs.append(("memory", f"{name}, {count} micro-batches", partial(_memory, name, count, sizes)))
    with contextlib.suppress(KeyboardInterrupt):
        for done, (kind, what, job) in enumerate(jobs):
            progress(done, len(jobs), what)
            found[kind].append(job())
        progress(len(jobs), len(jobs), "")
        interrupted = False
    return {
        "settings": {"seconds": seconds, "quick": quick, **asdict(sizes)},
        "interrupted": interrupted,
        **found,
        "notes": load.warnings(before, others.cores),
        "load": {"before": before, "after": load.average(), "others": others.cores},
        "environment": environment(),
    }


def _exact(name: str, sizes: Sizes) -> Result:
    """The relative error of all gradients in float64, against one big batch: of `big_batch`, and of accumulation."""
    samples, micro, pixels = sizes.exact
    x, labels = steps.images(samples, pixels, "contiguous")
    x = (x + torch.linspace(-1, 1, samples).reshape(-1, 1, 1, 1)).double()

    def one(model: nn.Module) -> None:
        cross_entropy(model(x), labels).backward()

    def parts(model: nn.Module) -> None:
        big_batch(model, cross_entropy, x, labels, micro_batch_size=micro)

    def accumulated(model: nn.Module) -> None:
        for some, theirs in zip(x.split(micro), labels.split(micro), strict=True):
            (cross_entropy(model(some), theirs) * len(some) / samples).backward()

    gradients = []
    for step in (one, parts, accumulated):
        torch.manual_seed(0)
        model = NETWORKS[name]().double()
        step(model)
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
    whole = gradients[0].norm()
    errors = [((other - gradients[0]).norm() / whole).item() for other in gradients[1:]]
    return {"name": name, "big_batch": errors[0], "accumulation": errors[1]}


def _times(name: str, sizes: Sizes, seconds: float, others: load.Others) -> Result:
    """Times the steps in turns; each step first deletes the gradients of the one before."""
    samples, micro, pixels = sizes.timed
    model = convert(NETWORKS[name]())
    x, labels = steps.images(samples, pixels, "contiguous")

    def in_parts(offload: str | None) -> Callable[[], object]:
        def step() -> None:
            model.zero_grad()
            big_batch(model, cross_entropy, x, labels, micro_batch_size=micro, offload=offload)

        return step

    def one() -> None:
        model.zero_grad()
        cross_entropy(model(x), labels).backward()

    ways = dict(zip(WAYS, (one, in_parts(None), in_parts(tempfile.gettempdir())), strict=True))
    with others:
        times = timing.alternate(ways, seconds)
    return {"name": name, "milliseconds": 1e3 * times.seconds(WAYS[0]).median} | {
        way: asdict(times.ratio(way, WAYS[0])) for way in WAYS[1:]
    }


def _memory(name: str, count: int, sizes: Sizes) -> Result:
    """MiB of each way, and of the inputs, for `count` micro-batches of one size."""
    samples, threads = count * sizes.micro_batch, torch.get_num_threads()
    peaks = {way: peak_of_a_step(name, way, samples, sizes.micro_batch, sizes.pixels, threads) for way in WAYS}
    mebibytes = {way: None if peak is None else peak / 2**20 for way, peak in peaks.items()}
    return {"name": name, "micro_batches": count, "inputs": samples * 3 * sizes.pixels**2 * 4 / 2**20, **mebibytes}
