"""Named running statistics, one set for each domain of the data, used within a `with`."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from batchnorm.training.own_layers import require_own_layers


@contextmanager
def domain(model: nn.Module, name: str, affine: bool = False) -> Iterator[None]:
    """Have the batch norms of `model` use and update the running statistics `name` in place of their own.

    The first use of a name, in training, copies the layer's own running statistics. The `state_dict` holds the
    statistics of each name under ``banks.<name>``.

    Args:
        model: has batch norms of ours; convert torch's first (`bn.convert`).
        name: the name of the domain, not empty and without dots.
        affine: True to give each domain its own γ and β. Then open the domain once before you make the optimizer, so
            that the optimizer gets them. By default all domains share γ and β.

    Raises:
        KeyError: in evaluation, a name that has not been trained.
        ValueError: a name that is empty or has a dot, or a model without a batch norm of ours.

    Examples:
        >>> import torch, batchnorm as bn
        >>> layer = bn.BatchNorm(3)
        >>> with bn.domain(layer, "night"):
        ...     y = layer(torch.randn(8, 3) - 5)
        >>> bool((layer.banks["night"].running_mean < 0).all()), layer.running_mean
        (True, tensor([0., 0., 0.]))

    Source: Li et al. 2016, "Revisiting Batch Normalization for Practical Domain Adaptation" (arXiv:1603.04779); Xie et
    al. 2020, "Adversarial Examples Improve Image Recognition" (auxiliary batch norm).
    """
    if not name or "." in name:
        raise ValueError(
            f"expected a name that is not empty and has no dot, since it is part of a state_dict key; got {name!r}"
        )
    layers = [layer for layer in require_own_layers(model) if layer.running_mean is not None]
    for layer in layers:
        known = list(getattr(layer, "banks", ()))
        if name not in known and not layer.training:
            raise KeyError(
                f"there are no running statistics {name!r} to evaluate with; there are {known or 'none'}. "
                "Train with that name first"
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
