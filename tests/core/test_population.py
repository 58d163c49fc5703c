"""The arithmetic of the running statistics, without a layer."""

import pytest
import torch

from batchnorm import Moments
from batchnorm.core import population
from tests.support.material import drifting
from tests.support.oracle import judge


@pytest.mark.parametrize("momentum", [0.0, 0.1, 1.0, -0.5, torch.tensor(0.25)], ids=str)
def test_moved(momentum):
    """(1 − momentum)·old + momentum·batch, and the variance is the unbiased one."""
    x = drifting(7, 3, dtype=torch.float64)
    old = torch.tensor([1.0, -2.0, 3.0]), torch.tensor([0.5, 1.0, 4.0])
    new = population.moved(*old, Moments.of(x), momentum, "skip")
    m = float(momentum)
    judge("mean", new[0], (1 - m) * old[0].double() + m * x.mean(0))
    judge("var", new[1], (1 - m) * old[1].double() + m * x.var(0, correction=1))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_moved_keeps_the_memorys_dtype_and_rounds_once(dtype):
    old = torch.full((2,), 100.0, dtype=dtype), torch.full((2,), 100.0, dtype=dtype)
    new = population.moved(
        *old, Moments(5, torch.full((2,), 101.0).double(), torch.full((2,), 412.0).double()), 0.5, "skip"
    )
    for got, want in zip(new[:2], (100.5, 101.5), strict=True):
        assert got.dtype == dtype
        assert torch.equal(got, torch.full((2,), want).to(dtype))


def test_the_average_with_weights_1_over_k_is_the_plain_average():
    mean, var = torch.zeros(3), torch.ones(3)
    batches = [drifting(5, 3, offset=o) for o in (0.0, 10.0, -20.0, 1e3)]
    for k, x in enumerate(batches, start=1):
        population.move(mean, var, None, Moments.of(x), 1 / k, "skip")
    judge("mean", mean, torch.stack([x.double().mean(0) for x in batches]).mean(0), budget=1e-4)
    judge("var", var, torch.stack([x.double().var(0) for x in batches]).mean(0), budget=1e-5)


@pytest.mark.parametrize("nonfinite", ["skip", "propagate", "raise"])
def test_finite_batches_are_treated_alike(nonfinite):
    batch = Moments.of(drifting(7, 3))
    new = population.moved(torch.zeros(3), torch.ones(3), batch, 1.0, nonfinite)
    assert torch.equal(new[0], batch.mean.float())
    assert torch.equal(new[1], batch.unbiased_variance.float())


def test_skip_is_per_channel_and_looks_at_both_statistics():
    mean, m2 = torch.tensor([[1.0, torch.nan, 1.0, torch.inf], [4.0, 4.0, torch.inf, 4.0]]).double()
    old, batch = (torch.full((4,), 9.0), torch.full((4,), 8.0)), Moments(5, mean, m2)
    new = population.moved(*old, batch, 1.0, "skip")
    assert new[0].tolist() == [1.0, 9.0, 9.0, 9.0]
    assert new[1].tolist() == [1.0, 8.0, 8.0, 8.0]
    with pytest.raises(FloatingPointError, match=r"channels \[1, 2, 3\]"):
        population.moved(*old, batch, 1.0, "raise")


def test_a_step_writes_in_place_outside_autograd():
    mean, var, batches = torch.zeros(3), torch.ones(3), torch.tensor(4)
    addresses = mean.data_ptr(), var.data_ptr()
    batch = Moments(5, torch.full((3,), 2.0, requires_grad=True), torch.full((3,), 12.0, requires_grad=True))
    population.move(mean, var, batches, batch, 1.0, "skip")
    assert (mean.data_ptr(), var.data_ptr()) == addresses
    assert mean.tolist() == [2.0] * 3
    assert var.tolist() == [3.0] * 3
    assert batches == 5
    assert not mean.requires_grad
