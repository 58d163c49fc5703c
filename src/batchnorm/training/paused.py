"""Within a `with`, batch statistics are used and the running statistics are not updated."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from batchnorm.layers import BatchNorm
from batchnorm.training.own_layers import require_own_layers

_lock = threading.Lock()


@contextmanager
def paused(model: nn.Module) -> Iterator[None]:
    """Batch norms of `model` normalise by the batch, and their running statistics are not updated.

    Use it for a forward pass that is not itself a training step, as in sharpness-aware minimisation and virtual
    adversarial training. It may be nested and used from several threads: updates resume when the last context ends.

    Args:
        model: has batch norms of ours; convert torch's first (`bn.convert`).

    Raises:
        ValueError: the model has no batch norm of ours.

    Examples:
        >>> import torch, batchnorm as bn
        >>> layer = bn.BatchNorm(3)
        >>> with bn.paused(layer):
        ...     y = layer(torch.randn(8, 3) + 5)
        >>> layer.running_mean
        tensor([0., 0., 0.])
    """
    layers = require_own_layers(model)
    _add_to_paused(layers, 1)
    try:
        yield
    finally:
        _add_to_paused(layers, -1)


def _add_to_paused(layers: list[BatchNorm], by: int) -> None:
    with _lock:
        for layer in layers:
            layer._paused += by
