"""Kernels for rows of C values: 2-D input and channels_last, where a channel's values lie C apart.

The whole tensor is read for its sums before the first output can be written. The second pass goes from the end,
where the first one left off, because that part may still be in cache. Work is split into slices of channels and
chunks of rows, by the shape alone; a tile of rows is summed in its own precision before float64 takes over.
Inner loops run along a row, so each column of a slice has its own running sums.
"""

import math

from .cpu_activations import activate, backprop
from .cpu_channel import affine
from .cpu_intrinsics import (
    accumulate,
    counted,
    inline,
    load64,
    pass_residual,
    plus_residual,
    read,
    real,
    scratch,
    scratch64,
    store,
    store64,
    ticket,
    where_counted,
)
from .cpu_plan import SLICE

# mypy: disable-error-code="no-untyped-def"


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
    """The mean of each column of a first tile, to float precision: of values less the first, so that large ones fit."""
    for j in range(width):
        centre[j] = read(a, a.x, r0 * a.C + c0 + j)
        total[j] = real(a, 0.0)
    for r in range(r0 + 1, r1):
        base = r * a.C + c0
        for j in range(width):
            total[j] += read(a, a.x, base + j) - centre[j]
    inverse = real(a, 1.0 / (r1 - r0))
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
def _parameters(a, g, c0, width, hi, lo, scale, shift):
    """Parameters of a slice's channels, in the computing type; the mean as the sum of two."""
    base = c0 if a.shared != 0 else g * a.C + c0
    for j in range(width):
        mean = load64(a.mean, base + j)
        by, plus = affine(a, base + j, c0 + j)
        hi[j] = real(a, mean)
        lo[j] = real(a, mean - hi[j])
        scale[j] = real(a, by)
        shift[j] = real(a, plus)


def normalize(a):
    """Normalises each chunk by given parameters."""
    hi, lo, scale, shift = scratch(a, SLICE), scratch(a, SLICE), scratch(a, SLICE), scratch(a, SLICE)
    i = ticket(a)
    while i < a.items:
        g, c0, width, _, r0, r1 = _item(a, a.items - 1 - i)
        _parameters(a, g, c0, width, hi, lo, scale, shift)
        for r in range(r0, r1):
            base = r * a.C + c0
            weight = counted(a, r)
            for j in range(width):
                at = base + j
                z = ((read(a, a.x, at) - hi[j]) - lo[j]) * scale[j] + shift[j]
                store(a, a.y, at, where_counted(a, weight, activate(a, plus_residual(a, z, at))))
        i = ticket(a)


@inline
def _slope(a, at, hi, lo, scale, shift):
    """x − mean and g′ of one element."""
    d = (read(a, a.x, at) - hi) - lo
    return d, backprop(a, read(a, a.grad, at), plus_residual(a, d * scale + shift, at))


def reduce(a):
    """Partial sums of each chunk into the tables at sum_g and sum_gx."""
    hi, lo, scale, shift = scratch(a, SLICE), scratch(a, SLICE), scratch(a, SLICE), scratch(a, SLICE)
    tile_g, tile_gx = scratch(a, SLICE), scratch(a, SLICE)
    sum_g, sum_gx = scratch64(SLICE), scratch64(SLICE)
    i = ticket(a)
    while i < a.items:
        g, c0, width, k, r0, r1 = _item(a, i)
        _parameters(a, g, c0, width, hi, lo, scale, shift)
        for j in range(width):
            sum_g[j] = 0.0
            sum_gx[j] = 0.0
        t0 = r0
        while t0 < r1:
            t1 = min(t0 + a.stack, r1)
            for j in range(width):
                tile_g[j] = real(a, 0.0)
                tile_gx[j] = real(a, 0.0)
            for q in range((t1 - t0) // 2):
                r = t0 + 2 * q
                b0 = r * a.C + c0
                w0, w1 = counted(a, r), counted(a, r + 1)
                for j in range(width):
                    d0, s0 = _slope(a, b0 + j, hi[j], lo[j], scale[j], shift[j])
                    d1, s1 = _slope(a, b0 + a.C + j, hi[j], lo[j], scale[j], shift[j])
                    tile_g[j] += where_counted(a, w0, s0) + where_counted(a, w1, s1)
                    tile_gx[j] += where_counted(a, w0, s0 * d0) + where_counted(a, w1, s1 * d1)
            if (t1 - t0) % 2 == 1:
                b0 = (t1 - 1) * a.C + c0
                weight = counted(a, t1 - 1)
                for j in range(width):
                    d, s = _slope(a, b0 + j, hi[j], lo[j], scale[j], shift[j])
                    tile_g[j] += where_counted(a, weight, s)
                    tile_gx[j] += where_counted(a, weight, s * d)
            for j in range(width):
                sum_g[j] += tile_g[j]
                sum_gx[j] += tile_gx[j]
            t0 = t1
        base = (k * a.groups + g) * a.C + c0
        for j in range(width):
            store64(a.part_g, base + j, sum_g[j])
            store64(a.part_gx, base + j, sum_gx[j])
        i = ticket(a)


def apply(a):
    """The input's gradient of each chunk by given coefficients."""
    hi, lo, scale, shift = scratch(a, SLICE), scratch(a, SLICE), scratch(a, SLICE), scratch(a, SLICE)
    by_slope, by_x, constant = scratch(a, SLICE), scratch(a, SLICE), scratch(a, SLICE)
    i = ticket(a)
    while i < a.items:
        g, c0, width, _, r0, r1 = _item(a, a.items - 1 - i)
        _parameters(a, g, c0, width, hi, lo, scale, shift)
        base = c0 if a.shared != 0 else g * a.C + c0
        for j in range(width):
            by_slope[j] = real(a, load64(a.a, base + j))
            by_x[j] = real(a, load64(a.b, base + j))
            constant[j] = real(a, load64(a.c, base + j))
        for r in range(r0, r1):
            base = r * a.C + c0
            weight = counted(a, r)
            for j in range(width):
                at = base + j
                d, slope = _slope(a, at, hi[j], lo[j], scale[j], shift[j])
                pass_residual(a, at, where_counted(a, weight, slope))
                dx = by_slope[j] * slope + weight * (by_x[j] * d + constant[j])
                store(a, a.y, at, where_counted(a, weight, dx))
        i = ticket(a)
