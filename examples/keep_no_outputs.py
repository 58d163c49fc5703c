"""Outputs of batch norms are computed again in the backward pass: less memory, the same gradients bit for bit."""

import copy

import torch
from torch import nn

import batchnorm as bn
from batchnorm.benchmark.memory import kept

torch.manual_seed(0)
blocks = [(nn.Conv2d(16, 16, 3, padding=1), nn.BatchNorm2d(16), nn.SiLU()) for _ in range(4)]
model = nn.Sequential(*[layer for block in blocks for layer in block], nn.Flatten(), nn.Linear(16 * 32 * 32, 10))
x = torch.randn(8, 16, 32, 32)
torchs = kept(model, x)

bn.convert(model, fuse=True)
fused, other = kept(model, x), copy.deepcopy(model)
bn.convert(model, recompute=True)  # or, for some steps only: with bn.recompute(model)
less = kept(model, x)
print(f"kept for the backward pass: {torchs / 2**20:.1f} MiB, fused {fused / 2**20:.1f}, recompute {less / 2**20:.1f}")
assert less < 0.4 * torchs

for network in (model, other):
    network.zero_grad()
    network(x).square().mean().backward()
assert all(torch.equal(a.grad, b.grad) for a, b in zip(model.parameters(), other.parameters(), strict=True))

bn.revert(model)
assert kept(model, x) == torchs
