"""The cut of a tensor into programs: views, tiles, shares and grids, in plain Python.

A tensor is read as planes, (N, C, S) with S contiguous, or as rows, (N·S, C) with C contiguous. A program works on a
share: some consecutive tiles of one channel (planes) or of one block of channels (rows), within one virtual batch. A
tile is P × Q values: samples × positions for planes, rows × channels for rows.

The sizes below come from reasoning, not from measurements: docs/gpu.md shows how to measure them on a card.
"""

from functools import lru_cache
from typing import NamedTuple

TILE = 1024  # values: 8 a thread with 4 warps, a load of 16 bytes for bfloat16; with 16, a kernel spills (compile.py)
SEGMENT = 256  # bytes of a row in a tile: whole cache lines, and still many programs side by side
WHOLE = 8192  # values of a tile that stays on chip: 16 a thread with 16 warps; with 32, kernels spill (compile.py)
WHOLE_SEGMENT = 64  # bytes of a row in such a tile: two sectors; a wider tile would hold fewer rows
PROGRAMS = 2048  # of a reduction: 16 of 4 warps for each of an H100's 132 multiprocessors; the same number on any card,
# so that results do not depend on the card
# Tiles of a share, planes and rows: the table of partial results is about 5 % of x at most.
LEAST = {False: 8, True: 32}
MOST = 4096  # tiles of a share: float32 counts its values exactly
APPLIED = 8  # tiles of a share that is only read and written: per-channel values are loaded once for all
CHANNELS = 256  # of a program that only updates running statistics: few programs, and 2 channels a thread
MERGED = 1024  # entries of the table that are merged at a time, of 256 shares at most: with more, a kernel spills


class View(NamedTuple):
    """A dense tensor (N, C, *) as the kernels address it, cut in virtual batches of `group` outer indices."""

    rows: bool
    outer: int  # A: samples for planes, rows for rows
    channels: int  # C
    inner: int  # S: positions for planes, 1 for rows
    group: int  # outer indices of a virtual batch; the last may have fewer

    @property
    def groups(self) -> int:
        """The number of virtual batches."""
        return -(-self.outer // self.group)

    @property
    def row_length(self) -> int:
        """Values between the beginnings of two outer indices."""
        return self.channels * self.inner


class Plan(NamedTuple):
    """Tiles and shares of a launch."""

    view: View
    P: int
    Q: int
    splits: int  # shares of each channel tile and virtual batch
    per: int  # tiles of a share
    warps: int

    @property
    def tiles(self) -> int:
        """Channel tiles."""
        return -(-self.view.channels // self.Q) if self.view.rows else self.view.channels

    @property
    def width(self) -> int:
        """K: channels of a tile."""
        return self.Q if self.view.rows else 1

    @property
    def programs(self) -> int:
        """The size of the grid: channel tiles run fastest, then shares, then virtual batches."""
        return self.tiles * self.splits * self.view.groups

    @property
    def merged(self) -> int:
        """The shares that are merged at a time; the number of shares does not change the code."""
        return max(1, min(256, MERGED // self.width))

    @property
    def wide(self) -> bool:
        """True if offsets within a tile need 64 bits; offsets of tiles always have them."""
        return (self.P - 1) * self.view.row_length + self.Q >= 2**31


def view(shape: tuple[int, ...], channels_last: bool, virtual_batch_size: int = 0) -> View:
    """(N, C, *) of this shape in one of the two memory formats."""
    n, c, *space = shape
    s = 1
    for size in space:
        s *= size
    if c > 1 and (channels_last or s == 1):
        return View(True, n * s, c, 1, (virtual_batch_size or n) * s)
    return View(False, n, c, s, virtual_batch_size or n)


def power_of_two(n: int) -> int:
    """The smallest power of two that is at least `n`."""
    return 1 << max(n - 1, 0).bit_length()


@lru_cache(maxsize=1024)
def reduction(v: View, itemsize: int) -> Plan:
    """A pass that adds up: few large shares."""
    P, Q = _tile(v, itemsize)
    count = _tiles_of_a_group(v, P, Q)
    channel_tiles = -(-v.channels // Q) if v.rows else v.channels
    shares = max(1, PROGRAMS // (channel_tiles * v.groups))
    per = min(MOST, max(LEAST[v.rows], -(-count // shares)))
    return Plan(v, P, Q, -(-count // per), per, 4)


@lru_cache(maxsize=1024)
def elementwise(v: View, itemsize: int) -> Plan:
    """A pass that reads and writes: many small shares."""
    P, Q = _tile(v, itemsize)
    return Plan(v, P, Q, -(-_tiles_of_a_group(v, P, Q) // APPLIED), APPLIED, 4)


@lru_cache(maxsize=1024)
def whole(v: View, itemsize: int) -> Plan | None:
    """All values of a channel tile in one program, so that they are read once; None if they do not fit on chip."""
    Q = min(power_of_two(v.channels), WHOLE_SEGMENT // itemsize) if v.rows else power_of_two(v.inner)
    P = power_of_two(v.outer)
    if v.groups > 1 or P * Q > WHOLE:
        return None
    return Plan(v, P, Q, 1, 1, max(4, min(16, P * Q // 512)))


@lru_cache(maxsize=1024)
def population(channels: int) -> Plan:
    """A pass over per-channel values alone."""
    return Plan(View(True, 1, channels, 1, 1), 1, CHANNELS, 1, 1, 4)


def _tile(v: View, itemsize: int) -> tuple[int, int]:
    widest = SEGMENT // itemsize if v.rows else TILE // 2  # of a plane: 2 or 1 KiB, and two samples at a time
    Q = min(power_of_two(v.channels if v.rows else v.inner), widest)
    return min(power_of_two(v.group), TILE // Q), Q


def _tiles_of_a_group(v: View, P: int, Q: int) -> int:
    return -(-v.group // P) * (1 if v.rows else -(-v.inner // Q))
