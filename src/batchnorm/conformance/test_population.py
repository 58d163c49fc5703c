"""Running statistics: their update by a batch, and batches that must not update them."""

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from batchnorm.conformance import oracle
from batchnorm.conformance.conftest import Make


@pytest.mark.parametrize("momentum", [0.1, None])
def test_running_statistics(make: Make, momentum: float | None) -> None:
    """running ← (1 − m)·running + m·batch, with the unbiased variance; momentum=None averages over all batches."""
    layer, mean, variance = make(4, torch.float64, momentum=momentum), torch.zeros(4).double(), torch.ones(4).double()
    for step in range(1, 5):
        x = torch.randn(6, 4, 5, 3, dtype=torch.float64) * step + step
        layer(x)
        weight = 1 / step if momentum is None else momentum
        news = oracle.moments(x)
        mean, variance = mean + weight * (news[0] - mean), variance + weight * (news[1] - variance)
    assert oracle.error(layer.running_mean, mean) < 1e-10
    assert oracle.error(layer.running_var, variance) < 1e-10
    assert layer.num_batches_tracked == 4


def test_evaluation(make: Make) -> None:
    layer = make(4)
    layer(torch.randn(6, 4, 5, 3) * 2 + 1)
    before = layer.running_mean.clone()
    x = torch.randn(6, 4, 5, 3)
    y = layer.eval()(x)
    shape = (1, 4, 1, 1)
    exact = (x.double() - before.view(shape)) / (layer.running_var.double().view(shape) + oracle.EPS).sqrt()
    assert oracle.error(y, exact) < 1e-5
    assert torch.equal(layer.running_mean, before)


@pytest.mark.parametrize("poison", [float("nan"), float("inf")], ids=str)
def test_batches_that_are_not_finite(make: Make, poison: float) -> None:
    """After one batch with NaN or Inf, the running statistics are still finite."""
    layer = make(3)
    layer(torch.randn(6, 3, 5, 5))
    x = torch.randn(6, 3, 5, 5)
    x[0, 1, 0, 0] = poison
    layer(x)
    layer(torch.randn(6, 3, 5, 5))
    assert layer.running_mean.isfinite().all()
    assert layer.running_var.isfinite().all()


@pytest.mark.parametrize("reentrant", [False, True], ids=["non-reentrant", "reentrant"])
def test_recomputation(make: Make, reentrant: bool) -> None:
    """An activation checkpoint runs the forward pass twice, but updates the running statistics once."""
    plain, checkpointed = make(3), make(3)
    x = torch.randn(6, 3, 5, 5, requires_grad=True)
    plain(x).sum().backward()
    checkpoint(checkpointed, x, use_reentrant=reentrant).sum().backward()
    assert checkpointed.num_batches_tracked == 1
    assert torch.equal(checkpointed.running_mean, plain.running_mean)


def test_one_value(make: Make) -> None:
    """One value per channel raises an error, and the batch is not counted."""
    layer = make(3)
    with pytest.raises(ValueError, match=r"(?i)more than 1 value"):
        layer(torch.randn(1, 3, 1, 1))
    assert layer.num_batches_tracked == 0


def test_state_dict(make: Make) -> None:
    """The state_dict has the keys, shapes and dtypes of torch's, and each loads the other's."""
    theirs, ours = nn.BatchNorm2d(3), make(3)
    kinds = [{k: (t.shape, t.dtype) for k, t in m.state_dict().items()} for m in (theirs, ours)]
    assert kinds[0] == kinds[1]
    ours.load_state_dict(theirs.state_dict())
    theirs.load_state_dict(ours.state_dict())
