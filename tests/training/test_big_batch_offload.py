"""What waits is moved out and comes back: the same step, bit for bit, in less memory."""

import copy

import pytest
import torch

from batchnorm.training import parking
from tests.support.big_batch_networks import TASKS


@pytest.fixture(autouse=True)
def everything_is_worth_moving(monkeypatch):
    monkeypatch.setattr(parking, "SMALLEST", 1)


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.__name__)
def test_the_same_step_bit_for_bit(task, tmp_path):
    case = task()
    one, other = copy.deepcopy(case.model), copy.deepcopy(case.model)
    loss = case.in_parts(one)
    assert torch.equal(case.in_parts(other, offload=tmp_path), loss)
    for p, q in zip(one.parameters(), other.parameters(), strict=True):
        assert torch.equal(p.grad, q.grad)
    for a, b in zip(one.buffers(), other.buffers(), strict=True):
        assert torch.equal(a, b)
    assert not list(tmp_path.iterdir())
