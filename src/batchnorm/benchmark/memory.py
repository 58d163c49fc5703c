"""Memory that autograd keeps between a forward pass and its backward pass."""

import itertools

import torch
from torch import Tensor, nn


def kept(model: nn.Module, *inputs: Tensor) -> int:
    """Bytes kept for the backward pass of `model`. Each storage counts once; parameters and buffers do not count.

    Examples:
        >>> import torch
        >>> from torch import nn
        >>> kept(nn.ReLU(), torch.randn(100, requires_grad=True))  # its output, 100 values of four bytes
        400
    """
    storages: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = model(*inputs)
    for own in itertools.chain(model.parameters(), model.buffers()):
        storages.pop(own.untyped_storage().data_ptr(), None)
    del output  # alive until here, because the address of a freed tensor could be used again
    return sum(storages.values())
