"""Tensors that wait are moved out of memory and back: the same step, bit for bit, in less memory."""

import copy
import json
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import batchnorm as bn
from batchnorm.training import parking
from batchnorm.training.shelf import FileShelf, HostShelf, Kept, shelf_for
from tests.support.big_batch_networks import TASKS, Task, classes, compare, pictures, resnet
from tests.support.launch import ROOT
from tests.training.test_big_batch_options import Checkpointed, task


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


def test_what_waits_is_not_in_memory(tmp_path):
    """At each meeting of all, no tensor of the size of an activation is left, however many micro-batches wait."""
    command = [sys.executable, "-m", "tests.support.waiting_memory", str(tmp_path)]
    ran = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=200)
    assert ran.returncode == 0, ran.stderr
    without, with_offload = json.loads(ran.stdout)
    assert without["forward"] >= 6
    assert without["backward"] >= 12
    assert with_offload["forward"] <= 2  # one that just computed, and one fetched ahead
    assert with_offload["backward"] <= 4  # the gradient too, and one that is still being read though not asked for


def test_views_and_writes_in_place_stay_right(tmp_path):
    """A tensor with views keeps its memory, so that a write through one is seen through the other."""

    class Views(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)
            self.norm, self.again = nn.BatchNorm1d(4), nn.BatchNorm1d(4)

        def forward(self, x):
            held = self.first(x) + 1.0
            rows = held.view(-1, 4)
            y = self.norm(self.second(x))
            rows.add_(1.0)
            z = y + held
            w = self.again(self.second(z))
            held.add_(z)
            return rows * w

    case = Task(Views().double(), lambda y: y.square().sum(), torch.randn(6, 4).double())
    one, other = copy.deepcopy(case.model), copy.deepcopy(case.model)
    assert torch.equal(case.in_parts(one, 2), case.in_parts(other, 2, offload=tmp_path))
    for p, q in zip(one.parameters(), other.parameters(), strict=True):
        assert torch.equal(p.grad, q.grad)


def test_what_all_micro_batches_share_stays(tmp_path):
    """A table that the first micro-batch makes, and a parameter's view: the others read them while it waits."""

    class Shares(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight, self.norm, self.table = nn.Parameter(torch.randn(4, 4)), nn.BatchNorm1d(4), None

        def forward(self, x):
            if self.table is None:
                self.table = torch.linspace(1, 2, 4)
            return self.norm(x @ self.weight.t()) * self.table

    model = Shares()
    loss = bn.big_batch(model, torch.sum, torch.randn(6, 4), micro_batch_size=2, offload=tmp_path)
    assert loss.isfinite()
    assert torch.equal(model.table, torch.linspace(1, 2, 4))


def test_options_contexts_and_checkpoints(tmp_path):
    for case in (
        task(residual=True, mask="mask", activation="relu"),
        task(residual=True, activation="silu", renorm=bn.Renorm()),
        task(virtual_batch_size=2),
        Task(bn.convert(Checkpointed(False)), F.cross_entropy, pictures(), classes()),
        Task(bn.convert(Checkpointed(True)), F.cross_entropy, pictures(), classes()),
    ):
        compare(case, offload=tmp_path)
    with bn.backend("reference"):
        compare(resnet(), offload=tmp_path)
    compare(resnet(), 100, offload=tmp_path)  # one micro-batch


def test_the_callers_own_hooks_come_first(tmp_path):
    packed, unpacked = [], []

    def pack(t):
        packed.append(t.shape)
        return t * 1.0 if t.is_floating_point() else t

    def unpack(t):
        unpacked.append(t.shape)
        return t

    case = resnet()
    with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
        compare(case, offload=tmp_path)
    assert len(packed) > 20
    assert len(unpacked) > 20


def test_channels_last_and_half_precision_come_back_as_they_were(tmp_path):
    shelf = shelf_for(tmp_path)
    part = torch.arange(12).reshape(3, 4)[:, 1:3]  # not dense: its copy is
    for t in (
        torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
        torch.randn(3, 4).bfloat16().t(),
        part,
        torch.randn(3, 4, dtype=torch.complex64),
        torch.tensor([True, False]),
    ):
        back = Kept(shelf, t).get()
        assert torch.equal(back, t)
        assert back.stride() == (t.contiguous() if t is part else t).stride()
    end = shelf._end
    Kept(shelf, part)  # the places of before are free
    assert shelf._end == end
    shelf.close()


def test_what_is_forgotten_before_its_turn_is_not_read(tmp_path):
    shelf, turn = shelf_for(tmp_path), threading.Event()
    kept = Kept(shelf, torch.randn(3))
    with ThreadPoolExecutor(1) as pool:
        pool.submit(turn.wait)
        kept.fetch(pool)
        coming = kept._coming
        kept.forget()
        turn.set()
    assert coming.cancelled()
    shelf.close()


def test_the_hosts_memory_for_other_devices(monkeypatch):
    """Without an accelerator nothing is moved; the way there and back is the same for a tensor that is."""
    case = resnet()
    compare(case, offload="cpu")
    monkeypatch.setattr(HostShelf, "takes", lambda self, t: True)
    compare(case, offload="cpu")


@pytest.mark.parametrize(("offload", "error", "message"), [
    ("nowhere", ValueError, "a folder that exists, got 'nowhere'"),
    (True, TypeError, "to be 'cpu', a folder or None, got True"),
])  # fmt: skip
def test_bad_places(offload, error, message):
    with pytest.raises(error, match=message):
        bn.big_batch(nn.Linear(3, 3), torch.sum, torch.randn(4, 3), micro_batch_size=2, offload=offload)


def test_a_full_disk_moves_nothing(tmp_path, monkeypatch):
    def full(self, raw):
        raise OSError(28, "No space left on device")

    case = resnet()
    before = copy.deepcopy(case.model.state_dict())
    monkeypatch.setattr(FileShelf, "write", full)
    with pytest.raises(OSError, match="No space left"):
        case.in_parts(case.model, offload=tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(before.values(), case.model.state_dict().values(), strict=True))
    assert all(p.grad is None for p in case.model.parameters())
    assert not list(tmp_path.iterdir())
