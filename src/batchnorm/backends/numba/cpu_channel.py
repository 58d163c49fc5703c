"""Per-channel arithmetic between the passes over memory: merging partial results, the population, gradients."""

import math

from .cpu_intrinsics import inline, load64, load_kind, real, scratch64, store64, store_kind
from .cpu_plan import SLICE

# mypy: disable-error-code="no-untyped-def"


@inline
def remember(a, c, count, mean, m2):
    """Moves the population of channel `c` towards this batch; its variance is the unbiased one."""
    if a.running_kind == 0:
        return
    variance = m2 / (count - 1.0)
    if a.limit != 0 and not (abs(mean) <= a.limit and variance <= a.limit):  # NaN too
        store64(a.flag, 0, 1.0)  # whichever thread comes first: they all say the same
        return
    old_mean = load_kind(a.running_mean, a.running_kind, c, 0.0)
    old_var = load_kind(a.running_var, a.running_kind, c, 0.0)
    store_kind(a.running_mean, a.running_kind, c, old_mean + a.momentum * (mean - old_mean))
    store_kind(a.running_var, a.running_kind, c, old_var + a.momentum * (variance - old_var))


@inline
def affine(a, at, c):
    """Scale and shift of channel `c`: as given at index `at`, or γ·rstd and β."""
    if a.scale != 0:
        return load64(a.scale, at), load64(a.shift, at)
    scale = load_kind(a.weight, a.weight_kind, c, 1.0) * load64(a.rstd, at)
    return scale, load_kind(a.bias, a.bias_kind, c, 0.0)


@inline
def gradients(a, c, count, sum_g, sum_gx):
    """Writes dγ and dβ of channel `c`; returns the a, b, c of dx = a·g′ + b·(x − mean) + c."""
    rstd = load64(a.rstd, c)
    store_kind(a.dweight, a.dweight_kind, c, sum_gx * rstd)
    store_kind(a.dbias, a.dbias_kind, c, sum_g)
    scale = load_kind(a.weight, a.weight_kind, c, 1.0) * rstd
    if a.constant != 0:
        return scale, 0.0, 0.0
    return scale, -scale * rstd * rstd * (sum_gx / count), -scale * (sum_g / count)


# Kernels compute with x − hi, where hi is the mean as a float of the tensor's computing type. What that leaves of the
# mean, small but not small beside σ where |mean| is large, goes into constants and sums, in float64.


@inline
def _mean_at(a, g, c):
    """Index, float64 mean and what `hi` leaves of it, of a channel of a group."""
    at = c if a.shared != 0 else g * a.C + c
    mean = load64(a.mean, at)
    return at, mean, mean - real(a, mean)


@inline
def parameters(a, g, c0, width, hi, scale, shift):
    """Sets what `width` channels are normalised by: (x − hi)·scale + shift."""
    for j in range(width):
        at, mean, rest = _mean_at(a, g, c0 + j)
        by, plus = affine(a, at, c0 + j)
        hi[j] = real(a, mean)
        scale[j] = real(a, by)
        shift[j] = real(a, plus - rest * by)


@inline
def coefficients(a, g, c0, width, by_slope, by_x, constant):
    """Sets the given a, b, c of `width` channels for dx = a·g′ + b·(x − hi) + c."""
    for j in range(width):
        at, _, rest = _mean_at(a, g, c0 + j)
        by_slope[j] = real(a, load64(a.a, at))
        by_x[j] = real(a, load64(a.b, at))
        constant[j] = real(a, load64(a.c, at) - load64(a.b, at) * rest)


@inline
def own_coefficients(a, c0, width, sum_g, sum_gx, by_slope, by_x, constant):
    """As `coefficients`, from the sums over all values of these channels; writes dγ and dβ."""
    for j in range(width):
        _, _, rest = _mean_at(a, 0, c0 + j)
        p, q, r = gradients(a, c0 + j, float(a.N * a.S), sum_g[j], sum_gx[j])
        by_slope[j] = real(a, p)
        by_x[j] = real(a, q)
        constant[j] = real(a, r - q * rest)


