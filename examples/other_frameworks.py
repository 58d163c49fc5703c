"""Keras and Flax give the share of the old value as momentum: in torch, 0.99 would keep little but the last batch."""

import torch
from torch import nn

import batchnorm as bn

torch.manual_seed(0)
converted = bn.from_keras(moving_mean=[3.0], moving_variance=[1.0], momentum=0.99)
taken = nn.BatchNorm1d(1, momentum=0.99)
taken.load_state_dict(converted.state_dict())

paths: dict[str, list[float]] = {"from_keras": [], "0.99 as it is": []}
for _ in range(200):
    batch = torch.randn(16, 1) + 3
    for layer, path in zip((converted, taken), paths.values(), strict=True):
        layer(batch)
        path.append(layer.running_mean.item())

spread = {name: torch.tensor(path).std().item() for name, path in paths.items()}
print("standard deviation of the running mean:", {name: round(value, 3) for name, value in spread.items()})
assert spread["from_keras"] < 0.2 * spread["0.99 as it is"]

# weight decay for the weights, and not for biases, γ and β
optimizer = torch.optim.SGD(bn.parameter_groups(nn.Sequential(nn.Linear(3, 1), converted), weight_decay=1e-4), lr=0.1)
assert [len(group["params"]) for group in optimizer.param_groups] == [1, 3]
