"""timm's batch norms with a built-in activation."""

import copy
import pickle

import pytest
import torch
from torch import nn

import batchnorm as bn
from tests.support import zoo
from tests.support.material import drifting

zoo.package_or_skip("timm")
from timm.layers import BatchNormAct2d, FrozenBatchNormAct2d  # noqa: E402
from timm.layers.norm_act import SyncBatchNormAct  # noqa: E402


def trained(layer: nn.Module) -> nn.Module:
    for tensor in layer.state_dict().values():
        if tensor.is_floating_point():
            tensor.copy_(torch.rand_like(tensor) + 0.1)
    return layer


def results(model: nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    leaf = x.clone().requires_grad_()
    torch.manual_seed(1)
    y = model(leaf)
    (y * x.cos()).sum().backward()
    return [
        y.detach(),
        leaf.grad,
        *(p.grad for p in model.parameters()),
        *(t.clone() for t in model.state_dict().values()),
    ]


OURS = {"relu": nn.ReLU, "silu": nn.SiLU, "hardswish": nn.Hardswish, "relu6": nn.ReLU6, "gelu": "gelu"}
LAYERS = {name: lambda act=act: BatchNormAct2d(4, act_layer=act) for name, act in OURS.items()}
OTHERS = {
    "no activation": lambda: BatchNormAct2d(4, apply_act=False),
    "tanh": lambda: BatchNormAct2d(4, act_layer=nn.Tanh),
    "leaky": lambda: BatchNormAct2d(4, act_layer=nn.LeakyReLU, act_kwargs={"negative_slope": 0.2}),
    "dropout": lambda: BatchNormAct2d(4, act_layer=nn.SiLU, drop_layer=lambda: nn.Dropout(0.5)),
    "average": lambda: BatchNormAct2d(4, momentum=None, affine=False, act_layer=nn.Tanh),
}


@pytest.mark.parametrize("name", [*LAYERS, *OTHERS])
def test_the_same_outputs_gradients_and_state(name):
    layer = trained((LAYERS | OTHERS)[name]()).double()
    ours = bn.convert(copy.deepcopy(layer))
    assert isinstance(ours, bn.BatchNorm2d)
    assert ours.activation == (name if name in LAYERS else None)
    assert list(ours.state_dict()) == list(layer.state_dict())
    for training in (True, True, False):
        x = drifting(3, 4, 5, 5).double()
        for a, b in zip(results(ours.train(training), x), results(layer.train(training), x), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", [*LAYERS, *OTHERS])
def test_back_again(name):
    layer = (LAYERS | OTHERS)[name]()
    before = dict(vars(layer))
    ours = pickle.loads(pickle.dumps(bn.convert(layer)))
    assert type(bn.revert(ours)) is BatchNormAct2d
    assert type(bn.revert(layer)) is BatchNormAct2d
    assert vars(layer) == before


def test_an_activation_with_a_hook_is_called():
    layer, calls = BatchNormAct2d(4), []
    layer.act.register_forward_hook(lambda *_: calls.append(1))
    ours = bn.convert(layer, fuse=True)
    assert ours.activation is None
    ours(drifting(3, 4, 5, 5))
    assert calls == [1]


def test_an_activation_that_is_asked_for_comes_before_its_own():
    """As an option sets it on every layer, the layer's own activation is not lost."""
    layer = BatchNormAct2d(4, act_layer=nn.SiLU)
    x = drifting(3, 4, 5, 5)
    wanted = nn.functional.silu(nn.functional.gelu(nn.functional.batch_norm(x, None, None, training=True)))
    torch.testing.assert_close(bn.convert(layer, activation="gelu")(x), wanted, rtol=1e-4, atol=1e-4)


class Block(nn.Module):
    """timm's shape of a last convolution: a layer without activation, a shortcut added in place, an activation."""

    def __init__(self):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(4, 4, 1), BatchNormAct2d(4, apply_act=False)
        self.drop_path, self.act = nn.Identity(), nn.SiLU(inplace=True)

    def forward(self, x):
        shortcut = x
        x = self.drop_path(self.bn(self.conv(x)))
        x += shortcut
        return self.act(x)


def test_a_block_is_fused():
    block = Block().double()
    fused, x, seen = bn.convert(copy.deepcopy(block), fuse=True), drifting(3, 4, 5, 5).double(), []
    assert fused.bn.activation == "silu"
    for a, b in zip(results(fused, x), results(block, x), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)
    fused.bn.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs)))
    fused(x)
    assert seen == [2], "the shortcut is added in the same pass"
    assert type(bn.revert(fused)) is Block
    assert type(fused.bn) is BatchNormAct2d


@pytest.mark.parametrize("act", [nn.ReLU, nn.Tanh])
def test_frozen(act):
    layer = trained(FrozenBatchNormAct2d(4, act_layer=act)).double().train()
    ours, x = bn.convert(copy.deepcopy(layer)), drifting(3, 4, 5, 5).double()
    assert ours.frozen == "all"
    leaf = x.clone().requires_grad_()
    torch.testing.assert_close(ours(leaf), layer(leaf), rtol=1e-9, atol=1e-9)
    assert list(ours.state_dict()) == list(layer.state_dict())
    assert type(bn.revert(ours)) is FrozenBatchNormAct2d


def test_synchronised():
    layer = SyncBatchNormAct(4)
    layer.act = nn.ReLU()
    ours, x = bn.convert(copy.deepcopy(layer)), drifting(3, 4, 5, 5)
    assert isinstance(ours, bn.SyncBatchNorm)
    assert ours.activation == "relu"
    torch.testing.assert_close(ours.eval()(x), layer.eval()(x), rtol=1e-5, atol=1e-5)
    assert type(bn.revert(ours)) is SyncBatchNormAct


@pytest.mark.parametrize("act", [nn.ReLU, nn.Tanh])
def test_folded(act):
    model = nn.Sequential(nn.Conv2d(4, 4, 1), trained(BatchNormAct2d(4, act_layer=act)))
    x = drifting(3, 4, 5, 5)
    for m in (model, bn.convert(copy.deepcopy(model))):
        folded = bn.fold(m.eval(), x)
        assert not folded.report.left
        torch.testing.assert_close(folded(x), model.eval()(x), rtol=1e-4, atol=1e-4)
