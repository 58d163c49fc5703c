"""Batches for a model: the types accepted, and a clear error for a single batch."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import batchnorm as bn
from batchnorm.tools.streams import several

BATCHES = torch.arange(24.0).reshape(3, 4, 2)


@pytest.mark.parametrize(
    "batches",
    [
        list(BATCHES),
        tuple(BATCHES),
        DataLoader(BATCHES, batch_size=None),
        lambda: iter(BATCHES),
        lambda: list(BATCHES),
    ],
    ids=["list", "tuple", "loader", "generator", "function"],
)
@pytest.mark.parametrize("limit", [None, 2, 9])
def test_batches_and_a_limit(batches: Any, limit: int | None) -> None:
    assert torch.equal(torch.stack(list(several(batches, limit))), BATCHES[:limit])


def test_the_length_is_known_where_it_can_be() -> None:
    assert len(several(DataLoader(BATCHES, batch_size=None))) == 3  # for the progress bar


@pytest.mark.parametrize("use", [bn.calibrate, bn.adapt, bn.diagnose])
@pytest.mark.parametrize(
    ("batch", "message"),
    [
        (BATCHES[0], "got a Tensor: put a single batch into a list"),
        (BATCHES[0].numpy(), "got a ndarray: put a single batch into a list"),
        ({"input": BATCHES[0]}, "got a dict: put a single batch into a list"),
        ("data.csv", "got str"),
        (TensorDataset(BATCHES[0]), "got TensorDataset; a Dataset goes into a DataLoader"),
        (lambda: BATCHES[0], "got a Tensor: put a single batch into a list"),
    ],
    ids=["tensor", "array", "dict", "path", "dataset", "function"],
)
def test_a_single_batch_is_no_batches(use: Callable[..., Any], batch: Any, message: str) -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(TypeError, match=message):
        use(model, batch)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
