"""Both passes of the plain and the frozen case, interpreted: the oracle, running statistics, offsets, order."""

import pytest
import torch

from tests.backends.triton.material import batch_norm, parameters, tensors
from tests.support.interpreter import arriving
from tests.support.material import LAYOUTS, drifting
from tests.support.oracle import (
    ACTIVATIONS,
    answer,
    away_from_kinks,
    by_torch,
    exact,
    judge,
    judge_all,
)

launch = pytest.importorskip("batchnorm.backends.triton.launch", exc_type=ImportError)
plan = pytest.importorskip("batchnorm.backends.triton.plan", exc_type=ImportError)
pytestmark = pytest.mark.usefixtures("small")

PLACES = ("contiguous", "channels_last")
# Channels that fit on chip (64 values and fewer), and that do not.
SHAPES = [(4, 3, 16), (4, 3, 17), (3, 2, 5), (2, 5, 1), (16, 5), (17, 5), (40, 6), (3, 2, 4, 5), (5, 3, 33)]


def forward(
    x, *, residual=None, weight=None, bias=None, population=(None,) * 4, momentum=0.1, activation=None, skip=True
):
    return launch.forward(x, residual, weight, bias, None, None, *population, momentum, 1e-5, activation, skip)


@pytest.mark.parametrize("training", [True, False], ids=["training", "frozen"])
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_shapes(shape, place, training):
    check(shape, torch.float32, place, training, "silu", True)


