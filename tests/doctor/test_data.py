"""Each fault that shows with data is planted and found, in the right layers; a healthy trained network is clean."""

import random
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, TensorDataset

import batchnorm as bn
from batchnorm.doctor import rules_data
from tests.support.patients import batches, digits, trained

both = pytest.mark.parametrize("ours", [False, True], ids=["torch's", "ours"])


def found(report):
    return {f.rule: f for f in report.findings}


@both
@pytest.mark.parametrize("size", [16, 32, 64])
def test_a_healthy_network_is_clean(ours, size):
    report = bn.diagnose(trained(ours), batches(size))
    assert report.findings == ()
    assert report.notes == ()
    assert 0 < report.output["gap"] < 0.5
    assert report.layers["8"]["independent values"] == pytest.approx(size, rel=0.4), "samples of a layer without pixels"


@both
def test_evaluation_mode_and_data_loaders_are_as_good(ours):
    loader = DataLoader(TensorDataset(*digits()), batch_size=64, shuffle=True)
    assert bn.diagnose(trained(ours).eval(), loader, limit=10).findings == ()


@both
def test_weights_that_moved_on_leave_a_stale_population_in_the_next_layer_alone(ours):
    model = trained(ours)
    with torch.no_grad():
        model[3].weight.mul_(3)
    report = found(bn.diagnose(model, batches()))
    assert set(report) == {"stale-population", "train-eval-gap"}
    assert report["stale-population"].layers == ("4",)
    gap = report["train-eval-gap"]
    assert gap.layers[0] == "4", "the layer that causes most comes first"
    assert gap.evidence["4"]["share"] > 0.5
    assert gap.evidence["(output)"]["predictions that differ"] > 0
    bn.calibrate(model, batches())
    assert bn.diagnose(model, batches()).findings == (), "the cure cures"


@both
def test_batch_too_small(ours):
    report = found(bn.diagnose(trained(ours), batches(6, 20)))
    assert report["batch-too-small"].layers == ("8",), "layers 1 and 4 have many pixels"
    assert report["batch-too-small"].evidence["8"]["independent values"] == pytest.approx(6, rel=0.4)
    assert "drift" not in report


def test_virtual_batches_are_as_small_as_they_are():
    model = bn.convert(trained(True), virtual_batch_size=4)
    assert found(bn.diagnose(model, batches()))["batch-too-small"].layers == ("8",)


@both
def test_single_value(ours):
    report = found(bn.diagnose(trained(ours), [*batches(64, 2), digits()[0][:1]]))
    assert report["single-value"].layers == ("8",)
    assert report["single-value"].evidence["8"] == {"batches": 1}


def test_single_value_is_fine_where_the_layer_was_told_what_to_do():
    model = bn.convert(trained(True), single="population")
    assert "single-value" not in found(bn.diagnose(model, [*batches(64, 2), digits()[0][:1]]))


@both
def test_drift_of_sorted_data(ours):
    x, y = digits()
    report = found(bn.diagnose(trained(ours), x[y.argsort()].split(64), limit=None))
    assert "8" in report["drift"].layers
    assert report["drift"].evidence["8"]["between batches, σ"] > 0.5


class Sequences(nn.Module):
    def __init__(self, ours):
        super().__init__()
        self.conv, self.norm = nn.Conv1d(3, 8, 3, padding=1), (bn.BatchNorm1d if ours else nn.BatchNorm1d)(8)

    def forward(self, x, lengths=None):
        return self.norm(self.conv(x)) if lengths is None else self.norm(self.conv(x), lengths=lengths)


def sequences(number=8, left=False):
    for _ in range(number):
        x, lengths = torch.randn(32, 3, 50), torch.randint(10, 50, (32,))
        x = x * (torch.arange(50) < lengths[:, None])[:, None]
        yield {"x": x.flip(2) if left else x, "lengths": lengths}


@both
@pytest.mark.parametrize("left", [False, True], ids=["right", "left"])
def test_padding(ours, left):
    report = found(bn.diagnose(Sequences(ours), [b["x"] for b in sequences(left=left)]))
    assert report["padding"].layers == ("norm",)
    assert report["padding"].evidence["norm"]["share of positions"] == pytest.approx(0.4, abs=0.1)


