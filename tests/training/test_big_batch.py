"""Micro-batches together are one big batch: loss, every gradient, and every buffer, in float64."""

import copy
import threading
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import batchnorm as bn
from batchnorm.training import big_batch as module
from tests.support.big_batch_networks import (
    TASKS,
    Task,
    assert_same_step,
    classes,
    compare,
    conv,
    headed,
    pictures,
    resnet,
)


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.__name__)
@pytest.mark.parametrize("ours", [False, True], ids=["torch's layers", "ours"])
def test_one_big_batch(task, ours):
    case = task()
    if ours:
        bn.convert(case.model, fuse=True)
    compare(case)
    kinds = {type(m) for m in case.model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)}
    assert all(kind.__module__.startswith("batchnorm") == ours for kind in kinds)


def test_accumulation_is_something_else():
    """The comparison above can fail: ordinary accumulation is far from the big batch."""
    case = resnet()
    whole, parts = copy.deepcopy(case.model), copy.deepcopy(case.model)
    case.big(whole)
    for x, t in zip(case.inputs.split(4), case.targets.split(4), strict=True):
        (F.cross_entropy(parts(x), t) * len(x) / len(case.inputs)).backward()
    with pytest.raises(AssertionError, match="not close"):
        assert_same_step(parts, whole, rtol=0.05)


@pytest.mark.parametrize("size", [1, 2, 5, 10, 11, 100])
def test_any_size(size):
    compare(resnet(), size)


def test_several_steps_train_as_the_big_batch():
    case = resnet()
    whole, parts = copy.deepcopy(case.model), copy.deepcopy(case.model)
    optimizers = [torch.optim.SGD(m.parameters(), 0.1, momentum=0.9) for m in (whole, parts)]
    for _ in range(3):
        case.big(whole)
        case.in_parts(parts)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
    for a, b in zip(whole.state_dict().values(), parts.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


def test_gradients_add_up_in_place():
    case = resnet()
    whole, parts = copy.deepcopy(case.model), copy.deepcopy(case.model)
    for _ in range(2):
        case.big(whole)
        case.in_parts(parts)
    held = next(parts.parameters()).grad
    case.big(whole)
    case.in_parts(parts)
    assert next(parts.parameters()).grad is held
    assert_same_step(parts, whole)


def test_inputs_with_a_graph_get_their_gradient():
    case = resnet()
    grads = []
    for step in (Task.big, Task.in_parts):
        start = case.inputs.clone().requires_grad_()
        step(replace(case, inputs=start * 2), copy.deepcopy(case.model))
        grads.append(start.grad)
    torch.testing.assert_close(grads[1], grads[0], rtol=1e-10, atol=1e-14)


def test_a_loader_gives_micro_batches():
    case = resnet()
    whole, parts, again = (copy.deepcopy(case.model) for _ in range(3))
    case.big(whole)
    data = torch.utils.data.TensorDataset(case.inputs, case.targets)
    loader = torch.utils.data.DataLoader(data, batch_size=5)
    bn.big_batch(parts, F.cross_entropy, loader, micro_batch_size=None)
    assert_same_step(parts, whole)
    # inputs alone, cut further; the targets are those of the whole batch
    bn.big_batch(again, F.cross_entropy, iter(case.inputs.split(6)), case.targets, micro_batch_size=4)
    assert_same_step(again, whole)


def test_without_batch_norm_it_is_plain_accumulation():
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 5), nn.ReLU(), nn.Linear(5, 3)).double()
    compare(replace(resnet(), model=model))


def test_unused_outputs_and_parameters_have_no_gradient():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.BatchNorm1d(3), nn.BatchNorm1d(3)

        def forward(self, x):
            return self.a(x), self.b(x)

    def loss(outputs):
        return outputs[0].square().mean() + outputs[0].sin().sum()

    parts, _ = compare(Task(Two().double(), loss, torch.randn(11, 3).double()))
    assert parts.b.weight.grad is None


def test_a_view_of_a_gradient_is_not_added_to_twice():
    """torch keeps the first gradient as it comes: here both leaves would share one."""

    class Sum(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Parameter(torch.zeros(3)), nn.Parameter(torch.zeros(3))
            self.norm = nn.BatchNorm1d(3)

        def forward(self, x):
            return self.norm(x) * (self.a.unsqueeze(0) + self.b.unsqueeze(0)).expand_as(x)

    x = torch.randn(5, 3)
    case = Task(Sum(), lambda y: y.pow(2).sum() + (y * x).sum(), x)
    whole, parts = copy.deepcopy(case.model), copy.deepcopy(case.model)
    case.big(whole)
    case.in_parts(parts, 1)
    torch.testing.assert_close(parts.a.grad, whole.a.grad)
    torch.testing.assert_close(parts.b.grad, whole.b.grad)


def test_loss_fn_may_have_parameters_and_batch_norms_of_its_own():
    trunk, head = headed(*conv(3, 4), nn.ReLU(), width=4), nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 3)).double()
    x, t, grads = pictures(), classes(), []
    for size in (None, 4):
        a, b = copy.deepcopy(trunk), copy.deepcopy(head)
        if size is None:
            F.cross_entropy(b(a(x)), t).backward()
        else:
            bn.big_batch(a, lambda y, t, b=b: F.cross_entropy(b(y), t), x, t, micro_batch_size=size)
        grads.append((a, b))
    assert_same_step(grads[1][0], grads[0][0])
    assert_same_step(grads[1][1], grads[0][1])


def test_no_thread_is_left():
    before = threading.active_count()
    compare(resnet())
    assert threading.active_count() == before


class Counted(torch.autograd.Function):
    """Identity that counts its backward passes."""

    @staticmethod
    def forward(ctx, x, calls):
        ctx.calls = calls
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        ctx.calls.append(len(grad))
        return grad, None


def test_what_several_batch_norms_read_runs_backward_once():
    """One node feeds two batch norms and what follows them: its gradients meet before it runs."""

    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second, self.third = (nn.BatchNorm1d(3) for _ in range(3))

        def forward(self, x):
            x = Counted.apply(x * 2.0, calls)
            return self.third(x + self.first(x)) + self.second(x) + x

    calls = []
    compare(Task(Shared().double(), lambda y: y.pow(3).sum(), torch.randn(11, 3).double().requires_grad_()))
    assert sorted(calls) == [3, 4, 4, 11]


def test_progress(monkeypatch):
    said = []
    monkeypatch.setattr(module, "track", lambda rounds, label, wanted: said.append((label, wanted)) or rounds)
    case = resnet()
    for wanted in (False, True, None):
        case.in_parts(case.model, progress=wanted)
    assert said == [(label, wanted) for wanted in (False, True, None) for label in ("forward", "backward")]


def test_the_bar_itself_changes_nothing(capsys):
    compare(resnet(), progress=False)
    assert capsys.readouterr().err == ""
    compare(resnet(), progress=True)
