"""What bn.watch costs: training steps of a small residual network, watched and not, taking turns in one process.

python benchmarks/watch.py [steps]
"""

import statistics
import sys
import time
from contextlib import nullcontext

import torch
from torch import Tensor, nn

import batchnorm as bn

TURNS, WIDTH, DEPTH = 7, 32, 6


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        conv = [nn.Conv2d(WIDTH, WIDTH, 3, padding=1, bias=False) for _ in range(2)]
        self.body = nn.Sequential(conv[0], bn.BatchNorm2d(WIDTH), nn.ReLU(), conv[1], bn.BatchNorm2d(WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x + self.body(x))


def seconds(model: nn.Module, x: Tensor, steps: int, every: int | None) -> float:
    """Per step; `every` None: not watched."""
    optimizer = torch.optim.SGD(model.parameters(), 1e-3)
    with bn.watch(model, every=every) if every else nullcontext():
        start = time.perf_counter()
        for _ in range(steps):
            optimizer.zero_grad()
            model(x).square().mean().backward()
            optimizer.step()
        return (time.perf_counter() - start) / steps


def main(steps: int) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, WIDTH, 3, padding=1), *(Block() for _ in range(DEPTH)))
    x = torch.randn(16, 3, 32, 32)
    seconds(model, x, 2, 1)  # what compiles, compiles now
    print(f"{2 * DEPTH} batch norms, {steps} steps a turn, {TURNS} turns, {torch.get_num_threads()} threads")
    for every in (1, 10, 50):
        turns = []
        for turn in range(TURNS):
            order = [None, every] if turn % 2 else [every, None]
            taken = {e: seconds(model, x, steps, e) for e in order}
            turns.append(taken[every] / taken[None])
        low, *_, high = sorted(turns)
        print(
            f"every={every:<3} watched/unwatched {statistics.median(turns):.3f} ({low:.3f} to {high:.3f})", flush=True
        )


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 50)
