"""The load of other programs on the machine. Times measured beside other programs should not be quoted."""

import os
import time
from pathlib import Path
from typing import Self

STAT = Path("/proc/stat")
BUSY = (0, 1, 2, 5, 6, 7)  # columns of busy time: user, nice, system, irq, softirq, steal
QUIET = 0.5  # the load average before a run must be below this
CROWDED = 0.2  # other programs must keep fewer cores busy during the turns


def average() -> float | None:
    """The load average of the last minute; None on a system without one."""
    try:
        return os.getloadavg()[0]
    except (AttributeError, OSError):
        return None


class Others:
    """Measures the cores that other programs, and a virtual machine's host, keep busy within `with` blocks."""

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
        """The average number of cores; None if the system does not count them, or nothing was measured."""
        return max(self.foreign / self.wall, 0.0) if self.known and self.wall else None


def _busy() -> float | None:
    """Seconds of busy time, summed over all cores, since the machine was started."""
    try:
        columns = STAT.read_text().splitlines()[0].split()[1:]
        return sum(int(columns[i]) for i in BUSY) / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError, AttributeError):
        return None


def warnings(before: float | None, others: float | None) -> list[str]:
    """Sentences that warn of a load by other programs, before or during a run."""
    found = []
    if before is not None and before >= QUIET:
        found.append(f"the load average before the run was {before:.1f}; figures to quote need less than {QUIET}")
    if others is not None and others >= CROWDED:
        found.append(f"other programs kept {others:.1f} cores busy during the turns: no figures to quote")
    return found
