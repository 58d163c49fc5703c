"""Frozen, paused, windows, domains and checkpoints: what is remembered, and when."""

import copy

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import batchnorm as bn
from material import drifting


def model():
    return bn.convert(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)))


def memory(m):
    return {k: v.clone() for k, v in m.state_dict().items() if "running" in k or "tracked" in k}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def test_frozen_survives_train_and_a_state_dict_that_torch_can_load(tmp_path):
    m = model()
    m(drifting(5, 3, 6, 6))
    before, x = memory(m), drifting(5, 3, 6, 6)
    wanted = m.eval()(x)
    bn.freeze(m, affine=True).train()
    assert torch.equal(m(x), wanted)
    assert same(memory(m), before)
    assert not m[1].weight.requires_grad
    torch.save(m.state_dict(), tmp_path / "m.pt")
    state = torch.load(tmp_path / "m.pt", weights_only=True)
    again = model()
    again.load_state_dict(state)
    assert again[1].frozen == "all"
    nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).load_state_dict(state)
    bn.unfreeze(m)
    assert m[1].weight.requires_grad
    m(x)
    assert not same(memory(m), before)


def test_freeze_takes_torchs_layers_and_all_or_none():
    m = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.BatchNorm1d(4))
    assert bn.freeze(m) is m
    assert [layer.frozen for layer in m[1:]] == ["statistics", "statistics"]
    assert all(p.requires_grad for p in m.parameters())  # γ and β go on learning
    m.append(bn.BatchNorm(4, track_running_stats=False))
    bn.unfreeze(m)
    with pytest.raises(ValueError, match="no running statistics to normalise by"):
        bn.freeze(m)
    assert not any(layer.frozen for layer in m[1:])


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
    with pytest.raises(ValueError, match="at least 1, got 0"), bn.accumulate(layer, 0):
        pass
    with pytest.raises(ValueError, match="cannot be nested"), bn.accumulate(layer, 2), bn.accumulate(layer, 2):
        pass


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
    with pytest.raises(KeyError, match="no population 'dusk'"), bn.domain(m, "dusk"):
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
        with pytest.raises(ValueError, match="part of a key"), bn.domain(m, name):
            pass


@pytest.mark.parametrize("context", [bn.paused, lambda m: bn.accumulate(m, 2), lambda m: bn.domain(m, "night")])
def test_a_model_without_our_layers_is_an_error(context):
    with pytest.raises(ValueError, match=r"bn\.convert"), context(nn.BatchNorm1d(3)):
        pass


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
