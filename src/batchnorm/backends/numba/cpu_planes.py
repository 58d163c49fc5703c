"""Kernels for contiguous (N, C, S): each channel is N runs of S values.

A piece of work is a band of neighbouring channels, so that what is read in one go is longer than one short run: the
jump to another page costs as much as reading most of it. A block is what is summed in the tensor's own precision: a
piece of one run, or several short runs of one channel. Bands, blocks, and the chunks of blocks that are separate
pieces of work where there are few channels, depend on the shape alone, so results do not depend on threads.
"""

import math

from .cpu_activations import activate, backprop
from .cpu_channel import about_mean, coefficients, own_coefficients, parameters, remember
from .cpu_intrinsics import (
    accumulate,
    address,
    counted,
    inline,
    pass_residual,
    place,
    plus_residual,
    read,
    real,
    scratch,
    scratch64,
    store,
    store64,
    stream,
    stream_residual,
    ticket,
    where_counted,
)
from .cpu_plan import BAND, BLOCK

# mypy: disable-error-code="no-untyped-def"

_LANES = 64  # four AVX-512 registers of float32, the most that LLVM sums side by side
_PADDED = BLOCK + _LANES
_FIRST = 256  # values to guess a mean from: of independent ones within σ/16 of it, so next to nothing cancels


@inline
def _item(a, i):
    """Group, first channel, how many, chunk, and blocks [b0, b1) of work item `i`."""
    bands = (a.C + a.band - 1) // a.band
    k, rest = i // (a.groups * bands), i % (a.groups * bands)
    g, c0 = rest // bands, rest % bands * a.band
    samples = min(a.per_group, a.N - g * a.per_group)
    blocks = (samples + a.stack - 1) // a.stack * a.split
    return g, c0, min(a.band, a.C - c0), k, blocks * k // a.chunks, blocks * (k + 1) // a.chunks


@inline
def _bounds(a, g, b):
    """Samples [n0, n1) and positions [s0, s1) of block `b` of group `g`."""
    n0 = g * a.per_group + b // a.split * a.stack
    n1 = min(n0 + a.stack, min((g + 1) * a.per_group, a.N))
    s0 = b % a.split * a.span
    return n0, n1, s0, min(s0 + a.span, a.S)


