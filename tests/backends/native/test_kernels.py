"""The kernels of the plain and the frozen case against the oracle, at every edge of their pieces of work."""

from functools import partial

import hypothesis
import hypothesis.strategies as st
import pytest
import torch

from tests.backends.native.material import (
    LAYOUTS,
    PLACES,
    batch_norm,
    every_dtype,
    every_place,
    forward,
    ids,
    parameters,
    tensors,
    wide,
)
from tests.support.backends import needs_native
from tests.support.material import drifting
from tests.support.oracle import ACTIVATIONS, answer, away_from_kinks, by_torch, exact, judge, judge_all

pytestmark = needs_native
every_activation = pytest.mark.parametrize("activation", ACTIVATIONS)
modes = pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])


def case(
    shape: tuple[int, ...], dtype: torch.dtype, place: str, activation: str | None = None, add: bool = False,
    training: bool = True,
) -> None:  # fmt: skip
    """Output, running statistics and every gradient, judged beside torch's."""
    x, residual, grad = tensors(shape, dtype, place)
    residual = residual if add else None
    arguments = x, *parameters(shape[1], wide(dtype)), training, 0.3
    away = away_from_kinks(
        exact(*arguments, residual=residual, activation=activation).z,
        activation,
        torch.promote_types(dtype, wide(dtype)),
    )
    away &= away_from_kinks(exact(*arguments, residual=residual).z, activation, dtype)
    assert away.float().mean() > 0.8
    grad = torch.where(away, grad, 0.0)
    options = {"residual": residual, "activation": activation}
    truth, torchs = exact(*arguments, grad=grad, **options), answer(by_torch, *arguments, grad=grad, **options)
    ours = answer(partial(batch_norm, activation=activation), *arguments, grad=grad, residual=residual)
    judge_all(ours, truth, torchs)
    assert ours.y.dtype == dtype
    assert ours.y.stride() == (x if place != "stepped" else x.contiguous()).stride()


@pytest.mark.parametrize("place", LAYOUTS)
@ids
def test_shapes(shape, place):
    case(shape, torch.float32, place)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("shape", [(5, 3, 1, 1), (2, 18, 3, 5, 7), (40, 2, 31, 33), (33, 20, 7, 7)], ids=str)
@modes
def test_ranks(training, shape, place):
    case(shape, torch.float32, place, training=training)


@modes
@every_dtype
@pytest.mark.parametrize("add", [False, True], ids=["alone", "residual"])
@every_activation
@every_place
def test_activations_residuals_dtypes(place, activation, add, dtype, training):
    case((6, 20, 13, 11), dtype, place, activation, add, training)


@pytest.mark.parametrize("shape", [(3, 5, 2500), (6, 2, 17423), (300, 1030, 1), (41, 3, 49)], ids=str)
@every_place
@every_dtype
def test_dtypes_past_a_block(dtype, place, shape):
    case(shape, dtype, place, "silu", add=True)


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_transposed_rows(training):
    """(N, L, C) as a transformer keeps it, seen as (N, C, L): rows, without a copy."""
    x, grad = (drifting(4, 50, 33).transpose(1, 2).contiguous().transpose(1, 2) for _ in range(2))
    assert x.stride() == (33 * 50, 1, 50)
    arguments = x, *parameters(50), training
    ours = answer(batch_norm, *arguments, grad=grad)
    judge_all(ours, exact(*arguments, grad=grad), answer(by_torch, *arguments, grad=grad))
    assert ours.y.stride() == x.stride()


shapes = st.tuples(st.integers(4, 40), st.integers(1, 40)), st.lists(st.integers(1, 9), max_size=3)


@hypothesis.given(*shapes, st.sampled_from(sorted(PLACES)))
def test_any_rank(front, rest, place):
    torch.manual_seed(hash((front, *rest)))
    case((*front, *rest), torch.float64, place)


@pytest.mark.parametrize("place", LAYOUTS)
@pytest.mark.parametrize("shape", [(8, 4, 31, 33), (64, 20, 7, 7), (4096, 7), (6, 2, 131, 133)], ids=str)
@pytest.mark.parametrize("offset", [1e4, -1e6])
def test_far_from_zero(offset, shape, place):
    """float32 holds x only to 1/16 at 1e6, but the values it holds are normalised exactly."""
    x = LAYOUTS[place](torch.randn(shape) + offset)
    grad = drifting(*shape, offset=0.3)
    mean, var, weight, bias = parameters(shape[1])
    ours = answer(batch_norm, x, mean, var, weight, bias, grad=grad)
    truth = exact(x, mean, var, weight, bias, True, grad=grad)
    for name, got in ours.parts():
        if got is not None:
            judge(name, got, dict(truth.parts())[name], size=truth.sizes[name])


