"""The two arms: a network with batch norm, and the same one without it."""

from __future__ import annotations

import copy
import importlib
import inspect
import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from batchnorm.layers import BatchNorm1d, BatchNorm2d

from .data import Data, InputError

MakeNetwork = Callable[..., nn.Module]


def mlp(shape: tuple[int, ...], outputs: int) -> nn.Module:
    """Three sigmoid layers of 100 (Ioffe & Szegedy 2015, section 4.1), batch norm before each sigmoid.

    Weights start at Xavier's scale, which is fair to the plain network: at torch's default its sigmoids start on a
    long plateau, and batch norm would win more easily.
    """
    layers: list[nn.Module] = [nn.Flatten()]
    width = math.prod(shape)
    for _ in range(3):
        layers += [nn.Linear(width, 100), BatchNorm1d(100), nn.Sigmoid()]
        width = 100
    network = nn.Sequential(*layers, nn.Linear(width, outputs))
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
        nn.Conv2d(shape[0], 16, 3, padding=1),
        BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, stride=2, padding=1),
        BatchNorm2d(32),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(32, outputs),
    )


def named(name: str) -> MakeNetwork:
    """`mlp`, `conv`, or `package.module:factory`, importable from here."""
    if name in ("mlp", "conv"):
        return {"mlp": mlp, "conv": conv}[name]
    module_name, colon, attribute = name.partition(":")
    if not colon:
        raise InputError(f"--network {name}: expected mlp, conv or package.module:factory")
    try:
        factory = getattr(importlib.import_module(module_name), attribute)
    except (ImportError, AttributeError) as error:
        raise InputError(f"--network {name}: {error}") from error
    if not callable(factory):
        raise InputError(f"--network {name}: expected a function that returns a network, got {type(factory).__name__}")
    return factory


def build(make_network: MakeNetwork, data: Data, seed: int, *, normalised: bool) -> nn.Module:
    """One arm's network. Both arms of a seed start from the same weights.

    make_network: called with (input shape, number of outputs), or with nothing if it takes no argument.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = make_network(data.shape, data.outputs) if _takes_arguments(make_network) else make_network()
    if not isinstance(network, nn.Module):
        raise InputError(f"make_network returned {type(network).__name__}, expected a torch.nn.Module")
    return network.train() if normalised else without_norms(network).train()


def check(make_network: MakeNetwork, data: Data) -> None:
    """InputError unless the network has batch norms and maps the data's inputs to its outputs."""
    network = build(make_network, data, 0, normalised=True)
    if not norms(network):
        raise InputError(
            "the network has no batch norm, so both arms would be the same; add one where you would try it"
        )
    try:
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            shape = tuple(network.eval()(data.train.x[:4]).shape)
    except Exception as error:  # whatever the user's forward raises
        detail = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(f"the network does not take inputs of shape {data.shape}: {detail}") from error
    allowed = {(4, data.outputs)} | ({(4,)} if data.task == "regression" else set())
    if shape not in allowed:
        raise InputError(f"the network gives outputs of shape {shape} for 4 samples, expected (4, {data.outputs})")


def norms(network: nn.Module) -> dict[str, _BatchNorm]:
    return {name: module for name, module in network.named_modules() if isinstance(module, _BatchNorm)}


def without_norms(network: nn.Module) -> nn.Module:
    """A copy with the same weights in which every batch norm passes its input on."""
    network = copy.deepcopy(network)
    has_bias = True  # of the last layer before the norm, in the order of definition
    for name, module in list(network.named_modules()):
        if isinstance(module, _BatchNorm):
            parent, _, child = name.rpartition(".")
            setattr(network.get_submodule(parent), child, Plain(module, shift=not has_bias))
        elif isinstance(getattr(module, "weight", None), Tensor):
            has_bias = getattr(module, "bias", None) is not None
    return network


class Plain(nn.Module):
    """Stands where a batch norm stood: x, plus a learned shift if the layer before relied on the norm's β for one.

    A residual and an activation that the norm applied itself are still applied.
    """

    def __init__(self, norm: _BatchNorm, shift: bool) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(norm.num_features)) if shift and norm.affine else None
        self.activation = getattr(norm, "activation", None)

    def forward(self, input: Tensor, residual: Tensor | None = None, **_: object) -> Tensor:
        if self.shift is not None:
            input = input + self.shift.view(1, -1, *[1] * (input.ndim - 2))
        if residual is not None:
            input = input + residual
        return input if self.activation is None else getattr(F, self.activation)(input)


def _takes_arguments(make_network: MakeNetwork) -> bool:
    required = [
        p
        for p in inspect.signature(make_network).parameters.values()
        if p.default is p.empty and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
    ]
    if len(required) not in (0, 2):
        raise InputError(f"make_network takes {len(required)} arguments, expected none or (input shape, outputs)")
    return bool(required)
