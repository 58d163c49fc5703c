"""Observations inside a network while it trains. Nothing here changes the network."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from .arms import Replacement

PERCENTILES = (0.15, 0.5, 0.85)  # Ioffe & Szegedy 2015, figure 1
VALUES = 4096  # values per channel for percentiles, ranks and histograms; moments use all values
PROBE = 256  # training samples for the observations, the same ones throughout
BINS = 40


@dataclass
class RunLog:
    """The observations of one run. A site is the place of a batch norm, or of its replacement."""

    steps: list[int] = field(default_factory=list)
    percentiles: dict[str, list[Tensor]] = field(default_factory=dict)  # site: one (3, C) per recorded step
    scales: dict[str, list[float]] = field(default_factory=dict)  # layer: root mean square of its output
    gradients: dict[str, list[float]] = field(default_factory=dict)  # layer: the same of the gradient at its output
    normalised: dict[str, dict[str, Any]] = field(default_factory=dict)  # site: see `examine`

    def observe(self, network: nn.Module, x: Tensor, loss: Callable[[Tensor], Tensor], step: int) -> None:
        """Records one forward and backward pass of x through a copy of the network, in training mode.

        Recorded are the percentiles of every site's output, and the sizes of the output and of its gradient for every
        layer with a weight matrix or filters, in the order of the forward pass.
        """
        self.steps.append(step)
        scales: dict[str, float] = {}
        gradients: dict[str, float] = {}

        def site(name: str, module: nn.Module, args: Any, kwargs: Any, output: Tensor) -> None:
            points = torch.tensor(PERCENTILES, dtype=torch.float32)
            values = torch.quantile(_some(_per_channel(output)), points, dim=1)
            self.percentiles.setdefault(name, []).append(values)

        def layer(name: str, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            if isinstance(output, Tensor) and output.requires_grad:
                scales[name] = _size(output)
                gradients[name] = 0.0
                output.register_hook(lambda gradient: gradients.__setitem__(name, _size(gradient)))

        _run_copy(network, x, site, layer, loss)
        for recorded, found in ((self.scales, scales), (self.gradients, gradients)):
            for name, value in found.items():
                recorded.setdefault(name, []).append(value)

    def examine(self, network: nn.Module, x: Tensor) -> None:
        """Records `describe_normalised` of each batch norm; layers with a residual or an activation are left out."""

        def hook(name: str, module: nn.Module, args: Any, kwargs: Any, output: Tensor) -> None:
            alone = len(args) == 1 and kwargs.get("residual") is None
            if isinstance(module, _BatchNorm) and alone and getattr(module, "activation", None) is None:
                described = describe_normalised(_per_channel(args[0]), _per_channel(output), module)
                if described is not None:
                    self.normalised[name] = described

        _run_copy(network, x, hook)


def describe_normalised(x: Tensor, y: Tensor, norm: _BatchNorm) -> dict[str, Any] | None:
    """Mean and standard deviation of x̂ = (y − β)/γ, its rank correlation with x, and the error of the inverse.

    x, y: (C, n) input and output, one row per channel. Moments use all values, as in the layer; ranks and histograms
    use `VALUES` of them. Two kinds of channels are left out and counted: nearly constant ones (variance below 100 ε),
    which cannot get standard deviation 1, and those with |γ| < 1e-3, from which x̂ cannot be recovered. Returns None if
    no channel is left.
    """
    x, y = x.double(), y.double()
    weight = norm.weight.detach().double() if norm.affine else torch.ones(len(x)).double()
    bias = norm.bias.detach().double() if norm.affine and norm.bias is not None else torch.zeros(len(x)).double()
    mean, variance = x.mean(1, keepdim=True), x.var(1, correction=0, keepdim=True)
    usable = (variance[:, 0] > 100 * norm.eps) & (weight.abs() >= 1e-3)
    if not usable.any():
        return None
    x, mean, variance = x[usable], mean[usable], variance[usable]
    normalised = (y[usable] - bias[usable, None]) / weight[usable, None]
    deviation = (variance + norm.eps).sqrt()
    back = normalised * deviation + mean
    channel = int(variance[:, 0].argsort()[len(variance) // 2])
    return {
        "mean": normalised.mean(1).abs().max().item(),
        "std": (normalised.std(1, correction=0) - 1).abs().max().item(),
        "correlation": rank_correlation(_some(x), _some(normalised)).min().item(),
        "inverse": ((back - x).abs() / variance.sqrt()).max().item(),
        "left_out": int((~usable).sum()),
        "before": _histogram(_some(x)[channel]),
        "after": _histogram(_some(normalised)[channel]),
    }


def rank_correlation(x: Tensor, y: Tensor) -> Tensor:
    """Spearman's ρ of each row of x: (C, n) with y's; ties keep their order, so equal orders give 1."""
    ranks = [t.argsort(dim=1, stable=True).argsort(dim=1).double() for t in (x, y)]
    ranks = [r - r.mean(1, keepdim=True) for r in ranks]
    return (ranks[0] * ranks[1]).sum(1) / (ranks[0].norm(dim=1) * ranks[1].norm(dim=1))


def drift(percentiles: list[Tensor]) -> float:
    """The movement of a site's percentiles during training, as one number: the median over channels.

    For a channel it is the standard deviation over training of the 15th, 50th and 85th percentile (averaged over the
    three), in units of the channel's width, the mean distance between the outer two.
    """
    moved, width = _movement(percentiles)
    return (moved / width).median().item()


def typical_channel(percentiles: list[Tensor]) -> list[list[float]]:
    """The percentiles over training of the channel with the median drift: one [15, 50, 85] per recorded step."""
    moved, width = _movement(percentiles)
    channel = int((moved / width).argsort()[(len(moved) - 1) // 2])
    return torch.stack(percentiles)[:, :, channel].tolist()


def _movement(percentiles: list[Tensor]) -> tuple[Tensor, Tensor]:
    values = torch.stack(percentiles).double()  # (steps, 3, C)
    return values.std(0, correction=0).mean(0), (values[:, 2] - values[:, 0]).mean(0).clamp_min(1e-12)


def _histogram(values: Tensor) -> dict[str, list[float]]:
    counts, edges = torch.histogram(values, BINS)
    return {"edges": edges.tolist(), "counts": counts.tolist()}


def _per_channel(values: Tensor) -> Tensor:
    """The values as (C, n), one row per channel, from (N, C, *)."""
    return values.detach().float().transpose(0, 1).flatten(1)


def _some(rows: Tensor) -> Tensor:
    """At most `VALUES` values of each row of (C, n), evenly spaced."""
    if rows.shape[1] <= VALUES:
        return rows
    return rows[:, torch.linspace(0, rows.shape[1] - 1, VALUES).long()]


def _size(values: Tensor) -> float:
    """The root mean square."""
    return values.detach().double().square().mean().sqrt().item()


def _label(name: str, module: nn.Module) -> str:
    """A layer's name for figures; a layer of an nn.Sequential has only a number, and gets its kind before it."""
    kind = "norm" if isinstance(module, (_BatchNorm, Replacement)) else type(module).__name__
    return f"{kind} {name}" if name.rpartition(".")[2].isdigit() else name


def _run_copy(
    network: nn.Module, x: Tensor, site: Any, layer: Any = None, loss: Callable[[Tensor], Tensor] | None = None
) -> None:
    """Runs a copy in training mode, so that the network's running statistics and random state stay as they are."""
    probe = copy.deepcopy(network).train()
    for name, module in probe.named_modules():
        if isinstance(module, (_BatchNorm, Replacement)):
            module.register_forward_hook(partial(site, _label(name, module)), with_kwargs=True)
        elif layer is not None and any(p.ndim >= 2 for p in module.parameters(recurse=False)):
            module.register_forward_hook(partial(layer, _label(name, module)), with_kwargs=True)
    with torch.random.fork_rng(devices=[]), torch.set_grad_enabled(loss is not None):
        output = probe(x)
        if loss is not None:
            loss(output).backward()
