"""Within a `with`, a window of micro-batches updates the running statistics once, as one batch."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from batchnorm.core.population import Window
from batchnorm.training.own_layers import require_own_layers


@contextmanager
def accumulate(model: nn.Module, steps: int | None = None) -> Iterator[None]:
    """Update the running statistics once for every `steps` micro-batches, by their exactly merged moments.

    With gradient accumulation the running statistics are then the same as in training on the one big batch (`momentum`
    counts steps of the optimizer). Outputs and gradients are still those of micro-batches, each normalised by its own
    statistics. An incomplete window at the end counts too; a window that an exception interrupts does not.

    Args:
        model: has batch norms of ours; convert torch's first (`bn.convert`).
        steps: the number of micro-batches in a window; None for one window of all micro-batches in the block.

    Raises:
        ValueError: `steps` is not a whole number ≥ 1, a window is open already, or the model has no batch norm of ours.

    Examples:
        >>> import torch, batchnorm as bn
        >>> x, layer, whole = torch.randn(32, 3), bn.BatchNorm(3), bn.BatchNorm(3)
        >>> with bn.accumulate(layer, steps=4):
        ...     outputs = [layer(micro) for micro in x.chunk(4)]
        >>> y = whole(x)
        >>> torch.allclose(layer.running_var, whole.running_var), layer.num_batches_tracked.item()
        (True, 1)

    Source: the merge is that of Chan, Golub & LeVeque 1983 (`Moments.merge`).
    """
    open_windows(model, steps)
    try:
        yield
        close_windows(model)
    finally:
        forget_windows(model)


def open_windows(model: nn.Module, steps: int | None = None) -> None:
    """Start the window of `accumulate`, for loops that cannot hold a `with` open from one call to the next."""
    layers = require_own_layers(model)
    if steps is not None and (isinstance(steps, bool) or not isinstance(steps, int) or steps < 1):
        raise ValueError(f"steps must be a whole number of micro-batches ≥ 1, got {steps!r}")
    if have_windows(model):
        raise ValueError("a window of micro-batches is open already: bn.accumulate cannot be nested")
    for layer in layers:
        layer._window = Window(steps)


def have_windows(model: nn.Module) -> bool:
    """True while a window is open."""
    return any(layer._window is not None for layer in require_own_layers(model))


def close_windows(model: nn.Module) -> None:
    """End the window: its micro-batches together count as one batch."""
    for layer in require_own_layers(model):
        layer.close_window()


def forget_windows(model: nn.Module) -> None:
    """End the window without an update of the running statistics."""
    for layer in require_own_layers(model):
        layer._window = None
