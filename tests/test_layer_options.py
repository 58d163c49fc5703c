"""Options of the layer, apart from the matrix: checkpoints, the warm-up of renormalisation, lengths."""

import copy

import pytest
import torch
from torch.utils.checkpoint import checkpoint

import batchnorm as bn
from tests.support.material import drifting
from tests.support.memory import memory, model, same


@pytest.mark.parametrize("reentrant", [False, True])
def test_a_checkpoint_moves_the_population_once(reentrant):
    m, x = model(), drifting(5, 3, 6, 6).requires_grad_()
    plain = copy.deepcopy(m)
    plain(x).sum().backward()
    checkpoint(m, x, use_reentrant=reentrant).sum().backward()
    assert same(memory(m), memory(plain))


def test_renorm_starts_as_batch_norm_and_needs_a_population():
    layer, plain, x = bn.BatchNorm(3, renorm=bn.Renorm(warmup=10)), bn.BatchNorm(3), drifting(8, 3)
    torch.testing.assert_close(layer(x), plain(x))
    assert not torch.allclose(layer(x), plain(x), atol=1e-3)
    with pytest.raises(ValueError, match="needs running statistics"):
        bn.BatchNorm(3, renorm=bn.Renorm(), track_running_stats=False)(x)


def test_a_warm_up_that_ends_at_once_is_in_the_checkpoint():
    layer, plain, x = bn.BatchNorm(3, renorm=bn.Renorm(warmup=2, gradual=False)), bn.BatchNorm(3), drifting(8, 3)
    for _ in range(2):
        torch.testing.assert_close(layer(x), plain(x))
    again = bn.BatchNorm(3, renorm=bn.Renorm(warmup=2, gradual=False))
    again.load_state_dict(layer.state_dict())
    full = bn.BatchNorm(3, renorm=bn.Renorm())
    full.load_state_dict(layer.state_dict())
    wanted = full(x)
    assert not torch.allclose(wanted, plain(x), atol=1e-3)
    assert torch.equal(again(x), wanted)


def test_lengths_are_a_mask():
    layer, x = bn.BatchNorm(3), drifting(4, 3, 5)
    lengths = torch.tensor([5, 2, 0, 1])
    mask = torch.arange(5) < lengths[:, None]
    with bn.paused(layer):
        assert torch.equal(layer(x, lengths=lengths), layer(x, mask=mask))
    with pytest.raises(ValueError, match="not both"):
        layer(x, mask=mask, lengths=lengths)
    with pytest.raises(ValueError, match="broadcasts over the input"):
        layer(x, mask=torch.ones(4, 4))
