"""Within a `with`, a window of micro-batches updates the running statistics once, as one batch."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from batchnorm.core.population import Window
from batchnorm.training.own_layers import require_own_layers


@contextmanager
def accumulate(model: nn.Module, steps: int) -> Iterator[None]:
    """The population moves once for every `steps` micro-batches, by their exactly merged moments.

    With gradient accumulation the population then moves as it would have on the one big batch (momentum counts
    steps of the optimizer). The outputs and gradients are still those of micro-batches: each is normalised by itself.
    A window that is not full at the end counts as it is; one that an exception interrupts is dropped.

    Raises:
        ValueError: `steps` is no whole number ≥ 1, or a window is open already.

    Examples:
        >>> import torch, batchnorm as bn
        >>> x, layer, whole = torch.randn(32, 3), bn.BatchNorm(3), bn.BatchNorm(3)
        >>> with bn.accumulate(layer, steps=4):
        ...     outputs = [layer(micro) for micro in x.chunk(4)]
        >>> y = whole(x)
        >>> torch.allclose(layer.running_var, whole.running_var), layer.num_batches_tracked.item()
        (True, 1)
    """
    layers = require_own_layers(model)
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
        raise ValueError(f"steps must be a whole number of micro-batches ≥ 1, got {steps!r}")
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
