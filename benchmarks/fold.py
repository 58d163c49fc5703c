"""Measures the time that bn.fold saves: networks in evaluation, folded and not, take turns in one process.

python benchmarks/fold.py [seconds per network]

The ratio is the median over turns of folded / not folded. The errors are the largest differences from the same network
in float64, over its largest output. The networks have torch's layers, initial weights and calibrated statistics.
"""

import copy
import sys

import torch
from torch import Tensor, nn

import batchnorm as bn
from batchnorm.benchmark.timing import alternate
from batchnorm.benchmark.whole_networks import NETWORKS

BATCHES = (1, 16)
SIDE = 224


def numbers(model: nn.Module) -> int:
    """The number of values in the parameters and buffers of the model."""
    return sum(t.numel() for t in [*model.parameters(), *model.buffers()])


def error(model: nn.Module, x: Tensor, truth: Tensor) -> float:
    return ((model(x) - truth).abs().max() / truth.abs().max()).item()


def compare(name: str, model: nn.Module, x: Tensor, seconds: float) -> None:
    folded = bn.fold(model, x)
    assert not folded.report.left, folded.report
    truth = copy.deepcopy(model).double()(x.double())
    times = alternate({"model": lambda: model(x), "folded": lambda: folded(x)}, seconds)
    before, after = (1000 * times.seconds(which).median for which in ("model", "folded"))
    print(
        f"{name:<12} {len(x):>5} {before:8.1f} {after:7.1f} {times.ratio('folded', over='model').median:6.2f}",
        f"{numbers(model):>12,} {numbers(folded):>10,}",
        f"{error(model, x, truth):9.0e} {error(folded, x, truth):7.0e}",
        flush=True,
    )


@torch.no_grad()
def main(seconds: float) -> None:
    print(f"{torch.get_num_threads()} threads, pictures of {SIDE}×{SIDE}, float32")
    print("network      batch       ms  folded  ratio      numbers     folded     error  folded")
    for name in ("ResNet-18", "MobileNetV2"):
        torch.manual_seed(0)
        model = NETWORKS[name]().eval()
        bn.calibrate(model, [torch.randn(16, 3, 64, 64)])
        for size in BATCHES:
            compare(name, model, torch.randn(size, 3, SIDE, SIDE), seconds / len(BATCHES))


if __name__ == "__main__":
    main(float(sys.argv[1]) if len(sys.argv) > 1 else 60)
