"""Kernels for contiguous (N, C, S): each channel is N runs of S values.

A block is what a kernel holds in cache at once: a piece of one run, or several short runs. Blocks, and the
chunks of blocks that are separate pieces of work, depend on the shape alone, so results do not depend on threads.
"""

import math

from .cpu_activations import activate, backprop
from .cpu_channel import affine, gradients, remember
from .cpu_intrinsics import (
    accumulate,
    counted,
    inline,
    load64,
    pass_residual,
    read,
    real,
    residual,
    scratch,
    store,
    store64,
    ticket,
    where_counted,
)
from .cpu_plan import BLOCK

# mypy: disable-error-code="no-untyped-def"

_LANES = 64  # four AVX-512 registers of float32, the most that LLVM sums side by side
PADDED = BLOCK + _LANES


@inline
def _blocks(a, g):
    """How many blocks each channel of group `g` has."""
    samples = min(a.per_group, a.N - g * a.per_group)
    return (samples + a.stack - 1) // a.stack * a.split


@inline
def _bounds(a, g, b):
    """Samples [n0, n1) and positions [s0, s1) of block `b` of group `g`."""
    n0 = g * a.per_group + b // a.split * a.stack
    n1 = min(n0 + a.stack, min((g + 1) * a.per_group, a.N))
    s0 = b % a.split * a.span
    return n0, n1, s0, min(s0 + a.span, a.S)


@inline
def _item(a, i):
    """Group, channel, chunk, and blocks [b0, b1) of work item `i`."""
    k, rest = i // (a.groups * a.C), i % (a.groups * a.C)
    g, c = rest // a.C, rest % a.C
    blocks = _blocks(a, g)
    return g, c, k, blocks * k // a.chunks, blocks * (k + 1) // a.chunks


@inline
def _gather(a, c, n0, n1, s0, s1, block):
    """Reads several runs into `block` as floats, so that sums need not stop at the end of each; returns how many."""
    count = 0
    for n in range(n0, n1):
        base = (n * a.C + c) * a.S + s0
        for s in range(s1 - s0):
            block[count + s] = read(a, a.x, base + s)
        count += s1 - s0
    return count


@inline
def _moments64(block, count):
    """Moments in float64, for blocks whose squares leave float32's range, or that hold Inf or NaN."""
    total = 0.0
    for i in range(count):
        total += block[i]
    mean = total / count
    m2 = 0.0
    for i in range(count):
        d = block[i] - mean
        m2 += d * d
    return mean, m2


@inline
def _deviations(a, block, count, centre):
    """Sum, and sum of squares, of cached values' deviations from `centre`."""
    off, squares = real(a, 0.0), real(a, 0.0)
    for i in range(count):
        d = block[i] - centre
        off = accumulate(off, d)
        squares = accumulate(squares, d * d)
    return off, squares


@inline
def _first_centre(a, block, count):
    """The mean of a channel's first block, to float precision: of its values less the first, so that large ones fit."""
    first = block[0]
    total = real(a, 0.0)
    for i in range(count):
        total = accumulate(total, block[i] - first)
    return first + total / real(a, count)


@inline
def _channel_moments(a, g, c, b0, b1, block):
    """Count, mean and m2 of blocks [b0, b1) of a channel, merged in order by Chan's formula.

    A block is read once: its deviations are from the mean of the blocks before it. That mean may be far from this
    block's, but then the merged m2 is as large as the squares that cancel, and no digit of the result is lost.
    """
    count, mean, m2 = 0.0, 0.0, 0.0
    for b in range(b0, b1):
        n0, n1, s0, s1 = _bounds(a, g, b)
        centre = real(a, mean)
        if n1 - n0 == 1 and b > b0:
            n = s1 - s0
            base = (n0 * a.C + c) * a.S + s0
            off, squares = real(a, 0.0), real(a, 0.0)
            for i in range(base, base + n):
                d = read(a, a.x, i) - centre
                off = accumulate(off, d)
                squares = accumulate(squares, d * d)
        else:
            n = _gather(a, c, n0, n1, s0, s1, block)
            if b == b0:
                centre = _first_centre(a, block, n)
            off, squares = _deviations(a, block, n, centre)
        shift = float(off) / n
        block_mean, block_m2 = centre + shift, max(squares - shift * off, 0.0)
        if not math.isfinite(squares):
            block_mean, block_m2 = _moments64(block, _gather(a, c, n0, n1, s0, s1, block))
        delta = block_mean - mean
        share = n / (count + n)
        mean += delta * share
        m2 += block_m2 + delta * delta * count * share
        count += n
    return count, mean, m2


