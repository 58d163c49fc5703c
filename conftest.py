"""Before any test or doctest: the native library is built and loaded, once for all workers.

Without a compiler the tests run as under BATCHNORM_NATIVE=0, with torch's operator and the reference. The warning about
that must not fail the first test; tests/backends/native/test_notices.py checks it. With a compiler, a build that fails
ends the run, because tests that pass without the kernels would hide the failure.
"""

import os
import sys

import pytest

from batchnorm.backends import native
from batchnorm.backends.native import compiler


def pytest_configure(config: pytest.Config) -> None:
    if hasattr(config, "workerinput"):
        return  # a worker of pytest-xdist: its controller has loaded the library
    try:
        native.load()
    except native.SwitchedOff:
        pass
    except native.Unavailable as reason:
        try:
            compiler.find()
        except native.Unavailable:
            print(f"batchnorm: tests without native kernels: {reason}", file=sys.stderr)
            os.environ["BATCHNORM_NATIVE"] = "0"  # workers, and the processes that tests start, inherit it
        else:
            raise pytest.UsageError(f"no native kernels: {reason}") from None
