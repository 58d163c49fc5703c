"""The four primitives alone: virtual batches and masks against the oracle, and the bits of a recomputation."""

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
from tests.support.backends import needs_native
from tests.support.material import drifting
from tests.support.oracle import ACTIVATIONS, away_from_kinks, judge
from tests.support.primitives import MASKS, check_primitives, magnitude

pytestmark = needs_native


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
    check_primitives(ops, tensors(shape, dtype, place), mask, virtual, activation)


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
