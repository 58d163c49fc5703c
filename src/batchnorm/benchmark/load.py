"""The load that other programs put on the machine: times taken beside them are not to be quoted."""

import os
import time
from pathlib import Path
from typing import Self

STAT = Path("/proc/stat")
BUSY = (0, 1, 2, 5, 6, 7)  # of its columns: user, nice, system, irq, softirq, steal
QUIET = 0.5  # a load average below it, before a run
CROWDED = 0.2  # cores that others may keep busy during the turns


def average() -> float | None:
    """The load average of the last minute; None on a system without one."""
    try:
        return os.getloadavg()[0]
    except (AttributeError, OSError):
        return None


class Others:
    """Cores that other programs keep busy within `with` blocks, a virtual machine's host included."""

    def __init__(self) -> None:
        self.wall = self.foreign = 0.0
        self.known = True

    def __enter__(self) -> Self:
        self.before = time.perf_counter(), time.process_time(), _busy()
        return self

    def __exit__(self, *_: object) -> None:
        (wall, own, busy), now = self.before, _busy()
        if busy is None or now is None:
            self.known = False
            return
        self.wall += time.perf_counter() - wall
        self.foreign += (now - busy) - (time.process_time() - own)

    @property
    def cores(self) -> float | None:
        """The average number of cores; None where the system does not count, or nothing was watched."""
        return max(self.foreign / self.wall, 0.0) if self.known and self.wall else None


def _busy() -> float | None:
    """Seconds that all cores together have been busy since the machine was started."""
    try:
        columns = STAT.read_text().splitlines()[0].split()[1:]
        return sum(int(columns[i]) for i in BUSY) / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError, AttributeError):
        return None


def warnings(before: float | None, others: float | None) -> list[str]:
    """Sentences for the reader of a run that was not alone."""
    found = []
    if before is not None and before >= QUIET:
        found.append(f"the load average before the run was {before:.1f}; figures to quote need less than {QUIET}")
    if others is not None and others >= CROWDED:
        found.append(f"other programs kept {others:.1f} cores busy during the turns: no figures to quote")
    return found
