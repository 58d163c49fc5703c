"""Federated learning with FedBN: each client keeps its own batch norms.

At the end, a network for a new client gets the running statistics of all clients' data together. The two clients are
functions here. The lists of arrays are those of Flower's clients and strategies.
"""

import copy

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

import batchnorm as bn
from batchnorm.integrations.federated import aggregate, arrays, client_moments, load, set_population, shared_keys

torch.manual_seed(0)
x, y = (torch.from_numpy(values) for values in load_digits(return_X_y=True))
x = x.float()
half = len(x) // 2
data = [(x[:half], y[:half]), (16 - 3 * x[half:], y[half:])]  # the second client's scanner inverts and stretches
clients = []
for _ in data:
    torch.manual_seed(0)
    network = nn.Sequential(nn.BatchNorm1d(64), nn.Linear(64, 32), nn.ReLU(), nn.BatchNorm1d(32), nn.Linear(32, 10))
    clients.append(bn.convert(network))


def fit(
    model: nn.Module, keys: list[str], values: list[np.ndarray], x: Tensor, y: Tensor
) -> tuple[list[np.ndarray], int]:
    """One round of a client: takes the server's arrays, trains, and sends its own."""
    load(model, keys, values)
    optimizer = torch.optim.SGD(model.train().parameters(), 0.1, momentum=0.9)
    for rows in torch.randperm(len(x)).split(64):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x[rows]), y[rows]).backward()
        optimizer.step()
    return arrays(model, keys), len(x)


def accuracy(model: nn.Module, x: Tensor, y: Tensor) -> float:
    return (model.eval()(x).argmax(1) == y).double().mean().item()


for local in ("nothing", "all"):
    models = copy.deepcopy(clients)
    keys = shared_keys(models[0], local)
    values = arrays(models[0], keys)
    for _ in range(10):
        results = [fit(m, keys, values, *d) for m, d in zip(models, data, strict=True)]
        values = aggregate(results, keys)
    for model in models:
        load(model, keys, values)
    worst = min(accuracy(m, *d) for m, d in zip(models, data, strict=True))
    print(f"{local:7} of the batch norms stays local, {len(keys):2} arrays travel: accuracy of the worse {worst:.3f}")
assert worst > 0.9

# Running statistics for a new client, from sums of all clients. Two batch norms in a row need two rounds.
shared = copy.deepcopy(models[0])
for _ in range(2):
    set_population(shared, [client_moments(shared, [part]) for part, _ in data])
everything = torch.cat([part for part, _ in data]).double()
error = (shared[0].running_var.double() - everything.var(0)).abs().max().item() / everything.var(0).max().item()
print(f"variances of both clients' data together: off by {error:.0e} of the largest")
assert error < 1e-6
