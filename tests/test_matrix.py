"""Every option with every other, sampled, against the oracle of `tests/support/oracle.py`."""

import itertools
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from torch import Tensor

import batchnorm as bn
from tests.support.option_matrix import EPS, SETTINGS, Setting, compare, data, layer_for
from tests.support.oracle import ACTIVATIONS, LEAVES, before_activation, weights_like


@pytest.mark.filterwarnings("ignore:.*are not finite:RuntimeWarning")
@settings(max_examples=300, deadline=None)
@given(SETTINGS)
def test_every_combination_agrees_with_the_oracle(s: Setting) -> None:
    compare(s, steps=2)


# Every pair of a mask, virtual batches and renormalisation, with each of the last four in turn.
LAST = itertools.cycle(
    [(None, "train"), ("silu", "eval"), ("hardswish", "train"), ("relu", "frozen"), ("gelu", "train")]
)
COVERING = [
    (*first, *last)
    for first, last in zip(
        itertools.product([None, "values", "weights"], [None, 2], [None, bn.Renorm(1.5, 0.5)]), LAST, strict=False
    )
]


@pytest.mark.parametrize(("mask", "virtual", "renorm", "activation", "state"), COVERING)
def test_first_and_second_derivatives(mask, virtual, renorm, activation, state) -> None:
    s = Setting(
        (5, 2, 3), mask=mask, virtual=virtual, renorm=renorm, residual=activation is not None, activation=activation,
        state=state, offset=0.5, seed=4,
    )  # fmt: skip
    d = data(s)
    layer = layer_for(s, d)
    inputs = [d[k].requires_grad_() for k in LEAVES if d[k] is not None]

    def function(*tensors: Tensor) -> Tensor:
        x, *rest = tensors
        residual = rest.pop(0) if s.residual else None
        with bn.paused(layer):
            parameters = {"weight": rest[0], "bias": rest[1]}
            return torch.func.functional_call(layer, parameters, (x, residual), {"mask": d["mask"]})

    def truth(x: Tensor, *rest: Tensor) -> Tensor:
        residual, weight, bias = rest if s.residual else (None, *rest)
        population = d["mean"].double(), d["var"].double()
        options = {"mask": d["mask"], "virtual_batch_size": virtual, "single": s.single}
        options["renorm"] = renorm if s.by_batch else None
        z, _ = before_activation(x, residual, weight, bias, *population, s.by_batch, EPS, **options)
        return torch.where(weights_like(x, d["mask"]) > 0, ACTIVATIONS[activation](z), 0)

    # the constants of a renormalisation are constants to the gradient, but not to finite differences
    if renorm is None or state != "train":
        assert torch.autograd.gradcheck(function, inputs)
        assert torch.autograd.gradgradcheck(function, inputs)
    for a, b in zip(twice(function, inputs, d["grad"]), twice(truth, inputs, d["grad"]), strict=True):
        torch.testing.assert_close(a, b)


def twice(function: Callable[..., Tensor], inputs: list[Tensor], grad: Tensor) -> tuple[Tensor, ...]:
    """The gradients of a sum of squares of the gradients: third derivatives of a loss, so to speak."""
    first = torch.autograd.grad(function(*inputs), inputs, grad, create_graph=True)
    loss = sum(g.square().sum() for g in first)
    return torch.autograd.grad(loss, inputs, allow_unused=True, materialize_grads=True)
