"""Return large blocks of memory to the system as soon as they are freed, within a `with`."""

import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h
INITIAL, LARGEST = 128 * 2**10, 32 * 2**20  # glibc's threshold: at the start, and at most
SETTINGS = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES")


@contextmanager
def returned_memory() -> Iterator[None]:
    """Have glibc map each block of 128 KiB or more separately, as it does in a process that has just started.

    After large blocks were freed, glibc raises this threshold, and each thread keeps freed blocks of up to 32 MiB. With
    a thread for each micro-batch, these were most of the memory of a step. (ResNet-18, 16 micro-batches of 8 images of
    96 pixels, highest VmRSS of a step: 105 MiB with this, 498 MiB without.) Thresholds that the user has set stay, and
    other allocators are not changed.
    """
    mallopt = None if any(name in os.environ for name in SETTINGS) else _mallopt()
    if mallopt is None:
        yield
        return
    try:
        mallopt(M_MMAP_THRESHOLD, INITIAL)
        mallopt(M_TRIM_THRESHOLD, INITIAL)
        yield
    finally:
        mallopt(M_MMAP_THRESHOLD, LARGEST)
        mallopt(M_TRIM_THRESHOLD, 2 * LARGEST)


def _mallopt() -> "ctypes._NamedFuncPointer | None":
    """The function `mallopt` of glibc; None with another C library."""
    return getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
