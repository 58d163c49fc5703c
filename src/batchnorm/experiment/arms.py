"""The arms of a study: a network with batch norms, and the same network with other layers in their place."""

from __future__ import annotations

import copy
import inspect
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from .data import Data, InputError
from .study_networks import MakeNetwork

if TYPE_CHECKING:
    from .runs import Arm

NORMS: dict[str, Arm] = {"batch": "batch norm", "none": "plain", "layer": "layer norm", "group": "group norm"}
MOST_GROUPS, LEAST_IN_A_GROUP = 32, 8  # Wu & He 2018, Group Normalization, use 32 groups, and 8 to 64 channels each


def named_arms(norms: str) -> tuple[Arm, ...]:
    """The arms named in a list such as `batch,none,layer,group`; the two arms that are compared come first."""
    asked = [name.strip() for name in norms.split(",")]
    unknown = [name for name in asked if name not in NORMS]
    if unknown:
        raise InputError(f"--norms {norms}: expected some of {', '.join(NORMS)}, got {unknown[0]!r}")
    if not {"batch", "none"} <= set(asked):
        raise InputError(f"--norms {norms}: the claims compare batch with none, so name both, as in batch,none,layer")
    return tuple(arm for name, arm in NORMS.items() if name in asked)


def build(make_network: MakeNetwork, data: Data, seed: int, arm: Arm) -> nn.Module:
    """Builds one arm's network. All arms of a seed start from the same weights.

    make_network: called with (input shape, number of outputs), or with nothing if it takes no argument.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = make_network(data.shape, data.outputs) if _takes_arguments(make_network) else make_network()
    if not isinstance(network, nn.Module):
        raise InputError(f"make_network returned {type(network).__name__}, expected a torch.nn.Module")
    return network.train() if arm == "batch norm" else with_norms_replaced(network, arm).train()


def check(make_network: MakeNetwork, data: Data) -> None:
    """Raises InputError unless the network has batch norms and maps the data's inputs to its outputs."""
    network = build(make_network, data, 0, "batch norm")
    if not norms(network):
        raise InputError(
            "the network has no batch norm, so both arms would be the same; add one where you would try it"
        )
    try:
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            shape = tuple(network.eval()(data.train.x[:4]).shape)
    except Exception as error:  # the user's forward pass may raise anything
        detail = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(f"the network does not take inputs of shape {data.shape}: {detail}") from error
    allowed = {(4, data.outputs)} | ({(4,)} if data.task == "regression" else set())
    if shape not in allowed:
        raise InputError(f"the network gives outputs of shape {shape} for 4 samples, expected (4, {data.outputs})")


def norms(network: nn.Module) -> dict[str, _BatchNorm]:
    return {name: module for name, module in network.named_modules() if isinstance(module, _BatchNorm)}


def with_norms_replaced(network: nn.Module, arm: Arm = "plain") -> nn.Module:
    """A copy of the network with the same weights; the arm's `Replacement` takes the place of every batch norm."""
    network = copy.deepcopy(network)
    has_bias = True  # of the last layer before the norm, in the order of definition
    for name, module in list(network.named_modules()):
        if isinstance(module, _BatchNorm):
            parent, _, child = name.rpartition(".")
            setattr(network.get_submodule(parent), child, Replacement(module, arm, shift=not has_bias))
        elif isinstance(getattr(module, "weight", None), Tensor):
            has_bias = getattr(module, "bias", None) is not None
    return network


class Replacement(nn.Module):
    """Replaces a batch norm by the identity, a layer norm or a group norm.

    The identity adds a learned shift in place of β if the layer before has no bias. A residual and an activation of
    the batch norm are still applied. Layer norm is a group norm with one group, which takes the moments of each sample
    over channels and positions.
    """

    def __init__(self, norm: _BatchNorm, arm: Arm, shift: bool) -> None:
        super().__init__()
        C = norm.num_features
        self.norm = None
        if arm in ("layer norm", "group norm"):
            groups = 1 if arm == "layer norm" else group_count(C)
            self.norm = nn.GroupNorm(groups, C, eps=norm.eps, affine=norm.affine)
        self.shift = nn.Parameter(torch.zeros(C)) if shift and norm.affine and self.norm is None else None
        self.activation = getattr(norm, "activation", None)

    def forward(self, input: Tensor, residual: Tensor | None = None, **_: object) -> Tensor:
        if self.norm is not None:
            input = self.norm(input)
        if self.shift is not None:
            input = input + self.shift.view(1, -1, *[1] * (input.ndim - 2))
        if residual is not None:
            input = input + residual
        return input if self.activation is None else getattr(F, self.activation)(input)


def group_count(channels: int) -> int:
    """The largest number of equal groups, up to 32, with at least 8 channels each; 1 if there is none."""
    most = min(MOST_GROUPS, channels // LEAST_IN_A_GROUP)
    return max((g for g in range(1, most + 1) if channels % g == 0), default=1)


def _takes_arguments(make_network: MakeNetwork) -> bool:
    required = [
        p
        for p in inspect.signature(make_network).parameters.values()
        if p.default is p.empty and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
    ]
    if len(required) not in (0, 2):
        raise InputError(f"make_network takes {len(required)} arguments, expected none or (input shape, outputs)")
    return bool(required)
