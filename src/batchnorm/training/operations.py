"""Cheap operations on outputs of batch norms, whose results are computed again as well.

Concatenations (DenseNet, Inception, U-Net) are rebuilt from their parts. Products with something small
(squeeze-and-excitation) are multiplied again. Sums (residual blocks that add after the activation) are added again.
Maxima are taken again.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from batchnorm.core.torch_internals import past_function_modes
from batchnorm.training.forward_pass import ForwardPass
from batchnorm.training.saved_tensors import Recipe, Source

CONCATENATIONS = {torch.cat, torch.concat, torch.concatenate}
PRODUCTS = {torch.mul, torch.multiply, Tensor.mul, Tensor.multiply, Tensor.__mul__, Tensor.__rmul__}
SUMS = {torch.add, Tensor.add, Tensor.__add__, Tensor.__radd__}
POOLS = {torch.max_pool1d, torch.max_pool2d, torch.max_pool3d, F.max_pool1d, F.max_pool2d, F.max_pool3d}
SEEN = CONCATENATIONS | PRODUCTS | SUMS | POOLS
SMALL = 16  # a factor with at most one value for so many of the result's


class Operations(TorchFunctionMode):
    """Sees the operations of a forward pass and records the results that are cheap to compute again."""

    def __init__(self, forward_pass: ForwardPass) -> None:
        super().__init__()
        self.forward_pass = forward_pass

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **kwargs) if kwargs else func(*args)
        if func in SEEN and not torch.compiler.is_compiling():
            with past_function_modes():
                if func in CONCATENATIONS:
                    self._concatenation(result, *args, **(kwargs or {}))
                elif func in POOLS:
                    self._pool(result, func, *args, **(kwargs or {}))
                elif not kwargs and len(args) == 2 and all(type(t) is Tensor for t in args):
                    (self._product if func in PRODUCTS else self._sum)(result, *args)
        return result

    def _concatenation(
        self, result: Tensor, tensors: Sequence[Tensor], dim: int = 0, *, axis: int | None = None, out: Any = None
    ) -> None:
        """Parts cost no more than the result, even those that nothing else keeps."""
        passing = self.forward_pass
        if out is not None or not passing.awaits(result, tensors):
            return
        compute = partial(_joined, dim if axis is None else axis)
        sources: list[Source] = []
        for part in tensors:
            # a part without a gradient may be a buffer that its owner writes again before the backward pass
            source = passing.source(part if part.requires_grad or passing.holds(part) else part.clone())
            nested = isinstance(source, Recipe) and _are_the_same(source.compute, compute)
            sources.extend(source.inputs if nested else [source])  # type: ignore[attr-defined]
        passing.remember(result, compute, sources)

    def _product(self, result: Tensor, *factors: Tensor) -> None:
        passing = self.forward_pass
        small = min(factors, key=Tensor.numel)
        if small.numel() * SMALL <= result.numel() and all(map(passing.holds, factors)):
            passing.record(result, torch.mul, factors)

    def _sum(self, result: Tensor, *terms: Tensor) -> None:
        """The sum takes the place of what a block adds to: one of the terms has to be a recipe for it to pay."""
        passing = self.forward_pass
        if terms[0].shape == terms[1].shape and any(map(passing.computes, terms)) and all(map(passing.holds, terms)):
            passing.record(result, torch.add, terms, residual=terms[0])

    def _pool(self, result: Any, pool: Callable[..., Tensor], input: Tensor, *window: Any, **more: Any) -> None:
        if type(result) is Tensor and self.forward_pass.computes(input):  # not with indices
            self.forward_pass.record(result, partial(_pooled, pool, window, more), [input])


def _pooled(pool: Callable[..., Tensor], window: tuple[Any, ...], more: dict[str, Any], x: Tensor) -> Tensor:
    return pool(x, *window, **more)


def _joined(dim: int, *parts: Tensor) -> Tensor:
    return torch.cat(parts, dim)


def _are_the_same(a: Callable[..., Tensor], b: "partial[Tensor]") -> bool:
    return isinstance(a, partial) and (a.func, a.args) == (b.func, b.args)
