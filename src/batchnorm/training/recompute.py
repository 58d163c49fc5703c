"""Outputs of batch norms are computed again for the backward pass, not kept."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

from torch import nn

from batchnorm.training.forward_hooks import Hooks
from batchnorm.training.own_layers import require_own_layers

Mode = Literal[True, "chain"]
LINKS: dict[Mode, int] = {True: 1, "chain": 64}  # outputs of blocks that may be computed one after the other


@contextmanager
def recompute(model: nn.Module, chain: bool = False) -> Iterator[None]:
    """For the length of a `with`, forward passes of `model` keep recipes in place of outputs of batch norms.

    A convolution, linear or pooling layer keeps its input for its gradient. Where that is the output of a batch norm of
    ours, with its activation and residual, it follows from the norm's own input, which is kept too, and from statistics
    of each channel: the same kernel computes it again, bit for bit, when the backward pass asks for it. Concatenations
    of such outputs, and products with something small (squeeze-and-excitation), are computed again as well.

    A residual block's output also needs the block's input. By default every second block of a stage keeps its output,
    so no more than one other is computed on the way. With `chain` up to 64 blocks follow from one another: that keeps
    less until the backward pass, where the outputs of a whole stage are then there at once.

    Takes effect in forward passes with gradients, through any module of the model, and in their backward passes wherever
    these run. Nothing changes inside activation checkpoints and under torch.compile, whose partitioner does the same by
    itself; on accelerators and without the native kernels torch's operator runs once more, which costs more.
    Activations have to be those of the norms: ``bn.convert(model, fuse=True)``.

    Raises:
        ValueError: the model has no batch norm of ours.
        RuntimeError: in the backward pass, where a tensor that is needed has been written to in place.

    >>> import torch, batchnorm as bn
    >>> from torch import nn
    >>> model = bn.convert(nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3)), fuse=True)
    >>> with bn.recompute(model):
    ...     y = model(torch.randn(2, 3, 9, 9))
    >>> y.sum().backward()
    """
    require_own_layers(model)
    hooks = Hooks(LINKS["chain" if chain else True])
    hooks.put_on(model)
    try:
        yield
    finally:
        hooks.take_off(model)


def attach(model: nn.Module, mode: Mode) -> None:
    """As `recompute`, until `detach`; the hooks are copied and pickled with the model.

    Raises:
        ValueError: an unknown mode.
    """
    if mode not in LINKS:
        raise ValueError(f"recompute must be False, True or 'chain'; got {mode!r}")
    detach(model)
    Hooks(LINKS[mode], lasting=True).put_on(model)


def detach(model: nn.Module) -> None:
    """Undo `attach`."""
    for hooks in Hooks.lasting_on(model):
        hooks.take_off(model)
