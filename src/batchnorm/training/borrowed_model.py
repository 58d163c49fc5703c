"""Prepare a model for `big_batch`: convert and name its batch norms, switch compilation off, refuse wrappers."""

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from batchnorm.layers import BatchNorm
from batchnorm.tools import registry
from batchnorm.tools.convert import convert, revert


@contextmanager
def borrowed(model: nn.Module) -> Iterator[None]:
    """Convert torch's batch norms of `model`, name each layer, and switch torch.compile off, within a `with`.

    Compiled code cannot wait for other micro-batches in the middle of a graph.

    Raises:
        TypeError: a wrapper that moves parameters or samples by itself (DataParallel, FSDP).
        ValueError: a batch norm that normalises by the batch and is neither ours nor one that `convert` converts.
    """
    _refuse_wrappers(model)
    _refuse_strangers(model)
    lent, names = [], {}
    with ExitStack() as stack:
        if "torch._dynamo" in sys.modules:
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        try:
            for name, layer in model.named_modules():
                if registry.knows(layer):
                    lent.append(layer)
                    convert(layer)
                if isinstance(layer, BatchNorm):
                    names[layer] = layer._name
                    layer._name = name or "(the model itself)"
            yield
        finally:
            for layer, old in names.items():
                layer._name = old
            for layer in lent:
                revert(layer)


def _refuse_wrappers(model: nn.Module) -> None:
    for name, module in model.named_modules():
        kinds = {f"{c.__module__}.{c.__name__}" for c in type(module).__mro__}
        for kind in kinds:
            if kind == "torch.nn.parallel.data_parallel.DataParallel" or kind.startswith("torch.distributed.fsdp."):
                raise TypeError(
                    f"big_batch cannot run {name or 'the model'} in {type(module).__name__}, which moves parameters or "
                    "samples in its own threads and hooks; pass the model itself, or in DistributedDataParallel"
                )


def _refuse_strangers(model: nn.Module) -> None:
    strangers = [
        f"{name or '(the model itself)'} ({type(layer).__name__})"
        for name, layer in model.named_modules()
        if isinstance(layer, _BatchNorm) and not isinstance(layer, BatchNorm) and not registry.knows(layer)
        and (layer.training or layer.running_mean is None)
    ]  # fmt: skip
    if strangers:
        raise ValueError(
            f"these batch norms would normalise each micro-batch by itself: {', '.join(strangers)}. bn.register their "
            "class if it only adds a name to torch's, run a batch through the model first if they are lazy, or .eval() "
            "them"
        )
