"""Samples of unequal length: torch's layer counts the padding as data; `lengths=` leaves it out, and keeps it 0."""

import torch
from torch import nn

import batchnorm as bn

torch.manual_seed(0)
lengths = torch.tensor([20, 5, 3, 2])
x = torch.randn(4, 8, 20) + 5
padding = torch.arange(20) >= lengths.unsqueeze(1)
x = x.masked_fill(padding.unsqueeze(1), 0.0)
truth = torch.cat([sample[:, :n] for sample, n in zip(x, lengths, strict=True)], dim=1)  # without padding, (8, 30)

theirs, ours = nn.BatchNorm1d(8, momentum=1.0), bn.BatchNorm1d(8, momentum=1.0)
outputs = {"torch": theirs(x), "ours": ours(x, lengths=lengths)}
print(f"{'':6} {'mean':>6} {'variance':>9} {'largest padding':>16}   (the data: mean 5, variance 1)")
for (name, y), layer in zip(outputs.items(), (theirs, ours), strict=True):
    left = y.masked_select(padding.unsqueeze(1)).abs().max()
    print(f"{name:6} {layer.running_mean.mean():6.2f} {layer.running_var.mean():9.2f} {left:16.2f}")

assert torch.allclose(ours.running_mean, truth.mean(1), atol=1e-5)
assert torch.allclose(ours.running_var, truth.var(1), atol=1e-5)
assert (outputs["ours"].masked_select(padding.unsqueeze(1)) == 0).all()
assert (theirs.running_mean - 5).abs().min() > 1
