"""Large outputs without page faults: fresh memory in huge pages, where the platform has them."""

import ctypes
import os
import sys
from collections.abc import Callable

import torch

_LEAST = 4 << 20  # two huge pages; below, the allocator mostly hands out memory that is in use already
_HUGE = 2 << 20
_MADV_HUGEPAGE = 14


def _find_madvise() -> Callable[[int, int, int], int] | None:
    if sys.platform != "linux" or os.environ.get("BATCHNORM_HUGE_PAGES") == "0":
        return None
    madvise = ctypes.CDLL(None).madvise
    madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    return madvise


_madvise = _find_madvise()


def empty_like(x: torch.Tensor) -> torch.Tensor:
    """Uninitialised memory of `x`'s shape, dtype and strides."""
    y = torch.empty_like(x)
    if _madvise is not None and y.nbytes >= _LEAST:
        start = -(-y.data_ptr() // _HUGE) * _HUGE
        end = (y.data_ptr() + y.nbytes) // _HUGE * _HUGE
        _madvise(start, end - start, _MADV_HUGEPAGE)  # advice: a refusal changes nothing but the time
    return y
