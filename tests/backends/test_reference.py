"""The plain-torch kernels, each alone, against arithmetic in float64 or wider."""

import numpy as np
import pytest
import torch

from batchnorm.backends import reference
from tests.support.material import LAYOUTS, drifting
from tests.support.oracle import ACTIVATIONS, away_from_kinks, judge

every_activation = pytest.mark.parametrize("activation", ACTIVATIONS)
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)


def given(dtype, shape=(5, 3, 7, 2), offset=3.0):
    """x, residual, grad, and mean, scale, shift in the statistics' dtype."""
    x, residual, grad = (drifting(*shape, dtype=dtype, offset=o) for o in (offset, 1.0, 0.3))
    mean = x.double().mean([0, 2, 3]).reshape(1, -1)
    scale, shift = torch.tensor([[0.5, -2.0, 1.0]]).double(), torch.tensor([[0.1, 0.0, -1.0]]).double()
    return x, residual, grad, mean, scale, shift


def wide(statistic):
    return statistic.reshape(1, -1, 1, 1)


@pytest.mark.parametrize("layout", LAYOUTS)
@every_dtype
def test_moments(dtype, layout):
    x = LAYOUTS[layout](drifting(5, 3, 41, 53, dtype=dtype))
    count, mean, m2 = reference.moments(x)
    assert count == 5 * 41 * 53
    columns = x.double().movedim(1, 0).reshape(3, -1).numpy().astype(np.longdouble)
    right = columns.mean(1)
    assert mean.dtype == m2.dtype == torch.float64
    assert mean.shape == m2.shape == (1, 3)
    tight = 1e-15 if dtype is torch.float64 else 1e-7  # the sums are float32's, whatever came in
    judge("mean", mean[0], torch.tensor(right.astype(float)), budget=tight * 10)
    m2_right = torch.tensor(((columns - right[:, None]) ** 2).sum(1).astype(float))
    judge("m2", m2[0], m2_right, budget=10 * tight * m2_right.max().item())


@pytest.mark.parametrize("offset", [1e4, 1e6])
def test_moments_far_from_zero_are_exact(offset):
    """The spacing of float32 at 1e6 is 0.06: the mean of many is known far better than any one of them."""
    x = torch.randn(4096, 3) + offset
    _, mean, m2 = reference.moments(x)
    judge("mean", mean[0], x.double().mean(0), budget=1e-7)
    judge("variance", m2[0] / 4096, x.double().var(0, correction=0), budget=1e-6)


@every_activation
@every_dtype
@pytest.mark.parametrize("with_residual", [False, True], ids=["alone", "residual"])
def test_normalize(with_residual, dtype, activation):
    x, residual, _, mean, scale, shift = given(dtype)
    residual = residual if with_residual else None
    got = reference.normalize(x, mean, scale, shift, residual, activation)
    z = (x.double() - wide(mean)) * wide(scale) + wide(shift) + (0 if residual is None else residual.double())
    assert got.dtype == dtype
    judge("y", got, ACTIVATIONS[activation](z), size=z.abs().max().item())  # gelu's tail cancels


@pytest.mark.parametrize("offset", [1e4, 1e6])
def test_normalize_far_from_zero_takes_the_mean_as_two_floats(offset):
    x = torch.randn(64, 3, 2, 2) + offset
    mean = x.double().mean([0, 2, 3]).reshape(1, -1)
    one = torch.ones(1, 3).double()
    judge("y", reference.normalize(x, mean, one, 0 * one), x.double() - wide(mean), budget=1e-6)


@every_activation
@every_dtype
@pytest.mark.parametrize("with_residual", [False, True], ids=["alone", "residual"])
def test_backward(with_residual, dtype, activation):
    """The two sums and the gradient, by autograd's derivative of the activation in float64."""
    x, residual, grad, mean, scale, shift = given(dtype)
    residual = residual if with_residual else None
    centered = x.double() - wide(mean)
    z = centered * wide(scale) + wide(shift) + (0 if residual is None else residual.double())
    grad = torch.where(away_from_kinks(z, activation, torch.float32), grad, 0.0)
    z.requires_grad_()
    (g,) = torch.autograd.grad(ACTIVATIONS[activation](z), z, grad.double())

    inputs = mean, scale, shift
    sums = reference.backward_reduce(grad, x, *inputs, residual, activation)
    tight = 1e-14 if dtype is torch.float64 else 1e-6
    assert sums[0].shape == sums[1].shape == (1, 3)
    assert sums[0].dtype == sums[1].dtype == torch.float64
    judge("sum of g", sums[0][0], g.sum([0, 2, 3]), budget=tight * g.abs().sum([0, 2, 3]).max().item())
    gx = g * centered
    judge("sum of g·(x − mean)", sums[1][0], gx.sum([0, 2, 3]), budget=tight * gx.abs().sum([0, 2, 3]).max().item())

    a, b, c = torch.tensor([[0.3, -1.0, 2.0], [0.1, 0.2, -0.5], [1.0, 0.0, -0.2]]).double().unsqueeze(1)
    dx, dresidual = reference.backward_apply(grad, x, *inputs, a, b, c, residual, activation)
    assert dx.dtype == dtype

    def budget(right, size):  # the answer is rounded to its dtype once; before, float32 rounds terms of this size
        widest = max(torch.finfo(torch.float64).eps, torch.finfo(torch.float32).eps * (dtype is not torch.float64))
        return torch.finfo(dtype).eps * right.abs().max().item() + 2 * widest * size

    right = (g * wide(a) + centered * wide(b) + wide(c)).detach()
    judge("dx", dx, right, budget=budget(right, 4 * (1 + z.abs().max().item())))
    assert (dresidual is None) == (residual is None)
    if dresidual is not None:
        assert dresidual.dtype == dtype
        judge("dresidual", dresidual, g, budget=budget(g, 1 + z.abs().max().item()))


def test_float32_statistics_where_there_is_no_float64():
    assert reference.statistics_dtype(torch.empty(1)) is torch.float64
    assert reference.statistics_dtype(torch.empty(1, device="meta")) is torch.float64

    class OnMps:
        device = torch.device("mps")

    assert reference.statistics_dtype(OnMps()) is torch.float32


def test_one_list_of_activations():
    assert list(reference.ACTIVATIONS) == [name for name in ACTIVATIONS if name]
