"""Large outputs without page faults: fresh memory in huge pages, handed out again once nothing uses it.

The allocator gives large blocks back to the system and takes new ones, and the first write to each page of those
costs several times what writing the values does. What lies idle here is marked as free: the system takes it when it
needs memory, and asks nobody.
"""

import contextlib
import mmap
import os
import sys
import threading
import weakref

import numpy as np
import torch

_LEAST = 4 << 20  # two huge pages; below, the allocator mostly hands out memory that is in use already
_HUGE = 2 << 20


class Pool:
    """Blocks of memory in whole huge pages; at most `limit` bytes lie idle."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.idle: list[mmap.mmap] = []  # the oldest first
        self._lock = threading.RLock()  # the garbage collector may end a tensor's life while another is made

    def empty_like(self, x: torch.Tensor) -> torch.Tensor:
        block = self._take(-(-x.nbytes // _HUGE) * _HUGE)
        lease = np.frombuffer(block, np.uint8, x.nbytes)  # lives as long as the tensor's memory is used
        weakref.finalize(lease, self._give_back, block).atexit = False
        storage = torch.from_numpy(lease).untyped_storage()
        return torch.empty(0, dtype=x.dtype).set_(storage, 0, x.shape, x.stride())  # not a view: autograd minds those

    def _take(self, size: int) -> mmap.mmap:
        with self._lock:
            for i in range(len(self.idle) - 1, -1, -1):
                if len(self.idle[i]) == size:
                    return self.idle.pop(i)
        block = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        with contextlib.suppress(OSError):  # advice: a refusal changes nothing but the time
            block.madvise(mmap.MADV_HUGEPAGE)
        return block

    def _give_back(self, block: mmap.mmap) -> None:
        block.madvise(mmap.MADV_FREE)
        with self._lock:
            self.idle.append(block)
            while sum(map(len, self.idle)) > self.limit:
                self.idle.pop(0)


def _make_pool() -> Pool | None:
    if sys.platform != "linux" or os.environ.get("BATCHNORM_HUGE_PAGES") == "0":
        return None
    return Pool(limit=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 4)


pool = _make_pool()


def empty_like(x: torch.Tensor) -> torch.Tensor:
    """Uninitialised memory of `x`'s shape, dtype and strides."""
    if pool is None or x.nbytes < _LEAST:
        return torch.empty_like(x)
    return pool.empty_like(x)
