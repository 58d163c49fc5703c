"""C++ kernels for CPU, compiled once for the user's machine, at `batchnorm warmup` or at first use."""

import warnings
from functools import cache

import torch

from batchnorm.backends.native import build


@cache
def available() -> bool:
    """Whether the native kernels are loaded; the first call compiles them if nobody has.

    Without a compiler the reason is shown once.
    """
    try:
        torch.ops.load_library(build.library())
    except build.Unavailable as reason:
        warnings.warn(
            f"batchnorm runs without its native CPU kernels: {reason}. Plain batch norms use torch's own operator, and "
            "options beyond torch's run more slowly",
            RuntimeWarning,
            stacklevel=2,
        )
        return False
    return True
