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
    """Sums and squares of a tile's deviations from `centre`. Row after row: four at a time touch the sums less often,
    but the processor then no longer sees one stretch of memory to fetch ahead."""
    for j in range(width):
        off[j] = real(a, 0.0)
        squares[j] = real(a, 0.0)
    for r in range(r0, r1):
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


def normalize(a):
    """Normalises each chunk by given parameters: (x − mean)·scale + shift, the mean below its float in the shift."""
    hi, scale, shift, buffer = scratch(a, SLICE), scratch(a, SLICE), scratch(a, SLICE), scratch(a, _BUFFER)
    i = ticket(a)
    while i < a.items:
        g, c0, width, _, first, last = _item(a, a.items - 1 - i)
        parameters(a, g, c0, width, hi, scale, shift)
        r0 = first
        while r0 < last:
            r1 = min(r0 + a.together, last)
            y, to = place(a, a.y, r0 * a.C + c0, address(buffer))
            for r in range(r0, r1):
                base, weight = r * a.C + c0, counted(a, r)
                for j in range(width):
                    z = plus_residual(a, (read(a, a.x, base + j) - hi[j]) * scale[j] + shift[j], base + j)
                    store(a, y, to + j, where_counted(a, weight, activate(a, z)))
                to += a.C
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
    """Sums of g′ and g′·(x − hi) of a tile's columns."""
    for j in range(width):
        tile_g[j] = real(a, 0.0)
        tile_gx[j] = real(a, 0.0)
    for r in range(r0, r1):
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


def apply(a):
    """The input's gradient of each chunk by given coefficients: a·g′ + b·(x − hi) + c, the rest of the mean in c.

    The residual's gradient is g′.
    """
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
            dresidual, _ = place(a, a.dresidual, r0 * a.C + c0, address(second))
            for r in range(r0, r1):
                base, weight = r * a.C + c0, counted(a, r)
                for j in range(width):
                    d, slope = _slope(a, base + j, hi[j], scale[j], shift[j])
                    pass_residual(a, dresidual, to + j, where_counted(a, weight, slope))
                    gradient = by_slope[j] * slope + weight * (by_x[j] * d + rest[j])
                    store(a, dx, to + j, where_counted(a, weight, gradient))
                to += a.C
            stream(a, a.y, r0 * a.C + c0, address(buffer), (r1 - r0) * width)
            stream_residual(a, r0 * a.C + c0, address(second), (r1 - r0) * width)
            r0 = r1
        i = ticket(a)
