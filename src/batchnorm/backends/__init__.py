"""The interface that all backends have, and the context that forces one.

On CPU the native kernels serve every call. Without a compiler, and on other devices, torch's own operator (`aten`)
serves the plain case and the reference the rest. Triton's kernels run if they are asked for, and on cards where a
measurement has shown that they are faster (`triton/table.py`).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Protocol

from torch import Tensor


class Primitives(Protocol):
    """The four primitives that any batch norm is composed of. `backends/reference.py` defines what they compute.

    x, residual and gradients are (N, C, *). Statistics and coefficients are (G, C) or (1, C) in float64, a row for each
    virtual batch. A mask holds weights ≥ 0 that broadcast over x.
    """

    def moments(
        self, x: Tensor, virtual_batch_size: int = 0, mask: Tensor | None = None
    ) -> tuple[int | Tensor, Tensor, Tensor]:
        """Count, mean, and the sum of squared deviations from it."""

    def normalize(
        self,
        x: Tensor,
        mean: Tensor,
        scale: Tensor,
        shift: Tensor,
        residual: Tensor | None = None,
        activation: str | None = None,
        virtual_batch_size: int = 0,
        mask: Tensor | None = None,
    ) -> Tensor:
        """act((x − mean)·scale + shift + residual)."""

    def backward_reduce(
        self,
        grad: Tensor,
        x: Tensor,
        mean: Tensor,
        scale: Tensor,
        shift: Tensor,
        residual: Tensor | None = None,
        activation: str | None = None,
        virtual_batch_size: int = 0,
        mask: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Σ g′ and Σ g′·(x − mean), where g′ is the gradient before the activation."""

    def backward_apply(
        self,
        grad: Tensor,
        x: Tensor,
        mean: Tensor,
        scale: Tensor,
        shift: Tensor,
        a: Tensor,
        b: Tensor,
        c: Tensor,
        residual: Tensor | None = None,
        activation: str | None = None,
        virtual_batch_size: int = 0,
        mask: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """a·g′ + b·(x − mean) + c, and g′ for the residual."""


NAMES = ("native", "triton", "aten", "reference")

_forced: ContextVar[str | None] = ContextVar("batchnorm_backend", default=None)


@contextmanager
def backend(name: str) -> Iterator[None]:
    """Use one backend for every batch norm within a `with`, in this thread.

    A call that the backend cannot serve raises an error: no other backend is tried. The backward pass uses the backend
    of its forward pass.

    Args:
        name: "native" for the C++ kernels, on CPU; "triton" for kernels on CUDA, ROCm and XPU devices, in float32,
            float16 and bfloat16; "aten" for torch's own operator, which does plain batch norm on any device;
            "reference" for plain torch operations, which do everything on any device.

    Raises:
        ValueError: an unknown name.
        RuntimeError: in a layer, a call that the backend cannot serve.

    Examples:
        >>> import torch, batchnorm as bn
        >>> with bn.backend("reference"):
        ...     y = bn.BatchNorm(3)(torch.randn(8, 3))
    """
    if name not in NAMES:
        raise ValueError(f"unknown backend {name!r}; there are {', '.join(map(repr, NAMES))}")
    token = _forced.set(name)
    try:
        yield
    finally:
        _forced.reset(token)


def forced() -> str | None:
    """The backend that a `backend` context asks for."""
    return _forced.get()
