"""Named sets of running statistics."""

import pytest
import torch
from torch import nn

import batchnorm as bn
from tests.support.material import drifting
from tests.support.memory import memory, model, same


@pytest.mark.parametrize("affine", [False, True])
def test_domains_keep_a_population_each(affine):
    m, day, night = model(), drifting(5, 3, 6, 6), drifting(5, 3, 6, 6, offset=-20.0)
    m(day)
    own = {k: v for k, v in memory(m).items() if "banks" not in k}
    with bn.domain(m, "night", affine=affine):
        m(night)
    assert same({k: v for k, v in memory(m).items() if "banks" not in k}, own)
    again = model()
    again.load_state_dict(m.state_dict())
    m.eval(), again.eval()
    with bn.domain(m, "night"), bn.domain(again, "night"):
        assert torch.equal(m(night), again(night))
    assert not torch.equal(m(night), again(day))
    assert ("1.banks.night.weight" in m.state_dict()) == affine
    with pytest.raises(KeyError, match="no running statistics 'dusk'"), bn.domain(m, "dusk"):
        pass
    with pytest.raises(ValueError, match="populations night"):
        bn.revert(m)


def test_domains_nest_and_end_with_an_error():
    m = nn.Sequential(bn.BatchNorm(3), bn.BatchNorm(3, track_running_stats=False))  # the second has no population
    with bn.domain(m, "night"):
        with pytest.raises(KeyboardInterrupt), bn.domain(m, "dusk"):
            raise KeyboardInterrupt
        m(drifting(5, 3))
    assert m[0].banks["night"].num_batches_tracked == 1
    assert not m[0].banks["dusk"].num_batches_tracked
    for name in ("", "a.b"):
        with pytest.raises(ValueError, match="part of a state_dict key"), bn.domain(m, name):
            pass
