"""Cheap operations on outputs of batch norms, whose results are computed again as well.

Concatenations (DenseNet, Inception, U-Net) are rebuilt from their parts. Products with something small
(squeeze-and-excitation) are multiplied again.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from batchnorm.core.torch_internals import past_function_modes
from batchnorm.training.forward_pass import ForwardPass

CONCATENATIONS = {torch.cat, torch.concat, torch.concatenate}
PRODUCTS = {torch.mul, torch.multiply, Tensor.mul, Tensor.multiply, Tensor.__mul__, Tensor.__rmul__}
SEEN = CONCATENATIONS | PRODUCTS
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
        if func in SEEN:
            if func in CONCATENATIONS:
                self._concatenation(result, *args, **(kwargs or {}))
            elif not kwargs:
                self._product(result, *args)
        return result

    def _concatenation(
        self, result: Tensor, tensors: Any, dim: int = 0, *, axis: int | None = None, out: Tensor | None = None
    ) -> None:
        """Parts cost no more than the result, even those that nothing else keeps."""
        if torch.compiler.is_compiling() or out is not None or not result.requires_grad:
            return
        with past_function_modes():
            # a part without a gradient may be a buffer that its owner writes again before the backward pass
            parts = [t if t.requires_grad or self.forward_pass.holds(t) else t.clone() for t in tensors]
        self.forward_pass.record(result, partial(_joined, dim if axis is None else axis), parts)

    def _product(self, result: Any, *factors: Any) -> None:
        if torch.compiler.is_compiling() or len(factors) != 2 or not all(type(t) is Tensor for t in factors):
            return
        with past_function_modes():
            small = min(factors, key=Tensor.numel)
            cheap = small.numel() * SMALL <= result.numel() and all(map(self.forward_pass.holds, factors))
        if cheap:
            self.forward_pass.record(result, torch.mul, factors)


def _joined(dim: int, *parts: Tensor) -> Tensor:
    return torch.cat(parts, dim)
