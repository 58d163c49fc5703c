"""Layers on a card: streams, graphs, several devices, autocast, deterministic mode and NCCL, in numbers.

Tests with the fixture `device` run on CPU too: this checks the tests themselves, and the layer's own rules. The others
need a card and are skipped without one.
"""

import contextlib
import copy
from pathlib import Path

import pytest
import torch

import batchnorm as bn
from tests.support.launch import finish, start
from tests.support.material import drifting
from tests.support.oracle import exact, judge

CARDS = torch.cuda.device_count() if torch.cuda.is_available() else 0
needs_card = pytest.mark.skipif(CARDS < 1, reason="needs a CUDA or ROCm device")
needs_two = pytest.mark.skipif(CARDS < 2, reason="needs two CUDA or ROCm devices")
SHAPE = (8, 3, 6, 5)


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=needs_card)])
def device(request: pytest.FixtureRequest) -> torch.device:
    return torch.device(request.param)


@pytest.fixture(params=["default", "triton"])
def backend(request: pytest.FixtureRequest) -> contextlib.AbstractContextManager[None]:
    """The backend that a device gets, and on a card Triton's kernels."""
    if request.param == "default":
        return contextlib.nullcontext()
    if "device" in request.fixturenames and request.getfixturevalue("device").type == "cpu":
        pytest.skip("Triton's kernels run on cards")
    return bn.backend("triton")


def check_step(layer: bn.BatchNorm2d, x: torch.Tensor, y: torch.Tensor, dx: torch.Tensor, grad: torch.Tensor) -> None:
    """The first step of a new layer against float64; float32's own rounding is the budget."""
    zero, one = torch.zeros(x.shape[1]), torch.ones(x.shape[1])
    truth = exact(x.cpu(), zero, one, one, zero, True, 0.1, 1e-5, activation=layer.activation, grad=grad.cpu())
    judge("y", y.detach().cpu(), truth.y, budget=1e-5)
    judge("dx", dx.cpu(), truth.grads["x"], budget=1e-5)
    judge("running_mean", layer.running_mean.cpu(), truth.running_mean, budget=1e-5)
    judge("running_var", layer.running_var.cpu(), truth.running_var, budget=1e-5)
    assert int(layer.num_batches_tracked) == 1


def step(layer: bn.BatchNorm2d, x: torch.Tensor, grad: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    x = x.clone().requires_grad_()
    y = layer(x)
    return y, torch.autograd.grad(y, x, grad)[0]


@pytest.mark.parametrize("activation", [None, "silu"])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["NCHW", "NHWC"])
def test_a_step(layout, activation, device, backend):
    layer = bn.BatchNorm2d(3, activation=activation).to(device)
    x = drifting(*SHAPE).to(device, memory_format=layout)
    grad = drifting(*SHAPE, offset=0.3).to(device, memory_format=layout)
    with backend:
        y, dx = step(layer, x, grad)
    assert y.stride() == x.stride()
    check_step(layer, x, y, dx, grad)


def test_a_batch_that_is_not_finite_is_skipped_and_counted(device):
    layer = bn.BatchNorm2d(3).to(device)
    x = drifting(*SHAPE).to(device)
    layer(x)
    before = layer.running_mean.clone(), layer.running_var.clone()
    x[0, 1, 0, 0] = torch.nan
    with pytest.warns(RuntimeWarning, match="not finite"):
        skipped = _skipped_after(layer, x)
    assert skipped == 1
    assert layer.num_batches_tracked == 2
    for after, old in zip((layer.running_mean, layer.running_var), before, strict=True):
        assert (after != old).tolist() == [True, False, True]


def _skipped_after(layer: bn.BatchNorm2d, x: torch.Tensor) -> int:
    """On a card the warning may come as late as the counter is read."""
    layer(x)
    return int(layer.skipped_batches)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast_keeps_the_statistics_in_float32(dtype, device):
    layer, x = bn.BatchNorm2d(3).to(device), drifting(*SHAPE).to(device, dtype)
    with torch.autocast(device.type, dtype):
        y = layer(x)
    assert (y.dtype, layer.running_mean.dtype) == (dtype, torch.float32)
    wide = x.double().cpu()
    judge("running_mean", layer.running_mean.cpu(), 0.1 * wide.mean([0, 2, 3]), budget=1e-5)
    judge("running_var", layer.running_var.cpu(), 0.9 + 0.1 * wide.var([0, 2, 3]), budget=1e-5)
    right = exact(wide, training=True).y
    judge("y", y.detach().cpu(), right, budget=2 * torch.finfo(dtype).eps * right.abs().max().item())


def test_the_gradient_scaler_takes_half_precision_gradients(device):
    """Scaled by 2¹⁰ on the way back, and divided by it again: the gradient of γ is that of float64."""
    layer, x = bn.BatchNorm2d(3).to(device), drifting(*SHAPE).to(device, torch.bfloat16)
    scaler, optimizer = torch.amp.GradScaler(device.type, init_scale=2.0**10), torch.optim.SGD(layer.parameters(), 0.1)
    with torch.autocast(device.type, torch.bfloat16):
        loss = layer(x).float().square().mean()
    scaler.scale(loss).backward()
    scaler.unscale_(optimizer)
    hat = exact(x.double().cpu(), training=True).y
    assert layer.weight.grad is not None
    judge("weight", layer.weight.grad.cpu(), 2 * hat.square().mean([0, 2, 3]) / 3, budget=2e-2)


