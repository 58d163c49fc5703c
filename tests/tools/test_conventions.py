"""Layers from Keras and Flax compute the same as the originals."""

import numpy as np
import torch
from torch import nn

import batchnorm as bn


def test_from_keras_evaluates_and_moves_as_keras() -> None:
    rng = np.random.default_rng(0)
    mean, var, gamma, beta = rng.uniform(0.5, 2, (4, 3)).astype(np.float32)
    x = rng.normal(size=(8, 3)).astype(np.float32)
    layer = bn.from_keras(mean, var, gamma, beta, momentum=0.9)
    expected = gamma * (x - mean) / np.sqrt(var + 1e-3) + beta
    np.testing.assert_allclose(layer.eval()(torch.from_numpy(x)).detach().numpy(), expected, rtol=1e-5, atol=1e-6)
    layer.train()(torch.from_numpy(x))
    np.testing.assert_allclose(layer.running_mean.numpy(), 0.9 * mean + 0.1 * x.mean(0), rtol=1e-5)


def test_from_flax() -> None:
    layer = bn.from_flax({"mean": [1.0], "var": [4.0]}, {"scale": [2.0], "bias": [3.0]}, epsilon=1e-6).eval()
    assert abs(layer(torch.tensor([[5.0]])).item() - 7.0) < 1e-5


def test_defaults_are_those_of_the_framework() -> None:
    keras, flax = bn.from_keras([0.0], [1.0]), bn.from_flax({"mean": [0.0], "var": [1.0]})
    assert (round(keras.momentum, 9), keras.eps) == (0.01, 1e-3)
    assert (round(flax.momentum, 9), flax.eps) == (0.01, 1e-5)
    assert round(bn.from_flax({"mean": [0.0], "var": [1.0]}, momentum=0.9).momentum, 9) == 0.1


def test_parameter_groups_cover_everything_once() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), bn.BatchNorm2d(4), nn.LayerNorm(4), nn.Linear(4, 2))
    model[3].bias.requires_grad_(False)
    decay, rest = bn.parameter_groups(model, 1e-2)
    assert {id(p) for p in decay["params"]} == {id(model[0].weight), id(model[3].weight)}
    assert len(rest["params"]) == 5
    assert (decay["weight_decay"], rest["weight_decay"]) == (1e-2, 0.0)
