"""Merge models or state dicts: exact running statistics from many shards, ranks or federated clients."""

import copy
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from batchnorm.core.moments import Moments

Thing = TypeVar("Thing", nn.Module, dict[str, Any])


def merge(models_or_states: Sequence[Thing], weights: Sequence[float] | None = None) -> Thing:
    """Merge models (or state_dicts) into one, with the running statistics of all their data together.

    With shares w_i = weight_i / Σ weights: mean = Σ w_i·mean_i and var = Σ w_i·(var_i + (mean_i − mean)²). The second
    term is what an average of variances leaves out: the variance between the means. Other floating-point entries are
    averaged by the same shares (equal ones stay equal, bit for bit), `num_batches_tracked` is summed, anything else
    must agree.

    Args:
        models_or_states: all models of one architecture, or all state_dicts with the same keys; not changed.
        weights: the weight of each, for example its number of samples; equal by default.

    Returns:
        A copy of the first model with the merged state, or a state_dict; the arguments stay as they are.

    Raises:
        ValueError: nothing to merge, keys or shapes that differ, weights that are negative or all 0.

    Examples:
        >>> import torch, batchnorm as bn
        >>> night, day = bn.BatchNorm(1), bn.BatchNorm(1)
        >>> _ = night.running_mean.fill_(-1.0), day.running_mean.fill_(1.0)  # the variance of each is 1
        >>> both = bn.merge([night, day])
        >>> both.running_mean.item(), both.running_var.item()
        (0.0, 2.0)

    Source: Chan, Golub & LeVeque 1983, equation 2.1, by shares instead of counts.
    """
    if not models_or_states:
        raise ValueError("there is nothing to merge")
    shares = _shares(len(models_or_states), weights)
    first: Any = models_or_states[0]
    if isinstance(first, nn.Module):
        state = _merged([m.state_dict() for m in models_or_states if isinstance(m, nn.Module)], shares)
        model = copy.deepcopy(first)
        model.load_state_dict(state)
        return model  # type: ignore[return-value]
    return _merged(list(models_or_states), shares)  # type: ignore[arg-type,return-value]


def population_keys(model_or_state: nn.Module | Mapping[str, Any]) -> tuple[set[str], set[str]]:
    """Split the keys of a state_dict: those that clients share, and those of batch norms, which FedBN keeps local.

    Keys of batch norms are running statistics, counters, γ and β of each layer with a `running_mean`.

    Examples:
        >>> import batchnorm as bn
        >>> from torch import nn
        >>> from batchnorm.tools.merge import population_keys
        >>> shared, local = population_keys(nn.Sequential(nn.Linear(2, 2, bias=False), nn.BatchNorm1d(2)))
        >>> sorted(shared), len(local)
        (['0.weight'], 5)

    Source: Li et al. 2021, "FedBN: Federated learning on non-IID features via local batch normalization"
    (arXiv:2102.07623), algorithm 1.
    """
    keys = set(model_or_state.state_dict() if isinstance(model_or_state, nn.Module) else model_or_state)
    places = tuple(key.removesuffix("running_mean") for key in keys if _is(key, "running_mean"))
    parts = "running_mean", "running_var", "num_batches_tracked", "weight", "bias"
    local = keys & {place + part for place in places for part in parts}
    return keys - local, local


def _shares(count: int, weights: Sequence[float] | None) -> list[float]:
    values = [1.0] * count if weights is None else [float(w) for w in weights]
    if len(values) != count or not all(0 <= w < float("inf") for w in values) or not sum(values):
        raise ValueError(f"expected {count} weights, none negative and not all 0, got {weights}")
    return [w / sum(values) for w in values]


def _merged(states: list[dict[str, Any]], shares: list[float]) -> dict[str, Any]:
    for number, state in enumerate(states[1:], 1):
        if state.keys() != states[0].keys():
            raise ValueError(f"state {number} has other keys: {sorted(state.keys() ^ states[0].keys())}")
    merged = copy.copy(states[0])  # keeps the metadata of a state_dict
    for key in states[0]:
        merged[key] = _entry(key, [state[key] for state in states], shares)
    for key in states[0]:
        spread = key.removesuffix("running_mean") + "running_var"
        if _is(key, "running_mean") and spread in merged:
            mean, var = _populations([s[key] for s in states], [s[spread] for s in states], shares)
            merged[key], merged[spread] = mean.to(merged[key].dtype), var.to(merged[spread].dtype)
    return merged


def _populations(means: list[Tensor], variances: list[Tensor], shares: list[float]) -> tuple[Tensor, Tensor]:
    count = torch.tensor(shares, dtype=torch.float64).unsqueeze(1)
    mean, var = (torch.stack([t.detach().double().cpu() for t in many]) for many in (means, variances))
    everyone = Moments(count, mean, var * count).pooled().channels()
    return everyone.mean.to(means[0].device), everyone.variance.to(means[0].device)


def _entry(key: str, values: list[Any], shares: list[float]) -> Any:
    first = values[0]
    if not isinstance(first, Tensor):
        return first
    if any(v.shape != first.shape for v in values):
        raise ValueError(f"{key} has the shapes {', '.join(str(tuple(v.shape)) for v in values)}")
    if _is(key, "num_batches_tracked"):
        return torch.stack([v.to(first.device) for v in values]).sum(0)
    others = [v.detach().to(first.device) for v in values]
    if all(torch.equal(v, first) for v in others):
        return first.detach().clone()
    if not first.is_floating_point():
        raise ValueError(f"{key} differs and cannot be averaged: it is {first.dtype}")
    return sum(v.double() * w for v, w in zip(others, shares, strict=True)).to(first.dtype)


def _is(key: str, part: str) -> bool:
    return key == part or key.endswith(f".{part}")
