"""The backend that runs is the one that was asked for, or else the device's, according to torch's profiler."""

import pytest
import torch
from torch import Tensor, nn

import batchnorm as bn
from tests.support.backends import NATIVE, needs_native
from tests.support.material import drifting

OPERATORS = {"batchnorm::forward", "batchnorm::backward"}
TORCHS = {"aten::native_batch_norm", "aten::native_batch_norm_backward"}
PRIMITIVES = {f"batchnorm::{name}" for name in ("moments", "normalize", "backward_reduce", "backward_apply")}
EVERY = OPERATORS | TORCHS | PRIMITIVES


def ran(layer: nn.Module, x: Tensor) -> set[str]:
    """The operators of batch norms, ours and torch's, in a step of `layer` on `x`."""
    with torch.autograd.profiler.profile() as seen:
        layer(x.requires_grad_()).sum().backward()
    return {event.name for event in seen.function_events} & EVERY


def test_plain_runs_the_operators_or_without_kernels_for_them_torchs():
    assert ran(bn.BatchNorm2d(4), drifting(5, 4, 3, 3)) == (OPERATORS if NATIVE else TORCHS)


@needs_native
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16], ids=str)
def test_other_dtypes_run_the_operators_too(dtype):
    assert ran(bn.BatchNorm2d(4).to(dtype), drifting(5, 4, 3, 3, dtype=dtype)) == OPERATORS


def test_virtual_batches_run_the_primitives():
    layer = bn.BatchNorm2d(4, virtual_batch_size=2)
    assert ran(layer, drifting(5, 4, 3, 3)) == PRIMITIVES


@pytest.mark.parametrize(("name", "operators"), [("reference", set()), ("aten", TORCHS)])
def test_what_was_asked_for_runs(name, operators):
    with bn.backend(name):
        assert ran(bn.BatchNorm2d(4), drifting(5, 4, 3, 3)) == operators


def test_the_backward_is_that_of_the_forwards_backend():
    with bn.backend("reference"):
        y = bn.BatchNorm2d(4)(drifting(5, 4, 3, 3).requires_grad_())
    with torch.autograd.profiler.profile() as seen:
        y.sum().backward()
    assert not {event.name for event in seen.function_events} & EVERY


def test_what_was_asked_for_never_falls_back_in_silence():
    with bn.backend("native"), pytest.raises(RuntimeError, match="cannot serve"):
        bn.BatchNorm2d(4, device="meta")(torch.zeros(5, 4, 3, 3, device="meta"))
    with bn.backend("aten"), pytest.raises(RuntimeError, match=r"cannot serve.*mask"):
        bn.BatchNorm2d(4)(drifting(5, 4, 3, 3), mask=torch.ones(5, 4, 3, 3))
    if not NATIVE:
        with bn.backend("native"), pytest.raises(RuntimeError, match=r"cannot serve.*compiler"):
            bn.BatchNorm2d(4)(drifting(5, 4, 3, 3))
    with pytest.raises(ValueError, match="unknown backend 'gpu'; there are 'native', 'triton', 'aten', 'reference'"):
        bn.backend("gpu").__enter__()


def test_the_choice_ends_with_the_context_also_after_an_error():
    with pytest.raises(ZeroDivisionError), bn.backend("reference"):
        raise ZeroDivisionError
    assert ran(bn.BatchNorm2d(4), drifting(5, 4, 3, 3))