@inline
def _normalize(a, g, c, b0, b1, mean, scale, shift):
    """y = act((x − mean)·scale + shift + residual) over blocks [b0, b1) of a channel."""
    hi = real(a, mean)
    lo = real(a, mean - hi)
    w, v = real(a, scale), real(a, shift)
    for b in range(b0, b1):
        n0, n1, s0, s1 = _bounds(a, g, b)
        for n in range(n0, n1):
            base = (n * a.C + c) * a.S
            for s in range(s0, s1):
                i = base + s
                z = ((read(a, a.x, i) - hi) - lo) * w + v + residual(a, i)
                store(a, a.y, i, where_counted(a, counted(a, n * a.S + s), activate(a, z)))


@inline
def _slope(a, i, hi, lo, scale, shift):
    """x − mean and g′ of one element."""
    d = (read(a, a.x, i) - hi) - lo
    return d, backprop(a, read(a, a.grad, i), d * scale + shift + residual(a, i))


@inline
def _reduce(a, g, c, b0, b1, mean, scale, shift, slopes, products):
    """Σ g′ and Σ g′·(x − mean) over blocks [b0, b1) of a channel."""
    hi = real(a, mean)
    lo = real(a, mean - hi)
    w, v = real(a, scale), real(a, shift)
    sum_g, sum_gx = 0.0, 0.0
    for b in range(b0, b1):
        n0, n1, s0, s1 = _bounds(a, g, b)
        block_g, block_gx = real(a, 0.0), real(a, 0.0)
        if n1 - n0 == 1:
            base = (n0 * a.C + c) * a.S
            for s in range(s0, s1):
                weight = counted(a, n0 * a.S + s)
                d, slope = _slope(a, base + s, hi, lo, w, v)
                block_g = accumulate(block_g, where_counted(a, weight, slope))
                block_gx = accumulate(block_gx, where_counted(a, weight, slope * d))
        else:
            count = 0
            for n in range(n0, n1):
                base = (n * a.C + c) * a.S + s0
                for s in range(s1 - s0):
                    weight = counted(a, n * a.S + s0 + s)
                    d, slope = _slope(a, base + s, hi, lo, w, v)
                    slopes[count + s] = where_counted(a, weight, slope)
                    products[count + s] = where_counted(a, weight, slope * d)
                count += s1 - s0
            # whole vectors: what is left over would be added one by one to a sum that has grown large
            while count % _LANES != 0:
                slopes[count], products[count] = real(a, 0.0), real(a, 0.0)
                count += 1
            for i in range(count):
                block_g = accumulate(block_g, slopes[i])
                block_gx = accumulate(block_gx, products[i])
        sum_g += block_g
        sum_gx += block_gx
    return sum_g, sum_gx


@inline
def _apply(a, g, c, b0, b1, mean, scale, shift, by_slope, by_x, constant):
    """dx = a·g′ + b·(x − mean) + c over blocks [b0, b1) of a channel."""
    hi = real(a, mean)
    lo = real(a, mean - hi)
    w, v = real(a, scale), real(a, shift)
    p, q, r = real(a, by_slope), real(a, by_x), real(a, constant)
    for b in range(b0, b1):
        n0, n1, s0, s1 = _bounds(a, g, b)
        for n in range(n0, n1):
            base = (n * a.C + c) * a.S
            for s in range(s0, s1):
                weight = counted(a, n * a.S + s)
                d, slope = _slope(a, base + s, hi, lo, w, v)
                pass_residual(a, base + s, where_counted(a, weight, slope))
                store(a, a.y, base + s, where_counted(a, weight, p * slope + weight * (q * d + r)))


def moments(a):
    """Partial moments of each chunk into the tables at count, mean and m2."""
    block = scratch(a, BLOCK)
    i = ticket(a)
    while i < a.items:
        g, c, k, b0, b1 = _item(a, i)
        count, mean, m2 = _channel_moments(a, g, c, b0, b1, block)
        store64(a.part_count, k * a.groups + g, count)
        store64(a.part_mean, i, mean)
        store64(a.part_m2, i, m2)
        i = ticket(a)


