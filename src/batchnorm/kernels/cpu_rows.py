"""Kernels for rows of C values: 2-D input and channels_last, where a channel's values lie C apart.

The whole tensor is read for its sums before the first output can be written. The second pass goes from the end,
where the first one left off, because that part may still be in cache. Work is split into slices of channels and
chunks of rows, by the shape alone; a tile of rows is summed in its own precision before float64 takes over.
Inner loops run along a row, so each column of a slice has its own running sums.
"""

import math

from .cpu_activations import activate, backprop
from .cpu_channel import about_mean, coefficients, parameters
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
from .cpu_plan import SLICE

# mypy: disable-error-code="no-untyped-def"

_BUFFER = 2 * SLICE + 64  # two rows, begun anywhere in a cache line
_FIRST = 8  # rows to guess a mean from: of independent ones within σ/3 of it, so next to nothing cancels


@inline
def _item(a, i):
    """Group, first channel, how many, chunk, and rows [r0, r1) of work item `i`."""
    k, rest = i // (a.groups * a.split), i % (a.groups * a.split)
    g, c0 = rest // a.split, rest % a.split * a.span
    first = g * a.per_group * a.S
    rows = min(a.per_group, a.N - g * a.per_group) * a.S
    return g, c0, min(a.span, a.C - c0), k, first + rows * k // a.chunks, first + rows * (k + 1) // a.chunks


@inline
def _first_centre(a, c0, width, r0, r1, centre, total):
    """About the mean of each column: of a few rows, less the first, so that large values fit."""
    for j in range(width):
        centre[j] = read(a, a.x, r0 * a.C + c0 + j)
        total[j] = real(a, 0.0)
    rows = min(r1 - r0, _FIRST)
    for r in range(r0 + 1, r0 + rows):
        base = r * a.C + c0
        for j in range(width):
            total[j] += read(a, a.x, base + j) - centre[j]
    inverse = real(a, 1.0 / rows)
    for j in range(width):
        centre[j] += total[j] * inverse


