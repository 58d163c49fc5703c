"""A window of micro-batches is one batch."""

import pytest
import torch

import batchnorm as bn
from tests.support.material import drifting
from tests.support.memory import memory, same


def test_a_window_is_one_batch_and_an_interrupted_one_is_forgotten():
    layer, whole, x = bn.BatchNorm(3), bn.BatchNorm(3), drifting(10, 3, 5)
    whole(x)
    with bn.accumulate(layer, steps=3):
        for micro in x.split([1, 7, 2]):
            layer(micro)
    torch.testing.assert_close(layer.running_var, whole.running_var)
    torch.testing.assert_close(layer.running_mean, whole.running_mean)
    before = memory(layer)
    with pytest.raises(ValueError, match="2D"), bn.accumulate(layer, steps=3):
        layer(x)[0, 0] + layer(x[0, 0])
    assert same(memory(layer), before)
    with bn.accumulate(layer, steps=3):  # a window that is not full counts as it is
        layer(x)
    whole(x)
    torch.testing.assert_close(layer.running_var, whole.running_var)
    with bn.accumulate(layer, steps=2):
        for count, micro in enumerate(x.split(2), 1):  # two windows of two, and one of one
            layer(micro)
            assert layer.num_batches_tracked == whole.num_batches_tracked + count // 2
    assert layer.num_batches_tracked == whole.num_batches_tracked + 3
    with pytest.raises(ValueError, match="≥ 1, got 0"), bn.accumulate(layer, 0):
        pass
    with pytest.raises(ValueError, match="cannot be nested"), bn.accumulate(layer, 2), bn.accumulate(layer, 2):
        pass


def test_a_window_without_a_number_is_the_whole_block():
    """Also where a layer runs several times for each micro-batch."""
    layer, whole, x = bn.BatchNorm(3), bn.BatchNorm(3), drifting(10, 3, 5)
    with bn.accumulate(layer):
        for micro in x.split([1, 7, 2]):
            layer(micro)
        assert layer.num_batches_tracked == 0
    whole(x)
    torch.testing.assert_close(layer.running_var, whole.running_var)
    assert layer.num_batches_tracked == 1
