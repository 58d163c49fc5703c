"""Sharpness-aware minimisation runs a second, perturbed forward pass: it should not update the running statistics."""

import copy

import torch
from torch import nn

import batchnorm as bn

torch.manual_seed(0)
theirs = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8))
ours = bn.convert(copy.deepcopy(theirs))
once = copy.deepcopy(ours)
x = torch.randn(32, 4)
once(x)


def perturbed(model: nn.Module) -> torch.Tensor:
    """The second forward pass, with perturbed weights."""
    return torch.func.functional_call(model, {"0.weight": model[0].weight * 3}, x)


theirs(x), perturbed(theirs)
ours(x)
with bn.paused(ours):  # normalised by the batch, no update of the running statistics
    y = perturbed(ours)
assert torch.allclose(y.std(0, correction=0), torch.ones(8), atol=1e-3)
for name, model in (("torch", theirs), ("ours", ours)):
    error = (model[1].running_var - once[1].running_var).abs().max().item()
    print(f"{name:6} {model[1].num_batches_tracked} batches, variance off by {error:.2f}")
assert torch.equal(ours[1].running_var, once[1].running_var)
