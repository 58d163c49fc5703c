"""One small study, made once in a test session."""

from functools import cache

import torch
from torch import Tensor, nn

from batchnorm.experiment import study
from batchnorm.experiment.result import Study

OPTIONS = {"rates": [0.1, 1.0], "seeds": 2, "epochs": 4, "batch_size": 20, "batch_sizes": [2, 8], "quick": True}
EVIL = "<script>evil()</script>"


def arrays() -> tuple[Tensor, Tensor]:
    """A table (160, 4) on scales from 1 to 1000, two classes."""
    x = torch.randn(160, 4, generator=torch.Generator().manual_seed(0))
    return x * torch.tensor([1.0, 10.0, 100.0, 1000.0]), (x.sum(1) > 0).long()


def make_network(shape: tuple[int, ...], outputs: int) -> nn.Module:
    return nn.Sequential(nn.Linear(shape[0], 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, outputs))


@cache
def quick(name: str = EVIL) -> Study:
    return study(make_network, arrays(), name=name, **OPTIONS)  # type: ignore[arg-type]
