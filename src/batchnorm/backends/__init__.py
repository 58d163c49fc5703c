"""The device table: which kernels serve which tensor, and how to force some."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from importlib import import_module
from types import ModuleType

from torch import Tensor

from batchnorm.backends import reference

# Kernels beside the reference, each for the device of its name; loaded when the first tensor comes.
# What they do not support runs the reference, unless `backend` asks for them.
KERNELS = {"cpu": "batchnorm.backends.numba.cpu"}

_forced: ContextVar[str | None] = ContextVar("batchnorm_backend", default=None)


@contextmanager
def backend(name: str) -> Iterator[None]:
    """Have every batch norm in this context (of this thread) run the kernels `name`: "reference" or "cpu".

    What those cannot serve is an error, never another backend in silence. The backward pass runs the kernels that
    its forward pass ran.

    Raises:
        ValueError: an unknown name.
        RuntimeError: in a layer, a tensor that the backend cannot serve.

    >>> import torch, batchnorm as bn
    >>> with bn.backend("reference"):
    ...     y = bn.BatchNorm(3)(torch.randn(8, 3))
    """
    if name != "reference" and name not in KERNELS:
        raise ValueError(f"unknown backend {name!r}; there are 'reference', {', '.join(map(repr, KERNELS))}")
    token = _forced.set(name)
    try:
        yield
    finally:
        _forced.reset(token)


@cache
def _load(name: str) -> ModuleType:
    return import_module(KERNELS[name])


def kernels_for(x: Tensor, mask: Tensor | None = None) -> ModuleType:
    """The kernels that serve `x`."""
    forced = _forced.get()
    name = forced or x.device.type
    if name not in KERNELS or x.numel() == 0:  # nothing to serve: any will do
        return reference
    kernels = _load(name)
    if kernels.supports(x, mask):
        return kernels
    if forced:
        masked = "" if mask is None else f" and mask {tuple(mask.shape)}"
        raise RuntimeError(
            f"backend {name!r} was asked for and cannot serve {x.dtype} {tuple(x.shape)} on {x.device}{masked}; "
            "use bn.backend('reference'), or none"
        )
    return reference
