"""Tensors and buffers that kernels must not read by address: each works, or raises a Python error."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import batchnorm as bn
from tests.support.material import drifting


class Subclass(Tensor):
    """A subclass with torch's default behaviour."""


def expected(x: Tensor) -> Tensor:
    return nn.BatchNorm2d(3)(x)


@pytest.mark.parametrize("options", [{}, {"renorm": bn.Renorm(1.0, 0.0)}], ids=["plain", "composed"])
def test_another_default_device(options: dict) -> None:
    x = drifting(4, 3, 5, 5)
    layer = bn.BatchNorm2d(3, device="cpu", **options)
    with torch.device("meta"):
        y = layer(x)
    torch.testing.assert_close(y, expected(x))


def test_zero_tensors_as_input_and_gradient() -> None:
    y = bn.BatchNorm2d(3)(torch._efficientzerotensor((4, 3, 5, 5)))
    assert torch.equal(y, torch.zeros(4, 3, 5, 5))
    x = drifting(4, 3, 5, 5).requires_grad_()
    bn.BatchNorm2d(3)(x).backward(torch._efficientzerotensor((4, 3, 5, 5)))
    assert torch.equal(x.grad, torch.zeros(4, 3, 5, 5))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.int32, torch.uint8], ids=str)
def test_counters_of_other_dtypes(dtype: torch.dtype) -> None:
    """Nothing is written beyond the counter's own bytes."""
    memory = torch.zeros(2, dtype=dtype)
    layer = bn.BatchNorm2d(3)
    layer.num_batches_tracked = memory[0]
    for _ in range(2):
        layer(drifting(4, 3, 5, 5))
    assert memory.tolist() == [2, 0]


def test_a_subclass_as_input_and_parameter() -> None:
    x, layer = drifting(4, 3, 5, 5), bn.BatchNorm2d(3)
    layer.weight = nn.Parameter(torch.ones(3).as_subclass(Subclass))
    torch.testing.assert_close(layer(x.as_subclass(Subclass)).as_subclass(Tensor), expected(x))


@pytest.mark.parametrize("name", ["residual", "mask"])
@pytest.mark.parametrize("wrong", [[1.0, 2.0], np.ones((4, 3, 5, 5))], ids=["list", "numpy"])
def test_what_is_no_tensor_is_an_error_in_words(name: str, wrong: object) -> None:
    layer = bn.BatchNorm2d(3)
    with pytest.raises(TypeError, match=f"expected {name} to be a tensor"):
        layer(drifting(4, 3, 5, 5), **{name: wrong})
    assert layer.num_batches_tracked == 0


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.int32, torch.complex64], ids=str)
def test_dtypes_that_no_batch_norm_has(dtype: torch.dtype) -> None:
    with pytest.raises((RuntimeError, NotImplementedError), match=r"(?i)float"):
        bn.BatchNorm2d(3)(drifting(4, 3, 5, 5).to(dtype))
