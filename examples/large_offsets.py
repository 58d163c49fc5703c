"""The error of the output on data far from 0: our layer and torch's against float64, on the same values.

The mean of temperatures in kelvin, timestamps and raw sensor counts is many times their standard deviation.
torch's layer computes x·a + b: two large terms that nearly cancel, which loses digits.
Ours subtracts the mean first.
"""

import torch
from torch import nn

import batchnorm as bn

torch.manual_seed(0)
print(f"{'mean':>8}  {'layout':<14} {'torch':>9} {'ours':>9}   largest error of the output, σ = 1")
for mean in (1.0, 1e4, 1e6):
    for name, layout in (("contiguous", torch.contiguous_format), ("channels_last", torch.channels_last)):
        x = (torch.randn(16, 32, 28, 28) + mean).contiguous(memory_format=layout)
        exact = nn.BatchNorm2d(32).double()(x.double())
        theirs, ours = ((layer(x) - exact).abs().max().item() for layer in (nn.BatchNorm2d(32), bn.BatchNorm2d(32)))
        print(f"{mean:8.0e}  {name:<14} {theirs:9.1e} {ours:9.1e}")
        assert ours < 1e-5
