"""Weight averaging: update_bn and AveragedModel as with torch's layers."""

import copy

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, update_bn

import batchnorm as bn
from tests.support.material import drifting
from tests.support.oracle import judge


def model():
    return nn.Sequential(nn.Conv2d(3, 4, 3), bn.BatchNorm2d(4, momentum=0.3), nn.ReLU(), bn.BatchNorm(4))


@pytest.fixture
def batches():
    return [drifting(5, 3, 6, 6, offset=float(o)) for o in range(4)]


def test_update_bn_is_the_plain_average_over_the_loader(batches):
    """Old statistics forgotten, momentum put back, train/eval as it was."""
    net = model()
    net(drifting(5, 3, 6, 6, offset=100.0))
    net.eval()
    update_bn([(x, "label") for x in batches], net)
    assert not net.training
    assert net[1].momentum == 0.3
    assert net[3].momentum == 0.1
    assert net[1].num_batches_tracked == 4
    with torch.no_grad():
        outputs = [net[0](x).double() for x in batches]
    assert_average(net[1], outputs)


def assert_average(layer, inputs):
    mean = torch.stack([x.mean([0, 2, 3]) for x in inputs]).mean(0)
    var = torch.stack([x.var([0, 2, 3]) for x in inputs]).mean(0)
    judge("running_mean", layer.running_mean, mean, budget=1e-5)
    judge("running_var", layer.running_var, var, budget=1e-5)


def test_update_bn_as_torch(batches):
    ours = model()
    theirs = bn.revert(nn.Sequential(*copy.deepcopy(ours)[:3]))
    ours = ours[:3]
    for net in (ours, theirs):
        update_bn(batches, net)
    for a, b in zip(ours.buffers(), theirs.buffers(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_averaged_model_with_buffers(batches):
    net = model()
    averaged = AveragedModel(net, use_buffers=True)
    seen = []
    for x in batches:
        net(x)
        averaged.update_parameters(net)
        seen.append(net[1].running_mean.double())
    judge("running_mean", averaged.module[1].running_mean, torch.stack(seen).mean(0), budget=1e-5)
    assert type(averaged.module[1]) is bn.BatchNorm2d
    update_bn(batches, averaged)
    assert averaged.module[1].num_batches_tracked == 4