@inline
def _masked_moments(a, g, c, b0, b1, block, weights):
    """As `_channel_moments`, for values with weights; the first centre is that of the first block with any."""
    count, mean, m2 = 0.0, 0.0, 0.0
    for b in range(b0, b1):
        n0, n1, s0, s1 = _bounds(a, g, b)
        n, first, any_weight = 0, real(a, 0.0), real(a, 0.0)
        for i in range(n0, n1):
            for s in range(s0, s1):
                weight = counted(a, i * a.S + s)
                block[n] = where_counted(a, weight, read(a, a.x, (i * a.C + c) * a.S + s))
                weights[n] = weight
                first = block[n] if weight != real(a, 0.0) else first
                any_weight = accumulate(any_weight, weight)
                n += 1
        if any_weight == real(a, 0.0):
            continue
        centre = real(a, mean)
        if count == 0.0:
            total = real(a, 0.0)
            for i in range(n):
                total = accumulate(total, weights[i] * (block[i] - first))
            centre = first + total / any_weight
        off, squares = real(a, 0.0), real(a, 0.0)
        for i in range(n):
            d = block[i] - centre
            off = accumulate(off, weights[i] * d)
            squares = accumulate(squares, weights[i] * (d * d))
        weight = float(any_weight)
        shift = float(off) / weight
        delta = centre + shift - mean
        share = weight / (count + weight)
        mean += delta * share
        m2 += max(squares - shift * off, 0.0) + delta * delta * count * share
        count += weight
    return count, mean, m2


def masked_moments(a):
    """As `moments`, weighted by the mask."""
    block, weights = scratch(a, BLOCK), scratch(a, BLOCK)
    i = ticket(a)
    while i < a.items:
        g, c, k, b0, b1 = _item(a, i)
        count, mean, m2 = _masked_moments(a, g, c, b0, b1, block, weights)
        store64(a.part_count, k * a.groups + g, count)
        store64(a.part_mean, i, mean)
        store64(a.part_m2, i, m2)
        i = ticket(a)


def normalize(a):
    """Normalises each chunk by given parameters."""
    i = ticket(a)
    while i < a.items:
        g, c, _, b0, b1 = _item(a, i)
        at = c if a.shared != 0 else g * a.C + c
        scale, shift = affine(a, at, c)
        _normalize(a, g, c, b0, b1, load64(a.mean, at), scale, shift)
        i = ticket(a)


def reduce(a):
    """Partial sums of each chunk into the tables at sum_g and sum_gx."""
    slopes, products = scratch(a, PADDED), scratch(a, PADDED)
    i = ticket(a)
    while i < a.items:
        g, c, _, b0, b1 = _item(a, i)
        at = c if a.shared != 0 else g * a.C + c
        mean = load64(a.mean, at)
        scale, shift = affine(a, at, c)
        sum_g, sum_gx = _reduce(a, g, c, b0, b1, mean, scale, shift, slopes, products)
        store64(a.part_g, i, sum_g)
        store64(a.part_gx, i, sum_gx)
        i = ticket(a)


def apply(a):
    """The input's gradient of each chunk by given coefficients."""
    i = ticket(a)
    while i < a.items:
        g, c, _, b0, b1 = _item(a, i)
        at = c if a.shared != 0 else g * a.C + c
        mean = load64(a.mean, at)
        scale, shift = affine(a, at, c)
        _apply(a, g, c, b0, b1, mean, scale, shift, load64(a.a, at), load64(a.b, at), load64(a.c, at))
        i = ticket(a)


def forward(a):
    """A channel's moments, then its output while it is still in cache."""
    block = scratch(a, BLOCK)
    c = ticket(a)
    while c < a.items:
        blocks = _blocks(a, 0)
        count, mean, m2 = _channel_moments(a, 0, c, 0, blocks, block)
        store64(a.mean, c, mean)
        store64(a.rstd, c, 1.0 / math.sqrt(m2 / count + a.eps))
        remember(a, c, count, mean, m2)
        scale, shift = affine(a, c, c)
        _normalize(a, 0, c, 0, blocks, mean, scale, shift)
        c = ticket(a)


def backward(a):
    """A channel's gradient sums, then its gradient while input and gradient are still in cache."""
    slopes, products = scratch(a, PADDED), scratch(a, PADDED)
    c = ticket(a)
    while c < a.items:
        blocks = _blocks(a, 0)
        mean = load64(a.mean, c)
        scale, shift = affine(a, c, c)
        sum_g, sum_gx = _reduce(a, 0, c, 0, blocks, mean, scale, shift, slopes, products)
        by_slope, by_x, constant = gradients(a, c, float(a.N * a.S), sum_g, sum_gx)
        _apply(a, 0, c, 0, blocks, mean, scale, shift, by_slope, by_x, constant)
        c = ticket(a)
