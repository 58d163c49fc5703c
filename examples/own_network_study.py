"""A study of your own network: `bn.study` trains it with and without batch norm."""

import tempfile
from pathlib import Path

import torch
from torch import nn

import batchnorm as bn


def make_network():
    """A deep and narrow network with batch norms; called once for each run."""
    layers = []
    for _ in range(4):
        layers += [nn.Linear(16, 16), nn.BatchNorm1d(16), nn.Tanh()]
    return nn.Sequential(*layers, nn.Linear(16, 3))


generator = torch.Generator().manual_seed(0)
x = torch.randn(600, 16, generator=generator) * torch.logspace(-2, 2, 16)  # columns on very different scales
y = (x[:, :8] / torch.logspace(-2, 2, 16)[:8]).sum(1).div(2).round().clamp(-1, 1).long() + 1

result = bn.study(make_network, (x, y), name="own table", rates=[0.1, 1.0], seeds=2, epochs=5, quick=True)
for claim in result.claims:
    print(f"{claim.number}. {claim.title}: {claim.verdict} ({claim.sentence or claim.reason})")

with tempfile.TemporaryDirectory() as folder:
    page = result.save(Path(folder) / "study")
    print(f"report.html: {page.stat().st_size / 1e3:.0f} kB, one file")

verdicts = {claim.number: claim.verdict for claim in result.claims}
assert list(verdicts) == list(range(1, 10))
assert verdicts[4] == verdicts[5] == "holds"  # arithmetic: true of any batch norm that works
assert verdicts[6] == "holds"  # columns from 0.01 to 100 slow the plain network down
