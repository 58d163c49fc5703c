"""Outputs, statistics and gradients, against float64."""

from typing import Any

import pytest
import torch
from torch import Tensor

from batchnorm.conformance import oracle
from batchnorm.conformance.conftest import Make

LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
# As a share of the largest value: some rounding steps of each dtype; for float32 also of a mean of 10⁶ in two floats
TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-5, torch.bfloat16: 1.6e-2, torch.float16: 2e-3}


def batch(layout: str, dtype: torch.dtype = torch.float32, offset: float = 3.0, channels: int = 5) -> Tensor:
    """(8, C, 9, 7) whose channels differ in offset and scale, and whose second half has another mean."""
    scale, place = torch.linspace(0.5, 2.0, channels), offset * torch.linspace(0.5, 1.5, channels)
    x = torch.randn(8, channels, 9, 7, dtype=torch.float64) * scale.view(1, -1, 1, 1) + place.view(1, -1, 1, 1)
    x[4:] += 0.75
    return x.to(dtype).contiguous(memory_format=LAYOUTS[layout])


def randomised(layer: Any) -> Any:
    with torch.no_grad():
        layer.weight.uniform_(0.5, 1.5)
        layer.bias.uniform_(-1, 1)
    return layer


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_outputs(make: Make, dtype: torch.dtype, layout: str) -> None:
    layer, x = randomised(make(5, dtype)), batch(layout, dtype)
    y = layer(x)
    assert y.dtype is dtype
    assert y.stride() == x.stride(), "the memory format changed"
    assert oracle.error(y, oracle.normalized(x, layer.weight, layer.bias)) < TOLERANCE[dtype]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("offset", [1e4, 1e6])
def test_offsets(make: Make, offset: float, layout: str) -> None:
    """A mean far above the standard deviation, in float32."""
    x = batch(layout, offset=offset)
    layer = make(5, momentum=1.0)
    assert oracle.error(layer(x), oracle.normalized(x)) < TOLERANCE[torch.float32]
    mean, variance = oracle.moments(x)
    assert oracle.error(layer.running_mean, mean) < 1e-6
    assert oracle.error(layer.running_var, variance) < 1e-4


@pytest.mark.parametrize("layout", LAYOUTS)
def test_constant_channels(make: Make, layout: str) -> None:
    """A channel with the constant value 10⁷ has the output 0."""
    x = torch.full((8, 3, 9, 7), 1e7).contiguous(memory_format=LAYOUTS[layout])
    assert make(3)(x).abs().max() < 1e-3


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_gradients(make: Make, dtype: torch.dtype, layout: str) -> None:
    layer, x = randomised(make(5, dtype)), batch(layout, dtype).requires_grad_()
    grad = batch(layout, dtype, offset=0.2)
    layer(x).backward(grad)
    for got, exact in zip((x.grad, layer.weight.grad, layer.bias.grad), oracle.gradients(
        x, grad, layer.weight, layer.bias), strict=True):  # fmt: skip
        assert oracle.error(got, exact) < 4 * TOLERANCE[dtype]


def test_second_derivatives(make: Make) -> None:
    layer = make(2, torch.float64)
    x = torch.randn(3, 2, 2, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(layer, (x,))


def test_threads(make: Make) -> None:
    """Results do not depend on the number of threads."""
    before, results = torch.get_num_threads(), []
    x = torch.randn(16, 32, 28, 28)
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            layer, own = make(32), x.clone().requires_grad_()
            y = layer(own)
            y.backward(x.roll(1, 0))
            results.append([y, own.grad, layer.weight.grad, layer.running_mean, layer.running_var])
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(map(torch.equal, results[0], other))
