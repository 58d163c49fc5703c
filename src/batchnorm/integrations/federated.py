"""Federated learning: exact running statistics from many clients, and the arrays that a Flower-like server exchanges.

Everything here works on lists of NumPy arrays, as Flower's NumPyClient and strategies do. Flower is not imported.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from batchnorm.core.moments import Moments
from batchnorm.tools.calibrate import set_running_statistics
from batchnorm.tools.merge import merge, population_keys
from batchnorm.tools.model_populations import bank, evaluating, populations
from batchnorm.tools.sweep import Feed, Sweep, feed_by_default

Local = Literal["nothing", "statistics", "all"]
STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


def shared_keys(model: nn.Module, local: Local = "all") -> list[str]:
    """The keys of the state_dict that clients and server exchange, in the order of the state_dict.

    Args:
        model: with batch norms of torch or of ours.
        local: the part of the batch norms that stays with its client: "all" (FedBN: γ, β and statistics), "statistics"
            (SiloBN: γ and β are exchanged) or "nothing".

    Raises:
        ValueError: another `local`.

    Examples:
        >>> from torch import nn
        >>> from batchnorm.integrations.federated import shared_keys
        >>> model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.BatchNorm1d(2))
        >>> shared_keys(model), shared_keys(model, "statistics")
        (['0.weight'], ['0.weight', '1.weight', '1.bias'])

    Source: Li et al. 2021, "FedBN" (arXiv:2102.07623), algorithm 1; Andreux et al. 2020, "Siloed federated
    learning for multi-centric histopathology datasets" (SiloBN).
    """
    if local not in ("nothing", "statistics", "all"):
        raise ValueError(f'local must be "nothing", "statistics" or "all", got {local!r}')
    _, norms = population_keys(model)
    stay = {key for key in norms if local == "all" or (local == "statistics" and key.split(".")[-1] in STATISTICS)}
    return [key for key in model.state_dict() if key not in stay]


def arrays(model: nn.Module, keys: Sequence[str]) -> list[np.ndarray]:
    """Copy the entries `keys` of the state_dict to arrays, as Flower's `get_parameters` returns them.

    Args:
        model: it is not changed.
        keys: of its state_dict, for example those of `shared_keys`.

    Raises:
        KeyError: a key that the state_dict does not have.

    Examples:
        >>> import torch
        >>> from torch import nn
        >>> from batchnorm.integrations import federated
        >>> federated.arrays(nn.BatchNorm1d(2), ["running_var"])
        [array([1., 1.], dtype=float32)]
    """
    state = model.state_dict()
    return [state[key].detach().cpu().numpy().copy() for key in keys]


def load(model: nn.Module, keys: Sequence[str], values: Sequence[np.ndarray]) -> None:
    """Write arrays into the entries `keys` of the model; all others stay as they are.

    Args:
        model: changed in place.
        keys: of its state_dict.
        values: an array for each key.

    Raises:
        ValueError: another number of arrays, or a shape that does not fit; then nothing is written.

    Examples:
        >>> import numpy as np
        >>> from torch import nn
        >>> from batchnorm.integrations import federated
        >>> layer = nn.BatchNorm1d(2)
        >>> federated.load(layer, ["running_mean"], [np.array([1.0, 2.0])])
        >>> layer.running_mean
        tensor([1., 2.])
    """
    state = model.state_dict()
    if len(keys) != len(values):
        raise ValueError(f"expected {len(keys)} arrays, one for each key, got {len(values)}")
    for key, value in zip(keys, values, strict=True):
        if tuple(np.shape(value)) != tuple(state[key].shape):
            raise ValueError(
                f"expected an array of the shape {tuple(state[key].shape)} for {key}, got {np.shape(value)}"
            )
    model.load_state_dict(state | {k: torch.as_tensor(np.array(v)) for k, v in zip(keys, values, strict=True)})


def aggregate(results: Sequence[tuple[Sequence[np.ndarray], int]], keys: Sequence[str]) -> list[np.ndarray]:
    """Merge the arrays of all clients, weighted by their numbers of samples, as Flower's `aggregate` does.

    A merged running variance includes the variance between the clients' means, which an average leaves out. Counters of
    batches are summed, other floating-point arrays averaged.

    Args:
        results: of each client, its arrays and its number of samples.
        keys: the name of each array.

    Raises:
        ValueError: no results, other numbers of arrays, shapes that differ, weights that are all 0.

    Examples:
        >>> import numpy as np
        >>> from batchnorm.integrations.federated import aggregate
        >>> one, two = ([np.array([mean]), np.array([1.0])] for mean in (-1.0, 1.0))
        >>> aggregate([(one, 50), (two, 50)], ["bn.running_mean", "bn.running_var"])
        [array([0.]), array([2.])]

    Source: Chan, Golub & LeVeque 1983, by shares instead of counts, as `bn.merge`.
    """
    for number, (values, _) in enumerate(results):
        if len(values) != len(keys):
            raise ValueError(f"client {number} sent {len(values)} arrays, and there are {len(keys)} keys")
    states = [
        {key: torch.as_tensor(np.array(value)) for key, value in zip(keys, values, strict=True)}
        for values, _ in results
    ]
    merged: dict[str, Any] = merge(states, weights=[samples for _, samples in results])
    return [merged[key].numpy() for key in keys]


def client_moments(
    model: nn.Module, batches: Any, *, feed: Feed = feed_by_default, limit: int | None = None
) -> list[np.ndarray]:
    """Take count, mean and m2 of the input of each batch norm over one client's data: an array (3, C) for each layer.

    The model runs in evaluation mode and is not changed. The layers are in the order of the model; frozen ones are left
    out. The arrays hold sums over samples and no sample.

    Args:
        model: the one that all clients have; it is not changed.
        batches: a list, a DataLoader or a function that returns an iterator.
        feed: as that of `bn.calibrate`.
        limit: the same.

    Raises:
        ValueError: the model has no batch norm whose running statistics are updated.
        FloatingPointError: NaN or Inf in the input of a layer.

    Examples:
        >>> import torch
        >>> from torch import nn
        >>> from batchnorm.integrations import federated
        >>> federated.client_moments(nn.BatchNorm1d(1), [torch.tensor([[1.0], [3.0]])])[0].tolist()
        [[2.0], [2.0], [2.0]]

    Source: Chan, Golub & LeVeque 1983, as `Moments`.
    """
    layers = _layers(model)
    found: dict[str, Moments] = {}

    def take(name: str, layer: nn.Module, moments: Moments, samples: int) -> None:
        found[name] = found[name].merge(moments) if name in found else moments

    with evaluating(model):
        Sweep(model, layers, batches, feed, limit, progress=False).each_batch(take)
    return [_packed(found.get(name), layer.num_features) for name, layer in layers.items()]


def set_population(model: nn.Module, clients: Iterable[Sequence[np.ndarray]]) -> None:
    """Set the running statistics of every batch norm to those of all clients' data together.

    The first batch norm is exact at once. The input of the second one depends on the statistics of the first one, so it
    is exact after a second round of `client_moments` and `set_population` with the same weights, and so on. Counters of
    batches stay as they are.

    Args:
        model: the one that `client_moments` was called with; changed in place.
        clients: the `client_moments` of each.

    Raises:
        ValueError: no clients, arrays of another shape, or a layer with fewer than two values in all of the data; then
            nothing is set.

    Examples:
        >>> import torch
        >>> from torch import nn
        >>> from batchnorm.integrations import federated
        >>> layer = nn.BatchNorm1d(1)
        >>> clients = [federated.client_moments(layer, [torch.tensor(x)]) for x in ([[1.0], [2.0]], [[6.0]])]
        >>> federated.set_population(layer, clients)
        >>> layer.running_mean.item(), layer.running_var.item()
        (3.0, 7.0)

    Source: Chan, Golub & LeVeque 1983, "Algorithms for computing the sample variance", equation 2.1.
    """
    layers, everyone = _layers(model), [list(client) for client in clients]
    if not everyone:
        raise ValueError("expected the moments of at least one client, got none")
    shapes = [(3, layer.num_features) for layer in layers.values()]
    for number, client in enumerate(everyone):
        if [np.shape(array) for array in client] != shapes:
            raise ValueError(
                f"client {number} sent arrays of the shapes {[np.shape(a) for a in client]}, expected {shapes}"
            )
    pooled = {}
    for name, parts in zip(layers, zip(*everyone, strict=True), strict=True):
        count, mean, m2 = torch.as_tensor(np.stack(parts), dtype=torch.float64).unbind(1)
        pooled[name] = Moments(count, mean, m2).pooled().channels()
        if bool((torch.as_tensor(pooled[name].count) <= 1).any()):
            raise ValueError(f"{name} saw fewer than two values per channel in all the data: one value has no variance")
    for name, layer in layers.items():
        counter = bank(layer).num_batches_tracked
        set_running_statistics(name, layer, pooled[name], 0 if counter is None else int(counter))


def _layers(model: nn.Module) -> dict[str, Any]:
    layers = populations(model)
    if not layers:
        raise ValueError("the model has no batch norm whose running statistics are updated: none, or all are frozen")
    return layers


def _packed(moments: Moments | None, channels: int) -> np.ndarray:
    if moments is None:
        return np.zeros((3, channels))
    count = torch.zeros_like(moments.mean) + moments.count
    return torch.stack([count, moments.mean, moments.m2]).double().cpu().numpy()