@inline
def about_mean(a, g, c, sum_g, sum_gx):
    """Σ g′·(x − mean) from Σ g′ and Σ g′·(x − hi)."""
    _, _, rest = _mean_at(a, g, c)
    return sum_gx - rest * sum_g


@inline
def _merge_moments(a):
    """Count, mean and m2 of each group from its chunks': sums weighted by counts, so no division per chunk."""
    mean, m2 = scratch64(SLICE), scratch64(SLICE)
    for g in range(a.groups):
        total = 0.0
        for k in range(a.chunks):
            total += load64(a.part_count, k * a.groups + g)
        inverse = 1.0 / total if total > 0.0 else 0.0
        store64(a.count, g, total)
        c0 = 0
        while c0 < a.C:
            width = min(SLICE, a.C - c0)
            for j in range(width):
                mean[j] = 0.0
                m2[j] = 0.0
            for k in range(a.chunks):
                share = load64(a.part_count, k * a.groups + g) * inverse
                part = (k * a.groups + g) * a.C + c0
                for j in range(width):
                    mean[j] += share * load64(a.part_mean, part + j)
            for k in range(a.chunks):
                count = load64(a.part_count, k * a.groups + g)
                part = (k * a.groups + g) * a.C + c0
                for j in range(width):
                    delta = load64(a.part_mean, part + j) - mean[j]
                    m2[j] += load64(a.part_m2, part + j) + count * delta * delta
            for j in range(width):
                store64(a.mean, g * a.C + c0 + j, mean[j])
            for j in range(width):
                store64(a.m2, g * a.C + c0 + j, m2[j])
            c0 += width


@inline
def _merge_table(a, part, result):
    """The chunks' sums added up in order."""
    total = scratch64(SLICE)
    columns, c0 = a.groups * a.C, 0
    while c0 < columns:
        width = min(SLICE, columns - c0)
        for j in range(width):
            total[j] = 0.0
        for k in range(a.chunks):
            for j in range(width):
                total[j] += load64(part, k * columns + c0 + j)
        for j in range(width):
            store64(result, c0 + j, total[j])
        c0 += width


@inline
def _merge_sums(a):
    """Gradient sums of each group from those of its chunks."""
    _merge_table(a, a.part_g, a.sum_g)
    _merge_table(a, a.part_gx, a.sum_gx)


def merge_moments(a):
    """Moments of each group from those of its chunks."""
    _merge_moments(a)


def merge_sums(a):
    """Gradient sums of each group from those of its chunks."""
    _merge_sums(a)


def finish_forward(a):
    """Between the passes of a forward: the batch's statistics, and the population's step towards them."""
    _merge_moments(a)
    count = load64(a.count, 0)
    for c in range(a.C):
        store64(a.rstd, c, 1.0 / math.sqrt(load64(a.m2, c) / count + a.eps))
        remember(a, c, count, load64(a.mean, c), load64(a.m2, c))


def finish_backward(a):
    """Between the passes of a backward: the parameters' gradients and the coefficients of the input's."""
    _merge_sums(a)
    for c in range(a.C):
        by_slope, by_x, constant = gradients(a, c, float(a.N * a.S), load64(a.sum_g, c), load64(a.sum_gx, c))
        store64(a.a, c, by_slope)
        store64(a.b, c, by_x)
        store64(a.c, c, constant)


def read_population(a):
    """Before a frozen normalisation: mean and rstd from the running statistics."""
    for c in range(a.C):
        store64(a.mean, c, load_kind(a.running_mean, a.running_kind, c, 0.0))
        store64(a.rstd, c, 1.0 / math.sqrt(load_kind(a.running_var, a.running_kind, c, 1.0) + a.eps))
