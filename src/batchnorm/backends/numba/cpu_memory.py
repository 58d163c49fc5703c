"""Large outputs without page faults: fresh memory in huge pages, used again once nothing else uses it.

The allocator gives large blocks back to the system and takes new ones, and the first write to each page of those
costs several times what writing the values does.
"""

import ctypes
import os
import sys
import threading
from collections.abc import Callable

import torch

_LEAST = 4 << 20  # two huge pages; below, the allocator mostly hands out memory that is in use already
_HUGE = 2 << 20
_MADV_HUGEPAGE = 14


class Pool:
    """Memory of outputs, in use or idle: at most `limit` bytes, or all is let go and it starts anew."""

    def __init__(self, limit: int, advise: Callable[[int, int, int], int]) -> None:
        self._limit, self._advise = limit, advise
        self._bytes = 0
        self._kept: dict[int, list[torch.UntypedStorage]] = {}  # by size
        self._lock = threading.Lock()

    def empty_like(self, x: torch.Tensor) -> torch.Tensor:
        size = x.nbytes
        with self._lock:  # until the tensor counts as a user
            kept = self._kept.get(size, ())
            for storage in kept:
                idle = torch._C._storage_Use_Count(storage._cdata) == 1
                # its last user may have resized it, or left it to another process
                if idle and storage.nbytes() == size and not storage.is_shared():
                    break
            else:
                storage = self._make(size)
            return torch.empty(0, dtype=x.dtype).set_(storage, 0, x.shape, x.stride())

    def _make(self, size: int) -> torch.UntypedStorage:
        if self._bytes + size > self._limit:
            self._kept.clear()
            self._bytes = 0
        storage = torch.UntypedStorage(size)
        start = -(-storage.data_ptr() // _HUGE) * _HUGE
        end = (storage.data_ptr() + size) // _HUGE * _HUGE
        self._advise(start, end - start, _MADV_HUGEPAGE)  # a refusal changes nothing but the time
        self._kept.setdefault(size, []).append(storage)
        self._bytes += size
        return storage


def _make_pool() -> Pool | None:
    known = hasattr(torch._C, "_storage_Use_Count")
    if sys.platform != "linux" or not known or os.environ.get("BATCHNORM_HUGE_PAGES") == "0":
        return None
    madvise = ctypes.CDLL(None).madvise
    madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    return Pool(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 8, madvise)


pool = _make_pool()


def empty_like(x: torch.Tensor) -> torch.Tensor:
    """Uninitialised memory of `x`'s shape, dtype and strides."""
    if pool is None or x.nbytes < _LEAST:
        return torch.empty_like(x)
    return pool.empty_like(x)
