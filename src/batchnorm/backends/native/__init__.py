"""C++ kernels for CPU, compiled once for the user's machine, at `batchnorm warmup` or at first use."""

import warnings
from pathlib import Path

import torch

from batchnorm.backends.native import build
from batchnorm.backends.native.build import SwitchedOff, Unavailable

_available: bool | None = None  # None: not tried yet


def available() -> bool:
    """True if the native kernels are loaded; loads them, and compiles them at the first use on this machine.

    If that fails, one warning in each process gives the reason and the remedy. There is no warning if
    `BATCHNORM_NATIVE=0` switches the kernels off.
    """
    global _available
    if _available is None:
        try:
            load()
            _available = True
        except SwitchedOff:
            _available = False
        except Unavailable as reason:
            _available = False  # before the warning, which may be an error
            warnings.warn(
                f"batchnorm runs without its native CPU kernels: {reason}. Plain batch norms use torch's own "
                "operator, and options beyond torch's run more slowly. BATCHNORM_NATIVE=0 does the same "
                "without this warning",
                RuntimeWarning,
                stacklevel=2,
            )
    return _available


def load() -> Path:
    """Load the native kernels into this process, and compile them first if needed; returns the path of the library.

    Raises:
        Unavailable: the kernels are switched off, or cannot be compiled or loaded.
    """
    path = build.library()
    try:
        torch.ops.load_library(path)
    except OSError as error:
        raise Unavailable(f"{path} cannot be loaded ({error}): delete it, then run `batchnorm warmup`") from error
    return path


def empty_cache() -> int:
    """Release the idle memory of large outputs to the system; returns the number of bytes.

    Outputs of 1 MiB and more take their memory from a pool. The pool keeps freed memory for later outputs. It is empty,
    and 0 is returned, until a native kernel has been used.

    Examples:
        >>> import batchnorm as bn
        >>> bn.empty_cache() >= 0
        True
    """
    return torch.ops.batchnorm_memory.empty_cache() if _available else 0
