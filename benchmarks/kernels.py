"""Times the CPU kernels against torch, alternating in one process: `python benchmarks/kernels.py --help`.

A figure is torch's minimum time over ours, each over many alternating runs of forward plus backward; a machine that
does other things as well slows some runs, and the minimum is what is left of them. `copies` is our time over that of
copying the same tensor into memory that is already there.
"""

import argparse
import math
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F

from batchnorm.backends.numba import cpu
from batchnorm.backends.reference import BY_OUTPUT
from batchnorm.core.rules import Running

RESNET50 = [
    (32, 64, 112, 112), (32, 64, 56, 56), (32, 256, 56, 56), (32, 128, 56, 56), (32, 128, 28, 28), (32, 512, 28, 28),
    (32, 256, 28, 28), (32, 256, 14, 14), (32, 1024, 14, 14), (32, 512, 14, 14), (32, 512, 7, 7), (32, 2048, 7, 7),
]  # fmt: skip
OTHERS = [(256, 1024), (4096, 1024), (4, 64, 16, 28, 28)]
CASES = {
    "plain": (None, False),
    "relu": ("relu", False),
    "add-relu": ("relu", True),
    "silu": ("silu", False),
    "gelu": ("gelu", False),
}
ACTIVATIONS = {None: lambda z: z, "relu": F.relu, "silu": F.silu, "gelu": F.gelu}


def alternate(functions: list[Callable[[], object]], budget: float) -> list[float]:
    """Each function's least time in seconds, running them in turn for `budget` seconds and at least five rounds."""
    times: list[list[float]] = [[] for _ in functions]
    for function in functions:
        function()
    end = time.perf_counter() + budget
    while time.perf_counter() < end or len(times[0]) < 5:
        for function, taken in zip(functions, times, strict=True):
            start = time.perf_counter()
            function()
            taken.append(time.perf_counter() - start)
    return [min(taken) for taken in times]


def compare(shape: tuple[int, ...], dtype: torch.dtype, last: bool, case: str, budget: float) -> tuple[float, ...]:
    """Seconds of torch forward + backward, ours, our forward, and a copy."""
    activation, add = CASES[case]
    act, C = ACTIVATIONS[activation], shape[1]
    form = torch.contiguous_format
    if last:
        form = torch.channels_last if len(shape) == 4 else torch.channels_last_3d
    x, residual, grad = (torch.randn(shape, dtype=dtype).contiguous(memory_format=form) for _ in range(3))
    weight, bias = torch.rand(C) + 0.5, torch.randn(C)
    running = torch.zeros(C), torch.ones(C)
    leaves = [t.detach().clone().requires_grad_() for t in (x, weight, bias, residual)]
    here = residual if add else None

    def theirs() -> None:
        z = F.batch_norm(leaves[0], *running, leaves[1], leaves[2], True, 0.1, 1e-5)
        act(z + leaves[3] if add else z).backward(grad)
        for leaf in leaves:
            leaf.grad = None

    def forward() -> tuple[torch.Tensor, ...]:
        population = Running(*running, None, 0.1, "skip")
        return cpu.forward(x, here, weight, bias, 1e-5, activation, population)

    def ours() -> None:
        y, statistics, _ = forward()  # y outlives the backward, as it does in a network
        again = y if add and activation in BY_OUTPUT else here
        cpu.backward(grad, x, again, weight, bias, statistics, activation, False, add, True)

    warm = torch.empty_like(x)
    return tuple(alternate([theirs, ours, forward, lambda: warm.copy_(x)], budget))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--channels-last", action="store_true")
    parser.add_argument("--case", choices=CASES, default="plain")
    parser.add_argument("--seconds", type=float, default=1.0, help="for each shape")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--shape", type=lambda text: tuple(map(int, text.split(","))), action="append")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    shapes = options.shape or RESNET50 + OTHERS
    if options.channels_last:
        shapes = [shape for shape in shapes if len(shape) > 2]
    print(f"{'shape':22} {'torch ms':>9} {'ours ms':>9} {'times':>6} {'copies':>7} {'forward copies':>15}")
    ratios = []
    for shape in shapes:
        theirs, ours, forward, copy = compare(
            shape, getattr(torch, options.dtype), options.channels_last, options.case, options.seconds
        )
        ratios.append(theirs / ours)
        print(
            f"{shape!s:22} {theirs * 1e3:9.3f} {ours * 1e3:9.3f} {ratios[-1]:6.2f} {ours / copy:7.2f} "
            f"{forward / copy:15.2f}",
            flush=True,
        )
    print(f"geometric mean {math.prod(ratios) ** (1 / len(ratios)):.2f}")


if __name__ == "__main__":
    main()
