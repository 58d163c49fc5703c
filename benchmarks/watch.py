"""Measures the cost of bn.watch: training steps of a small residual network, watched and not, take turns.

python benchmarks/watch.py [turns]

Seconds are CPU time of one process with one thread, which other programs disturb little. The ratio is the median over
turns.
"""

import statistics
import sys
import time
from contextlib import nullcontext

import torch
from torch import Tensor, nn

import batchnorm as bn

STEPS, WIDTH, DEPTH = 50, 16, 4


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        conv = [nn.Conv2d(WIDTH, WIDTH, 3, padding=1, bias=False) for _ in range(2)]
        self.body = nn.Sequential(conv[0], bn.BatchNorm2d(WIDTH), nn.ReLU(), conv[1], bn.BatchNorm2d(WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x + self.body(x))


def seconds(model: nn.Module, x: Tensor, every: int | None) -> float:
    """Seconds per step; not watched if `every` is None."""
    optimizer = torch.optim.SGD(model.parameters(), 1e-3)
    with bn.watch(model, every=every) if every else nullcontext():
        start = time.process_time()
        for _ in range(STEPS):
            optimizer.zero_grad()
            model(x).square().mean().backward()
            optimizer.step()
        return (time.process_time() - start) / STEPS


def main(turns: int) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, WIDTH, 3, padding=1), *(Block() for _ in range(DEPTH)))
    x = torch.randn(16, 3, 16, 16)
    seconds(model, x, 1)  # compiles the kernels, if they are not built yet
    step = seconds(model, x, None)
    print(f"{2 * DEPTH} batch norms, {1000 * step:.1f} ms a step, {turns} turns of {STEPS} steps")
    for every in (1, 10, 50):
        ratios = []
        for turn in range(turns):
            taken = {e: seconds(model, x, e) for e in ((None, every) if turn % 2 else (every, None))}
            ratios.append(taken[every] / taken[None])
        quarter, half, three_quarters = statistics.quantiles(ratios)
        print(f"every={every:<3} watched/unwatched {half:.3f} (quartiles {quarter:.3f}, {three_quarters:.3f})")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 11)
