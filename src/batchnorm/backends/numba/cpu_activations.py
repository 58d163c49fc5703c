"""Activations and their derivatives for CPU kernels, each defined once and inlined into every kernel.

`activate(a, z)` gives act(z); `backprop(a, g, z)` gives g·act′(z). Kinks go as torch's do. NaN stays NaN.
float32 exponentials are polynomials, because a call into libm keeps LLVM from vectorising the loop.
"""

import math

from llvmlite import ir
from numba import types
from numba.extending import intrinsic, overload

from .cpu_intrinsics import INLINED, choose, inline, like

# mypy: disable-error-code="no-untyped-def"

_SLOPE = 0.01  # torch's default for leaky_relu
_ROUND = 12582912.0  # 1.5·2²³: adding it to a float32 leaves the nearest integer in the low bits


@intrinsic
def _power_of_two(typing, shifted):
    """2ⁿ for the integer n in the low bits of n + _ROUND."""

    def code(context, builder, signature, args):
        bits = builder.shl(builder.bitcast(args[0], ir.IntType(32)), ir.Constant(ir.IntType(32), 23))
        return builder.bitcast(builder.add(bits, ir.Constant(ir.IntType(32), 127 << 23)), ir.FloatType())

    return types.float32(types.float32), code


def exp(z):
    """eᶻ; float32 within 2 ulp on [-87, 88], held at the ends beyond."""


@overload(exp, jit_options=INLINED)
def _exp(z):
    if z == types.float64:
        return lambda z: math.exp(z)

    def exp32(z):
        z = choose(z < like(z, -87.0), like(z, -87.0), z)
        z = choose(z > like(z, 88.0), like(z, 88.0), z)
        shifted = z * like(z, 1.4426950408889634) + like(z, _ROUND)
        n = shifted - like(z, _ROUND)
        # ln 2 in two parts, the first exact in few enough bits that its product with n is exact
        r = z - n * like(z, 0.693359375)
        r = r - n * like(z, -2.1219444005469057e-4)
        # Taylor to r⁷: with |r| ≤ ln2/2 what is left out is below 6e-9
        p = like(z, 1 / 5040) * r + like(z, 1 / 720)
        p = p * r + like(z, 1 / 120)
        p = p * r + like(z, 1 / 24)
        p = p * r + like(z, 1 / 6)
        p = p * r + like(z, 0.5)
        p = p * r * r + r + like(z, 1.0)
        return p * _power_of_two(shifted)

    return exp32


@inline
def _sigmoid(z):
    one = like(z, 1.0)
    return one / (one + exp(-z))


def _normal(z):
    """Φ(z) and φ(z) of the standard normal distribution."""


@overload(_normal, jit_options=INLINED)
def _normal_of(z):
    if z == types.float64:

        def normal64(z):
            return 0.5 * math.erfc(-z * 0.7071067811865476), math.exp(-0.5 * z * z) * 0.3989422804014327

        return normal64

    def normal32(z):
        u = abs(z)
        e = exp(like(z, -0.5) * z * z)
        # Φ(−u)·exp(u²/2) = t·P(t), t = 1/(1 + 0.26·u): least squares reweighted towards equal relative
        # error over u in [0, 14] against scipy's erfcx; the largest is 2.5e-8
        t = like(z, 1.0) / (like(z, 1.0) + like(z, 0.26) * u)
        p = like(z, 0.0305052053) * t + like(z, -0.152830308)
        p = p * t + like(z, 0.251494201)
        p = p * t + like(z, -0.150952116)
        p = p * t + like(z, 0.160949908)
        p = p * t + like(z, 0.0510268607)
        p = p * t + like(z, 0.103030451)
        p = p * t + like(z, 0.103016725)
        p = p * t + like(z, 0.103759061)
        tail = p * t * e
        return choose(z < like(z, 0.0), tail, like(z, 1.0) - tail), e * like(z, 0.3989422804014327)

    return normal32


def _identity(z):
    return z


def _identity_back(g, z):
    return g


def _relu(z):
    return choose(z < like(z, 0.0), like(z, 0.0), z)


def _relu_back(g, z):
    return choose(z <= like(z, 0.0), like(z, 0.0), g)


def _relu6(z):
    return choose(z < like(z, 0.0), like(z, 0.0), choose(z > like(z, 6.0), like(z, 6.0), z))


def _relu6_back(g, z):
    return choose(z <= like(z, 0.0), like(z, 0.0), choose(z >= like(z, 6.0), like(z, 0.0), g))


def _leaky_relu(z):
    return choose(z > like(z, 0.0), z, z * like(z, _SLOPE))


def _leaky_relu_back(g, z):
    return choose(z > like(z, 0.0), g, g * like(z, _SLOPE))


def _silu(z):
    return z * _sigmoid(z)


def _silu_back(g, z):
    s = _sigmoid(z)
    return g * (s * (like(z, 1.0) + z * (like(z, 1.0) - s)))


def _gelu(z):
    return z * _normal(z)[0]


def _gelu_back(g, z):
    cumulative, density = _normal(z)
    return g * (cumulative + z * density)


def _hardswish(z):
    sixth = (z + like(z, 3.0)) * like(z, 1 / 6)
    held = choose(sixth > like(z, 1.0), like(z, 1.0), sixth)
    return z * choose(sixth < like(z, 0.0), like(z, 0.0), held)


def _hardswish_back(g, z):
    middle = g * (z * like(z, 1 / 3) + like(z, 0.5))
    return choose(z < like(z, -3.0), like(z, 0.0), choose(z > like(z, 3.0), g, middle))


_TABLE = {
    None: (_identity, _identity_back),
    "relu": (_relu, _relu_back),
    "relu6": (_relu6, _relu6_back),
    "leaky_relu": (_leaky_relu, _leaky_relu_back),
    "silu": (_silu, _silu_back),
    "gelu": (_gelu, _gelu_back),
    "hardswish": (_hardswish, _hardswish_back),
}
_TABLE = {name: (inline(value), inline(back)) for name, (value, back) in _TABLE.items()}


def activate(a, z):
    """act(z) for the activation of the kernel called with `a`."""


def backprop(a, g, z):
    """g·act′(z) for the activation of the kernel called with `a`."""


@overload(activate, jit_options=INLINED)
def _activate(a, z):
    value, _ = _TABLE[a.spec.activation]
    return lambda a, z: value(z)


@overload(backprop, jit_options=INLINED)
def _backprop(a, g, z):
    _, back = _TABLE[a.spec.activation]
    return lambda a, g, z: back(g, z)