def test_deterministic_mode_repeats_the_bits(device, backend):
    x, grad = drifting(16, 3, 33, 35).to(device), drifting(16, 3, 33, 35, offset=0.3).to(device)
    results = []
    torch.use_deterministic_algorithms(True)
    try:
        with backend:
            for _ in range(3):
                layer = bn.BatchNorm2d(3).to(device)
                results.append((*step(layer, x, grad), layer.running_mean, layer.running_var))
    finally:
        torch.use_deterministic_algorithms(False)
    for later in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(later, results[0], strict=True))


@needs_card
def test_kernels_run_on_the_current_stream(backend):
    """The input is written late, on the stream of the layer: a kernel on another stream would read the old values."""
    stream, grad = torch.cuda.Stream(), drifting(*SHAPE, offset=0.3).cuda()
    layer, late = bn.BatchNorm2d(3).cuda(), drifting(*SHAPE).cuda()
    with backend:
        step(copy.deepcopy(layer), late, grad)  # compiles
        x = torch.zeros_like(late)
        torch.cuda.synchronize()
        with torch.cuda.stream(stream):
            torch.cuda._sleep(50_000_000)
            x.copy_(late, non_blocking=True)
            y, dx = step(layer, x, grad)
        stream.synchronize()
    check_step(layer, late, y, dx, grad)


@needs_card
def test_a_cuda_graph_replays_a_training_step(backend):
    """Three batches through one graph move the population as three calls do; the second is not finite."""
    shape = (64, 3, 20, 20)  # channels that do not fit on chip
    batches = [drifting(*shape).cuda() + k for k in range(3)]
    batches[1][0, 1, 0, 0] = torch.inf
    eager, x = bn.BatchNorm2d(3).cuda(), batches[0].clone()
    layer, grad = copy.deepcopy(eager), torch.ones_like(x)
    with backend:
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            step(copy.deepcopy(layer), x, grad)
            step(copy.deepcopy(layer), x, grad)
        torch.cuda.current_stream().wait_stream(side)
        before, graph = copy.deepcopy(layer.state_dict()), torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            y, dx = step(layer, x, grad)
        layer.load_state_dict(before)
        for batch in batches:
            x.copy_(batch)
            graph.replay()
            right = step(eager, batch, grad)
            torch.testing.assert_close((y, dx), right, rtol=1e-5, atol=1e-5, equal_nan=True)
    torch.testing.assert_close(layer.running_mean, eager.running_mean)
    torch.testing.assert_close(layer.running_var, eager.running_var)
    assert int(layer.num_batches_tracked) == int(eager.num_batches_tracked) == 3


@needs_two
def test_a_device_that_is_not_the_current_one(backend):
    layer, x = bn.BatchNorm2d(3).to("cuda:1"), drifting(*SHAPE).to("cuda:1")
    grad = drifting(*SHAPE, offset=0.3).to("cuda:1")
    with torch.cuda.device(0), backend:
        y, dx = step(layer, x, grad)
    assert y.device == x.device
    check_step(layer, x, y, dx, grad)


@pytest.mark.parametrize("link", ["gloo", pytest.param("nccl", marks=needs_two)])
def test_statistics_over_two_processes(link, tmp_path):
    """Each rank has a half of the batch, of unequal sizes; together they match the whole batch in float64."""
    program = tmp_path / "rank.py"
    program.write_text(PROGRAM.replace("LINK", repr(link)))
    for status, said in finish(start(program, 2, Path(tmp_path)), 120):
        assert status == 0, said


PROGRAM = """
import sys
import torch
from torch import distributed as dist
import batchnorm as bn
from tests.support.oracle import exact, judge


def main():
    rank, size, folder = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    device = torch.device("cuda", rank) if LINK == "nccl" else torch.device("cpu")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group(LINK, init_method=f"file://{folder}/meet", rank=rank, world_size=size)
    torch.manual_seed(0)
    whole, grad = torch.randn(7, 3, 5) * 2 + 3, torch.randn(7, 3, 5)
    mine = slice(0, 3) if rank == 0 else slice(3, 7)
    x = whole[mine].to(device).requires_grad_()
    layer = bn.BatchNorm1d(3, process_group=dist.group.WORLD).to(device)
    y = layer(x)
    y.backward(grad[mine].to(device))
    truth = exact(whole, torch.zeros(3), torch.ones(3), training=True, grad=grad)
    judge("y", y.detach().cpu(), truth.y[mine], budget=1e-5)
    judge("dx", x.grad.cpu(), truth.grads["x"][mine], budget=1e-5)
    judge("running_var", layer.running_var.cpu(), truth.running_var, budget=1e-5)
    dist.barrier()  # nobody leaves while another is at work
    dist.destroy_process_group()


main()  # a function: what holds the group is freed before the interpreter ends, as gloo's threads need
"""
