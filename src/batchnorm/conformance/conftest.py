"""The layers under test, as the command line names them."""

import importlib
from collections.abc import Callable
from typing import Any

import pytest
import torch

Make = Callable[..., Any]  # of layers with the attributes of torch's


def load(name: str) -> Any:
    """The class that ``package:Class`` names."""
    module, _, attribute = name.partition(":")
    if not attribute:
        raise pytest.UsageError(f"expected package:Class, got {name!r}; for example --impl torch.nn:BatchNorm2d")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise pytest.UsageError(f"cannot import {name}: {error}") from error


@pytest.fixture(scope="session")
def implementation(pytestconfig: pytest.Config) -> Any:
    return load(pytestconfig.getoption("--impl"))


@pytest.fixture
def make(implementation: Any) -> Make:
    """Makes a layer: ``make(num_features, dtype=..., **options)``."""

    def layer(channels: int, dtype: torch.dtype = torch.float32, **options: Any) -> Any:
        return implementation(channels, **options).to(dtype)

    return layer


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)
