"""torch's tools that take a batch norm by its class: options of our layers are kept, or raise a clear error."""

import copy

import pytest
import torch
from torch import nn
from torch.ao import quantization as ao

import batchnorm as bn
from batchnorm.integrations import torch_tools
from batchnorm.tools.expanded import Expanded
from tests.support.material import drifting

DEPRECATED = "ignore:torch.ao.quantization is deprecated:DeprecationWarning"


def trained(*layers: nn.Module) -> nn.Sequential:
    model = nn.Sequential(*layers)
    for number in range(2):
        model(drifting(4, 4, 6, 6, offset=float(number)))
    return model


def test_synchronised_layers_keep_what_they_do() -> None:
    model = nn.Sequential(
        bn.BatchNorm2d(4, activation="relu", nonfinite="raise"), nn.Sequential(nn.BatchNorm1d(4)), bn.BatchNorm(4)
    )
    weight = model[0].weight
    sync = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    assert [isinstance(m, nn.SyncBatchNorm) for m in (sync[0], sync[1][0])] == [True, True]
    assert type(sync[1][0]) is nn.SyncBatchNorm, "torch's own are converted as before"
    assert (sync[0].activation, sync[0].nonfinite, sync[0].process_group) == ("relu", "raise", True)
    assert sync[0].weight is weight
    assert sync[2].process_group is True
    x = drifting(4, 4, 6, 6)
    torch.testing.assert_close(sync[0](x), bn.BatchNorm2d(4, activation="relu")(x))


def test_a_layer_that_cannot_share_is_refused() -> None:
    with pytest.raises(
        ValueError, match=r"virtual_batch_size=2, which process_group excludes.*bn\.convert\(model, sync"
    ):
        nn.SyncBatchNorm.convert_sync_batchnorm(nn.Sequential(bn.BatchNorm2d(4, virtual_batch_size=2)))


def test_torchs_merge_of_a_convolution() -> None:
    model, x = trained(nn.Conv2d(4, 4, 1), bn.BatchNorm2d(4)).eval(), drifting(4, 4, 6, 6)
    for merge in (nn.utils.fusion.fuse_conv_bn_eval, nn.utils.fuse_conv_bn_eval):
        torch.testing.assert_close(merge(*model)(x), model(x), rtol=1e-4, atol=1e-5)
        with pytest.raises(ValueError, match=r"would drop activation='silu' of .*\. Use bn\.fold"):
            merge(model[0], bn.BatchNorm2d(4, activation="silu").eval())
    linear = nn.Linear(4, 4).eval()
    with pytest.raises(ValueError, match="fuse_linear_bn_eval would drop"):
        nn.utils.fuse_linear_bn_eval(linear, bn.BatchNorm1d(4, activation="relu").eval())


@pytest.mark.filterwarnings(DEPRECATED)
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("fused", [True, False])
def test_eager_quantisation_merges_ours(training: bool, fused: bool) -> None:
    """A ReLU in the batch norm or behind it: the merged module computes what the model did, in eps and momentum too."""
    after = [] if fused else [nn.ReLU()]
    norm = bn.BatchNorm2d(4, eps=0.1, momentum=0.3, activation="relu" if fused else None)
    model, x = trained(nn.Conv2d(4, 4, 1), norm, *after).train(training), drifting(4, 4, 6, 6)
    merge = ao.fuse_modules_qat if training else ao.fuse_modules
    merged = merge(copy.deepcopy(model), [["0", "1"] + ["2"] * (not fused)])
    torch.testing.assert_close(merged(x), model(x), rtol=1e-4, atol=1e-5)
    assert not any(isinstance(m, bn.BatchNorm) for m in merged.modules())
    if training:
        assert (merged[0][1].eps, merged[0][1].momentum) == (0.1, 0.3)


@pytest.mark.filterwarnings(DEPRECATED)
def test_eager_quantisation_refuses_other_activations() -> None:
    model = nn.Sequential(nn.Conv2d(4, 4, 1), bn.BatchNorm2d(4, activation="gelu"))
    with pytest.raises(
        ValueError, match=r"activation='gelu'\. Revert the layers first: bn\.revert\(model, expand=True"
    ):
        ao.fuse_modules_qat(model.train(), [["0", "1"]])


@pytest.mark.parametrize("activation", ["relu", "relu6", "leaky_relu", "silu", "gelu", "hardswish"])
def test_expanded(activation: str) -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = bn.BatchNorm2d(4, activation=activation)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.norm(x, x)

    model = nn.Sequential(Block(), bn.BatchNorm2d(4, activation=activation)).double()
    back, x = bn.revert(copy.deepcopy(model), expand=True), drifting(4, 4, 6, 6).double()
    assert [type(back[0].norm), type(back[1])] == [Expanded] * 2
    assert type(back[1].norm) is nn.BatchNorm2d
    torch.testing.assert_close(back(x), model(x), rtol=1e-9, atol=1e-9)
    alone = bn.BatchNorm2d(4, activation=activation).double()
    torch.testing.assert_close(bn.revert(copy.deepcopy(alone), expand=True)(x), alone(x), rtol=1e-9, atol=1e-9)


def test_expanding_a_fused_model_brings_its_own_modules_back() -> None:
    model = nn.Sequential(nn.BatchNorm2d(4), nn.SiLU())
    assert str(bn.revert(bn.convert(copy.deepcopy(model), fuse=True), expand=True)) == str(model)


def test_sharing_and_its_way_back() -> None:
    layer = bn.BatchNorm2d(4, activation="relu")
    nn.SyncBatchNorm.convert_sync_batchnorm(layer)
    assert (type(layer), layer.process_group) == (bn.SyncBatchNorm, True)
    assert torch_tools.unshare(copy.deepcopy(layer)).activation == "relu"
    assert (type(torch_tools.unshare(layer)), layer.process_group) == (bn.BatchNorm2d, None)
    assert torch_tools.unshare(layer) is layer
