"""`big_batch` of models that compute the outputs of batch norms again: bit for bit the same step."""

import copy

import pytest
import torch

import batchnorm as bn
from batchnorm.training import parking
from tests.support.big_batch_networks import TASKS, compare


@pytest.mark.parametrize("offloaded", [False, True], ids=["", "offload"])
@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.__name__)
def test_the_same_step_bit_for_bit(task, offloaded, tmp_path, monkeypatch):
    monkeypatch.setattr(parking, "SMALLEST", 1)
    case = task()
    options = {"offload": tmp_path} if offloaded else {}
    kept = bn.convert(copy.deepcopy(case.model), fuse=True)
    again = bn.convert(copy.deepcopy(case.model), fuse=True, recompute=True)
    assert torch.equal(case.in_parts(kept), case.in_parts(again, **options))
    for p, q in zip(kept.parameters(), again.parameters(), strict=True):
        assert torch.equal(p.grad, q.grad)
    for a, b in zip(kept.buffers(), again.buffers(), strict=True):
        assert torch.equal(a, b)


def test_within_a_with():
    case = TASKS[0]()
    bn.convert(case.model, fuse=True)
    with bn.recompute(case.model):
        case.in_parts(case.model)
    case.model.zero_grad()
    compare(case)