@pytest.mark.parametrize("add", [False, True], ids=["alone", "residual"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("shape", [(4, 2, 9), (9, 2, 9)], ids=["whole", "split"])
def test_activations(shape, activation, add):
    check(shape, torch.float32, "contiguous", True, activation, add)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("shape", [(4, 2, 3, 3), (9, 2, 3, 3)], ids=["whole", "split"])
def test_dtypes(shape, place, dtype):
    check(shape, dtype, place, True, "relu", True)


def check(shape, dtype, place, training, activation, add):
    x, residual, grad = tensors(shape, dtype, place)
    arguments = [x, *parameters(shape[1]), training]
    options = {"residual": residual if add else None, "activation": activation}
    away = away_from_kinks(exact(*arguments, **options).z, activation, torch.float32, stored=dtype)
    grad = torch.where(away, grad, 0)
    truth = exact(*arguments, grad=grad, **options)
    ours, torchs = (answer(f, *arguments, grad=grad, **options) for f in (batch_norm, by_torch))
    judge_all(ours, truth, torchs)
    assert ours.y.stride() == x.stride()


@pytest.mark.parametrize("shape", [(4, 3, 5), (9, 3, 9)], ids=["whole", "split"])
def test_the_kernel_moves_the_population_and_counts(shape):
    """Once per batch, however many programs there are; a channel that is not finite stays as it was."""
    mean, var, _, _ = parameters(3)
    batches, skipped = torch.tensor(4), torch.tensor(0)
    before = mean.clone(), var.clone()
    x = drifting(*shape)
    forward(x, population=(mean, var, batches, skipped), momentum=None)
    dims = [0, 2]
    judge("mean", mean, before[0] + (x.double().mean(dims) - before[0]) / 5, budget=1e-6)
    judge("var", var, before[1] + (x.double().var(dims) - before[1]) / 5, budget=1e-6)
    assert (int(batches), int(skipped)) == (5, 0)
    before = mean.clone(), var.clone()
    x[1, 1, 2] = torch.nan
    forward(x, population=(mean, var, batches, skipped))
    assert (int(batches), int(skipped)) == (6, 1)
    assert (mean[1], var[1]) == (before[0][1], before[1][1])
    assert (mean != before[0]).tolist() == [True, False, True]
    forward(x, population=(mean, var, batches, skipped), skip=False)
    assert (int(batches), int(skipped)) == (7, 1)
    assert mean.isnan().tolist() == var.isnan().tolist() == [False, True, False]


def test_running_statistics_of_any_stride_and_dtype():
    mean, var = torch.zeros(6)[::2], torch.ones(6, dtype=torch.float16)[::2]
    x = drifting(9, 3, 9)
    forward(x, population=(mean, var, torch.tensor(0), None), momentum=1.0)
    torch.testing.assert_close(mean.double(), x.double().mean([0, 2]))
    torch.testing.assert_close(var.double(), x.double().var([0, 2]), rtol=1e-3, atol=0)
    with pytest.raises(RuntimeError, match="expected running_mean and running_var, or neither"):
        forward(x, population=(mean, None, None, None))
    with pytest.raises(RuntimeError, match="needs num_batches_tracked"):
        forward(x, population=(mean, var, None, None), momentum=None)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("shape", [(4, 2, 4, 4), (16, 2, 4, 4)], ids=["whole", "split"])
@pytest.mark.parametrize("offset", [1e4, 1e6])
def test_large_offsets(offset, shape, place):
    """The mean to 1e-5 of σ, the variance and the output to 1e-5."""
    x = LAYOUTS[place](torch.randn(shape) + offset)
    y, (mean, _, var) = forward(x)
    judge("mean", mean, x.double().mean([0, 2, 3]), budget=1e-5)
    judge("variance", var, x.double().var([0, 2, 3], correction=0), budget=1e-5)
    judge("y", y, exact(x, training=True).y, budget=1e-5)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("shape", [(4, 2, 4, 4), (16, 2, 4, 4)], ids=["whole", "split"])
def test_a_constant_channel_comes_out_as_zero(shape, place):
    y, (mean, _, var) = forward(LAYOUTS[place](torch.full(shape, 1e7)))
    assert mean.tolist() == [1e7, 1e7]
    assert var.tolist() == [0, 0]
    assert not y.any()


def test_a_drift_within_the_batch():
    """Shares, and tiles of one share, that lie far apart: their deviations from the first tile are large."""
    x = torch.randn(40, 2, 9) + torch.arange(40).reshape(-1, 1, 1) * 1000
    _, (mean, _, var) = forward(x)
    right = x.double().var([0, 2], correction=0)
    judge("mean", mean, x.double().mean([0, 2]), budget=1e-3)
    judge("variance", var, right, budget=1e-6 * right.max().item())


@pytest.mark.parametrize("place", PLACES)
def test_every_order_of_arrival_gives_the_same_bits(place):
    """Whichever program comes last merges, and each merges in the same order."""
    x, residual, grad = tensors((6, 2, 3, 4), torch.float32, place)
    given = launch.prepare(x)
    programs = plan.reduction(given.view, 4).programs
    assert programs >= 3

    def step():
        population = *parameters(2)[:2], torch.tensor(0), torch.tensor(0)
        torch.manual_seed(0)
        population[0].zero_(), population[1].fill_(1)
        y, statistics = forward(x, residual=residual, population=population, activation="silu")
        grads = launch.backward(
            grad, x, residual, None, None, statistics, 1e-5, "silu", False, [True, True, False, False]
        )
        sums = launch.backward_reduce(grad, x, *statistics.unsqueeze(1), residual, "silu")
        return y, statistics, *population, *grads, *sums

    right = step()
    orders = [list(range(programs))[::-1], torch.randperm(programs).tolist()]
    orders += [[*range(1, programs), 0]]
    for order in orders:
        with arriving(order):
            for got, expected in zip(step(), right, strict=True):
                assert torch.equal(got, expected)


def test_counters_are_zero_after_every_kernel():
    from batchnorm.backends.triton import arguments

    x = drifting(40, 3)
    forward(x, population=(*parameters(3)[:2], torch.tensor(0), torch.tensor(0)))
    launch.moments(x, 3)
    kept = arguments.counters(x, 1)
    assert kept is arguments.counters(x, 5)
    assert not kept.any()
