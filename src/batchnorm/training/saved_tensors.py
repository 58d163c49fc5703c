"""Objects that autograd saves in place of tensors: the tensor itself, or a recipe that computes it in backward."""

from collections.abc import Callable, Sequence
from typing import Any, Protocol, cast

import torch
from torch import Tensor
from torch.utils.weak import TensorWeakRef

from batchnorm.core.torch_internals import version


class Source(Protocol):
    """A source of a tensor. `links` counts the block outputs that are computed one after the other for it."""

    @property
    def links(self) -> int: ...

    def get(self) -> Tensor:
        """The tensor."""

    def add_reader(self) -> None:
        """Count one more caller of `get` in each backward pass."""


class Kept:
    """A tensor that is kept in memory.

    With saved-tensor hooks, torch does not check saved tensors for changes in place, so `get` does.
    """

    __slots__ = ("__weakref__", "facts", "original", "outer", "tensor", "version")
    links = 0

    def __init__(self, tensor: Tensor) -> None:
        # detached: otherwise a saved output and its node would keep each other alive
        self.tensor: Any = tensor if tensor.is_leaf and tensor.requires_grad else tensor.detach()
        self.version = version(tensor)
        self.outer: OuterHooks | None = None

    def hand_over(self, tensor: Tensor, outer: "OuterHooks") -> None:
        """Have the saved-tensor hooks of the user pack the tensor; they may copy it."""
        self.original, self.facts, self.outer = TensorWeakRef(tensor), (tensor.dtype, *geometry(tensor)), outer
        with torch.no_grad():
            self.tensor = outer.pack(tensor)

    def covers(self, tensor: Tensor) -> bool:
        """True if the memory of `tensor`, which has the same address, is kept here with its present values."""
        if version(tensor) != self.version:
            return False
        original = None if self.outer is None else self.original()
        # a live tensor may have other memory by now (`.data`, `bn.big_batch(offload=)`)
        return self.outer is None or (original is not None and _address(original) == _address(tensor))

    def is_all_of(self, tensor: Tensor) -> bool:
        """True if `tensor`, which has the same address, equals the kept one: values, dtype and geometry."""
        facts = self.facts if self.outer is not None else (self.tensor.dtype, *geometry(self.tensor))
        return self.covers(tensor) and facts == (tensor.dtype, *geometry(tensor))

    def get(self) -> Tensor:
        if self.outer is not None:
            return self.outer.unpack(self.tensor)
        tensor = cast(Tensor, self.tensor)
        if version(tensor) != self.version:
            raise RuntimeError(
                "one of the variables needed for gradient computation has been modified by an inplace operation: a "
                f"{tensor.dtype} tensor of shape {tuple(tensor.shape)} is at version {version(tensor)}; expected "
                f"version {self.version}. bn.recompute needs it, or a tensor computed from it. Use the operation that "
                "is not in place, or leave bn.recompute out"
            )
        return tensor

    def add_reader(self) -> None:
        pass


class OuterHooks:
    """The saved-tensor hooks that the user had set before ours."""

    def __init__(self, pack: Callable[[Tensor], Any], unpack: Callable[[Any], Tensor]) -> None:
        self.pack, self.unpack = pack, unpack


class Recipe:
    """A tensor that is computed when it is needed: ``compute(*inputs)``.

    The result is held from the first of the expected readers to the last, so that it is computed once in a backward
    pass.
    """

    __slots__ = ("compute", "inputs", "left", "links", "readers", "result")

    def __init__(self, compute: Callable[..., Tensor], inputs: Sequence[Source | None], links: int) -> None:
        self.compute, self.inputs, self.links = compute, inputs, links
        self.readers = self.left = 0
        self.result: Tensor | None = None

    def add_reader(self) -> None:
        self.readers += 1
        if self.readers == 1:
            for source in self.inputs:
                if source is not None:
                    source.add_reader()

    def get(self) -> Tensor:
        result = self.result
        if result is None:
            with torch.no_grad():
                result = self.compute(*(None if source is None else source.get() for source in self.inputs))
            self.left = self.readers
        self.left -= 1
        self.result = result if self.left > 0 else None
        return result


class View:
    """A view of the tensor of a recipe."""

    __slots__ = ("geometry", "whole")

    def __init__(self, whole: Recipe, tensor: Tensor) -> None:
        self.whole, self.geometry = whole, geometry(tensor)

    @property
    def links(self) -> int:
        return self.whole.links

    def get(self) -> Tensor:
        return self.whole.get().as_strided(*self.geometry)

    def add_reader(self) -> None:
        self.whole.add_reader()


class Saved:
    """The object that autograd keeps in place of a tensor."""

    __slots__ = ("source",)

    def __init__(self, source: Source) -> None:
        self.source = source

    def replace(self, source: Source) -> None:
        source.add_reader()
        self.source = source


def _address(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def geometry(tensor: Tensor) -> tuple[Any, ...]:
    """Sizes, strides and offset."""
    return tensor.shape, tensor.stride(), tensor.storage_offset()


def unpack(saved: Saved) -> Tensor:
    """The tensor for the backward pass."""
    return saved.source.get()
