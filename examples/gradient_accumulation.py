"""Four micro-batches in a step: torch's layer updates its running statistics four times, `bn.accumulate` once.

The running statistics and their counter are then those of the big batch. The outputs and gradients are not, since each
micro-batch is still normalised by itself.
"""

import torch
from torch import nn

import batchnorm as bn

torch.manual_seed(0)
x = torch.randn(64, 8) + torch.linspace(-4, 4, 64).unsqueeze(1)  # sorted: micro-batches differ
whole, theirs, ours = nn.BatchNorm1d(8), nn.BatchNorm1d(8), bn.BatchNorm1d(8)
big = whole(x)
outputs = torch.cat([theirs(micro) for micro in x.chunk(4)])
with bn.accumulate(ours, steps=4):
    outputs = torch.cat([ours(micro) for micro in x.chunk(4)])
for name, layer in (("torch", theirs), ("ours", ours)):
    error = (layer.running_var - whole.running_var).abs().max().item()
    print(f"{name:6} counted {layer.num_batches_tracked} batches; variance off by {error:.0e} from the big batch's")
print(f"outputs differ from the big batch's by up to {(outputs - big).abs().max():.1f}, in both")
assert torch.allclose(ours.running_var, whole.running_var)
assert ours.num_batches_tracked == 1
assert not torch.allclose(theirs.running_var, whole.running_var)
