"""Batch norm and activation in one pass: the same output, and less memory kept for the backward pass."""

import torch
from torch import nn

import batchnorm as bn
from batchnorm.benchmark.memory import kept

torch.manual_seed(0)
blocks = [(nn.Conv2d(16, 16, 3, padding=1), nn.BatchNorm2d(16), nn.SiLU()) for _ in range(4)]
model = nn.Sequential(*[layer for block in blocks for layer in block])
x = torch.randn(8, 16, 32, 32)
y, before = model(x), kept(model, x)

bn.convert(model, fuse=True)
after = kept(model, x)
print(f"kept for the backward pass: {before / 2**20:.1f} MiB, fused {after / 2**20:.1f} MiB")
assert torch.allclose(model(x), y, atol=1e-5)
assert after < 0.75 * before

bn.revert(model)
assert kept(model, x) == before
