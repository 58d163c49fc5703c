"""The merge of all shares' results: the last program of a channel tile to arrive merges the table in a fixed order.

Different programs are last in different runs, but the order of the merge is the same, and so are the bits of the
results. No program waits for another.
"""

import triton
import triton.language as tl

from batchnorm.backends.triton.elementwise import row


@triton.jit
def is_last(counters, slot, SPLITS):
    """True if all other programs of this slot have written their results. The counter is 0 again afterwards."""
    tl.debug_barrier()  # every thread has written before one of them counts
    arrived = tl.atomic_add(counters + slot, 1, sem="acq_rel")
    last = arrived == SPLITS - 1
    if last:
        tl.store(counters + slot, 0)
    return last


@triton.jit
def merged_moments(table, size, at, C, SPLITS, known, MERGED: tl.constexpr):
    """Count, mean and m2 (K,) in float64 of all shares.

    The table holds counts, then means, then m2, each of `size` entries; `at` (K,) is the entry of the first share. The
    mean is that of the first share plus the mean deviation of all shares from it, so that nothing large cancels.
    """
    start = tl.load(table + size + at, mask=known, other=0.0, cache_modifier=".cg")
    count, moved = tl.zeros_like(start), tl.zeros_like(start)
    for s in range(0, SPLITS, MERGED):
        shares = s + tl.arange(0, MERGED)[:, None]
        here = (shares < SPLITS) & known[None, :]
        entries = table + at[None, :] + shares * C
        n = tl.load(entries, mask=here, other=0.0, cache_modifier=".cg")
        mean = tl.load(entries + size, mask=here, other=0.0, cache_modifier=".cg")
        count += tl.sum(n, 0)
        moved += tl.sum(tl.where(n > 0, n * (mean - start[None, :]), 0.0), 0)
    mean = start + moved / tl.where(count > 0, count, 1.0)
    m2 = tl.zeros_like(start)
    for s in range(0, SPLITS, MERGED):
        shares = s + tl.arange(0, MERGED)[:, None]
        here = (shares < SPLITS) & known[None, :]
        entries = table + at[None, :] + shares * C
        n = tl.load(entries, mask=here, other=0.0, cache_modifier=".cg")
        apart = tl.load(entries + size, mask=here, other=0.0, cache_modifier=".cg") - mean[None, :]
        within = tl.load(entries + 2 * size, mask=here, other=0.0, cache_modifier=".cg")
        m2 += tl.sum(tl.where(n > 0, within + n * apart * apart, 0.0), 0)
    return count, mean, m2


@triton.jit
def merged_sums(table, size, at, C, SPLITS, known, MERGED: tl.constexpr):
    """Two sums (K,) in float64 over all shares; the table holds one, then the other."""
    first = tl.zeros_like(at).to(tl.float64)
    second = tl.zeros_like(first)
    for s in range(0, SPLITS, MERGED):
        shares = s + tl.arange(0, MERGED)[:, None]
        here = (shares < SPLITS) & known[None, :]
        entries = table + at[None, :] + shares * C
        first += tl.sum(tl.load(entries, mask=here, other=0.0, cache_modifier=".cg"), 0)
        second += tl.sum(tl.load(entries + size, mask=here, other=0.0, cache_modifier=".cg"), 0)
    return first, second


@triton.jit
def write(pointers, values, known):
    """Store float64 values in the dtype of the buffer.

    A store would also convert them, but not to bfloat16 under the interpreter.
    """
    narrow = values
    if pointers.dtype.element_ty != tl.float64:
        narrow = values.to(tl.float32).to(pointers.dtype.element_ty)
    tl.store(pointers, narrow, mask=known)


@triton.jit
def update_statistics(
    running_mean, running_var, batches, skipped, arrivals, momentum, limit, tiles,
    mean, unbiased, channels, known, CUMULATIVE: tl.constexpr, SKIP: tl.constexpr,
):  # fmt: skip
    """Update a channel tile's running statistics by the batch's mean and unbiased variance, both in float64.

    The last channel tile to arrive counts the batch, and counts it as skipped if any channel was skipped.

    A cumulative average reads the counter before that. `arrivals` holds the number of tiles that have arrived, and 1 if
    one of them had a skipped channel; both are 0 again afterwards.
    """
    old_mean, old_var = row(running_mean, 0, 0, channels, known), row(running_var, 0, 0, channels, known)
    factor = tl.cast(momentum, tl.float64)
    if CUMULATIVE:
        factor = 1.0 / (tl.load(batches).to(tl.float64) + 1)
    new_mean, new_var = old_mean + (mean - old_mean) * factor, old_var + (unbiased - old_var) * factor
    if SKIP:
        unfit = known & ~((tl.abs(mean) <= limit) & (unbiased <= limit))
        new_mean, new_var = tl.where(unfit, old_mean, new_mean), tl.where(unfit, old_var, new_var)
        if tl.sum(unfit.to(tl.int32), 0) > 0:
            tl.atomic_xchg(arrivals + 1, 1)
    write(running_mean + channels, new_mean, known)
    write(running_var + channels, new_var, known)
    if is_last(arrivals, 0, tiles):
        met = tl.atomic_xchg(arrivals + 1, 0)
        if batches is not None:
            tl.store(batches, tl.load(batches) + 1)
        if skipped is not None:
            tl.store(skipped, tl.load(skipped) + met)
