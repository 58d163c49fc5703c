"""The backends that this machine has, for tests of one of them."""

from contextlib import AbstractContextManager, nullcontext

import pytest

import batchnorm as bn
from batchnorm.backends import forced, native

NATIVE = native.available()
needs_native = pytest.mark.skipif(not NATIVE, reason="the native kernels are switched off, or there is no compiler")


def on(backend: str) -> AbstractContextManager[None]:
    """The backend of this name; "default" is what the device gets: native, or torch's operator and the reference."""
    return nullcontext() if backend == "default" else bn.backend(backend)


def as_torch() -> bool:
    """True if a plain batch norm runs torch's operator: it is then as exact as torch, and no more."""
    return not NATIVE and forced() is None
