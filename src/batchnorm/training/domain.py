"""A named population takes the place of the layers' own for the length of a `with`."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from batchnorm.training.own_layers import require_own_layers


@contextmanager
def domain(model: nn.Module, name: str, affine: bool = False) -> Iterator[None]:
    """Batch norms of `model` read and move the population `name` in place of their own.

    A name that is new starts, in training, from the layer's own population. γ and β are shared between populations,
    or with `affine` each has its own: open the domain once before the optimizer is made, so that it sees them. The
    populations are in the `state_dict`, under ``banks.<name>``.

    Raises:
        KeyError: in evaluation, a population that has not been trained.
        ValueError: a name that cannot be a key: empty, or with a dot.

    Examples:
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
    layers = [layer for layer in require_own_layers(model) if layer.running_mean is not None]
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
