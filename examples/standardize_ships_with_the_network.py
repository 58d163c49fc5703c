"""Columns on different scales: the network normalises its raw inputs, and the statistics are saved with it."""

import io

import torch
from sklearn.datasets import load_wine
from torch import nn

import batchnorm as bn

torch.manual_seed(0)
wine = load_wine()
x, y = torch.from_numpy(wine.data).float(), torch.from_numpy(wine.target)
test = torch.arange(len(x)) % 4 == 0


def accuracy(model: nn.Module) -> float:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(60):
        loss = nn.functional.cross_entropy(model(x[~test]), y[~test])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return (model(x[test]).argmax(1) == y[test]).float().mean().item()


raw = accuracy(nn.Linear(13, 3))
scaler = bn.Standardize(13).fit(x[~test].split(20))  # a stream of batches: one pass, exact for any split
model = nn.Sequential(scaler, nn.Linear(13, 3))
normalised = accuracy(model)
print(f"accuracy on raw columns {raw:.2f}, with Standardize in front {normalised:.2f}")
assert normalised > 0.9 > raw

file = io.BytesIO()
torch.save(model.state_dict(), file)
file.seek(0)
fresh = nn.Sequential(bn.Standardize(13), nn.Linear(13, 3))
fresh.load_state_dict(torch.load(file, weights_only=True))
assert torch.equal(fresh(x), model(x))  # the statistics were loaded too
assert torch.allclose(scaler.inverse(scaler(x)), x, rtol=1e-6)
