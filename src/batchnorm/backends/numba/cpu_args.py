"""What a compiled kernel is called with: one struct of addresses and sizes, and the key that picks its machine code."""

import ctypes
from typing import Any, ClassVar, NamedTuple

# fmt: off
_INTEGERS = (
    # the tensor: (N, C, S) planes, or N·S rows of C; samples are split into groups that share statistics
    "N", "C", "S", "groups", "per_group", "chunks", "items",
    # planes: an item is `band` channels, a block is `stack` samples by one of `split` pieces of `span` positions;
    # rows: an item is one of `split` slices of `span` channels, a tile is `stack` rows of it
    "band", "split", "span", "stack",
    # `together` runs (channels of a band, or rows) are computed before they are moved past the cache, if `stream`
    "together", "stream",
    "x", "grad", "y", "residual", "dresidual", "mask",
    # (groups or 1, C) float64 arrays; `shared` is 1 where one row of them serves all groups
    # `constant` is 1 where they are those of a population, through which no gradient goes
    "shared", "constant", "mean", "scale", "shift", "a", "b", "c",
    # results, and (chunks, groups, C) tables of partial results on the way there
    "count", "m2", "rstd", "sum_g", "sum_gx", "part_count", "part_mean", "part_m2", "part_g", "part_gx",
    # parameters and buffers in their own dtype: address, and kind (see KINDS)
    "weight", "weight_kind", "bias", "bias_kind", "dweight", "dweight_kind", "dbias", "dbias_kind",
    "running_mean", "running_var", "running_kind", "flag",
)
# fmt: on
# `limit` is the largest value to remember, or 0 for any; `flag` is the address of `skipped`: not 0 once a channel was
_REALS = ("eps", "momentum", "limit", "skipped")


class Args(ctypes.Structure):
    """The struct. The ticket counter that threads draw work from has a cache line of its own."""

    _fields_: ClassVar[Any] = (
        [("ticket", ctypes.c_int64), ("_line", ctypes.c_int64 * 7)]
        + [(name, ctypes.c_int64) for name in _INTEGERS]
        + [(name, ctypes.c_double) for name in _REALS]
    )


KINDS = {"float32": 1, "float64": 2, "bfloat16": 3, "float16": 4}  # 0: absent


class Spec(NamedTuple):
    """One specialisation of a kernel: all that is decided when compiling."""

    dtype: str = "float32"
    activation: str | None = None
    residual: bool = False
    mask: bool = False
    output: bool = False  # in the residual's place, a backward kernel finds the output, which is as good as z
