"""Saved tensors under `recompute`: changes in place, derivatives of every kind, and when they are freed."""

import copy
import gc

import pytest
import torch
from torch import nn

import batchnorm as bn
from batchnorm.training.saved_tensors import Recipe
from tests.training.recompute_cases import (
    Changed,
    Dense,
    both,
    images,
    plain,
    residual,
    same,
    storage_of,
)


@pytest.mark.parametrize(
    "change",
    [torch.Tensor.relu_, lambda y: y[:, :1].mul_(2), lambda y: y.detach().add_(1)],
    ids=["all", "part", "alias"],
)
def test_an_output_that_was_changed_in_place_is_no_recipe(change) -> None:
    assert same(*both(Changed(change), images()))


def test_a_view_of_a_changed_output_is_no_recipe() -> None:
    class Flat(Changed):
        def forward(self, x):
            y = self.norm(self.conv1(x))
            y.mul_(2)
            return y.flatten(1).sin()

    assert same(*both(Flat(None), images()))


def test_a_change_after_saving_is_an_error_as_without() -> None:
    for change in (lambda m: m.conv2.weight, lambda m: m.norm.weight):
        model = Changed(lambda y: None)
        with bn.recompute(model):
            y = model(images())
        with torch.no_grad():
            change(model).add_(1)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            y.sum().backward()


def test_the_input_of_a_norm_changed_in_place_is_an_error() -> None:
    class Bad(Changed):
        def forward(self, x):
            z = self.conv1(x)
            y = self.norm(z)
            z.add_(1)
            return self.conv2(y)

    model = Bad(None)
    with bn.recompute(model):
        y = model(images())
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_second_derivatives() -> None:
    def penalty(model, x):
        x = x.detach().requires_grad_()
        (g,) = torch.autograd.grad(model(x).square().sum(), x, create_graph=True)
        g.square().sum().backward()
        return [x.grad, *(p.grad for p in model.parameters())]

    for make in (plain, residual):
        model, x = make("silu").double(), images(torch.float64)
        other = copy.deepcopy(model)
        with bn.recompute(other):
            got = penalty(other, x)
        assert same(got, penalty(model, x))


def test_several_backward_passes_through_one_graph() -> None:
    model, x = residual(), images()
    with bn.recompute(model):
        loss = model(x).square().mean()
    first = torch.autograd.grad(loss, list(model.parameters()), retain_graph=True)
    second = torch.autograd.grad(loss, list(model.parameters()))
    assert same(list(first), list(second))


def test_partial_backward_passes() -> None:
    """Of some parameters only, last layers first: some readers of an output never come."""

    def partial(model):
        loss = model(images).square().mean()
        parts = [list(m.parameters()) for m in (model[-1], model[3], model[0])]
        return [g for part in parts for g in torch.autograd.grad(loss, part, retain_graph=True)]

    model, images = residual(), torch.randn(4, 3, 8, 8)
    with bn.recompute(model):
        got = partial(model)
    assert same(got, partial(model))


@pytest.mark.parametrize("chain", [False, True])
def test_each_output_is_computed_once_in_a_backward_pass(chain, monkeypatch) -> None:
    """And let go of once the last of its readers has been."""
    model, x, calls = residual(), images(), []
    compute = Recipe.compute.__get__

    def counted(recipe, *inputs):
        return lambda *tensors: (calls.append(recipe), compute(recipe)(*tensors))[1]

    monkeypatch.setattr(Recipe, "compute", property(counted, Recipe.compute.__set__))
    with bn.recompute(model, chain=chain):
        loss = model(x).square().mean()
    assert not calls
    for _ in range(2):
        calls.clear()
        loss.backward(retain_graph=True)
        assert len(calls) == len(set(map(id, calls))) == (10 if chain else 8)
        assert all(recipe.result is None for recipe in calls)


def test_graphs_die_without_the_garbage_collector() -> None:
    model, x = nn.Sequential(residual()[:-3], Dense(8, 2, 3)), images()
    model(x).sum().backward()
    gc.collect()
    gc.disable()
    try:
        with bn.recompute(model):
            alive = []
            handle = model[0][0].register_forward_hook(lambda m, a, y: alive.append(storage_of(y)))
            y = model(x)
            y.sum().backward()
            del y
            assert alive[0].expired()
            y = model(x)  # without a backward pass
            assert not alive[1].expired()
            del y
            assert alive[1].expired()
            handle.remove()
        assert alive[1].expired()
        before = len(gc.get_objects())
        for _ in range(5):
            with bn.recompute(model):
                model(x)
        assert len(gc.get_objects()) - before < 50
    finally:
        gc.enable()


def test_outputs_that_outlive_the_graph_hold_nothing() -> None:
    """The recipe is for the graph alone: an output that somebody keeps does not keep the norm's input."""
    model, x = plain()[:2], images()
    inputs = []
    model[0].register_forward_hook(lambda m, a, y: inputs.append(storage_of(y)))
    with bn.recompute(model):
        y = model(x)
        y.sum().backward()
        y = y.detach()
        assert inputs[0].expired()
