"""Compute outputs of batch norms again in the backward pass instead of keeping them."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

from torch import nn

from batchnorm.training.forward_hooks import Hooks
from batchnorm.training.own_layers import require_own_layers

Mode = Literal[True, "chain"]
LINKS: dict[Mode, int] = {True: 1, "chain": 64}  # outputs of blocks that may be computed one after the other


@contextmanager
def recompute(model: nn.Module, chain: bool = False) -> Iterator[None]:
    """Do not keep the outputs of the batch norms of `model` within a `with`: the backward pass computes them again.

    A convolution, linear or pooling layer keeps its input for its gradient. If that input is the output of a batch
    norm of ours, it can be computed from the input of the batch norm, which is kept too, and from the statistics of
    each channel. The same kernel computes it when the backward pass asks for it: every gradient is the same, bit for
    bit. Activations, concatenations, maxima, sums and scaled channels of such outputs are computed again as well.

    The output of a residual block also needs the block's input. By default every second block of a stage keeps its
    output, so at most one other block is computed first. With `chain` up to 64 blocks are computed one from another:
    less is kept, but the backward pass holds the outputs of a whole stage at once.

    It works in calls of the model, or of any of its modules, with gradients; the backward pass may run outside the
    `with`. An activation that a norm applies itself, as after ``bn.convert(model, fuse=True)``, needs no extra pass.
    Nothing changes inside activation checkpoints, under backend "reference", and under torch.compile, whose partitioner
    does the same by itself. If torch's operator computes a layer, the whole operator runs once more.

    Args:
        model: our batch norms in it are recomputed, except layers with ``recompute=False``.
        chain: True to allow that a block's output is computed from another one that is computed again.

    Raises:
        ValueError: the model has no batch norm of ours.
        RuntimeError: in the backward pass, if a tensor that a gradient needs was changed in place, or a part of a
            concatenation after it was concatenated.

    Examples:
        >>> import torch, batchnorm as bn
        >>> from torch import nn
        >>> layers = nn.Conv2d(3, 8, 3), bn.BatchNorm2d(8, activation="relu"), nn.Conv2d(8, 8, 3)
        >>> model = nn.Sequential(*layers)
        >>> with bn.recompute(model):
        ...     y = model(torch.randn(2, 3, 9, 9))
        >>> y.sum().backward()

    Source: Chen et al. 2016, "Training Deep Nets with Sublinear Memory Cost" (arXiv:1604.06174), for batch norms alone;
    Rota Bulò et al. 2018 (arXiv:1712.02616) save memory at the same place by inverting the activation instead.
    """
    require_own_layers(model)
    hooks = Hooks(LINKS["chain" if chain else True])
    hooks.put_on(model)
    try:
        yield
    finally:
        hooks.take_off(model)


def check(mode: Any) -> None:
    """Raise a ValueError unless `mode` is False, True or "chain"."""
    if mode not in (False, *LINKS):
        raise ValueError(f"recompute must be False, True or 'chain'; got {mode!r}")


def attach(model: nn.Module, mode: Mode) -> None:
    """Apply `recompute` to the model until `detach`; the hooks are copied and pickled with the model.

    Raises:
        ValueError: an unknown mode.
    """
    check(mode)
    detach(model)
    Hooks(LINKS[mode], lasting=True).put_on(model)


def detach(model: nn.Module) -> None:
    """Undo `attach`."""
    for hooks in Hooks.lasting_on(model):
        hooks.take_off(model)
