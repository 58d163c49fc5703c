"""Every option with every other under torch.compile, sampled, several steps against the float64 oracle."""

from dataclasses import replace

import pytest
import torch
from hypothesis import Phase, given, settings

from tests.support.option_matrix import SETTINGS, Setting, compare


@pytest.mark.filterwarnings("ignore:.*not finite:RuntimeWarning")
@settings(max_examples=40, deadline=None, phases=[Phase.generate])  # to shrink takes minutes
@given(SETTINGS)
def test_every_combination_agrees_with_the_oracle_when_compiled(s: Setting) -> None:
    """The tracer, functionalization and the partitioner, without the compiler of kernels behind them."""
    torch._dynamo.reset()
    s = replace(s, backend=None)  # a forced backend is for eager mode
    compare(s, steps=3, through=lambda layer: torch.compile(layer, backend="aot_eager", dynamic=False))