@every_place
@pytest.mark.parametrize("value", [1e7, -3.3, 0.0, 1e30])
@pytest.mark.parametrize("shape", [(4, 3, 50, 50), (40, 2, 31, 33), (70, 5)], ids=str)
def test_constant_channel(shape, value, place):
    x = PLACES[place](torch.full(shape, value))
    value = x.flatten()[0].item()
    y, (mean, rstd, variance) = forward(x)
    assert torch.equal(y, torch.zeros_like(y))
    assert torch.equal(mean, torch.full_like(mean, value))
    assert torch.equal(variance, torch.zeros_like(variance))
    assert torch.equal(rstd, torch.full_like(rstd, 1e-5).sqrt().reciprocal())


@every_place
@pytest.mark.parametrize("shape", [(4, 3, 40, 40), (40, 20), (6, 2, 131, 133)], ids=str)
@pytest.mark.parametrize("size", [1e-25, 1e25])
def test_squares_beyond_float32(size, shape, place):
    x = PLACES[place]((drifting(*shape, dtype=torch.float64) * size).float())
    _, (mean, rstd, variance) = forward(x, eps=1e-30)
    wide = x.double().movedim(1, 0).flatten(1)
    torch.testing.assert_close(mean, wide.mean(1), rtol=1e-6, atol=0)
    if size > 1:
        torch.testing.assert_close(variance, wide.var(1, correction=0), rtol=1e-6, atol=0)
        torch.testing.assert_close(rstd, variance.rsqrt())


@every_place
@pytest.mark.parametrize("shape", [(4, 3, 40, 40), (4, 3, 7, 7), (40, 20), (6, 3, 131, 133), (300, 1030)], ids=str)
@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_non_finite_stays_in_its_channel(poison, shape, place):
    x, _, grad = tensors(shape, torch.float32, place)
    arguments, function = parameters(shape[1]), partial(batch_norm, activation="relu")
    clean = answer(function, x, *arguments, grad=grad)
    x[-1, 1].view(-1)[-1] = poison
    spoiled = answer(function, x, *arguments, grad=grad)
    others = torch.arange(shape[1]) != 1
    for (name, before), (_, after) in zip(clean.parts(), spoiled.parts(), strict=True):
        if before is not None:
            channel = 1 if before.dim() > 1 else 0
            assert torch.equal(before.movedim(channel, 0)[others], after.movedim(channel, 0)[others]), name
    assert spoiled.y[:, 1].isnan().all()
    assert torch.equal(spoiled.running_mean[1], arguments[0][1])
    assert torch.equal(spoiled.running_var[1], arguments[1][1])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_rounding_is_to_nearest_even(dtype):
    """Of a zero input only the shift is left, so the output is the shift as the kernels round it."""
    shifts = torch.cat([torch.randn(500) * 10.0**k for k in (-40, -6, -1, 0, 3)] + [torch.tensor([float("inf"), 1e30])])
    ties = 1 + torch.tensor([1.0, 3.0, 5.0, 7.0]) * torch.finfo(dtype).eps / 2
    subnormal = torch.finfo(dtype).smallest_normal * torch.tensor([1 / 2, 1 / 3, 1 / 7, 1 / 64, 0.999])
    shifts = torch.cat([shifts, ties, -ties, subnormal, -subnormal, torch.tensor([float("nan")])])
    x = torch.zeros(2, len(shifts), dtype=dtype)
    y = batch_norm(x, torch.zeros(len(shifts)), torch.ones(len(shifts)), None, shifts, training=False)
    torch.testing.assert_close(y[0], shifts.to(dtype), rtol=0, atol=0, equal_nan=True)


@every_dtype
def test_every_value_of_half_precision_comes_through(dtype):
    """An input that is normalised by mean 0 and variance 1 is its own output, subnormal numbers and NaN included."""
    if dtype.itemsize > 2:
        pytest.skip("too many values")
    x = torch.arange(-(2**15), 2**15).to(torch.int16).view(dtype).reshape(64, 1024)
    zero, one = torch.zeros(1024), torch.ones(1024)
    for place in PLACES.values():
        y = batch_norm(place(x), zero, one, None, None, training=False, eps=0.0)
        torch.testing.assert_close(y, x, rtol=0, atol=0, equal_nan=True)


def test_more_than_two_to_the_31_elements():
    """Memory that was never written reads as zero and takes no room, so this is large in addresses only."""
    torch.use_deterministic_algorithms(False)  # or the poison would write it
    x = torch.empty((2, 3, 2**29), dtype=torch.bfloat16)
    assert x.numel() > 2**31
    x[1, 2, -1000:] = 1.0
    count, mean, _ = torch.ops.batchnorm.moments(x, 0, None)
    assert (count == 2**30).all()
    torch.testing.assert_close(mean, torch.tensor([[0.0, 0.0, 1000 / 2**30]], dtype=torch.float64))
