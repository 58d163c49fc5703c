"""Outputs are freed with their last reference, with and without a backward pass."""

import gc
import weakref

import pytest
import torch

import batchnorm as bn
from tests.support.oracle import ACTIVATIONS

OPTIONS = {
    "plain": {},
    "virtual": {"virtual_batch_size": 2},
    "renorm": {"renorm": bn.Renorm()},
}


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize("with_residual", [False, True], ids=["alone", "residual"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("options", OPTIONS)
def test_an_output_without_a_backward_pass_is_freed(options, activation, with_residual, training, no_collector):
    """A node that saves its own output as if it were an input holds it for ever: every such step leaked one output."""
    layer = bn.BatchNorm2d(3, activation=activation, **OPTIONS[options]).train(training)
    x = torch.randn(4, 3, 5, 5, requires_grad=True)
    y = layer(x, torch.randn(4, 3, 5, 5, requires_grad=True) if with_residual else None)
    assert y.grad_fn is not None
    alive = weakref.ref(y)
    del y
    assert alive() is None


@pytest.fixture
def no_collector():
    """Reference counts alone must do: Python's collector cannot see into autograd's nodes."""
    gc.disable()
    yield
    gc.enable()
