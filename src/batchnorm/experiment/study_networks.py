"""The networks that a study offers by name. Their layers have names, which the figures show."""

from __future__ import annotations

import importlib
import math
from collections import OrderedDict
from collections.abc import Callable

from torch import Tensor, nn

from batchnorm.layers import BatchNorm1d, BatchNorm2d

from .data import InputError

MakeNetwork = Callable[..., nn.Module]

DEPTH, WIDTH = 20, 64  # of the deep networks


def mlp(shape: tuple[int, ...], outputs: int) -> nn.Module:
    """Three sigmoid layers of 100 (Ioffe & Szegedy 2015, section 4.1), batch norm before each sigmoid.

    Weights start at Xavier's scale, which is fair to the plain network: with torch's default weights its training
    starts on a long plateau, and batch norm would win more easily.
    """
    layers: OrderedDict[str, nn.Module] = OrderedDict(flatten=nn.Flatten())
    width = math.prod(shape)
    for i in range(1, 4):
        layers |= {f"linear{i}": nn.Linear(width, 100), f"norm{i}": BatchNorm1d(100), f"sigmoid{i}": nn.Sigmoid()}
        width = 100
    network = nn.Sequential(OrderedDict(layers, output=nn.Linear(width, outputs)))
    for layer in network:
        if isinstance(layer, nn.Linear):
            nn.init.xavier_normal_(layer.weight)
            nn.init.zeros_(layer.bias)
    return network


def conv(shape: tuple[int, ...], outputs: int) -> nn.Module:
    """Two 3×3 convolutions (16 and 32 channels, stride 1 and 2) with batch norm and ReLU, a mean, a linear layer."""
    if len(shape) != 3:
        raise InputError(f"--network conv needs images (C, H, W), the data has inputs of shape {shape}")
    return nn.Sequential(
        OrderedDict(
            conv1=nn.Conv2d(shape[0], 16, 3, padding=1),
            norm1=BatchNorm2d(16),
            relu1=nn.ReLU(),
            conv2=nn.Conv2d(16, 32, 3, stride=2, padding=1),
            norm2=BatchNorm2d(32),
            relu2=nn.ReLU(),
            mean=nn.AdaptiveAvgPool2d(1),
            flatten=nn.Flatten(),
            output=nn.Linear(32, outputs),
        )
    )


def deep(shape: tuple[int, ...], outputs: int) -> nn.Module:
    """Twenty ReLU layers of 64 in a row, with torch's default weights, batch norm before each ReLU.

    With torch's default weights each ReLU layer shrinks the variance of the signal to a sixth, and in the backward
    pass that of the gradient as much. Without normalisation both vanish.
    """
    layers: OrderedDict[str, nn.Module] = OrderedDict(flatten=nn.Flatten())
    width = math.prod(shape)
    for i in range(1, DEPTH + 1):
        layers |= {f"linear{i}": nn.Linear(width, WIDTH), f"norm{i}": BatchNorm1d(WIDTH), f"relu{i}": nn.ReLU()}
        width = WIDTH
    return nn.Sequential(OrderedDict(layers, output=nn.Linear(width, outputs)))


def deep_residual(shape: tuple[int, ...], outputs: int) -> nn.Module:
    """A linear layer and twenty residual blocks x + norm(W·relu(x)) of width 64, with He's weights.

    Without normalisation each block adds a variance as large as its input's: the signal and the gradient grow by √2
    per block, a thousandfold over twenty.
    """
    layers: OrderedDict[str, nn.Module] = OrderedDict(flatten=nn.Flatten(), input=nn.Linear(math.prod(shape), WIDTH))
    for i in range(1, DEPTH + 1):
        layers[f"block{i}"] = ResidualBlock(WIDTH)
    return nn.Sequential(OrderedDict(layers, output=nn.Linear(WIDTH, outputs)))


class ResidualBlock(nn.Module):
    """The block x + norm(W·relu(x)), with x: (N, C)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, width)
        self.norm = BatchNorm1d(width)
        nn.init.kaiming_normal_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.norm(self.linear(x.relu()))
        return out


NETWORKS: dict[str, MakeNetwork] = {"mlp": mlp, "conv": conv, "deep": deep, "deep-residual": deep_residual}


def named(name: str) -> MakeNetwork:
    """The network of a name: one of `NETWORKS`, or an importable `package.module:factory`."""
    if name in NETWORKS:
        return NETWORKS[name]
    module_name, colon, attribute = name.partition(":")
    if not colon:
        raise InputError(f"--network {name}: expected {', '.join(NETWORKS)} or package.module:factory")
    try:
        factory = getattr(importlib.import_module(module_name), attribute)
    except (ImportError, AttributeError) as error:
        raise InputError(f"--network {name}: {error}") from error
    if not callable(factory):
        raise InputError(f"--network {name}: expected a function that returns a network, got {type(factory).__name__}")
    made: MakeNetwork = factory
    return made
