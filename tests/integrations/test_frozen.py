"""Frozen batch norms of other packages become frozen layers of ours, and can be reverted."""

import copy
import pickle

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import batchnorm as bn
from tests.support.material import drifting


class FrozenBatchNorm2d(nn.Module):
    """As detectron writes it: buffers, eps, and a functional call without a gradient for the buffers."""

    def __init__(self, num_features: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.num_features, self.eps = num_features, eps
        for name, value in {"weight": 1.0, "bias": 0.0, "running_mean": 0.0, "running_var": 1.0 - eps}.items():
            self.register_buffer(name, torch.full((num_features,), value))
        self.register_buffer("num_batches_tracked", None)

    def forward(self, x: Tensor) -> Tensor:
        return F.batch_norm(
            x, self.running_mean, self.running_var, self.weight, self.bias, training=False, eps=self.eps
        )


class TableFrozenBatchNorm2d(nn.Module):
    """As transformers writes it: no attributes but the buffers, and eps in forward."""

    def __init__(self, n: int) -> None:
        super().__init__()
        for name, value in {"weight": 1.0, "bias": 0.0, "running_mean": 0.0, "running_var": 1.0}.items():
            self.register_buffer(name, torch.full((n,), value))

    def _load_from_state_dict(self, state_dict, prefix, *arguments):
        state_dict.pop(prefix + "num_batches_tracked", None)
        super()._load_from_state_dict(state_dict, prefix, *arguments)

    def forward(self, x: Tensor) -> Tensor:
        weight, bias = self.weight.reshape(1, -1, 1, 1), self.bias.reshape(1, -1, 1, 1)
        mean, var = self.running_mean.reshape(1, -1, 1, 1), self.running_var.reshape(1, -1, 1, 1)
        scale = weight * (var + 1e-5).rsqrt()
        return x * scale + (bias - mean * scale)


class AnotherFrozenBatchNorm2d(TableFrozenBatchNorm2d):
    """The name and the buffers of such a layer, with another computation."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * 1.01


every_class = pytest.mark.parametrize("theirs", [FrozenBatchNorm2d, TableFrozenBatchNorm2d])


def filled(layer: nn.Module) -> nn.Module:
    for tensor in layer.state_dict().values():
        tensor.copy_(torch.rand_like(tensor) + 0.1)
    return layer


def gradients(model: nn.Module, x: Tensor) -> list[Tensor]:
    leaf = x.clone().requires_grad_()
    y = model(leaf)
    (y * x.cos()).sum().backward()
    return [y.detach(), leaf.grad]


@every_class
@pytest.mark.parametrize("training", [True, False])
def test_the_same_in_both_modes(theirs, training):
    layer = filled(theirs(4)).train(training)
    ours, x = bn.convert(copy.deepcopy(layer)), drifting(3, 4, 5, 5)
    assert isinstance(ours, bn.BatchNorm2d)
    assert ours.frozen == "all"
    before = copy.deepcopy(ours.state_dict())
    for a, b in zip(gradients(ours, x), gradients(layer, x), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
    assert all(torch.equal(a, b) for a, b in zip(ours.state_dict().values(), before.values(), strict=True))
    assert all(p.grad is None and not p.requires_grad for p in ours.parameters())


@every_class
def test_the_keys_of_the_state_stay_and_checkpoints_load_both_ways(theirs):
    layer = filled(theirs(4))
    ours = bn.convert(copy.deepcopy(layer))
    assert list(ours.state_dict()) == list(layer.state_dict())
    fresh = bn.convert(nn.Sequential(theirs(4)))
    fresh[0].load_state_dict(layer.state_dict())
    fresh[0].load_state_dict(dict(layer.state_dict()))
    trained = nn.BatchNorm2d(4)
    fresh[0].load_state_dict(trained.state_dict())  # with num_batches_tracked, as pretrained backbones have it
    assert torch.equal(fresh[0].running_var, trained.running_var)
    fresh[0].load_state_dict(ours.state_dict())
    assert torch.equal(fresh[0].running_var, layer.running_var)
    layer.load_state_dict(ours.state_dict())


@every_class
def test_back_again(theirs):
    layer = filled(theirs(4))
    attributes, state = set(vars(layer)), layer.state_dict()
    back = bn.revert(pickle.loads(pickle.dumps(bn.convert(copy.deepcopy(layer)))))
    assert type(back) is theirs
    assert set(vars(back)) == attributes
    assert back.state_dict().keys() == state.keys()
    assert all(torch.equal(a, b) for a, b in zip(back.state_dict().values(), state.values(), strict=True))
    assert not list(back.parameters())


def test_it_can_be_unfrozen_and_trains():
    model = bn.unfreeze(bn.convert(nn.Sequential(FrozenBatchNorm2d(4), nn.Conv2d(4, 4, 1)))).train()
    model(drifting(3, 4, 5, 5)).sum().backward()
    assert model[0].weight.grad is not None
    assert model[0].running_mean.any()
    with pytest.raises(ValueError, match=r"0 \(not frozen\)"):
        bn.revert(model)
    bn.freeze(bn.convert(model), affine=True)
    assert type(bn.revert(model)[0]) is FrozenBatchNorm2d


def test_freezing_a_model_leaves_it_frozen_altogether():
    model = bn.freeze(nn.Sequential(FrozenBatchNorm2d(4), nn.BatchNorm2d(4)))
    assert [m.frozen for m in model] == ["all", "statistics"]


def test_what_computes_something_else_is_left():
    model = nn.Sequential(AnotherFrozenBatchNorm2d(4), AnotherFrozenBatchNorm2d(4))
    with pytest.warns(UserWarning, match=r"2 × AnotherFrozenBatchNorm2d \(0, 1\): it does not compute what .* differs"):
        bn.convert(model)
    assert type(model[0]) is AnotherFrozenBatchNorm2d
    assert not list(model.parameters())


def test_fused_with_what_follows():
    model = nn.Sequential(nn.Conv2d(4, 4, 1), filled(FrozenBatchNorm2d(4)), nn.ReLU())
    fused, x = bn.convert(copy.deepcopy(model), fuse=True), drifting(3, 4, 5, 5)
    assert fused[1].activation == "relu"
    torch.testing.assert_close(fused(x), model(x), rtol=1e-4, atol=1e-5)
    assert type(bn.revert(fused)[1]) is FrozenBatchNorm2d
    assert isinstance(fused[2], nn.ReLU)


def test_torchvisions():
    from tests.support import zoo

    zoo.package_or_skip("torchvision")
    from torchvision.ops import FrozenBatchNorm2d as Theirs

    layer = filled(Theirs(4))
    ours, x = bn.convert(copy.deepcopy(layer)), drifting(3, 4, 5, 5)
    torch.testing.assert_close(ours(x), layer(x), rtol=1e-5, atol=1e-5)
    assert type(bn.revert(ours)) is Theirs
