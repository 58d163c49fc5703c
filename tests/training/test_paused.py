"""Paused layers do not update their running statistics."""

import copy

import pytest
import torch

import batchnorm as bn
from tests.support.material import drifting
from tests.support.memory import memory, model, same


def test_paused_remembers_nothing_nested_and_after_an_error():
    m, x = model(), drifting(5, 3, 6, 6)
    before, wanted = memory(m), copy.deepcopy(m)(x)
    with pytest.raises(KeyError), bn.paused(m), bn.paused(m):
        raise KeyError
    with bn.paused(m):
        with bn.paused(m):
            assert torch.equal(m(x), wanted)
        m(x)
    assert same(memory(m), before)
    m(x)
    assert m[1].num_batches_tracked == 1
