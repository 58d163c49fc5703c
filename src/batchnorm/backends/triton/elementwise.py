"""Activations, their slopes, and the addresses and loads of tiles: what all kernels share.

Values are converted to float32 as they are loaded. Statistics arrive in float64; a mean is used as two floats.

No function returns from within a branch, because Triton would still compile the code after it.
"""

import triton
import triton.language as tl


@triton.jit
def activate(z, ACTIVATION: tl.constexpr):
    """act(z); NaN stays NaN."""
    y = z
    if ACTIVATION == "relu":
        y = tl.where(z <= 0, 0.0, z)
    elif ACTIVATION == "relu6":
        y = tl.where(z <= 0, 0.0, tl.where(z >= 6, 6.0, z))
    elif ACTIVATION == "leaky_relu":
        y = tl.where(z > 0, z, z * 0.01)
    elif ACTIVATION == "silu":
        y = z / (1 + tl.exp(-z))
    elif ACTIVATION == "gelu":
        y = 0.5 * z * (1 + tl.erf(z * 0.7071067811865476))
    elif ACTIVATION == "hardswish":
        y = tl.where(z <= -3, 0.0, tl.where(z >= 3, z, z * (z + 3) * 0.16666666666666666))
    return y


@triton.jit
def before_activation(g, z, ACTIVATION: tl.constexpr):
    """The gradient before the activation; for ReLU-like activations `z` may be the output."""
    if ACTIVATION == "relu":
        g = tl.where(z <= 0, 0.0, g)
    elif ACTIVATION == "relu6":
        g = tl.where((z <= 0) | (z >= 6), 0.0, g)
    elif ACTIVATION == "leaky_relu":
        g = tl.where(z > 0, g, g * 0.01)
    elif ACTIVATION == "silu":
        s = 1 / (1 + tl.exp(-z))
        g = g * s * (1 + z * (1 - s))
    elif ACTIVATION == "gelu":
        density = tl.exp(-0.5 * z * z) * 0.3989422804014327
        g = g * (0.5 * (1 + tl.erf(z * 0.7071067811865476)) + z * density)
    elif ACTIVATION == "hardswish":
        g = tl.where(z <= -3, 0.0, tl.where(z >= 3, g, g * (z * 0.3333333333333333 + 0.5)))
    return g


@triton.jit
def share_of(C, SPLITS, ROWS: tl.constexpr, Q: tl.constexpr):
    """The channel tile, the share and the virtual batch of this program, and the number of channel tiles."""
    tiles = tl.cdiv(C, Q) if ROWS else C
    program = tl.program_id(0)
    rest = program // tiles
    return program % tiles, rest % SPLITS, rest // SPLITS, tiles


@triton.jit
def tiles_of_group(GROUP, S, ROWS: tl.constexpr, P: tl.constexpr, Q: tl.constexpr):
    """The number of tiles of a virtual batch for each channel tile."""
    return tl.cdiv(GROUP, P) if ROWS else tl.cdiv(GROUP, P) * tl.cdiv(S, Q)


@triton.jit
def channels_of(tile, C, ROWS: tl.constexpr, Q: tl.constexpr):
    """The channels of a tile, (K,), and which of them exist."""
    channels = tile * Q + tl.arange(0, Q) if ROWS else tile + tl.arange(0, 1)
    return channels, channels < C


@triton.jit
def locate(
    t, group, tile, A, C, S, GROUP,
    ROWS: tl.constexpr, P: tl.constexpr, Q: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """The start of tile `t` (64 bits), offsets from it, and which exist; then start and offsets of its positions."""
    begin = group.to(tl.int64) * GROUP
    end = tl.minimum(begin + GROUP, A)
    p, q = tl.arange(0, P)[:, None], tl.arange(0, Q)[None, :]
    far = p.to(tl.int64) if WIDE else p
    if ROWS:
        first, column = begin + tl.cast(t, tl.int64) * P, tile * Q
        inside = (first + p < end) & (column + q < C)
        base, offsets, position, positions = first * C + column, far * C + q, first, p + tl.zeros_like(q)
    else:
        across = tl.cdiv(S, Q)
        first, column = begin + tl.cast(t // across, tl.int64) * P, (t % across) * Q
        inside = (first + p < end) & (column + q < S)
        # `far` times C first: C·S alone may exceed 32 bits where `far` is 0 and has only 32
        base, offsets = (first * C + tile) * S + column, far * C * S + q
        position, positions = first * S + column, far * S + q
    return base, offsets, inside, position, positions


@triton.jit
def read(pointer, base, offsets, inside):
    """Values of a tile in float32, 0 outside."""
    return tl.load(pointer + base + offsets, mask=inside, other=0.0).to(tl.float32)


@triton.jit
def weights(mask, base, offsets, position, positions, inside, MASK: tl.constexpr):
    """The weights of a tile's values; 0 outside. MASK: 0, all count; 1, a weight each position; 2, each value."""
    w = inside.to(tl.float32)
    if MASK == 1:
        w = tl.load(mask + position + positions, mask=inside, other=0.0)
    elif MASK == 2:
        w = tl.load(mask + base + offsets, mask=inside, other=0.0)
    return w


@triton.jit
def over(values, ROWS: tl.constexpr):
    """Sums (K,) of a tile's values by channel, always in the same order."""
    return tl.sum(values, 0) if ROWS else tl.sum(tl.sum(values, 1, keep_dims=True), 0)


@triton.jit
def row(pointer, group, STRIDE, channels, known):
    """Per-channel parameters (K,) in float64; a stride of 0 for those that all virtual batches share."""
    return tl.load(pointer + group * STRIDE + channels, mask=known, other=0.0).to(tl.float64)


@triton.jit
def affine(scale, shift, weight, bias, group, STRIDE, channels, known):
    """(scale·γ, shift + β) in float64; shift, γ and β may be absent."""
    a = row(scale, group, STRIDE, channels, known)
    b = tl.zeros_like(a)
    if weight is not None:
        a = a * row(weight, group, 0, channels, known)
    if shift is not None:
        b = row(shift, group, STRIDE, channels, known)
    if bias is not None:
        b = b + row(bias, group, 0, channels, known)
    return a, b


@triton.jit
def in_two(mean):
    """A mean as two floats: one float32 is off by 0.03 at a mean of 1e6."""
    high = mean.to(tl.float32)
    return high, (mean - high.to(tl.float64)).to(tl.float32)
