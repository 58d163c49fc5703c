"""Layers under `bn.backend("triton")`: every option against the oracle, on CPU tensors under the interpreter."""

import copy
from dataclasses import replace

import pytest
import torch

import batchnorm as bn
from batchnorm.backends import native
from tests.support.material import drifting
from tests.support.option_matrix import Setting, compare

pytestmark = [
    pytest.mark.usefixtures("small"),
    pytest.mark.skipif(native.available(), reason="run by `make gpu`, which switches the native kernels off"),
]

BASE = Setting((6, 3, 5), torch.float32, backend="triton", activation="silu", residual=True)
SETTINGS = {
    "plain": replace(BASE, activation=None, residual=False),
    "relu and a residual": replace(BASE, activation="relu"),
    "a residual alone": replace(BASE, activation=None),
    "on chip": replace(BASE, shape=(4, 3, 2)),
    "channels_last": replace(BASE, shape=(5, 2, 3, 4), channels_last=True),
    "channels_last volume": replace(BASE, shape=(4, 2, 2, 3, 2), channels_last=True),
    "rows": replace(BASE, shape=(7, 3)),
    "no affine": replace(BASE, affine=False),
    "cumulative": replace(BASE, momentum=None),
    "evaluation": replace(BASE, state="eval"),
    "frozen": replace(BASE, state="frozen"),
    "paused": replace(BASE, state="paused"),
    "a mask of positions": replace(BASE, mask="positions", seed=1),
    "a mask of values": replace(BASE, mask="values"),
    "weights": replace(BASE, mask="weights"),
    "a mask in evaluation": replace(BASE, mask="values", state="eval"),
    "an empty channel": replace(BASE, mask="empties a channel"),
    "virtual batches": replace(BASE, virtual=4),
    "virtual batches and a mask": replace(BASE, virtual=4, mask="positions"),
    "renormalisation": replace(BASE, renorm=bn.Renorm(1.5, 0.5)),
    "a NaN": replace(BASE, poisoned=True),
    "a NaN that raises": replace(BASE, poisoned=True, nonfinite="raise"),
    "a NaN that propagates": replace(BASE, poisoned=True, nonfinite="propagate"),
    "bfloat16": replace(BASE, dtype=torch.bfloat16, shape=(4, 2, 3)),
    "float16": replace(BASE, dtype=torch.float16, shape=(4, 2, 3)),
}


@pytest.mark.filterwarnings("ignore:.*batch statistics of channels:RuntimeWarning")
@pytest.mark.parametrize("name", SETTINGS)
def test_options(name):
    compare(SETTINGS[name], steps=1)


def ran(layer, x):
    with torch.autograd.profiler.profile() as seen:
        layer(x.requires_grad_()).sum().backward()
    return {event.name for event in seen.function_events if event.name.startswith("batchnorm::")}


def test_the_operators_run_and_the_buffers_versions_move():
    layer, x = bn.BatchNorm2d(2), drifting(4, 2, 2, 2)
    version = layer.running_mean._version
    with bn.backend("triton"):
        assert ran(layer, x) == {"batchnorm::forward", "batchnorm::backward"}
        assert layer.running_mean._version > version
        layer = bn.BatchNorm2d(2, virtual_batch_size=2)
        primitives = {"moments", "normalize", "backward_reduce", "backward_apply"}
        assert ran(layer, x) == {f"batchnorm::{name}" for name in primitives}


def test_a_second_derivative():
    layer, x = bn.BatchNorm1d(2, activation="silu").double(), drifting(4, 2, dtype=torch.float64).requires_grad_()
    reference = copy.deepcopy(layer)

    def twice(layer, x):
        (g,) = torch.autograd.grad(layer(x).square().sum(), x, create_graph=True)
        return torch.autograd.grad(g.square().sum(), x)[0]

    with bn.backend("reference"):
        right = twice(reference, x)
    layer.float()
    with bn.backend("triton"):
        got = twice(layer, x.detach().float().requires_grad_())
    torch.testing.assert_close(got.double(), right, rtol=1e-3, atol=1e-4)


def test_what_it_cannot_serve_is_an_error():
    with bn.backend("triton"):
        with pytest.raises(RuntimeError, match=r"'triton' was asked for and cannot serve torch.float64.*float32"):
            bn.BatchNorm1d(3).double()(drifting(4, 3, dtype=torch.float64))
        with pytest.raises(RuntimeError, match=r"cannot serve .* on meta: it runs on CUDA"):
            bn.BatchNorm1d(3, device="meta")(torch.ones(4, 3, device="meta"))


def test_dtypes_that_no_kernel_reads_go_to_the_reference():
    from batchnorm.backends import reference
    from batchnorm.core import ops

    with bn.backend("triton"):
        bn.BatchNorm1d(3)(drifting(4, 3))  # registers the operators
    x = drifting(4, 3, dtype=torch.float64)
    for got, right in zip(ops.moments(x)[1:], reference.moments(x)[1:], strict=True):
        assert torch.equal(got, right)


def test_a_recomputation_gives_the_same_bits():
    """`bn.recompute` computes y again by `normalize`, from the statistics that the forward pass saved."""
    from batchnorm.core import ops

    with bn.backend("triton"):
        bn.BatchNorm1d(3)(drifting(4, 3))  # registers the operators
    for shape in ((4, 3, 3), (40, 3)):
        x = drifting(*shape)
        weight, bias = torch.randn(2, 3)
        y, statistics = ops.forward(x, None, weight, bias, *[None] * 6, 0.1, 1e-5, "gelu", True)
        mean, rstd, _ = statistics.unsqueeze(1)
        assert torch.equal(ops.normalize(x, mean, rstd * weight, bias.double().unsqueeze(0), None, "gelu"), y)
