"""A kernel that writes down the offsets which the kernels compute for a tile."""

import triton
import triton.language as tl

from batchnorm.backends.triton.elementwise import locate


@triton.jit
def offsets_kernel(
    out, kept, group, tile, t, A, C, S, GROUP,
    ROWS: tl.constexpr, P: tl.constexpr, Q: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    base, offsets, inside, _, _ = locate(t, group + tl.program_id(0), tile, A, C, S, GROUP, ROWS, P, Q, WIDE)
    where = tl.arange(0, P)[:, None] * Q + tl.arange(0, Q)[None, :]
    tl.store(out + where, base + offsets)
    tl.store(kept + where, inside.to(tl.int32))
