"""Recipes for cheap operations on outputs of batch norms, so that their results are computed again as well.

Concatenations (DenseNet, Inception, U-Net) are rebuilt from their parts. Products with a small factor
(squeeze-and-excitation) are multiplied again. Sums (residual blocks), activations that the norms do not apply
themselves and max pooling are computed again.
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
SUMS = {torch.add, Tensor.add, Tensor.__add__, Tensor.__radd__, Tensor.add_, Tensor.__iadd__}
# Functions of one tensor, each with its version that is not in place.
OF_ONE: dict[Callable[..., Any], Callable[..., Tensor]] = {
    **{f: f for f in (F.relu, F.relu6, F.hardtanh, F.leaky_relu, F.silu, F.gelu, F.hardswish, F.elu, F.mish)},
    **dict.fromkeys((torch.relu, torch.relu_, F.relu_, Tensor.relu, Tensor.relu_), torch.relu),
    **{f: f for f in (torch.max_pool1d, torch.max_pool2d, torch.max_pool3d)},
    **{f: f for f in (F.max_pool1d, F.max_pool2d, F.max_pool3d)},
}
SEEN = CONCATENATIONS | PRODUCTS | SUMS | OF_ONE.keys()
SMALL = 16  # a small factor has at most one value for this many values of the result

Plan = tuple[Callable[..., Tensor], list[Source], bool]  # of a recipe: function, inputs, whether it is a block's output


class Operations(TorchFunctionMode):
    """A mode that stores recipes for those results of a forward pass that are cheap to compute again."""

    def __init__(self, forward_pass: ForwardPass) -> None:
        super().__init__()
        self.forward_pass = forward_pass

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func not in SEEN or torch.compiler.is_compiling():
            return func(*args, **kwargs)
        with past_function_modes():  # before the call, because the operation may be in place
            plan = self._plan(func, args, kwargs)
        result = func(*args, **kwargs)
        if type(result) is Tensor:
            with past_function_modes():
                if func in CONCATENATIONS:
                    plan = self._concatenation(result, *args, **kwargs)
                elif func in PRODUCTS and not kwargs and len(args) == 2:
                    plan = self._product(result, *args)
                if plan is not None and self.forward_pass.awaits(result):
                    self.forward_pass.keep_recipe(result, *plan)
        return result

    def _plan(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Plan | None:
        passing = self.forward_pass
        if not args or not all(type(t) is Tensor for t in (args if func in SUMS else args[:1])):
            return None
        if func in OF_ONE and passing.computes(args[0]):
            settings = {**kwargs, "inplace": False} if "inplace" in kwargs else kwargs
            return partial(_of_one, OF_ONE[func], args[1:], settings), [passing.source(args[0])], False
        # the output of a residual block: a recipe for it pays only if one of its terms has a recipe
        same = func in SUMS and len(args) == 2 and not kwargs and args[0].shape == args[1].shape
        if same and any(map(passing.computes, args)) and all(map(passing.holds, args)):
            return torch.add, [passing.source(t) for t in args], True
        return None

    def _concatenation(
        self, result: Tensor, tensors: Sequence[Tensor], dim: int = 0, *, axis: int | None = None, out: Any = None
    ) -> Plan | None:
        """The recipe of a concatenation: its parts need no more memory than the result."""
        passing = self.forward_pass
        if out is not None or not passing.awaits(result, tensors):
            return None
        compute = partial(_joined, dim if axis is None else axis)
        sources: list[Source] = []
        for part in tensors:
            # a copy of a part without a gradient: it may be a buffer that is written to before the backward pass
            source = passing.source(part if part.requires_grad or passing.holds(part) else part.clone())
            nested = isinstance(source, Recipe) and _are_the_same(source.compute, compute)
            sources.extend(source.inputs if nested else [source])  # type: ignore[attr-defined]
        return compute, sources, False

    def _product(self, result: Tensor, *factors: Any) -> Plan | None:
        passing = self.forward_pass
        if not all(isinstance(t, Tensor) for t in factors):
            return None
        small = min(factors, key=Tensor.numel)
        if small.numel() * SMALL > result.numel() or not all(map(passing.holds, factors)):
            return None
        return torch.mul, [passing.source(t) for t in factors], False


def _of_one(function: Callable[..., Tensor], more: tuple[Any, ...], settings: dict[str, Any], x: Tensor) -> Tensor:
    return function(x, *more, **settings)


def _joined(dim: int, *parts: Tensor) -> Tensor:
    return torch.cat(parts, dim)


def _are_the_same(a: Callable[..., Tensor], b: "partial[Tensor]") -> bool:
    return isinstance(a, partial) and (a.func, a.args) == (b.func, b.args)
