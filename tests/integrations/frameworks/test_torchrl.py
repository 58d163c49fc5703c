"""Batch renormalisation as torchrl's: outputs, gradients and statistics, over the warm-up and after it."""

import pytest
import torch

pytest.importorskip("torchrl", reason="compared with torchrl's BatchRenorm1d")

from torchrl.modules.models import batchrenorm as models

import batchnorm as bn
from tests.support.material import drifting

WARMUP = 3


def theirs_and_ours(r_max: float = 1.5, d_max: float = 0.25) -> tuple[torch.nn.Module, bn.BatchNorm]:
    settings = {"momentum": 0.1, "eps": 1e-3}
    theirs = models.BatchRenorm1d(4, **settings, max_r=r_max, max_d=d_max, warmup_steps=WARMUP)
    ours = bn.BatchNorm1d(4, **settings, renorm=bn.Renorm(r_max, d_max, WARMUP, gradual=False))
    return theirs.double(), ours.double()


def test_as_torchrls() -> None:
    theirs, ours = theirs_and_ours()
    torch.manual_seed(0)
    for step in range(2 * WARMUP):
        x = drifting(16, 4, dtype=torch.float64) * (1 + step % 3) + step
        results = []
        for layer in (theirs, ours):
            leaf = x.clone().requires_grad_()
            y = layer(leaf)
            y.sin().sum().backward()
            results.append((y, leaf.grad, layer.weight.grad, layer.running_mean, layer.running_var))
            layer.zero_grad()
        torch.testing.assert_close(*results, rtol=1e-11, atol=1e-11)
        plain = torch.nn.functional.batch_norm(x, None, None, training=True, eps=1e-3)
        assert torch.allclose(results[0][0], plain) == (step < WARMUP), "the limits change at once, after the warm-up"
    torch.testing.assert_close(theirs.eval()(x), ours.eval()(x), rtol=1e-11, atol=1e-11)


def test_a_checkpoint_of_torchrls_goes_on_in_ours() -> None:
    theirs, ours = theirs_and_ours()
    torch.manual_seed(0)
    for _ in range(WARMUP + 1):
        theirs(drifting(16, 4, dtype=torch.float64))
    ours.load_state_dict(theirs.state_dict())
    assert ours.num_batches_tracked == WARMUP + 1
    x = drifting(16, 4, dtype=torch.float64) + 1
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-11, atol=1e-11)
    theirs.load_state_dict(ours.state_dict())
