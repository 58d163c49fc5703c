"""A network that was written for torch's batch norm, trained with ours: one line is added."""

import torch
from sklearn.datasets import load_digits
from torch import nn

import batchnorm as bn

torch.manual_seed(0)
model = nn.Sequential(
    nn.Conv2d(1, 16, 3), nn.BatchNorm2d(16), nn.ReLU(),
    nn.Conv2d(16, 32, 3), nn.BatchNorm2d(32), nn.ReLU(),
    nn.Flatten(), nn.Linear(32 * 4 * 4, 10),
)  # fmt: skip
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

bn.convert(model)  # the same parameters and buffers: the optimizer above still works

digits = load_digits()
x = torch.from_numpy(digits.images).float().unsqueeze(1)
y = torch.from_numpy(digits.target)
for _ in range(100):
    batch = torch.randint(0, 1500, (64,))
    loss = nn.functional.cross_entropy(model(x[batch]), y[batch])
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()

model.eval()
accuracy = (model(x[1500:]).argmax(1) == y[1500:]).float().mean().item()
print(f"accuracy on the last {len(y) - 1500} digits: {accuracy:.3f}")
assert accuracy > 0.85

bn.revert(model)  # torch's classes again, with the trained parameters
assert type(model[1]) is nn.BatchNorm2d
