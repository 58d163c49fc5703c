"""`bn.watch` writes to TensorBoard, to a run of wandb, or to any object with one of their methods."""

import tempfile
from pathlib import Path

import torch
from torch import nn

import batchnorm as bn


class Run:
    """Like a run of wandb: `log(values, step=...)`."""

    def __init__(self) -> None:
        self.history: dict[int, dict[str, float]] = {}

    def log(self, values: dict[str, float], step: int) -> None:
        self.history.setdefault(step, {}).update(values)


torch.manual_seed(0)
model = bn.convert(nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 1)))
optimizer = torch.optim.SGD(model.parameters(), 1e-2)


def train() -> None:
    for _ in range(4):
        optimizer.zero_grad()
        model(torch.randn(32, 4)).square().mean().backward()
        optimizer.step()


run = Run()
with bn.watch(model, run, every=2):
    train()
for step, values in run.history.items():
    print(f"step {step}: " + ", ".join(f"{tag.split('/')[-1]} {value:.3g}" for tag, value in values.items()))
assert sorted(run.history) == [0, 2]

try:
    from torch.utils.tensorboard import SummaryWriter
except ImportError as error:
    print(f"skipped: {error}")
    raise SystemExit from None
with tempfile.TemporaryDirectory() as folder, SummaryWriter(folder) as writer, bn.watch(model, writer, every=2):
    train()
    writer.flush()
    print(f"TensorBoard: {len(list(Path(folder).iterdir()))} file of events")
