"""Frozen layers: the statistics that they normalise by, and the contents of their state dict."""

import pytest
import torch
from safetensors import torch as safetensors
from torch import nn

import batchnorm as bn
from tests.support.material import drifting
from tests.support.memory import memory, model, same


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


WAYS = {
    "state_dict": lambda state, path: state,
    "plain dict": lambda state, path: dict(state),
    "torch.save": lambda state, path: (torch.save(dict(state), path), torch.load(path, weights_only=True))[1],
    "safetensors": lambda state, path: (safetensors.save_file(dict(state), path), safetensors.load_file(path))[1],
}


@pytest.mark.parametrize("assign", [False, True])
@pytest.mark.parametrize("affine", [False, True])
@pytest.mark.parametrize("way", WAYS)
def test_frozen_survives_every_way_of_keeping_a_state(way, affine, assign, tmp_path):
    m = model()
    for _ in range(3):
        m(drifting(5, 3, 6, 6))
    bn.freeze(m, affine=affine)
    state = WAYS[way](m.state_dict(), tmp_path / "state")
    again = model()
    again.load_state_dict(state, assign=assign)
    assert again[1].frozen == m[1].frozen
    assert same(memory(again), memory(m))
    assert (again[1].num_batches_tracked, again[1].num_batches_tracked.dtype) == (3, torch.int64)
    theirs = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    theirs.load_state_dict(state)
    assert theirs[1].num_batches_tracked == 3
    assert bn.unfreeze(m).state_dict()["1.num_batches_tracked"].dtype is torch.int64
    again = model()
    again.load_state_dict(WAYS[way](m.state_dict(), tmp_path / "state"))
    assert not again[1].frozen
