"""The time to compile all native kernels on one core."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

PROGRAM = """
import os, time
from batchnorm.backends.native import build
if hasattr(os, "sched_setaffinity"):
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
start = time.perf_counter()
build.library()
print(time.perf_counter() - start)
"""


class CannotBuild(Exception):  # noqa: N818  # not an error of the benchmark
    """Raised if the native kernels do not compile here; the message is the last line of the reason."""


def seconds_to_build() -> float:
    """Seconds to build the library on one core, with an empty cache, in a separate process.

    Raises:
        CannotBuild: there is no compiler, or it fails.
    """
    path = os.pathsep.join(filter(None, [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH")]))
    with tempfile.TemporaryDirectory() as cache:
        environment = os.environ | {"PYTHONPATH": path, "BATCHNORM_CACHE": cache}
        command = [sys.executable, "-c", PROGRAM]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode != 0:
        raise CannotBuild(done.stderr.strip().rpartition("\n")[2])
    return float(done.stdout)
