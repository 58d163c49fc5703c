"""Weights were averaged, running statistics were not: `bn.diagnose` finds the fault, `bn.calibrate` repairs it."""

import copy
import sys

import torch
from sklearn.datasets import load_digits
from torch import nn

import batchnorm as bn

torch.manual_seed(0)
digits = load_digits()
x, y = torch.from_numpy(digits.images).float().unsqueeze(1) / 16, torch.from_numpy(digits.target)
model = nn.Sequential(
    nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(),
    nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.Flatten(),
    nn.Linear(512, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 10),
)  # fmt: skip


def train(steps: int) -> None:
    optimizer = torch.optim.SGD(model.parameters(), 0.3, momentum=0.9)
    for _ in range(steps):
        rows = torch.randint(len(x), (64,))
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x[rows]), y[rows]).backward()
        optimizer.step()


with bn.watch(model, every=20) as w:
    train(10)
    early = copy.deepcopy(model)
    train(150)
batches = [x[torch.randint(len(x), (64,))] for _ in range(16)]
print("while training:", [f.what for f in w.findings] or "nothing found")
print("trained: ", bn.diagnose(model, batches))

for weight, old in zip(model.parameters(), early.parameters(), strict=True):
    weight.data.lerp_(old.data, 0.5)  # averages two checkpoints; the running statistics stay those of the second
report = bn.diagnose(model, batches)
report.show()
assert {"stale-population"} <= {f.rule for f in report.findings}
if len(sys.argv) > 1:
    print(report.save(sys.argv[1]))

bn.calibrate(model, batches)
print("calibrated:", cured := bn.diagnose(model, batches))
assert not cured.findings
