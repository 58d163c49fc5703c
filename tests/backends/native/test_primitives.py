"""The four primitives by themselves: virtual batches and masks against the oracle, and the bits of a recomputation."""

import pytest
import torch
from torch import Tensor

from batchnorm.backends.reference import BY_OUTPUT
from batchnorm.core import ops
from tests.backends.native.material import (
    DTYPES,
    PLACES,
    every_dtype,
    every_place,
    forward,
    parameters,
    tensors,
    wide,
)
from tests.support import oracle
from tests.support.backends import needs_native
from tests.support.material import drifting
from tests.support.oracle import ACTIVATIONS, away_from_kinks, judge, weights_like

pytestmark = needs_native

MASKS = {
    "none": lambda shape: None,
    "positions": lambda shape: (torch.rand(shape[0], 1, *shape[2:]) < 0.7).float(),
    "weighted positions": lambda shape: torch.rand(shape[0], 1, *shape[2:]).sub(0.3).relu(),
    "values": lambda shape: (torch.rand(shape) < 0.7).float(),
    "weights": lambda shape: torch.rand(shape) * (torch.rand(shape) < 0.7),
    "channels": lambda shape: (torch.arange(shape[1]) % 3 > 0).float().reshape(1, -1, *[1] * (len(shape) - 2)),
    "one sample": lambda shape: torch.eye(shape[0])[0].reshape(-1, *[1] * (len(shape) - 1)),
    "nothing": lambda shape: torch.zeros([1] * len(shape)),
}  # fmt: skip


def per_group(x: Tensor, virtual: int) -> list[slice]:
    size = virtual or len(x)
    return [slice(start, start + size) for start in range(0, len(x), size)]


def spread(parameters: Tensor, x: Tensor, virtual: int) -> Tensor:
    """(G, C) parameters as they apply to each sample of `x`."""
    rows = torch.arange(len(x)) // virtual if virtual else torch.zeros(len(x), dtype=torch.long)
    return parameters[rows].reshape(*parameters[rows].shape, *[1] * (x.dim() - 2))


def magnitude(t: Tensor) -> float:
    return t.abs().max().item()


@pytest.mark.parametrize("virtual", [0, 1, 3, 4, 100])
@pytest.mark.parametrize("mask", MASKS)
@every_place
@pytest.mark.parametrize("shape", [(8, 5, 50, 50), (9, 20, 6, 5), (10, 33), (40, 3, 7, 7)], ids=str)
def test_groups_and_masks(shape, place, mask, virtual):
    check(shape, torch.float32, place, mask, virtual, "silu")


@every_dtype
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("mask", ["none", "positions", "weights"])
@every_place
def test_dtypes_and_activations(place, mask, activation, dtype):
    check((9, 20, 6, 5), dtype, place, mask, 4, activation)


@pytest.mark.parametrize("mask", ["positions", "values"])
@pytest.mark.parametrize("shape", [(6, 2, 131, 133), (4096, 65), (9, 2050), (300, 1030)], ids=str)
@every_place
def test_masks_in_chunks_and_slices(place, shape, mask):
    check(shape, torch.float32, place, mask, 0, "relu")


def check(
    shape: tuple[int, ...], dtype: torch.dtype, place: str, mask: str, virtual: int, activation: str | None
) -> None:
    """Each primitive against the equations in float64; there is NaN wherever the mask is 0."""
    x, residual, grad = tensors(shape, dtype, place)
    weights = MASKS[mask](shape)
    counted = weights_like(x, weights) > 0
    for t in (x, residual, grad):
        t[~counted] = torch.nan
    groups = per_group(x, virtual)
    parts = [oracle.moments(x[g], weights_like(x, weights)[g]) for g in groups]
    count, mean, m2 = (torch.stack(column) for column in zip(*parts, strict=True))
    rounding = torch.finfo(wide(dtype)).eps * (8 if dtype is torch.float64 else 1)

    got = ops.moments(x, virtual, weights)
    assert got[0].shape == got[1].shape == got[2].shape == (len(groups), shape[1])
    x64 = torch.where(counted, x.double(), 0)
    deviation = torch.where(counted, x64 - spread(mean, x, virtual), 0)
    judge("count", got[0], count, budget=4 * rounding * magnitude(count))
    judge("mean", got[1], mean, budget=rounding * magnitude(deviation) + 1e-15 * magnitude(mean))
    judge("m2", got[2], m2, budget=4 * rounding * magnitude(m2) + 4 * rounding * magnitude(deviation.square()))

    scale = (m2 / count.clamp(min=1e-30) + 1e-2).rsqrt()
    shift = torch.randn_like(scale)
    r64, g64 = (torch.where(counted, t.double(), 0) for t in (residual, grad))
    scaled = deviation * spread(scale, x, virtual)
    z = (scaled + spread(shift, x, virtual) + r64).requires_grad_()
    g64 = torch.where(away_from_kinks(z, activation, wide(dtype)), g64, 0)
    grad = torch.where(counted, g64, torch.nan).to(dtype)
    terms = magnitude(scaled) + magnitude(shift) + magnitude(r64)
    y = ops.normalize(x, mean, scale, shift, residual, activation, virtual, weights)
    judge("y", y, torch.where(counted, ACTIVATIONS[activation](z), 0).detach(), size=1.5 * terms)

    (g,) = torch.autograd.grad(ACTIVATIONS[activation](z), z, g64)
    slope = rounding * (magnitude(g) + magnitude(g64) * terms)  # a slope errs as z does
    inputs = grad, x, mean, scale, shift
    sums = ops.backward_reduce(*inputs, residual, activation, virtual, weights)
    for what, sum_got, values in zip(("Σ g′", "Σ g′·(x − mean)"), sums, (g, g * deviation), strict=True):
        exact = torch.stack([values[part].movedim(1, 0).flatten(1).sum(1) for part in groups])
        samples = x.numel() // shape[1]
        judge(what, sum_got, exact, budget=slope * samples**0.5 * max(1.0, magnitude(deviation)))

    a, b, c = (torch.randn_like(scale) for _ in range(3))
    dx, dresidual = ops.backward_apply(*inputs, a, b, c, residual, activation, virtual, weights)
    w = weights_like(x, weights)
    exact = spread(a, x, virtual) * g + w * (spread(b, x, virtual) * deviation + spread(c, x, virtual))
    exact = torch.where(counted, exact, 0)
    sizes = magnitude(a) * (magnitude(g) + magnitude(g64) * terms) + magnitude(b) * magnitude(deviation) + magnitude(c)
    judge("dx", dx, exact, size=sizes)
    judge("dresidual", dresidual, g, size=slope / rounding)


