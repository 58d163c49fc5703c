"""The kernels: two that add up, two that read and write, and two that hold all values of a channel tile on chip.

One more kernel updates the running statistics by the batch statistics that torch's operator saved.

Arguments of all kernels: A, C, S and GROUP are those of a `View`, SPLITS, PER, P, Q, WIDE and MERGED those of a `Plan`
(plan.py). STRIDE is C if each virtual batch has its own parameters, 0 if they share them. Pointers may be None.
"""

import triton
import triton.language as tl

from batchnorm.backends.triton.elementwise import (
    activate,
    affine,
    before_activation,
    channels_of,
    in_two,
    locate,
    over,
    read,
    row,
    share_of,
    tiles_of_group,
    weights,
)
from batchnorm.backends.triton.merging import is_last, merged_moments, merged_sums, update_statistics

# Numbers that do not affect how memory is read: Triton does not specialise code for their values. It does so for C and
# S, as multiples of 16.
ANY = ("A", "GROUP", "SPLITS", "PER", "STRIDE", "TABLE")


@triton.jit
def moments_of_tile(x, w, ROWS: tl.constexpr):
    """Count and mean (K,) in float32 of a tile."""
    count = over(w, ROWS)
    return count, over(tl.where(w > 0, x * w, 0.0), ROWS) / tl.where(count > 0, count, 1.0)


@triton.jit(do_not_specialize=ANY)
def moments_kernel(
    x, mask, table, counters, out,
    running_mean, running_var, batches, skipped, momentum, limit, eps,
    A, C, S, GROUP, SPLITS, PER, TABLE,
    FINISH: tl.constexpr, CUMULATIVE: tl.constexpr, SKIP: tl.constexpr, MASK: tl.constexpr,
    ROWS: tl.constexpr, P: tl.constexpr, Q: tl.constexpr, WIDE: tl.constexpr, MERGED: tl.constexpr,
):  # fmt: skip
    """Count, mean and m2 (3, G, C); or with FINISH mean, 1/√(var + eps) and variance (3, C).

    With FINISH the running statistics are updated as well.

    The kernel sums deviations from the mean of the share's first tile with values, so float32 suffices for any mean.
    """
    tile, split, group, tiles = share_of(C, SPLITS, ROWS, Q)
    channels, known = channels_of(tile, C, ROWS, Q)
    count = tl.zeros([P, Q], tl.float32)
    first, second = tl.zeros([P, Q], tl.float32), tl.zeros([P, Q], tl.float32)
    found, center = tl.zeros_like(channels).to(tl.float32), tl.zeros_like(channels).to(tl.float32)
    begin, end = split * PER, tl.minimum(split * PER + PER, tiles_of_group(GROUP, S, ROWS, P, Q))
    if MASK == 0:
        base, offsets, inside, _, _ = locate(begin, group, tile, A, C, S, GROUP, ROWS, P, Q, WIDE)
        found, center = moments_of_tile(read(x, base, offsets, inside), inside.to(tl.float32), ROWS)
    for t in range(begin, end):
        base, offsets, inside, position, positions = locate(t, group, tile, A, C, S, GROUP, ROWS, P, Q, WIDE)
        value = read(x, base, offsets, inside)
        w = weights(mask, base, offsets, position, positions, inside, MASK)
        if MASK != 0:
            own, mean = moments_of_tile(value, w, ROWS)
            center = tl.where(found > 0, center, mean)
            found += own
        deviation = tl.where(w > 0, value - center[None, :], 0.0)
        count += w
        first += w * deviation
        second += w * deviation * deviation
    n = over(count, ROWS).to(tl.float64)
    some = tl.where(n > 0, n, 1.0)
    moved = over(first, ROWS).to(tl.float64)
    mean = center.to(tl.float64) + moved / some
    m2 = over(second, ROWS).to(tl.float64) - moved * moved / some
    m2 = tl.where(m2 < 0, 0.0, m2)  # NaN stays
    at = (group * SPLITS + split) * C + channels
    tl.store(table + at, n, mask=known)
    tl.store(table + TABLE + at, mean, mask=known)
    tl.store(table + 2 * TABLE + at, m2, mask=known)
    if is_last(counters, 2 + group * tiles + tile, SPLITS):
        n, mean, m2 = merged_moments(table, TABLE, group * SPLITS * C + channels, C, SPLITS, known, MERGED)
        if FINISH:
            n = tl.where(known, n, 2.0)  # no division by 0 for channels that do not exist
            statistics(out, C, channels, known, n, mean, m2, eps)
            if running_mean is not None:
                update_statistics(
                    running_mean, running_var, batches, skipped, counters, momentum, limit, tiles,
                    mean, m2 / (n - 1), channels, known, CUMULATIVE, SKIP,
                )  # fmt: skip
        else:
            to, size = out + group * C + channels, tl.cdiv(A, GROUP) * C
            tl.store(to, n, mask=known)
            tl.store(to + size, mean, mask=known)
            tl.store(to + 2 * size, m2, mask=known)


