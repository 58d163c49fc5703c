"""Autocast: as torch's layer, whatever dtype the layer before hands over; Infs of a gradient scaler do no harm."""

import copy

import pytest
import torch
from torch import nn

import batchnorm as bn
from tests.support.material import drifting


@pytest.mark.parametrize("mode", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast_as_torch(dtype, mode):
    theirs = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 3)).train(mode)
    ours = bn.convert(copy.deepcopy(theirs))
    x, seen = drifting(5, 3, 8, 8), []
    for model in (ours, theirs):
        model[1].register_forward_hook(lambda _, args, y: seen.append((args[0].dtype, y.dtype)))
        with torch.autocast("cpu", dtype=dtype):
            y = model(x)
        y.float().square().mean().backward()
    assert seen == [(dtype, dtype)] * 2
    for (name, a), b in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        assert a.dtype == a.grad.dtype == torch.float32
        torch.testing.assert_close(a.grad, b.grad, rtol=0.05, atol=0.05 * b.grad.abs().max().item(), msg=name)
    for a, b in zip(ours[1].buffers(), theirs[1].buffers(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_an_overflowing_batch_is_not_remembered():
    """What loss scaling is made to survive: one batch overflows, the optimizer skips it, and so does the memory."""
    model = nn.Sequential(nn.Linear(4, 4), bn.BatchNorm1d(4, nonfinite="skip")).half()
    batches = [drifting(6, 4).half(), torch.full((6, 4), 6e4).half() * torch.randn(6, 4).half(), drifting(6, 4).half()]
    model(batches[0])
    with pytest.warns(RuntimeWarning, match="not finite"):
        model(batches[1])
    model(batches[2])
    assert model[1].skipped_batches == 1
    assert all(b.isfinite().all() for b in model.buffers())
    assert model[1].num_batches_tracked == 3


def test_ddp_like_buffers_stay_float32_under_autocast():
    layer = bn.BatchNorm2d(4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = layer(drifting(5, 4, 3, 3).bfloat16())
    assert y.dtype == torch.bfloat16
    assert layer.running_mean.dtype == layer.running_var.dtype == torch.float32
