"""Frozen layers: what they normalise by, and what their state dict keeps."""

import pytest
import torch
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
