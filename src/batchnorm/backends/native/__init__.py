"""C++ kernels for CPU, compiled once for the user's machine, at `batchnorm warmup` or at first use."""

import functools
import warnings

import torch

from batchnorm.backends.native import build


@functools.cache
def available() -> bool:
    """Load the native kernels, compiled if nobody has yet; False, with the reason shown once, if that cannot be."""
    try:
        torch.ops.load_library(build.library())
    except (build.Unavailable, OSError) as reason:
        warnings.warn(
            f"batchnorm runs without its native CPU kernels: {reason}. Plain batch norms use torch's own operator, and "
            "options beyond torch's run more slowly",
            RuntimeWarning,
            stacklevel=2,
        )
        return False
    return True


def empty_cache() -> int:
    """Give the idle memory of large outputs back to the system; returns how many bytes that were.

    Outputs of 4 MiB and more take memory from a pool, which keeps what they free for the next ones. 0 without the native
    kernels.

    >>> import batchnorm as bn
    >>> bn.empty_cache() >= 0
    True
    """
    return torch.ops.batchnorm_memory.empty_cache() if available() else 0
