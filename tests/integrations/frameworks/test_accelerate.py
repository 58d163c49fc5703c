"""Windows and calibration with Accelerate, alone and on two ranks."""

import pytest
import torch
from torch import nn

pytest.importorskip("accelerate", reason="the windows are Accelerate's")

import accelerate

import batchnorm as bn
from batchnorm.integrations.accelerate import accumulate, calibrate
from tests.integrations.frameworks import steps


def test_on_two_ranks(on_two_ranks) -> None:
    on_two_ranks("accelerate_cases", "accumulated_and_shared", "calibrated")


def test_steps_of_one_micro_batch_are_left_to_accelerate() -> None:
    accelerator, net = accelerate.Accelerator(cpu=True), bn.convert(steps.network())
    with accumulate(accelerator, net):
        assert net[0]._window is None
        net(steps.data(1, 1)[0][0][0])
    assert net[0].num_batches_tracked == 1


def test_a_block_that_fails_leaves_no_window() -> None:
    accelerator = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=2)
    net = bn.convert(steps.network())
    before = net[0].running_mean.clone()
    x = steps.data(1, 1)[0][0][0]
    with pytest.raises(RuntimeError, match="mat1 and mat2"), accumulate(accelerator, net):
        net[1](net[0](x)[:, :2])
    assert net[0]._window is None
    assert torch.equal(net[0].running_mean, before)


def test_two_models_and_one_without_our_layers() -> None:
    accelerator = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=2)
    net, other = bn.convert(steps.network()), nn.Linear(1, 1).double()
    for x, _ in steps.data(1, 2)[0]:
        with accumulate(accelerator, other, net):
            other(net(x))
    assert net[0].num_batches_tracked == 1
    with (
        pytest.raises(ValueError, match=r"none of these models has a batch norm of ours: bn\.convert"),
        accumulate(accelerator, other, steps.network()),
    ):
        pass
    with pytest.raises(ValueError, match=r"this model has no batch norm of ours: bn\.convert"):
        calibrate(accelerator, other, [])
