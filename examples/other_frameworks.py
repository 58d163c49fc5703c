"""Keras and Flax count momentum the other way round: taken over as it is, 0.99 forgets all but the last batch."""

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
print("how much the running mean moves about:", {name: round(value, 3) for name, value in spread.items()})
assert spread["from_keras"] < 0.2 * spread["0.99 as it is"]

# and no decay for what has no scale to lose: biases, γ and β
optimizer = torch.optim.SGD(bn.parameter_groups(nn.Sequential(nn.Linear(3, 1), converted), weight_decay=1e-4), lr=0.1)
assert [len(group["params"]) for group in optimizer.param_groups] == [1, 3]