def test_lengths_are_the_cure_of_padding():
    assert "padding" not in found(bn.diagnose(Sequences(True), sequences))
    full = (torch.randn(32, 3, 50) for _ in range(8))
    assert "padding" not in found(bn.diagnose(Sequences(True), full))


class Checkpointed(nn.Module):
    def __init__(self, body, reentrant):
        super().__init__()
        self.body, self.reentrant = body, reentrant

    def forward(self, x):
        if not torch.is_grad_enabled():
            return self.body(x)
        return checkpoint(self.body, x.clone().requires_grad_(), use_reentrant=self.reentrant)


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpoints_update_torch_layers_twice(reentrant):
    data = batches(64, 4)
    twice = found(bn.diagnose(Checkpointed(trained(False), reentrant), data))
    assert twice["double-updates"].layers == ("body.1", "body.4", "body.8")
    assert twice["double-updates"].evidence["body.1"] == {"updates": 2, "uses": 1}
    assert "shared-layer" not in twice
    assert bn.diagnose(Checkpointed(trained(True), reentrant), data).findings == ()


@both
def test_shared_layer(ours):
    model = trained(ours)
    body = nn.Sequential(*model[:6])
    body[4] = nn.Sequential(body[4], nn.Conv2d(32, 32, 1), body[4])
    report = found(bn.diagnose(body, batches(64, 4)))
    assert report["shared-layer"].evidence == {"4.0": {"uses": 2}}
    assert "double-updates" not in report


class Functional(nn.Module):
    """ReLU as a function, in place, and far from where the layer is defined."""

    def __init__(self, model):
        super().__init__()
        self.parts = model

    def forward(self, x):
        for part in self.parts:
            x = x if isinstance(part, nn.ReLU) else part(x)
            x = nn.functional.relu_(x) if isinstance(part, nn.modules.batchnorm._BatchNorm) else x
        return x


@both
@pytest.mark.parametrize("functional", [False, True])
def test_dying_activations(ours, functional):
    model = trained(ours)
    with torch.no_grad():
        model[4].bias[:3] = -20
    report = found(bn.diagnose(Functional(model) if functional else model, batches()))
    name = "parts.4" if functional else "4"
    assert report["dying-activations"].evidence == {name: {"channels": 3, "of": 32}}


def test_a_channel_below_zero_is_alive_where_no_relu_follows_it():
    model = trained(True)
    with torch.no_grad():
        model[4].bias[:3] = -20
    model[5] = nn.LeakyReLU()
    assert "dying-activations" not in found(bn.diagnose(model, batches()))


