"""An activation checkpoint runs the forward pass twice. torch's layer counts the batch twice, ours once."""

import copy

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import batchnorm as bn

torch.manual_seed(0)
x = torch.randn(32, 4, requires_grad=True)
network = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU())
plain = copy.deepcopy(network)
plain(x).sum().backward()
for reentrant in (False, True):
    for name, model in (("torch", copy.deepcopy(network)), ("ours", bn.convert(copy.deepcopy(network)))):
        checkpoint(model, x, use_reentrant=reentrant).sum().backward()
        same = torch.allclose(model[1].running_mean, plain[1].running_mean, atol=1e-6)
        print(f"use_reentrant={reentrant!s:5} {name:6} {model[1].num_batches_tracked} batches, as without: {same}")
        assert same == (name == "ours")
