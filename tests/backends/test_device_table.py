"""Which kernels ran, which were asked for, and that both say the same."""

import pytest
import torch
from batchnorm.backends.numba import cpu
from batchnorm.backends.numba.cpu_activations import _TABLE

import batchnorm as bn
from batchnorm.backends import reference
from tests.support.material import drifting


def ran(layer, x):
    """What a step of `layer` on `x` made the CPU kernels run."""
    before = cpu.calls.copy()
    layer(x.requires_grad_()).sum().backward()
    return set(cpu.calls - before)


def test_plain_float32_runs_the_fused_kernels():
    assert ran(bn.BatchNorm2d(4), drifting(5, 4, 3, 3)) == {"forward", "backward"}


def test_virtual_batches_run_the_primitives():
    layer = bn.BatchNorm2d(4, virtual_batch_size=2)
    assert ran(layer, drifting(5, 4, 3, 3)) == {"moments", "normalize", "backward_reduce", "backward_apply"}


def test_the_reference_runs_where_it_is_asked_for_and_its_backward_too():
    with bn.backend("reference"):
        before = cpu.calls.copy()
        x = drifting(5, 4, 3, 3).requires_grad_()
        y = bn.BatchNorm2d(4)(x)
    y.sum().backward()
    assert cpu.calls == before


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_other_dtypes_run_them_too(dtype):
    assert ran(bn.BatchNorm2d(4).to(dtype), drifting(5, 4, 3, 3, dtype=dtype)) == {"forward", "backward"}


def test_what_was_asked_for_never_falls_back_in_silence():
    with bn.backend("cpu"), pytest.raises(RuntimeError, match="cannot serve"):
        bn.BatchNorm2d(4, device="meta")(torch.zeros(5, 4, 3, 3, device="meta"))
    with bn.backend("cpu"), pytest.raises(RuntimeError, match=r"cannot serve.*mask"):
        bn.BatchNorm2d(4)(drifting(5, 4, 3, 3), mask=torch.ones(5, 4, 3, 3))
    with pytest.raises(ValueError, match="unknown backend 'gpu'; there are 'reference', 'cpu'"), bn.backend("gpu"):
        pass


def test_the_choice_ends_with_the_context_also_after_an_error():
    with pytest.raises(ZeroDivisionError), bn.backend("reference"):
        raise ZeroDivisionError
    assert ran(bn.BatchNorm2d(4), drifting(5, 4, 3, 3)) == {"forward", "backward"}


def test_one_list_of_activations():
    assert list(_TABLE)[1:] == list(reference.ACTIVATIONS) or list(_TABLE) == list(reference.ACTIVATIONS)
