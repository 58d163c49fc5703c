"""Faults planted during training are reported as they happen, once; healthy training is not; no hook is left."""

import copy

import pytest
import torch
from torch import nn
from torch.optim.optimizer import _global_optimizer_post_hooks
from torch.utils.checkpoint import checkpoint

import batchnorm as bn
from batchnorm.doctor import TroubleError, TroubleWarning, rules_training
from batchnorm.doctor.watch import Watch
from tests.support.patients import digits, network, trained

both = pytest.mark.parametrize("ours", [False, True], ids=["torch's", "ours"])


class Writer:
    def __init__(self):
        self.scalars = []

    def add_scalar(self, tag, value, step):
        self.scalars.append((tag, value, step))


def train(model, steps=8, before_step=None, forwards=1, loss=nn.functional.cross_entropy, size=64):
    x, y = digits()
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    for step in range(steps):
        if before_step is not None:
            before_step(step)
        optimizer.zero_grad()
        for _ in range(forwards):
            rows = torch.randint(len(x), (size,))
            loss(model(x[rows]), y[rows]).backward()
        optimizer.step()
    return model


def rules(w):
    return [(f.rule, f.layers) for f in w.findings]


@both
def test_healthy_training_is_quiet_and_recorded(ours):
    model, writer = network(ours), Writer()
    with bn.watch(model, writer, every=4) as w:
        train(model, 12)
    assert w.findings == []
    assert {(r["step"], r["layer"]) for r in w.records} == {(s, n) for s in (0, 4, 8) for n in ("1", "4", "8")}
    assert len(writer.scalars) == 3 * 3 * 4
    (tag, mean, _), (_, deviation, _), *_ = writer.scalars
    assert tag == "batchnorm/1/activation_mean"
    assert mean == pytest.approx(0, abs=1e-3)
    assert deviation == pytest.approx(1, abs=1e-2)
    assert set(w.report().layers["8"]) == {
        "step", "activation_mean", "activation_std", "silent_channels", "gradient_rms"
    }  # fmt: skip


@both
def test_training_is_not_changed(ours):
    x = digits()[0][:32]
    alone, watched = network(ours), None
    watched = copy.deepcopy(alone)
    torch.manual_seed(0)
    train(alone, 5)
    torch.manual_seed(0)
    with bn.watch(watched, every=1):
        train(watched, 5)
    assert torch.equal(alone.eval()(x), watched.eval()(x))


def test_the_gradient_is_that_of_the_output():
    model = nn.Sequential(nn.BatchNorm1d(3))
    with bn.watch(model, every=1) as w:
        (model(torch.randn(16, 3)) * 5).sum().backward()
    assert [r["gradient_rms"] for r in w.records if "gradient_rms" in r] == [5.0]


def test_a_layer_used_twice_is_read_twice():
    layer = nn.BatchNorm1d(3)
    model = nn.Sequential(layer, nn.Linear(3, 3), layer)
    with bn.watch(model, every=1) as w:
        model(torch.randn(16, 3)).sum().backward()
    assert [len(r) for r in w.records] == [5, 5, 3, 3], "activations forward, gradients backward"


def hooks(model):
    return [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()]


@pytest.mark.parametrize("error", [None, KeyboardInterrupt, RuntimeError])
def test_hooks_are_gone_at_the_end(error):
    model = network(True)
    before, optimizers = hooks(model), dict(_global_optimizer_post_hooks)
    w = bn.watch(model, every=1)

    def watched():
        with w:
            train(model, 2)
            output = model(digits()[0][:32])
            assert hooks(model) != before
            if error:
                raise error
        return output

    if error:
        with pytest.raises(error):
            watched()
    else:
        seen = len(w.records)
        watched().sum().backward()  # of a pass inside, after the end
        assert len([r for r in w.records[seen:] if "gradient_rms" in r]) == 2 * 3
    assert hooks(model) == before
    assert dict(_global_optimizer_post_hooks) == optimizers


@both
@pytest.mark.parametrize("where", ["activation", "gradient"])
def test_nonfinite(ours, where):
    model = network(ours)

    def plant(step):
        if step == 3 and where == "activation":
            with torch.no_grad():
                model[4].bias[0] = torch.inf

    def loss(output, target):
        return nn.functional.cross_entropy(output, target) * (torch.nan if where == "gradient" else 1)

    with pytest.raises(TroubleError) as caught, bn.watch(model, every=1, on_trouble="raise"):
        train(model, before_step=plant, loss=loss)
    assert caught.value.finding.rule == "nonfinite-in-training"
    assert caught.value.finding.layers == ("4" if where == "activation" else "8",)
    step = next(iter(caught.value.finding.evidence.values()))["step"]
    assert step == (3 if where == "activation" else 0)


