"""The order in which the batch norms of a model depend on each other, for exact statistics.

Each tensor has a level: the largest number of batch norms on a path from the input to it. Levels are recorded at every
operator that runs, with or without gradients, so the order is that of the calls that were made.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn.modules.batchnorm import _BatchNorm

from batchnorm.core.torch_internals import TorchDispatchMode, tree_leaves

Use = tuple[str, int]  # a layer's name, and the number of the call in one forward pass


def levels(model: nn.Module, layers: dict[str, _BatchNorm], run: Callable[[], Any]) -> list[list[Use]]:
    """The calls of `layers` in `run()`, grouped so that each call depends only on calls of earlier groups."""
    tracker = _Levels({_storage(t) for t in [*model.parameters(), *model.buffers()]})
    found: dict[Use, int] = {}
    calls = dict.fromkeys(layers, 0)

    def before(name: str, inputs: Any) -> None:
        found[name, calls[name]] = tracker.level_of(inputs)
        calls[name] += 1

    handles = []
    for name, layer in layers.items():
        handles.append(
            layer.register_forward_pre_hook(
                lambda _, args, kwargs, name=name: before(name, (args, kwargs)), with_kwargs=True
            )
        )
        handles.append(layer.register_forward_hook(lambda _, __, output: tracker.raise_to(output)))
    try:
        with tracker, torch.no_grad():
            run()
    finally:
        for handle in handles:
            handle.remove()
    return [[use for use, level in found.items() if level == wanted] for wanted in sorted(set(found.values()))]


class _Levels(TorchDispatchMode):
    """Levels per storage: views and in-place operators share one."""

    def __init__(self, constants: set[StorageWeakRef]) -> None:
        super().__init__()
        self.level = dict.fromkeys(constants, 0)
        self.highest = 0  # of any batch norm's output so far
        self.floor = 0  # a value that Python has read (`.item()`) may affect every later tensor

    def level_of(self, values: Any) -> int:
        tensors = [t for t in tree_leaves(values) if isinstance(t, Tensor)]
        # A tensor that no recorded operator made, first seen after a batch norm, may depend on every earlier one.
        return max([self.floor, *(self.level.setdefault(_storage(t), self.highest) for t in tensors)])

    def raise_to(self, output: Tensor) -> None:
        level = self.level_of(output) + 1
        self.level[_storage(output)] = level
        self.highest = max(self.highest, level)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        level = self.level_of((args, kwargs))
        output = func(*args, **kwargs)
        made = [t for t in tree_leaves(output) if isinstance(t, Tensor)]
        if not made and func is torch.ops.aten._local_scalar_dense.default:
            self.floor = max(self.floor, level)
        writes = [
            value
            for value, argument in zip(args, func._schema.arguments, strict=False)
            if argument.alias_info is not None and argument.alias_info.is_write
        ]
        for t in [*made, *(t for t in tree_leaves(writes) if isinstance(t, Tensor))]:
            self.level[_storage(t)] = level
        return output


def _storage(t: Tensor) -> StorageWeakRef:
    """A weak reference to the storage: it keeps no data, but while it lives no other storage gets the same address."""
    return StorageWeakRef(t.untyped_storage())
