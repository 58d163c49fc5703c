"""Batches of two samples: training and evaluation differ less with `renorm=`. Also: one sample, and ghost batches."""

import torch
from torch import nn

import batchnorm as bn

torch.manual_seed(0)
data = torch.randn(2000, 2, 8) * 3 + 1
layers = {
    "torch": nn.BatchNorm1d(8, momentum=0.01),
    "renorm": bn.BatchNorm1d(8, momentum=0.01, renorm=bn.Renorm(r_max=3, d_max=5, warmup=500)),
}
gaps = {}
for name, layer in layers.items():
    for x in data:
        layer(x)
    trained = torch.stack([layer(x) for x in data[-200:]])
    evaluated = torch.stack([layer.eval()(x) for x in data[-200:]])
    gaps[name] = (trained - evaluated).abs().mean().item()
    print(f"{name:8} training and evaluation differ by {gaps[name]:.2f} on average")
assert gaps["renorm"] < 0.5 * gaps["torch"]

last = data[0, :1]  # the last batch of an epoch has one sample
try:
    nn.BatchNorm1d(8)(last)
except ValueError as error:
    print(f"torch, one sample: {error}")
y = bn.convert(layers["torch"], single="population").train()(last)
print(f"single='population': an output as in evaluation, {y.shape}")

x = torch.randn(64, 8)  # ghost batches: 16 samples of a large batch at a time share statistics
ghost = bn.BatchNorm1d(8, virtual_batch_size=16)(x)
loop = torch.cat([nn.BatchNorm1d(8)(part) for part in x.split(16)])
assert torch.allclose(ghost, loop, atol=1e-5)
