"""How a tensor is cut into work: a function of its shape alone, so that results do not depend on threads."""

import ctypes
from typing import NamedTuple

from .cpu_args import Args

BLOCK = 1024  # values of a channel summed in its own precision before float64 takes over; 4 KiB of float32 in L1
_LINES = 64  # pieces of a run are multiples of so many values, which are whole cache lines in any dtype
_RUN = 512  # a run of so many values is a block of its own
BAND = 64  # channels worked on together at most
_STRETCH = 16384  # values of neighbouring channels that are read in one go: 16 pages of float32
_CACHED = 262144  # values of a band, to be read a second time: 1 MiB of float32
_BANDS = 16  # bands to keep for threads to share
SLICE = 1024  # columns of a row worked on together: their running sums stay in L1
_ITEM = 16384  # values that make a piece of work worth handing to a thread
_ITEMS = 64  # pieces that keep the threads of a large machine busy
_TILE = 32  # rows summed in their own precision before float64 takes over
_ROWS = 128  # rows in a piece of work, which begins by reading each column's parameters
_SERIAL = 32768  # below so many values, one thread is done before a second has started


class Plan(NamedTuple):
    module: str  # "planes" or "rows"
    fused: bool  # one piece of work per channel: statistics and output in one go
    parallel: bool
    groups: int
    chunks: int
    template: bytes  # an `Args` with the sizes filled in


def plan(rows: bool, N: int, C: int, S: int, virtual: int) -> Plan:
    """The cut of a tensor of rows (N·S, C) or planes (N, C, S), with groups of `virtual` samples (0: one group)."""
    per_group = virtual or max(N, 1)
    groups = -(-N // per_group) if virtual else 1
    values = per_group * S
    args = Args(N=N, C=C, S=S, groups=groups, per_group=per_group)
    if rows:
        split = max(-(-C // SLICE), 1)
        span = -(-C // split)
        chunks = min(_ITEMS // max(groups * split, 1), values * span // _ITEM, values // _ROWS)
        stack = _TILE
        args.together = max(BLOCK // max(span, 1), 2) if split == 1 else 1  # rows that lie side by side
        pieces = split
    else:
        span = S if S <= BLOCK else -(-S // (-(-S // BLOCK) * _LINES)) * _LINES
        split = -(-S // max(span, 1))
        chunks = 1 if groups * C >= 16 else min(_ITEMS // max(groups * C, 1), values // _ITEM)
        stack = BLOCK // max(S, 1) if S < _RUN else 1
        band = min(_STRETCH // max(S, 1), _CACHED // max(values, 1), C // _BANDS, BAND)
        args.band = max(band, 1)
        args.together = max(BLOCK // max(S, 1), 1)
        pieces = -(-C // args.band)
    chunks = max(chunks, 1)
    args.chunks, args.items = chunks, groups * pieces * chunks
    args.split, args.span, args.stack = split, span, stack
    fused = not rows and groups == 1 and chunks == 1
    template = ctypes.string_at(ctypes.addressof(args), ctypes.sizeof(args))
    return Plan("rows" if rows else "planes", fused, N * C * S >= _SERIAL, groups, chunks, template)
