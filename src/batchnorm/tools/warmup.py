"""Machine code for the CPU kernels before anybody waits for it: for an image, a fleet, a test machine."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import torch


@dataclass(frozen=True)
class Warmed:
    """Where the code is (None: nowhere can be written, so it is for this process alone), and what there is of it."""

    directory: Path | None
    kernels: int  # that were asked for
    compiled: list[str]  # files that are new

    def __str__(self) -> str:
        if self.directory is None:
            return (
                f"{self.kernels} kernels compiled, and nowhere to keep them: the user's cache cannot be written. "
                "Set BATCHNORM_CACHE_DIR to a folder that can"
            )
        there = self.kernels - len(self.compiled)
        return f"{self.kernels} kernels in {self.directory}: {len(self.compiled)} compiled now, {there} there before"


def warmup(
    dtypes: Iterable[torch.dtype],
    activations: Iterable[str | None],
    progress: Callable[[int, int, str], None] = lambda done, total, what: None,
) -> Warmed:
    """Compile what common networks need into the cache on disk: each dtype with each activation."""
    from batchnorm.backends.numba import cpu
    from batchnorm.backends.numba.cpu_compile import cache_directory, get

    directory = cache_directory()
    before, loaded = _files(directory), get.cache_info().currsize
    wanted = [(dtype, activation) for dtype in dtypes for activation in activations]
    for done, (dtype, activation) in enumerate(wanted):
        progress(done, len(wanted), f"{dtype}, {activation or 'no activation'}".removeprefix("torch."))
        cpu.warmup((dtype,), (activation,))
    progress(len(wanted), len(wanted), "")
    return Warmed(directory, get.cache_info().currsize - loaded, sorted(_files(directory) - before))


def _files(directory: Path | None) -> set[str]:
    return set() if directory is None else {path.name for path in directory.glob("*.o")}