@triton.jit
def statistics(out, C, channels, known, n, mean, m2, eps):
    """Write mean, 1/√(var + eps) and variance."""
    variance = m2 / n
    tl.store(out + channels, mean, mask=known)
    tl.store(out + C + channels, 1.0 / tl.sqrt(variance + tl.cast(eps, tl.float64)), mask=known)
    tl.store(out + 2 * C + channels, variance, mask=known)


@triton.jit
def output(x, residual, w, high, low, scale, shift, base, offsets, inside, ACTIVATION: tl.constexpr):
    """act((x − mean)·scale + shift + residual), 0 where the weight is 0."""
    z = ((x - high[None, :]) - low[None, :]) * scale[None, :] + shift[None, :]
    if residual is not None:
        z += read(residual, base, offsets, inside)
    return tl.where(w > 0, activate(z, ACTIVATION), 0.0)


@triton.jit(do_not_specialize=ANY)
def normalize_kernel(
    x, y, residual, mask, mean, scale, shift, weight, bias,
    A, C, S, GROUP, SPLITS, PER, STRIDE,
    ACTIVATION: tl.constexpr, MASK: tl.constexpr,
    ROWS: tl.constexpr, P: tl.constexpr, Q: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """y = act((x − mean)·scale·γ + shift + β + residual)."""
    tile, split, group, _ = share_of(C, SPLITS, ROWS, Q)
    channels, known = channels_of(tile, C, ROWS, Q)
    high, low = in_two(row(mean, group, STRIDE, channels, known))
    a, b = affine(scale, shift, weight, bias, group, STRIDE, channels, known)
    a, b = a.to(tl.float32), b.to(tl.float32)
    begin, end = split * PER, tl.minimum(split * PER + PER, tiles_of_group(GROUP, S, ROWS, P, Q))
    for t in range(begin, end):
        base, offsets, inside, position, positions = locate(t, group, tile, A, C, S, GROUP, ROWS, P, Q, WIDE)
        value = read(x, base, offsets, inside)
        w = weights(mask, base, offsets, position, positions, inside, MASK)
        result = output(value, residual, w, high, low, a, b, base, offsets, inside, ACTIVATION)
        tl.store(y + base + offsets, result.to(y.dtype.element_ty), mask=inside)


@triton.jit
def gradient(
    grad, extra, x, w, high, low, scale, shift, base, offsets, inside,
    ACTIVATION: tl.constexpr, BY_OUTPUT: tl.constexpr,
):  # fmt: skip
    """x − mean and g′, both 0 where the weight is 0. `extra` is the residual, or with BY_OUTPUT the output."""
    centered = (x - high[None, :]) - low[None, :]
    g = read(grad, base, offsets, inside)
    if ACTIVATION is not None:
        if BY_OUTPUT:
            z = read(extra, base, offsets, inside)
        else:
            z = centered * scale[None, :] + shift[None, :]
            if extra is not None:
                z += read(extra, base, offsets, inside)
        g = before_activation(g, z, ACTIVATION)
    return tl.where(w > 0, centered, 0.0), tl.where(w > 0, g, 0.0)


@triton.jit(do_not_specialize=ANY)
def reduce_kernel(
    grad, x, extra, mask, mean, scale, shift, weight, bias, table, counters, out, dweight, dbias,
    A, C, S, GROUP, SPLITS, PER, STRIDE, TABLE,
    ACTIVATION: tl.constexpr, BY_OUTPUT: tl.constexpr, MASK: tl.constexpr,
    ROWS: tl.constexpr, P: tl.constexpr, Q: tl.constexpr, WIDE: tl.constexpr, MERGED: tl.constexpr,
):  # fmt: skip
    """Σ g′ and Σ g′·(x − mean), (2, G, C) in float64; for the plain case the gradients of γ and β too."""
    tile, split, group, tiles = share_of(C, SPLITS, ROWS, Q)
    channels, known = channels_of(tile, C, ROWS, Q)
    high, low = in_two(row(mean, group, STRIDE, channels, known))
    a, b = affine(scale, shift, weight, bias, group, STRIDE, channels, known)
    a, b = a.to(tl.float32), b.to(tl.float32)
    sum_g, sum_gx = tl.zeros([P, Q], tl.float32), tl.zeros([P, Q], tl.float32)
    begin, end = split * PER, tl.minimum(split * PER + PER, tiles_of_group(GROUP, S, ROWS, P, Q))
    for t in range(begin, end):
        base, offsets, inside, position, positions = locate(t, group, tile, A, C, S, GROUP, ROWS, P, Q, WIDE)
        value = read(x, base, offsets, inside)
        w = weights(mask, base, offsets, position, positions, inside, MASK)
        centered, g = gradient(
            grad, extra, value, w, high, low, a, b, base, offsets, inside, ACTIVATION, BY_OUTPUT
        )  # fmt: skip
        sum_g += g
        sum_gx += g * centered
    at = (group * SPLITS + split) * C + channels
    tl.store(table + at, over(sum_g, ROWS).to(tl.float64), mask=known)
    tl.store(table + TABLE + at, over(sum_gx, ROWS).to(tl.float64), mask=known)
    if is_last(counters, 2 + group * tiles + tile, SPLITS):
        total, total_x = merged_sums(table, TABLE, group * SPLITS * C + channels, C, SPLITS, known, MERGED)
        to = out + group * C + channels
        tl.store(to, total, mask=known)
        tl.store(to + tl.cdiv(A, GROUP) * C, total_x, mask=known)
        rstd = row(scale, group, STRIDE, channels, known)
        parameters(dweight, dbias, total, total_x * rstd, channels, known)


@triton.jit
def parameters(dweight, dbias, total, total_hat, channels, known):
    """Write the gradients of γ and β."""
    if dweight is not None:
        tl.store(dweight + channels, total_hat.to(tl.float32).to(dweight.dtype.element_ty), mask=known)
    if dbias is not None:
        tl.store(dbias + channels, total.to(tl.float32).to(dbias.dtype.element_ty), mask=known)


@triton.jit
def through_statistics(scale, rstd, total, total_x, share):
    """The coefficients of x − mean and of 1 in dx, (K,) in float64: −s·r²·Σ(g′·(x − mean))/n and −s·Σg′/n."""
    each = scale * tl.cast(share, tl.float64)
    return -each * rstd * rstd * total_x, -each * total


@triton.jit(do_not_specialize=ANY)
def apply_kernel(
    grad, x, extra, mask, mean, scale, shift, weight, bias, a, b, c, sums, dx, dresidual, share,
    A, C, S, GROUP, SPLITS, PER, STRIDE,
    ACTIVATION: tl.constexpr, BY_OUTPUT: tl.constexpr, MASK: tl.constexpr,
    ROWS: tl.constexpr, P: tl.constexpr, Q: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """dx = a·g′ + (b·(x − mean) + c)·weight, and g′ for the residual; a, b and c follow from `sums` if not given."""
    tile, split, group, _ = share_of(C, SPLITS, ROWS, Q)
    channels, known = channels_of(tile, C, ROWS, Q)
    high, low = in_two(row(mean, group, STRIDE, channels, known))
    slope, offset = affine(scale, shift, weight, bias, group, STRIDE, channels, known)
    if a is not None:
        by_g, by_x = row(a, group, STRIDE, channels, known), row(b, group, STRIDE, channels, known)
        constant = row(c, group, STRIDE, channels, known)
    else:
        total, total_x = row(sums, 0, 0, channels, known), row(sums, 1, C, channels, known)
        by_g = slope
        by_x, constant = through_statistics(slope, row(scale, 0, 0, channels, known), total, total_x, share)
    by_g, by_x, constant = by_g.to(tl.float32), by_x.to(tl.float32), constant.to(tl.float32)
    slope, offset = slope.to(tl.float32), offset.to(tl.float32)
    begin, end = split * PER, tl.minimum(split * PER + PER, tiles_of_group(GROUP, S, ROWS, P, Q))
    for t in range(begin, end):
        base, offsets, inside, position, positions = locate(t, group, tile, A, C, S, GROUP, ROWS, P, Q, WIDE)
        value = read(x, base, offsets, inside)
        w = weights(mask, base, offsets, position, positions, inside, MASK)
        centered, g = gradient(
            grad, extra, value, w, high, low, slope, offset, base, offsets, inside, ACTIVATION, BY_OUTPUT
        )  # fmt: skip
        through = centered * by_x[None, :] + constant[None, :]
        if MASK != 0:
            through = tl.where(w > 0, through * w, 0.0)
        if dx is not None:
            result = g * by_g[None, :] + through
            tl.store(dx + base + offsets, result.to(dx.dtype.element_ty), mask=inside)
        if dresidual is not None:
            tl.store(dresidual + base + offsets, g.to(dresidual.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=ANY)
def forward_whole_kernel(
    x, y, residual, weight, bias, counters, out,
    running_mean, running_var, batches, skipped, momentum, limit, eps, A, C, S,
    CUMULATIVE: tl.constexpr, SKIP: tl.constexpr, ACTIVATION: tl.constexpr,
    ROWS: tl.constexpr, P: tl.constexpr, Q: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """The plain forward pass with one read of x: all values of a channel tile are in one tile."""
    tile, _, group, tiles = share_of(C, 1, ROWS, Q)
    channels, known = channels_of(tile, C, ROWS, Q)
    base, offsets, inside, _, _ = locate(group, group, tile, A, C, S, A, ROWS, P, Q, WIDE)
    value, w = read(x, base, offsets, inside), inside.to(tl.float32)
    _, center = moments_of_tile(value, w, ROWS)
    n = tl.cast(A * S, tl.float64) + tl.zeros_like(center).to(tl.float64)
    deviation = tl.where(inside, value - center[None, :], 0.0)
    moved = over(deviation, ROWS) / n.to(tl.float32)
    deviation = tl.where(inside, deviation - moved[None, :], 0.0)
    m2 = over(deviation * deviation, ROWS).to(tl.float64)
    mean = center.to(tl.float64) + moved.to(tl.float64)
    statistics(out, C, channels, known, n, mean, m2, eps)
    rstd = 1.0 / tl.sqrt(m2 / n + tl.cast(eps, tl.float64))
    a, b = rstd, tl.zeros_like(rstd)
    if weight is not None:
        a = a * row(weight, 0, 0, channels, known)
    if bias is not None:
        b = row(bias, 0, 0, channels, known)
    high, low = in_two(mean)
    a, b = a.to(tl.float32), b.to(tl.float32)
    result = output(value, residual, w, high, low, a, b, base, offsets, inside, ACTIVATION)
    tl.store(y + base + offsets, result.to(y.dtype.element_ty), mask=inside)
    if running_mean is not None:
        update_statistics(
            running_mean, running_var, batches, skipped, counters, momentum, limit, tiles,
            mean, m2 / (n - 1), channels, known, CUMULATIVE, SKIP,
        )  # fmt: skip


@triton.jit(do_not_specialize=ANY)
def backward_whole_kernel(
    grad, x, extra, mean, rstd, weight, bias, dx, dresidual, dweight, dbias, share, A, C, S,
    ACTIVATION: tl.constexpr, BY_OUTPUT: tl.constexpr,
    ROWS: tl.constexpr, P: tl.constexpr, Q: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """The plain backward pass with one read of x and of the gradient."""
    tile, _, group, _ = share_of(C, 1, ROWS, Q)
    channels, known = channels_of(tile, C, ROWS, Q)
    high, low = in_two(row(mean, 0, 0, channels, known))
    slope, offset = affine(rstd, None, weight, bias, 0, 0, channels, known)
    base, offsets, inside, _, _ = locate(group, group, tile, A, C, S, A, ROWS, P, Q, WIDE)
    value, w = read(x, base, offsets, inside), inside.to(tl.float32)
    centered, g = gradient(
        grad, extra, value, w, high, low, slope.to(tl.float32), offset.to(tl.float32), base, offsets, inside,
        ACTIVATION, BY_OUTPUT,
    )  # fmt: skip
    total, total_x = over(g, ROWS).to(tl.float64), over(g * centered, ROWS).to(tl.float64)
    r = row(rstd, 0, 0, channels, known)
    parameters(dweight, dbias, total, total_x * r, channels, known)
    by_x, constant = through_statistics(slope, r, total, total_x, share)
    if dx is not None:
        through = centered * by_x.to(tl.float32)[None, :] + constant.to(tl.float32)[None, :]
        result = g * slope.to(tl.float32)[None, :] + through
        tl.store(dx + base + offsets, result.to(dx.dtype.element_ty), mask=inside)
    if dresidual is not None:
        tl.store(dresidual + base + offsets, g.to(dresidual.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=("C",))
def population_kernel(
    mean, var, counters, running_mean, running_var, batches, skipped, momentum, limit, C,
    CUMULATIVE: tl.constexpr, SKIP: tl.constexpr, Q: tl.constexpr,
):  # fmt: skip
    """Update the running statistics by a batch's mean and unbiased variance (C,), and count the batch."""
    tile = tl.program_id(0)
    channels = tile * Q + tl.arange(0, Q)
    known = channels < C
    new_mean, new_var = row(mean, 0, 0, channels, known), row(var, 0, 0, channels, known)
    update_statistics(
        running_mean, running_var, batches, skipped, counters, momentum, limit, tl.cdiv(C, Q),
        new_mean, new_var, channels, known, CUMULATIVE, SKIP,
    )  # fmt: skip
