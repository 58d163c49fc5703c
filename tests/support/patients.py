"""Networks for the doctor: a small convolutional one, trained on scikit-learn's digits, with torch's layers or ours."""

import copy
from functools import cache

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

import batchnorm as bn


@cache
def digits() -> tuple[Tensor, Tensor]:
    data = load_digits()
    return torch.from_numpy(data.images).float().unsqueeze(1) / 16, torch.from_numpy(data.target)


def network(ours: bool) -> nn.Sequential:
    model = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(),
        nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.Flatten(),
        nn.Linear(512, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 10),
    )  # fmt: skip
    return bn.convert(model) if ours else model


@cache
def _trained(ours: bool) -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        x, y = digits()
        model = network(ours)
        optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
        for _ in range(80):
            rows = torch.randint(len(x), (64,))
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x[rows]), y[rows]).backward()
            optimizer.step()
        optimizer.zero_grad()
        return model


def trained(ours: bool) -> nn.Sequential:
    """A copy of the trained network, in training mode; layers 1, 4 and 8 are the batch norms."""
    return copy.deepcopy(_trained(ours))


def batches(size: int = 64, number: int = 10) -> list[Tensor]:
    """Shuffled digits."""
    generator = torch.Generator().manual_seed(1)
    x, _ = digits()
    return [x[torch.randint(len(x), (size,), generator=generator)] for _ in range(number)]
