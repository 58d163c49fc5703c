"""The state of a batch norm, from a model or from the keys of a state dict."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

DEFAULT_EPS = 1e-5
MOST_CHANNELS = 2**24  # a file may claim any shape: more than this is refused before it is copied


@dataclass(frozen=True)
class LayerState:
    """The running statistics and affine parameters of one layer, each `(C,)`, or None if it has none."""

    name: str
    mean: Tensor
    var: Tensor
    weight: Tensor | None = None
    bias: Tensor | None = None
    counter: int | None = None
    eps: float | None = None
    momentum: float | None = None
    network: str = ""  # its place in a file that holds several

    @property
    def known_eps(self) -> float:
        """eps, or torch's default if the file does not store it."""
        return DEFAULT_EPS if self.eps is None else self.eps

    def tensors(self) -> dict[str, Tensor]:
        """The statistics and the affine parameters that the layer has, by torch's names."""
        named = {"running_mean": self.mean, "running_var": self.var, "weight": self.weight, "bias": self.bias}
        return {name: t for name, t in named.items() if t is not None}

    def numbers(self) -> dict[str, Any]:
        """The layer's numbers for the report; σ and |γ| as (smallest, median, largest) over the channels."""
        gamma = {} if self.weight is None else {"γ": _spread(self.weight.abs())}
        sigma = _spread(self.var.clamp(min=0).sqrt())
        return {"channels": len(self.mean), "updates": self.counter, "σ": sigma, **gamma}


def norms(model: nn.Module) -> dict[str, _BatchNorm]:
    """Every batch norm by name; instance norms are left out."""
    found = model.named_modules()
    return {name or type(module).__name__: module for name, module in found if isinstance(module, _BatchNorm)}


def of_model(model: nn.Module) -> list[LayerState]:
    """States of the batch norms that have running statistics."""
    layers = []
    for name, layer in norms(model).items():
        if layer.running_mean is not None and layer.running_var is not None:
            state = {k: v for k, v in layer.state_dict().items() if isinstance(v, Tensor)}
            layers.append(layer_state(name, state, layer.eps, layer.momentum))
    return layers


def of_state_dict(state: Mapping[str, Tensor]) -> list[LayerState]:
    """States of the layers recognised by their running_mean and running_var."""
    layers = []
    for key in state:
        prefix = key.removesuffix("running_mean")
        if prefix != key and prefix + "running_var" in state:
            own = {k[len(prefix) :]: v for k, v in state.items() if k.startswith(prefix)}
            layers.append(layer_state(printable(prefix.rstrip(".")) or "(root)", own))
    return layers


def printable(name: str) -> str:
    """A name from a file with its control characters written as escapes, so that a terminal does not execute them."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in name)


def layer_state(
    name: str, own: Mapping[str, Tensor], eps: float | None = None, momentum: float | None = None
) -> LayerState:
    """A layer's state from its tensors by torch's names; raises ValueError if these do not fit together."""
    mean, var = own["running_mean"], own["running_var"]
    affine = {key: own.get(key) for key in ("weight", "bias")}
    shapes = {tuple(t.shape) for t in (mean, var, *affine.values()) if t is not None}
    if len(shapes) != 1 or mean.dim() != 1:
        raise ValueError(f"{name!r}: expected one shape (C,), got {sorted(shapes)}")
    if not 1 <= mean.numel() <= MOST_CHANNELS or mean.is_complex() or var.is_complex():
        raise ValueError(f"{name!r}: expected 1 to {MOST_CHANNELS} real channels, got {mean.numel()} of {mean.dtype}")
    count = own.get("num_batches_tracked")
    if count is not None and count.numel() != 1:
        raise ValueError(f"{name!r}: num_batches_tracked must be one number")
    mean64, var64 = (t.detach().cpu().double() for t in (mean, var))
    weight, bias = (None if t is None else t.detach().cpu().double() for t in affine.values())
    counter = None if count is None else int(count)
    return LayerState(name, mean64, var64, weight, bias, counter, eps, momentum)


def _spread(values: Tensor) -> list[float]:
    return [float(f()) for f in (values.min, values.median, values.max)] if values.numel() else []