@both
def test_silent_channels(ours):
    model = network(ours)

    def plant(step):
        if step == 3:
            with torch.no_grad():
                model[4].bias[:8] = -20

    said = pytest.warns(TroubleWarning, match=r"4: over 10% .*silent_channels 0\.25")
    with said as caught, bn.watch(model, every=1) as w:
        train(model, before_step=plant)
    assert rules(w) == [("silent-channels", ("4",))]
    assert w.findings[0].evidence["4"]["step"] == 4
    assert len(caught) == 1, "said once"


def test_channels_below_zero_are_not_silent_without_a_relu():
    model = network(True)
    model[5] = nn.Tanh()
    with torch.no_grad():
        model[4].bias[:8] = -20
    with bn.watch(model, every=1) as w:
        train(model)
    assert w.findings == []


@both
def test_exploding_gradient(ours):
    model, scale = network(ours), [1.0]

    def plant(step):
        scale[0] = 1e5 if step == 6 else 1.0

    def loss(output, target):
        return nn.functional.cross_entropy(output, target) * scale[0]

    with (
        pytest.raises(TroubleError, match="exploding-gradient") as caught,
        bn.watch(model, every=1, on_trouble="raise"),
    ):
        train(model, before_step=plant, loss=loss)
    assert caught.value.finding.evidence["8"]["step"] == 6


@both
def test_several_forward_passes_a_step_move_the_population_several_times(ours):
    model = network(ours)
    with pytest.warns(TroubleWarning, match="more than once per step"), bn.watch(model, every=3) as w:
        train(model, 12, forwards=2)
    assert rules(w) == [("moved-twice", (name,)) for name in ("1", "4", "8")]
    assert w.findings[0].evidence["1"]["updates"] == 2


def test_the_cure_of_several_forward_passes():
    model = network(True)
    with bn.accumulate(model, 2), bn.watch(model, every=1) as w:
        train(model, forwards=2)
    assert w.findings == []


def test_one_skipped_step_is_no_trouble():
    """As a gradient scaler skips one: the population has moved, the weights have not."""
    model, optimizer = trained(False), None
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    with bn.watch(model, every=1) as w:
        for step in range(8):
            model(digits()[0][:32]).sum().backward()
            if step != 3:
                optimizer.step()
            optimizer.zero_grad()
    assert w.findings == []


class Checkpointed(nn.Module):
    def __init__(self, body, reentrant):
        super().__init__()
        self.body, self.reentrant = body, reentrant

    def forward(self, x):
        return checkpoint(self.body, x.clone().requires_grad_(), use_reentrant=self.reentrant)


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpoints(reentrant):
    """A recomputation is no second look; torch's layers move twice in it, ours once."""
    model = Checkpointed(network(True), reentrant)
    with bn.watch(model, every=1) as w:
        train(model, 4)
    assert w.findings == []
    assert len(w.records) == 4 * 3 * 2
    model = Checkpointed(network(False), reentrant)
    with pytest.warns(TroubleWarning), bn.watch(model, every=1) as w:
        train(model, 4)
    assert {f.rule for f in w.findings} == {"moved-twice"}


def test_evaluation_and_other_optimizers_are_left_alone():
    model, other = network(True), nn.Linear(2, 2)
    with bn.watch(model, every=1) as w:
        model.eval()(digits()[0][:32])
        for _ in range(4):
            other(torch.randn(4, 2)).sum().backward()
            torch.optim.SGD(other.parameters(), 0.1).step()
    assert (w.step, w.records, w._steps) == (-1, [], 0)


def test_what_cannot_be_watched():
    with pytest.raises(ValueError, match="no batch norm"):
        bn.watch(nn.Linear(2, 2))
    for wrong in ({"every": 0}, {"on_trouble": "shout"}):
        with pytest.raises(ValueError, match="expected every"):
            bn.watch(network(True), **wrong)
    assert isinstance(bn.watch(network(True)), Watch)


def test_every_rule_is_planted():
    assert {r.name for r in rules_training.RULES} == {
        "nonfinite-in-training", "silent-channels", "exploding-gradient", "moved-twice"
    }  # fmt: skip
