"""The networks of tests/clients/zoo.txt, and the import of timm and torchvision."""

import importlib
import inspect
import sys
import types
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

LIST = Path(__file__).parents[1] / "clients" / "zoo.txt"


class Entry(NamedTuple):
    """A network of a package, and the side of the square pictures that it is tried on."""

    package: str
    name: str
    side: int

    def __str__(self) -> str:
        return f"{self.package}:{self.name}"


def entries() -> list[Entry]:
    """The list, in its order."""
    lines = [line.split() for line in LIST.read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
    return [Entry(*name.split(":"), int(side)) for name, side in lines]


def package(name: str) -> Any:
    """timm or torchvision, imported.

    torchvision's compiled operators may be missing: its wheel is made for one build of torch. The networks need none
    of them. Its module that registers their shapes is left out then, as it fails without them.

    Raises:
        ImportError: the package is not installed.
    """
    missing = "torchvision._meta_registrations"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return importlib.import_module(name)
        except RuntimeError as error:
            if "torchvision::nms" not in str(error):
                raise
        for module in [m for m in sys.modules if m.partition(".")[0] in ("timm", "torchvision")]:
            del sys.modules[module]
        sys.modules[missing] = types.ModuleType(missing)
        return importlib.import_module(name)


def package_or_skip(name: str) -> Any:
    """`package`, or the test is skipped with the reason."""
    try:
        return package(name)
    except ImportError as error:
        pytest.skip(f"{name} is not installed: {error}", allow_module_level=True)


def build(entry: Entry, classes: int = 10) -> nn.Module:
    """The network with weights drawn from a fixed seed."""
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if entry.package == "timm":
            return package("timm").create_model(entry.name, num_classes=classes)
        package("torchvision")
        models = importlib.import_module("torchvision.models")
        backbone = "weights_backbone" in inspect.signature(models.get_model_builder(entry.name)).parameters
        more = {"weights_backbone": None} if backbone else {}
        return models.get_model(entry.name, weights=None, num_classes=classes, **more)


def pictures(entry: Entry, count: int = 6) -> Tensor:
    """A batch. With two pictures, the last layers normalise to ±1, and rounding errors grow without bound."""
    return torch.randn(count, 3, entry.side, entry.side)
