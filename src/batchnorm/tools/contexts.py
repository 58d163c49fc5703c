"""What is remembered for the length of a `with`: nothing, a window as one batch, a named population."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from batchnorm.core.population import Window
from batchnorm.layers import BatchNorm

_lock = threading.Lock()


@contextmanager
def paused(model: nn.Module) -> Iterator[None]:
    """Batch norms of `model` go on normalising by the batch, and remember nothing of it.

    For a forward pass that is not a training step of its own: sharpness-aware minimisation, virtual adversarial
    training. May be nested and used from several threads; a layer remembers again when the last one has left.

    >>> import torch, batchnorm as bn
    >>> layer = bn.BatchNorm(3)
    >>> with bn.paused(layer):
    ...     y = layer(torch.randn(8, 3) + 5)
    >>> layer.running_mean
    tensor([0., 0., 0.])
    """
    layers = _ours(model)
    _add_to_paused(layers, 1)
    try:
        yield
    finally:
        _add_to_paused(layers, -1)


@contextmanager
def accumulate(model: nn.Module, steps: int) -> Iterator[None]:
    """The population moves once for every `steps` micro-batches, by their exactly merged moments.

    With gradient accumulation the population then moves as it would have on the one big batch (momentum counts
    steps of the optimizer). The outputs and gradients are still those of micro-batches: each is normalised by itself.
    A window that is not full at the end counts as it is; one that an exception interrupts is forgotten.

    Raises:
        ValueError: `steps` < 1, or a window is open already.

    >>> import torch, batchnorm as bn
    >>> x, layer, whole = torch.randn(32, 3), bn.BatchNorm(3), bn.BatchNorm(3)
    >>> with bn.accumulate(layer, steps=4):
    ...     outputs = [layer(micro) for micro in x.chunk(4)]
    >>> y = whole(x)
    >>> torch.allclose(layer.running_var, whole.running_var), layer.num_batches_tracked.item()
    (True, 1)
    """
    layers = _ours(model)
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")
    if any(layer._window for layer in layers):
        raise ValueError("a window of micro-batches is open already: bn.accumulate cannot be nested")
    try:
        for layer in layers:
            layer._window = Window(steps)
        yield
        for layer in layers:
            layer.close_window()
    finally:
        for layer in layers:
            layer._window = None


@contextmanager
def domain(model: nn.Module, name: str, affine: bool = False) -> Iterator[None]:
    """Batch norms of `model` read and move the population `name` in place of their own.

    A name that is new starts, in training, from the layer's own population. γ and β are shared between populations,
    or with `affine` each has its own: open the domain once before the optimizer is made, so that it sees them. The
    populations are in the `state_dict`, under ``banks.<name>``.

    Raises:
        KeyError: in evaluation, a population that has not been trained.
        ValueError: a name that cannot be a key: empty, or with a dot.

    >>> import torch, batchnorm as bn
    >>> layer = bn.BatchNorm(3)
    >>> with bn.domain(layer, "night"):
    ...     y = layer(torch.randn(8, 3) - 5)
    >>> bool((layer.banks["night"].running_mean < 0).all()), layer.running_mean
    (True, tensor([0., 0., 0.]))

    Source: Li et al. 2017, "Revisiting Batch Normalization for Practical Domain Adaptation"; Xie et al. 2020,
    "Adversarial Examples Improve Image Recognition" (auxiliary batch norm).
    """
    if not name or "." in name:
        raise ValueError(f"a population's name is a part of a key: not empty, without dots; got {name!r}")
    layers = [layer for layer in _ours(model) if layer.running_mean is not None]
    for layer in layers:
        known = list(getattr(layer, "banks", ()))
        if name not in known and not layer.training:
            raise KeyError(
                f"there is no population {name!r} to evaluate with; there are {known or 'none'}. Train it first"
            )
    for layer in layers:
        layer.add_bank(name, affine)
    before = [layer._domain for layer in layers]
    try:
        for layer in layers:
            layer._domain = name
        yield
    finally:
        for layer, previous in zip(layers, before, strict=True):
            layer._domain = previous


def _ours(model: nn.Module) -> list[BatchNorm]:
    """Our batch norms in the model; complains where there is none, since nothing would happen."""
    layers = [m for m in model.modules() if isinstance(m, BatchNorm)]
    if not layers:
        raise ValueError("this model has no batch norm of ours: bn.convert(model) first")
    return layers


def _add_to_paused(layers: list[BatchNorm], by: int) -> None:
    with _lock:
        for layer in layers:
            layer._paused += by