@inline
def _run_end(a, b, b1):
    """Behind the last piece of block `b`'s run: a run is finished before the next channel's is begun, so that memory
    is read in one stretch."""
    return min((b // a.split + 1) * a.split, b1)


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
    """Mean and m2 in float64, for blocks whose squares leave float32's range, or that hold Inf or NaN."""
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
    """About the mean of a channel: of its first values, less the very first, so that large ones fit."""
    first = block[0]
    total = real(a, 0.0)
    count = min(count, _FIRST)
    for i in range(count):
        total = accumulate(total, block[i] - first)
    return first + total / real(a, count)


@inline
def _block_moments(a, c, n0, n1, s0, s1, seen, mean, block):
    """Mean and m2 of a block, read once: deviations are from the mean of the blocks before it, where there are any.

    That mean may be far from this block's, but then the merged m2 is as large as the squares that cancel, and no
    digit of the result is lost.
    """
    centre = real(a, mean)
    if n1 - n0 == 1 and seen:
        n = s1 - s0
        base = (n0 * a.C + c) * a.S + s0
        off, squares = real(a, 0.0), real(a, 0.0)
        for i in range(base, base + n):
            d = read(a, a.x, i) - centre
            off = accumulate(off, d)
            squares = accumulate(squares, d * d)
    else:
        n = _gather(a, c, n0, n1, s0, s1, block)
        if not seen:
            centre = _first_centre(a, block, n)
        off, squares = _deviations(a, block, n, centre)
    if not math.isfinite(squares):
        return _moments64(block, _gather(a, c, n0, n1, s0, s1, block))
    shift = off / n  # n is an integer: float64
    return centre + shift, max(squares - shift * off, 0.0)


@inline
def _moments(a, g, c0, width, b0, b1, block, mean, m2):
    """Moments of blocks [b0, b1) of each channel of a band, merged in order by Chan's formula; returns the count."""
    count, b = 0.0, b0
    for j in range(width):
        mean[j] = 0.0
        m2[j] = 0.0
    while b < b1:
        last, total = _run_end(a, b, b1), count
        for j in range(width):
            total = count
            for piece in range(b, last):
                n0, n1, s0, s1 = _bounds(a, g, piece)
                n = float((n1 - n0) * (s1 - s0))
                block_mean, block_m2 = _block_moments(a, c0 + j, n0, n1, s0, s1, piece > b0, mean[j], block)
                delta, share = block_mean - mean[j], n / (total + n)
                mean[j] += delta * share
                m2[j] += block_m2 + delta * delta * (total * share)
                total += n
        b, count = last, total
    return count


@inline
def _masked_moments(a, g, c, b0, b1, block, weights):
    """Count, mean and m2 of weighted values; the first centre is that of the first block with any weight."""
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
        weight = 1.0 * any_weight  # float64, where float() would leave a float32 as it is
        shift = off / weight
        delta = centre + shift - mean
        share = weight / (count + weight)
        mean += delta * share
        m2 += max(squares - shift * off, 0.0) + delta * delta * count * share
        count += weight
    return count, mean, m2


@inline
def _normalize(a, g, c0, width, b0, b1, his, scales, shifts, buffer):
    """y = act((x − mean)·scale + shift + residual) over blocks [b0, b1) of a band."""
    b = b0
    while b < b1:
        last = _run_end(a, b, b1)
        n0, n1, _, _ = _bounds(a, g, b)
        for n in range(n0, n1):
            j0 = 0
            while j0 < width:
                j1 = min(j0 + a.together, width)
                for piece in range(b, last):
                    _, _, s0, s1 = _bounds(a, g, piece)
                    first = (n * a.C + c0 + j0) * a.S + s0
                    y, at = place(a, a.y, first, address(buffer))
                    for j in range(j0, j1):
                        hi, w, v = his[j], scales[j], shifts[j]
                        base = first + (j - j0) * a.S
                        for s in range(s1 - s0):
                            z = plus_residual(a, (read(a, a.x, base + s) - hi) * w + v, base + s)
                            store(a, y, at + s, where_counted(a, counted(a, n * a.S + s0 + s), activate(a, z)))
                        at += s1 - s0
                    stream(a, a.y, first, address(buffer), (j1 - j0) * (s1 - s0))
                j0 = j1
        b = last


@inline
def _slope(a, i, hi, scale, shift):
    """x − hi and g′ of one element."""
    d = read(a, a.x, i) - hi
    return d, backprop(a, read(a, a.grad, i), plus_residual(a, d * scale + shift, i))


@inline
def _block_sums(a, c, n0, n1, s0, s1, hi, w, v, slopes, products):
    """Σ g′ and Σ g′·(x − hi) of a block."""
    sum_g, sum_gx = real(a, 0.0), real(a, 0.0)
    if n1 - n0 == 1:
        base = (n0 * a.C + c) * a.S
        for s in range(s0, s1):
            weight = counted(a, n0 * a.S + s)
            d, slope = _slope(a, base + s, hi, w, v)
            sum_g = accumulate(sum_g, where_counted(a, weight, slope))
            sum_gx = accumulate(sum_gx, where_counted(a, weight, slope * d))
    else:
        count = 0
        for n in range(n0, n1):
            base = (n * a.C + c) * a.S + s0
            for s in range(s1 - s0):
                weight = counted(a, n * a.S + s0 + s)
                d, slope = _slope(a, base + s, hi, w, v)
                slopes[count + s] = where_counted(a, weight, slope)
                products[count + s] = where_counted(a, weight, slope * d)
            count += s1 - s0
        # whole vectors: what is left over would be added one by one to a sum that has grown large
        while count % _LANES != 0:
            slopes[count], products[count] = real(a, 0.0), real(a, 0.0)
            count += 1
        for i in range(count):
            sum_g = accumulate(sum_g, slopes[i])
            sum_gx = accumulate(sum_gx, products[i])
    return sum_g, sum_gx


@inline
def _reduce(a, g, c0, width, b0, b1, hi, scale, shift, slopes, products, sum_g, sum_gx):
    """Σ g′ and Σ g′·(x − mean) over blocks [b0, b1) of each channel of a band."""
    for j in range(width):
        sum_g[j] = 0.0
        sum_gx[j] = 0.0
    b = b0
    while b < b1:
        last = _run_end(a, b, b1)
        for j in range(width):
            for piece in range(b, last):
                n0, n1, s0, s1 = _bounds(a, g, piece)
                block_g, block_gx = _block_sums(a, c0 + j, n0, n1, s0, s1, hi[j], scale[j], shift[j], slopes, products)
                sum_g[j] += block_g
                sum_gx[j] += block_gx
        b = last
    for j in range(width):
        sum_gx[j] = about_mean(a, g, c0 + j, sum_g[j], sum_gx[j])


@inline
def _apply(a, g, c0, width, b0, b1, his, scales, shifts, by_slope, by_x, constant, buffer, second):
    """dx = a·g′ + b·(x − mean) + c over blocks [b0, b1) of a band; the residual's gradient is g′."""
    b = b0
    while b < b1:
        last = _run_end(a, b, b1)
        n0, n1, _, _ = _bounds(a, g, b)
        for n in range(n0, n1):
            j0 = 0
            while j0 < width:
                j1 = min(j0 + a.together, width)
                for piece in range(b, last):
                    _, _, s0, s1 = _bounds(a, g, piece)
                    first = (n * a.C + c0 + j0) * a.S + s0
                    dx, at = place(a, a.y, first, address(buffer))
                    dresidual, _ = place(a, a.dresidual, first, address(second))
                    for j in range(j0, j1):
                        hi, w, v = his[j], scales[j], shifts[j]
                        p, q, r = by_slope[j], by_x[j], constant[j]
                        base = first + (j - j0) * a.S
                        for s in range(s1 - s0):
                            weight = counted(a, n * a.S + s0 + s)
                            d, slope = _slope(a, base + s, hi, w, v)
                            pass_residual(a, dresidual, at + s, where_counted(a, weight, slope))
                            store(a, dx, at + s, where_counted(a, weight, p * slope + weight * (q * d + r)))
                        at += s1 - s0
                    stream(a, a.y, first, address(buffer), (j1 - j0) * (s1 - s0))
                    stream_residual(a, first, address(second), (j1 - j0) * (s1 - s0))
                j0 = j1
        b = last


def moments(a):
    """Partial moments of each chunk into the tables at part_count, part_mean and part_m2."""
    block, mean, m2 = scratch(a, BLOCK), scratch64(BAND), scratch64(BAND)
    i = ticket(a)
    while i < a.items:
        g, c0, width, k, b0, b1 = _item(a, i)
        row = k * a.groups + g
        store64(a.part_count, row, _moments(a, g, c0, width, b0, b1, block, mean, m2))
        for j in range(width):
            store64(a.part_mean, row * a.C + c0 + j, mean[j])
            store64(a.part_m2, row * a.C + c0 + j, m2[j])
        i = ticket(a)


def masked_moments(a):
    """As `moments`, weighted by the mask."""
    block, weights = scratch(a, BLOCK), scratch(a, BLOCK)
    i = ticket(a)
    while i < a.items:
        g, c0, width, k, b0, b1 = _item(a, i)
        row = k * a.groups + g
        for c in range(c0, c0 + width):
            count, mean, m2 = _masked_moments(a, g, c, b0, b1, block, weights)
            store64(a.part_count, row, count)
            store64(a.part_mean, row * a.C + c, mean)
            store64(a.part_m2, row * a.C + c, m2)
        i = ticket(a)


def normalize(a):
    """Normalises each chunk by given parameters."""
    block = scratch(a, _PADDED)
    hi, scale, shift = scratch(a, BAND), scratch(a, BAND), scratch(a, BAND)
    i = ticket(a)
    while i < a.items:
        g, c0, width, _, b0, b1 = _item(a, i)
        parameters(a, g, c0, width, hi, scale, shift)
        _normalize(a, g, c0, width, b0, b1, hi, scale, shift, block)
        i = ticket(a)


def reduce(a):
    """Partial sums of each chunk into the tables at part_g and part_gx."""
    hi, scale, shift = scratch(a, BAND), scratch(a, BAND), scratch(a, BAND)
    slopes, products = scratch(a, _PADDED), scratch(a, _PADDED)
    sum_g, sum_gx = scratch64(BAND), scratch64(BAND)
    i = ticket(a)
    while i < a.items:
        g, c0, width, k, b0, b1 = _item(a, i)
        parameters(a, g, c0, width, hi, scale, shift)
        _reduce(a, g, c0, width, b0, b1, hi, scale, shift, slopes, products, sum_g, sum_gx)
        base = (k * a.groups + g) * a.C + c0
        for j in range(width):
            store64(a.part_g, base + j, sum_g[j])
            store64(a.part_gx, base + j, sum_gx[j])
        i = ticket(a)


def apply(a):
    """The input's gradient of each chunk by given coefficients."""
    block, second = scratch(a, _PADDED), scratch(a, _PADDED)
    hi, scale, shift = scratch(a, BAND), scratch(a, BAND), scratch(a, BAND)
    by_slope, by_x, constant = scratch(a, BAND), scratch(a, BAND), scratch(a, BAND)
    i = ticket(a)
    while i < a.items:
        g, c0, width, _, b0, b1 = _item(a, i)
        coefficients(a, g, c0, width, by_slope, by_x, constant)
        parameters(a, g, c0, width, hi, scale, shift)
        _apply(a, g, c0, width, b0, b1, hi, scale, shift, by_slope, by_x, constant, block, second)
        i = ticket(a)


def forward(a):
    """A band's moments, then its output while it is still in cache."""
    hi, scale, shift = scratch(a, BAND), scratch(a, BAND), scratch(a, BAND)
    block, mean, m2 = scratch(a, _PADDED), scratch64(BAND), scratch64(BAND)
    i = ticket(a)
    while i < a.items:
        g, c0, width, _, b0, b1 = _item(a, i)
        count = _moments(a, g, c0, width, b0, b1, block, mean, m2)
        for j in range(width):
            store64(a.mean, c0 + j, mean[j])
            store64(a.rstd, c0 + j, 1.0 / math.sqrt(m2[j] / count + a.eps))
            remember(a, c0 + j, count, mean[j], m2[j])
        parameters(a, g, c0, width, hi, scale, shift)
        _normalize(a, g, c0, width, b0, b1, hi, scale, shift, block)
        i = ticket(a)


def backward(a):
    """A band's gradient sums, then its gradient while input and gradient are still in cache."""
    hi, scale, shift = scratch(a, BAND), scratch(a, BAND), scratch(a, BAND)
    slopes, products = scratch(a, _PADDED), scratch(a, _PADDED)
    sum_g, sum_gx = scratch64(BAND), scratch64(BAND)
    by_slope, by_x, constant = scratch(a, BAND), scratch(a, BAND), scratch(a, BAND)
    i = ticket(a)
    while i < a.items:
        g, c0, width, _, b0, b1 = _item(a, i)
        parameters(a, g, c0, width, hi, scale, shift)
        _reduce(a, g, c0, width, b0, b1, hi, scale, shift, slopes, products, sum_g, sum_gx)
        own_coefficients(a, c0, width, sum_g, sum_gx, by_slope, by_x, constant)
        _apply(a, g, c0, width, b0, b1, hi, scale, shift, by_slope, by_x, constant, slopes, products)
        i = ticket(a)
