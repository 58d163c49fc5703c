"""The kernel that updates running statistics by those that torch's operator saved, against plain torch."""

import itertools

import pytest
import torch

import batchnorm as bn
from batchnorm.backends import native
from batchnorm.core import device_ops, population
from tests.support.interpreter import arriving
from tests.support.material import drifting

launch = pytest.importorskip("batchnorm.backends.triton.launch", exc_type=ImportError)
plan = pytest.importorskip("batchnorm.backends.triton.plan", exc_type=ImportError)
pytestmark = pytest.mark.usefixtures("small")

CHANNELS = 19  # three programs of eight channels, the last with three


def material(poison, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    mean, new_mean = torch.randn(2, CHANNELS, generator=generator) * 10
    var, new_var = torch.rand(2, CHANNELS, generator=generator) * 4
    if poison:
        new_mean[3], new_var[17] = float(poison), float(poison)
    return mean.to(dtype), var.to(dtype), new_mean, new_var


def moved(move, poison, momentum, skip, dtype=torch.float32):
    mean, var, *news = material(poison, dtype)
    batches, skipped = torch.tensor(4), torch.tensor(1)
    move(mean, var, batches, skipped, *news, momentum, skip)
    return mean, var, int(batches), int(skipped)


@pytest.mark.parametrize("poison", ["", "nan", "inf"])
@pytest.mark.parametrize("skip", [True, False])
@pytest.mark.parametrize("momentum", [0.3, 1.0, None])
def test_like_plain_torch(momentum, skip, poison):
    """The kernel rounds the result of float64 once. Plain torch rounds in float32: it may be 2 ulp from that."""
    mean, var, batches, skipped = moved(launch.move_population, poison, momentum, skip)
    *plain, counted, left = moved(population.update_in_place, poison, momentum, skip)
    assert (batches, skipped) == (counted, left) == (5, 2 if skip and poison else 1)
    factor = 0.2 if momentum is None else torch.tensor(momentum).double()  # kernels take floats in float32
    olds, news = material(poison)[:2], material(poison)[2:]
    fit = (news[0].isfinite() & news[1].isfinite()) | torch.tensor(not skip)
    for ours, by_torch, old, new in zip((mean, var), plain, olds, news, strict=True):
        exact = torch.where(fit, old.double() + (new.double() - old.double()) * factor, old.double())
        assert torch.equal(ours.nan_to_num(5), exact.float().nan_to_num(5))
        ulp = torch.finfo(torch.float32).eps * torch.maximum(old.abs(), new.abs())
        assert ((ours - by_torch).abs() <= 2 * ulp)[fit & exact.isfinite()].all()
        assert torch.equal(by_torch[~fit], ours[~fit])


def test_buffers_of_float64_keep_all_digits():
    ours = moved(launch.move_population, "inf", 0.5, True, torch.float64)  # 0.5 is the same in float32
    plain = moved(population.update_in_place, "inf", 0.5, True, torch.float64)
    assert ours[2:] == plain[2:]
    for a, b in zip(ours[:2], plain[:2], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-15, atol=0)


@pytest.mark.parametrize("shape", [(4, 5, 3), (9, 5, 40)], ids=["on chip", "in shares"])
def test_the_fused_forward_keeps_all_digits_of_buffers_in_float64(shape):
    x, channels = drifting(*shape), shape[1]
    old = torch.randn(2, channels, dtype=torch.float64).abs() + 0.5
    mean, var = old.clone().unbind()
    moving = mean, var, torch.tensor(4), torch.tensor(0)
    assert (plan.whole(plan.view(shape, False), 4) is None) == (shape[0] == 9)
    _, statistics = launch.forward(x, *[None] * 5, *moving, 0.5, 1e-5, None, True)
    n = x.numel() // channels
    batch = torch.stack((statistics[0], statistics[2] * n / (n - 1)))
    torch.testing.assert_close(torch.stack((mean, var)), (old + batch) / 2, rtol=1e-14, atol=0)
    assert int(moving[2]) == 5


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_buffers_of_half_precision(dtype):
    ours = moved(launch.move_population, "nan", 0.3, True, dtype)
    plain = moved(population.update_in_place, "nan", 0.3, True, dtype)
    assert ours[2:] == plain[2:]
    for a, b in zip(ours[:2], plain[:2], strict=True):
        torch.testing.assert_close(a, b, rtol=2 * torch.finfo(dtype).eps, atol=torch.finfo(dtype).eps)


def test_every_order_of_arrival_gives_the_same_bits_and_counts():
    right = moved(launch.move_population, "nan", None, True)
    programs = plan.population(CHANNELS).programs
    assert programs == 3
    for order in itertools.permutations(range(programs)):
        with arriving(list(order)):
            mean, var, *counts = moved(launch.move_population, "nan", None, True)
        assert torch.equal(mean, right[0])
        assert torch.equal(var, right[1])
        assert counts == list(right[2:])


def test_buffers_with_strides():
    mean, var, *news = material("")
    wide = torch.stack((mean, var), 1)
    launch.move_population(*wide.unbind(1), None, None, *news, 0.3, True)
    population.update_in_place(mean, var, None, None, *news, 0.3, True)
    torch.testing.assert_close(wide, torch.stack((mean, var), 1), rtol=1e-6, atol=1e-6)


@pytest.fixture
def untried():
    device_ops._moves.clear()
    yield
    device_ops._moves.clear()


@pytest.mark.skipif(native.available(), reason="run by `make gpu`, which switches the native kernels off")
@pytest.mark.parametrize("momentum", [0.1, None])
def test_a_plain_step_of_torchs_operator_moves_by_it(momentum, untried, monkeypatch):
    calls = []
    original = launch.move_population
    monkeypatch.setattr(launch, "move_population", lambda *a: (calls.append(1), original(*a))[1])
    layers = {name: bn.BatchNorm2d(3, momentum=momentum) for name in ("aten", "reference")}
    for step in range(3):
        x = drifting(4, 3, 5, 5) + step
        for name, layer in layers.items():
            version = layer.running_mean._version
            with bn.backend(name):
                layer(x)
            assert layer.running_mean._version > version
    assert len(calls) == 3 + 1  # one that tries the kernel on this device
    ours, right = layers.values()
    assert ours.num_batches_tracked == right.num_batches_tracked == 3
    torch.testing.assert_close(ours.running_mean, right.running_mean)
    torch.testing.assert_close(ours.running_var, right.running_var)


@pytest.mark.skipif(native.available(), reason="run by `make gpu`, which switches the native kernels off")
@pytest.mark.parametrize("fault", ["raises", "is wrong"])
def test_a_kernel_that_does_not_work_is_not_used(fault, untried, monkeypatch):
    def broken(mean, *rest):
        if fault == "raises":
            raise RuntimeError("no C compiler")
        mean.add_(1)

    monkeypatch.setattr(launch, "move_population", broken)
    layer, right, x = bn.BatchNorm2d(3), bn.BatchNorm2d(3), drifting(4, 3, 5, 5)
    with bn.backend("aten"), pytest.warns(RuntimeWarning, match="plain torch operations do it"):
        layer(x)
    with bn.backend("reference"):
        right(x)
    torch.testing.assert_close(layer.running_mean, right.running_mean)