@pytest.mark.parametrize("add", [False, True], ids=["alone", "residual"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@every_dtype
@every_place
@pytest.mark.parametrize(
    "shape",
    [(6, 20, 13, 11), (3, 2, 2049), (5, 17, 4097), (6, 2, 131, 133), (70, 513), (9, 2050), (600, 1030), (5, 3, 1, 1)],
    ids=str,
)
def test_a_recomputation_gives_the_same_bits(shape, place, dtype, activation, add):
    """`bn.recompute` rests on it: y by `normalize`, or by `ops.forward` with given statistics, from those saved."""
    x, residual = tensors(shape, dtype, place, x=3.0, residual=1.0)
    residual = residual if add else None
    mean, var, weight, bias = parameters(shape[1], wide(dtype))
    y, statistics = forward(x, residual, weight, bias, activation=activation)
    assert torch.equal(by_normalize(x, residual, weight, bias, statistics, activation), y)
    if dtype is torch.float64:
        mean, var = statistics[0], statistics[2]
        assert torch.equal(forward(x, residual, weight, bias, mean, var, activation=activation)[0], y)
    frozen, given = forward(x, residual, weight, bias, mean, var, activation=activation)
    assert torch.equal(by_normalize(x, residual, weight, bias, given, activation), frozen)


def by_normalize(
    x: Tensor, residual: Tensor | None, weight: Tensor, bias: Tensor, statistics: Tensor, activation: str | None
) -> Tensor:
    mean, rstd, _ = statistics.unsqueeze(1).unbind()
    return ops.normalize(x, mean, rstd * weight.double(), bias.double().unsqueeze(0), residual, activation)


@every_dtype
@every_place
@pytest.mark.parametrize("shape", [(65, 37, 30, 31), (9, 3, 41 * 2048 + 5), (2100, 1030), (700_000, 3)], ids=str)
def test_past_the_cache_the_same_bits(shape, place, dtype):
    """Outputs of 4 MiB and more go to memory in whole cache lines: the same bits as in parts that are smaller."""
    x, residual, grad = tensors(shape, dtype, place)
    assert x.nbytes >= 4 << 20
    rows = torch.randn(6, 1, shape[1], dtype=torch.float64).unbind()
    y = ops.normalize(x, *rows[:3], residual, "relu")
    dx, dresidual = ops.backward_apply(grad, x, *rows, residual, "relu")
    dx_alone, _ = ops.backward_apply(grad, x, *rows, None, "relu")
    step = max(1, len(x) // 9)
    for part in (slice(start, start + step) for start in range(0, len(x), step)):
        assert x[part].nbytes < 4 << 20
        small = x[part], residual[part], grad[part]
        assert torch.equal(ops.normalize(small[0], *rows[:3], small[1], "relu"), y[part])
        again = ops.backward_apply(small[2], small[0], *rows, small[1], "relu")
        assert torch.equal(again[0], dx[part])
        assert torch.equal(again[1], dresidual[part])
        assert torch.equal(ops.backward_apply(small[2], small[0], *rows, None, "relu")[0], dx_alone[part])


@every_place
@pytest.mark.parametrize("activation", sorted(BY_OUTPUT))
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_output_stands_in_for_the_residual(dtype, activation, place):
    """ReLU-like activations keep their output. Its slope is the residual's, where nothing rounds to a kink."""
    x, residual, grad = tensors((6, 20, 13, 11), dtype, place)
    _, _, weight, bias = parameters(20, wide(dtype))
    y, statistics = forward(x, residual, weight, bias, activation=activation)
    arguments = weight, bias, statistics, 1e-5, activation, False, [True] * 4
    away = away_from_kinks(forward(x, residual, weight, bias)[0], activation, dtype)
    grad = torch.where(away, grad, 0)
    got = ops.backward(grad, x, y, *arguments)
    mean, rstd, _ = statistics.unsqueeze(1).unbind()
    given = grad, x, mean, rstd * weight.double(), bias.double().unsqueeze(0)
    sums = ops.backward_reduce(*given, residual, activation)
    judge("dβ", got[3], sums[0][0])
    judge("dγ", got[2], (sums[1] * rstd)[0], size=magnitude(sums[1] * rstd))
    slope = ops.backward_apply(*given, *(torch.zeros_like(mean) for _ in range(3)), residual, activation)[1]
    assert torch.equal(got[1], slope)


@every_place
def test_a_mask_of_ones_changes_no_count(place):
    x = PLACES[place](drifting(9, 20, 6, 5))
    plain = ops.moments(x)
    for mask in (torch.ones(1, 1, 1, 1), torch.ones(9, 1, 6, 5), torch.ones(x.shape), torch.ones(1, 20, 1, 1)):
        for a, b in zip(ops.moments(x, 0, mask), plain, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)
