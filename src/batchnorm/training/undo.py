"""Put a model's buffers and the other state of its batch norms back if a step fails."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from batchnorm.training.own_layers import own_layers

COUNTS = ("_skips", "_skips_reported", "_window")


@contextmanager
def unchanged_unless_finished(model: nn.Module) -> Iterator[None]:
    """If the block fails or is interrupted, restore all buffers of `model`, bit for bit.

    The windows of `bn.accumulate` and the counts of skipped batches are restored too.
    """
    buffers = [
        (module, name, buffer, buffer.detach().clone())
        for module in model.modules()
        for name, buffer in module.named_buffers(recurse=False)
    ]
    counts = [(layer, {name: _copy(getattr(layer, name)) for name in COUNTS}) for layer in own_layers(model)]
    try:
        yield
    except BaseException:
        with torch.no_grad():
            for module, name, buffer, value in buffers:
                buffer.copy_(value)
                module._buffers[name] = buffer
        for layer, values in counts:
            layer.__dict__.update(values)
        raise


def _copy(value: object) -> object:
    return value.clone() if isinstance(value, Tensor) else copy.copy(value)