@inline
def _deviations(a, c0, width, r0, r1, centre, off, squares):
    """Sums and squares of a tile's deviations from `centre`; four rows at a time, to touch the sums less often."""
    for j in range(width):
        off[j] = real(a, 0.0)
        squares[j] = real(a, 0.0)
    fours = r0 + (r1 - r0) // 4 * 4
    for q in range((r1 - r0) // 4):
        b0 = (r0 + 4 * q) * a.C + c0
        b1, b2, b3 = b0 + a.C, b0 + 2 * a.C, b0 + 3 * a.C
        for j in range(width):
            d0, d1 = read(a, a.x, b0 + j) - centre[j], read(a, a.x, b1 + j) - centre[j]
            d2, d3 = read(a, a.x, b2 + j) - centre[j], read(a, a.x, b3 + j) - centre[j]
            off[j] += (d0 + d1) + (d2 + d3)
            squares[j] += (d0 * d0 + d1 * d1) + (d2 * d2 + d3 * d3)
    for r in range(fours, r1):
        base = r * a.C + c0
        for j in range(width):
            d = read(a, a.x, base + j) - centre[j]
            off[j] += d
            squares[j] += d * d


@inline
def _column64(a, c, r0, r1):
    """Mean and m2 of one column of a tile in float64: its squares leave float32's range, or it holds Inf or NaN."""
    total, m2 = 0.0, 0.0
    for r in range(r0, r1):
        total += read(a, a.x, r * a.C + c)
    mean = total / (r1 - r0)
    for r in range(r0, r1):
        d = read(a, a.x, r * a.C + c) - mean
        m2 += d * d
    return mean, m2


@inline
def _merge_tile(a, c0, width, r0, r1, count, centre, off, squares, mean, m2):
    """Merges a tile into the slice's running moments by Chan's formula."""
    n = float(r1 - r0)
    share, cross, inverse = n / (count + n), count * n / (count + n), 1.0 / n
    finite = real(a, 0.0)
    for j in range(width):
        finite = accumulate(finite, squares[j])
    if math.isfinite(finite):
        for j in range(width):
            shift = off[j] * inverse
            delta = centre[j] + shift - mean[j]
            mean[j] += delta * share
            m2[j] += max(squares[j] - shift * off[j], 0.0) + delta * delta * cross
    else:
        for j in range(width):
            shift = off[j] * inverse
            tile_mean, tile_m2 = centre[j] + shift, max(squares[j] - shift * off[j], 0.0)
            if not math.isfinite(squares[j]):
                tile_mean, tile_m2 = _column64(a, c0 + j, r0, r1)
            delta = tile_mean - mean[j]
            mean[j] += delta * share
            m2[j] += tile_m2 + delta * delta * cross


def moments(a):
    """Partial moments of each chunk into the tables at count, mean and m2."""
    centre, off, squares = scratch(a, SLICE), scratch(a, SLICE), scratch(a, SLICE)
    mean, m2 = scratch64(SLICE), scratch64(SLICE)
    i = ticket(a)
    while i < a.items:
        g, c0, width, k, r0, r1 = _item(a, i)
        for j in range(width):
            mean[j] = 0.0
            m2[j] = 0.0
        t0 = r0
        while t0 < r1:
            t1 = min(t0 + a.stack, r1)
            if t0 == r0:
                _first_centre(a, c0, width, t0, t1, centre, off)
            else:  # as in planes: the mean so far will do
                for j in range(width):
                    centre[j] = real(a, mean[j])
            _deviations(a, c0, width, t0, t1, centre, off, squares)
            _merge_tile(a, c0, width, t0, t1, float(t0 - r0), centre, off, squares, mean, m2)
            t0 = t1
        store64(a.part_count, k * a.groups + g, float(r1 - r0))
        base = (k * a.groups + g) * a.C + c0
        for j in range(width):
            store64(a.part_mean, base + j, mean[j])
            store64(a.part_m2, base + j, m2[j])
        i = ticket(a)


@inline
def _masked_first_centre(a, c0, width, r0, r1, centre, total):
    """As `_first_centre`, of rows with a weight; returns whether there are any."""
    weights = real(a, 0.0)
    for r in range(r0, r1):
        weight = counted(a, r)
        if weight == real(a, 0.0):
            continue
        base = r * a.C + c0
        if weights == real(a, 0.0):
            for j in range(width):
                centre[j] = read(a, a.x, base + j)
                total[j] = real(a, 0.0)
        for j in range(width):
            total[j] += weight * (read(a, a.x, base + j) - centre[j])
        weights += weight
    if weights == real(a, 0.0):
        return False
    for j in range(width):
        centre[j] += total[j] / weights
    return True


def masked_moments(a):
    """As `moments`, weighted by the mask."""
    centre, off, squares = scratch(a, SLICE), scratch(a, SLICE), scratch(a, SLICE)
    mean, m2 = scratch64(SLICE), scratch64(SLICE)
    i = ticket(a)
    while i < a.items:
        g, c0, width, k, r0, r1 = _item(a, i)
        count, known = 0.0, False
        for j in range(width):
            mean[j] = 0.0
            m2[j] = 0.0
        t0 = r0
        while t0 < r1:
            t1 = min(t0 + a.stack, r1)
            if known:
                for j in range(width):
                    centre[j] = real(a, mean[j])
            else:
                known = _masked_first_centre(a, c0, width, t0, t1, centre, off)
            n = 0.0
            for j in range(width):
                off[j] = real(a, 0.0)
                squares[j] = real(a, 0.0)
            for r in range(t0, t1):
                weight = counted(a, r)
                if weight != real(a, 0.0):
                    base = r * a.C + c0
                    for j in range(width):
                        d = read(a, a.x, base + j) - centre[j]
                        off[j] += weight * d
                        squares[j] += weight * (d * d)
                    n += weight
            if n > 0.0:
                share, cross = n / (count + n), count * n / (count + n)
                for j in range(width):
                    shift = off[j] / n
                    delta = centre[j] + shift - mean[j]
                    mean[j] += delta * share
                    m2[j] += max(squares[j] - shift * off[j], 0.0) + delta * delta * cross
                count += n
            t0 = t1
        store64(a.part_count, k * a.groups + g, count)
        base = (k * a.groups + g) * a.C + c0
        for j in range(width):
            store64(a.part_mean, base + j, mean[j])
            store64(a.part_m2, base + j, m2[j])
        i = ticket(a)


@inline
def _normalize_one(a, at, y, to, weight, hi, scale, shift):
    """One element: (x − mean)·scale + shift, the part of the mean below its float in the shift."""
    z = plus_residual(a, (read(a, a.x, at) - hi) * scale + shift, at)
    store(a, y, to, where_counted(a, weight, activate(a, z)))


def normalize(a):
    """Normalises each chunk by given parameters; two rows at a time, to touch the parameters less often."""
    hi, scale, shift, buffer = scratch(a, SLICE), scratch(a, SLICE), scratch(a, SLICE), scratch(a, _BUFFER)
    i = ticket(a)
    while i < a.items:
        g, c0, width, _, first, last = _item(a, a.items - 1 - i)
        parameters(a, g, c0, width, hi, scale, shift)
        r0 = first
        while r0 < last:
            r1 = min(r0 + a.together, last)
            y, to = place(a, a.y, r0 * a.C + c0, address(buffer))
            for q in range((r1 - r0) // 2):
                r = r0 + 2 * q
                b0, t0 = r * a.C + c0, to + 2 * q * width
                w0, w1 = counted(a, r), counted(a, r + 1)
                for j in range(width):
                    _normalize_one(a, b0 + j, y, t0 + j, w0, hi[j], scale[j], shift[j])
                    _normalize_one(a, b0 + a.C + j, y, t0 + width + j, w1, hi[j], scale[j], shift[j])
            if (r1 - r0) % 2 == 1:
                base, weight = (r1 - 1) * a.C + c0, counted(a, r1 - 1)
                to += (r1 - 1 - r0) * width
                for j in range(width):
                    _normalize_one(a, base + j, y, to + j, weight, hi[j], scale[j], shift[j])
            stream(a, a.y, r0 * a.C + c0, address(buffer), (r1 - r0) * width)
            r0 = r1
        i = ticket(a)


@inline
def _slope(a, at, hi, scale, shift):
    """x − hi and g′ of one element."""
    d = read(a, a.x, at) - hi
    return d, backprop(a, read(a, a.grad, at), plus_residual(a, d * scale + shift, at))


@inline
def _tile_sums(a, c0, width, r0, r1, hi, scale, shift, tile_g, tile_gx):
    """Sums of g′ and g′·(x − hi) of a tile's columns, four rows at a time."""
    for j in range(width):
        tile_g[j] = real(a, 0.0)
        tile_gx[j] = real(a, 0.0)
    for q in range((r1 - r0) // 4):
        r = r0 + 4 * q
        b0 = r * a.C + c0
        b1, b2, b3 = b0 + a.C, b0 + 2 * a.C, b0 + 3 * a.C
        w0, w1, w2, w3 = counted(a, r), counted(a, r + 1), counted(a, r + 2), counted(a, r + 3)
        for j in range(width):
            d0, s0 = _slope(a, b0 + j, hi[j], scale[j], shift[j])
            d1, s1 = _slope(a, b1 + j, hi[j], scale[j], shift[j])
            d2, s2 = _slope(a, b2 + j, hi[j], scale[j], shift[j])
            d3, s3 = _slope(a, b3 + j, hi[j], scale[j], shift[j])
            low = where_counted(a, w0, s0) + where_counted(a, w1, s1)
            tile_g[j] += low + (where_counted(a, w2, s2) + where_counted(a, w3, s3))
            low = where_counted(a, w0, s0 * d0) + where_counted(a, w1, s1 * d1)
            tile_gx[j] += low + (where_counted(a, w2, s2 * d2) + where_counted(a, w3, s3 * d3))
    for r in range(r0 + (r1 - r0) // 4 * 4, r1):
        base, weight = r * a.C + c0, counted(a, r)
        for j in range(width):
            d, s = _slope(a, base + j, hi[j], scale[j], shift[j])
            tile_g[j] += where_counted(a, weight, s)
            tile_gx[j] += where_counted(a, weight, s * d)


def reduce(a):
    """Partial sums of each chunk into the tables at part_g and part_gx."""
    hi, scale, shift = scratch(a, SLICE), scratch(a, SLICE), scratch(a, SLICE)
    tile_g, tile_gx = scratch(a, SLICE), scratch(a, SLICE)
    sum_g, sum_gx = scratch64(SLICE), scratch64(SLICE)
    i = ticket(a)
    while i < a.items:
        g, c0, width, k, r0, r1 = _item(a, i)
        parameters(a, g, c0, width, hi, scale, shift)
        for j in range(width):
            sum_g[j] = 0.0
            sum_gx[j] = 0.0
        t0 = r0
        while t0 < r1:
            t1 = min(t0 + a.stack, r1)
            _tile_sums(a, c0, width, t0, t1, hi, scale, shift, tile_g, tile_gx)
            for j in range(width):
                sum_g[j] += tile_g[j]
                sum_gx[j] += tile_gx[j]
            t0 = t1
        base = (k * a.groups + g) * a.C + c0
        for j in range(width):
            store64(a.part_g, base + j, sum_g[j])
            store64(a.part_gx, base + j, about_mean(a, g, c0 + j, sum_g[j], sum_gx[j]))
        i = ticket(a)


@inline
def _apply_one(a, at, dx, dresidual, to, weight, hi, scale, shift, by_slope, by_x, constant):
    """One element: a·g′ + b·(x − hi) + c, the rest of the mean in c; the residual's gradient is g′."""
    d, slope = _slope(a, at, hi, scale, shift)
    pass_residual(a, dresidual, to, where_counted(a, weight, slope))
    store(a, dx, to, where_counted(a, weight, by_slope * slope + weight * (by_x * d + constant)))


def apply(a):
    """The input's gradient of each chunk by given coefficients, two rows at a time."""
    hi, scale, shift = scratch(a, SLICE), scratch(a, SLICE), scratch(a, SLICE)
    by_slope, by_x, rest = scratch(a, SLICE), scratch(a, SLICE), scratch(a, SLICE)
    buffer, second = scratch(a, _BUFFER), scratch(a, _BUFFER)
    i = ticket(a)
    while i < a.items:
        g, c0, width, _, first, last = _item(a, a.items - 1 - i)
        parameters(a, g, c0, width, hi, scale, shift)
        coefficients(a, g, c0, width, by_slope, by_x, rest)
        r0 = first
        while r0 < last:
            r1 = min(r0 + a.together, last)
            dx, to = place(a, a.y, r0 * a.C + c0, address(buffer))
            dr, _ = place(a, a.dresidual, r0 * a.C + c0, address(second))
            for pair in range((r1 - r0) // 2):
                r = r0 + 2 * pair
                b, t = r * a.C + c0, to + 2 * pair * width
                w0, w1 = counted(a, r), counted(a, r + 1)
                for j in range(width):
                    hi_, w, v, p, q, c = hi[j], scale[j], shift[j], by_slope[j], by_x[j], rest[j]
                    _apply_one(a, b + j, dx, dr, t + j, w0, hi_, w, v, p, q, c)
                    _apply_one(a, b + a.C + j, dx, dr, t + width + j, w1, hi_, w, v, p, q, c)
            if (r1 - r0) % 2 == 1:
                base, weight = (r1 - 1) * a.C + c0, counted(a, r1 - 1)
                to += (r1 - 1 - r0) * width
                for j in range(width):
                    hi_, w, v, p, q, c = hi[j], scale[j], shift[j], by_slope[j], by_x[j], rest[j]
                    _apply_one(a, base + j, dx, dr, to + j, weight, hi_, w, v, p, q, c)
            stream(a, a.y, r0 * a.C + c0, address(buffer), (r1 - r0) * width)
            stream_residual(a, r0 * a.C + c0, address(second), (r1 - r0) * width)
            r0 = r1
        i = ticket(a)
