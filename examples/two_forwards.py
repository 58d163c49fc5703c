"""Two forward passes before one backward pass under DistributedDataParallel, which writes all buffers before each.

torch's layer saves the buffers for its backward pass, which then fails. Ours saves copies.
"""

import copy

import torch
from torch import nn

import batchnorm as bn

torch.manual_seed(0)
x = torch.randn(16, 4, requires_grad=True)
theirs = nn.BatchNorm1d(4)
for name, layer in (("torch", theirs), ("ours", bn.convert(copy.deepcopy(theirs)))):
    first = layer.eval()(x)  # normalised by the running statistics, as a frozen layer does in training
    with torch.no_grad():
        for buffer in layer.buffers():
            buffer.copy_(buffer)  # what DistributedDataParallel does to keep the ranks alike
    second = layer(x)
    said = "gradients"
    try:
        (first + second).square().sum().backward()
    except RuntimeError as error:
        said = str(error).split(":")[0]
    print(f"{name:6} {said}")
    assert (said == "gradients") == (name == "ours")
