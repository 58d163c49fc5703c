"""Tools raise an error for a model without layers of ours."""

import pytest
from torch import nn

import batchnorm as bn


@pytest.mark.parametrize("context", [bn.paused, lambda m: bn.accumulate(m, 2), lambda m: bn.domain(m, "night")])
def test_a_model_without_our_layers_is_an_error(context):
    with pytest.raises(ValueError, match=r"bn\.convert"), context(nn.BatchNorm1d(3)):
        pass