class InPlaceSum(nn.Module):
    """Adds to the batch norm's output in place, before a ReLU: what dies is not the layer's doing."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x):
        x = self.model[:5](x)
        x[:, :3] += 30
        return self.model[5:](x)


def test_what_goes_through_a_sum_first_is_not_counted():
    model = trained(True)
    with torch.no_grad():
        model[4].bias[:3] = -20
    report = found(bn.diagnose(InPlaceSum(model), batches()))
    assert "dying-activations" not in report or "model.4" not in report["dying-activations"].layers


def test_dying_activations_in_the_same_pass():
    model = trained(True)
    model[4].set_options(activation="relu")
    model[5] = nn.Identity()
    with torch.no_grad():
        model[4].bias[:3] = -20
    assert found(bn.diagnose(model, batches()))["dying-activations"].evidence == {"4": {"channels": 3, "of": 32}}


class KeepsEval(nn.BatchNorm2d):
    def train(self, mode=True):
        return super().train(False)


class FlipsInForward(nn.Module):
    def __init__(self, model, mode):
        super().__init__()
        self.model, self.mode = model, mode

    def forward(self, x):
        self.model[4].train(self.mode)
        return self.model(x)


def test_always_eval():
    for plant in ("train()", "forward", "by hand"):
        model, name = trained(False), "4"
        if plant == "train()":
            model[4].__class__ = KeepsEval
            model.train()
        elif plant == "forward":
            model, name = FlipsInForward(model, False), "model.4"
        else:
            model[4].eval()
        report = bn.diagnose(model, batches())
        assert [(f.rule, f.layers) for f in report.findings] == [("always-eval", (name,))], plant


def test_frozen_on_purpose_is_clean():
    model = bn.freeze(trained(True))
    assert bn.diagnose(model, batches()).findings == ()
    model[4].eval()
    assert bn.diagnose(model, batches()).findings == ()


@both
def test_never_eval(ours):
    model = trained(ours).eval()
    model[4].train()
    assert found(bn.diagnose(model, batches()))["never-eval"].layers == ("4",)
    model = trained(ours)
    report = found(bn.diagnose(FlipsInForward(model, True), batches()))
    assert report["never-eval"].layers == ("model.4",)
    model[4] = type(model[4])(32, track_running_stats=False)
    report = found(bn.diagnose(model, batches()))
    assert report["never-eval"].evidence == {"4": {"population": False}}


def test_unreached():
    model = trained(False)
    model.spare = nn.Identity()
    model.spare.norm = nn.BatchNorm1d(3)
    model.spare.norm.running_mean += 1
    model.spare.norm.num_batches_tracked += 80
    report = bn.diagnose(model, batches())
    assert [(f.rule, f.layers) for f in report.findings] == [("unreached", ("spare.norm",))]


@both
def test_nonfinite_activations(ours):
    data = batches()
    data[3][5, 0, 2, 2] = torch.nan
    model = trained(ours)
    before = [b.clone() for b in model.buffers()]
    report = bn.diagnose(model, data)
    assert report.findings[0].rule == "nonfinite-activations"
    assert report.findings[0].layers == ("1", "4", "8")
    assert all(torch.equal(a, b) for a, b in zip(before, model.buffers(), strict=True))


def test_every_rule_is_planted():
    text = Path(__file__).read_text(encoding="utf-8")
    assert [r.name for r in rules_data.RULES if f'"{r.name}"' not in text] == []


def everything(model):
    state = {k: v.clone() for k, v in model.state_dict().items()}
    hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()]
    modes = [m.training for m in model.modules()]
    grads = [p.grad.clone() for p in model.parameters()]
    paused = [getattr(m, "_paused", 0) for m in model.modules()]
    draws = SimpleNamespace(torch=torch.get_rng_state(), numpy=np.random.get_state()[1], python=random.getstate())
    return state, hooks, modes, grads, paused, draws


@both
@pytest.mark.parametrize("end", ["finished", "interrupted", "failed"])
def test_the_model_is_as_it_was(ours, end):
    model = trained(ours)
    model[4].eval()
    model(batches()[0]).sum().backward()
    before = everything(model)

    def data():
        for i, batch in enumerate(batches()):
            torch.rand(1), np.random.rand(1), random.random()
            if i == 3 and end == "interrupted":
                raise KeyboardInterrupt
            yield batch[:, :, :5] if i == 3 and end == "failed" else batch

    expected = {"finished": None, "interrupted": KeyboardInterrupt, "failed": RuntimeError}[end]
    if expected is None:
        bn.diagnose(model, data)
    else:
        with pytest.raises(expected):
            bn.diagnose(model, data)
    after = everything(model)
    assert all(torch.equal(v, after[0][k]) for k, v in before[0].items())
    assert before[1:3] == after[1:3]
    assert all(torch.equal(a, b) for a, b in zip(before[3], after[3], strict=True))
    assert before[4] == after[4]
    assert torch.equal(before[5].torch, after[5].torch)
    assert np.array_equal(before[5].numpy, after[5].numpy)
    assert before[5].python == after[5].python


class WantsTargets(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(4)

    def forward(self, x, targets=None):
        if self.training and targets is None:
            raise ValueError("targets, please")
        return self.norm(x)


def test_a_step_that_cannot_be_tried_is_noted():
    report = bn.diagnose(WantsTargets(), [torch.randn(32, 4) for _ in range(4)])
    assert report.notes == ("the training step failed: targets, please",)


def test_no_batches():
    with pytest.raises(ValueError, match="no batches"):
        bn.diagnose(trained(True), [])
