"""Runs a compiled kernel on torch's own threads.

A second team of threads beside torch's (Numba's, say) leaves both waiting for the other's spinning threads, so
kernels run on the team torch has: `GOMP_parallel` of the OpenMP library that torch has loaded. A kernel is a C
function of one address, draws its work from a counter there, and may be called by any number of threads at once;
so it does not matter how many the library provides.
"""

import ctypes
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import torch

Kernel = Callable[[int], None]  # a ctypes function; calling it releases the GIL

_forked = False
_pool: ThreadPoolExecutor | None = None


def _openmp() -> Callable[[int, int, int, int], None] | None:
    """`GOMP_parallel(function, argument, threads, flags)`, where this process has it."""
    try:
        parallel = ctypes.CDLL(None).GOMP_parallel
    except (AttributeError, OSError, TypeError):
        return None
    parallel.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
    parallel.restype = None
    return parallel


_gomp_parallel = _openmp()


def _after_fork() -> None:
    """A forked child has the parent's record of a team but not its threads: GOMP would wait for them for ever."""
    global _forked, _pool
    _forked, _pool = True, None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def launch(kernel: Kernel, address: int, argument: int, parallel: bool) -> None:
    """Calls `kernel` (which lies at `address`) with `argument`: on this thread, or on as many as torch would use."""
    threads = torch.get_num_threads() if parallel else 1
    if threads == 1:
        kernel(argument)
    elif _gomp_parallel is not None and not _forked:
        _gomp_parallel(address, argument, threads, 0)
    else:
        _launch_pool(kernel, argument, threads)


def _launch_pool(kernel: Kernel, argument: int, threads: int) -> None:
    """The same on Python's threads: without OpenMP, and in a forked child."""
    global _pool
    if _pool is None:
        _pool = ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="batchnorm")
    helpers = [_pool.submit(kernel, argument) for _ in range(threads - 1)]
    kernel(argument)
    for helper in helpers:
        if not helper.cancel():
            helper.result()
