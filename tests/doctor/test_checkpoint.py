"""Each fault is planted and found; a healthy network is clean; bad files give one line."""

import json
import pickle

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import batchnorm as bn
from batchnorm.doctor import diagnose, diagnose_states
from batchnorm.doctor.files import BadFileError, read
from batchnorm.doctor.rules_checkpoint import RULES


def trained(steps=5):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.BatchNorm1d(8))
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    for _ in range(steps):
        model(torch.randn(16, 4)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    return model


def put(name, value):
    return lambda layer: getattr(layer, name).view(-1)[:1].fill_(value)


def settings(**values):
    return lambda layer: [setattr(layer, name, value) for name, value in values.items()]


FAULTS = {
    "not-finite": put("running_mean", float("nan")),
    "negative-variance": put("running_var", -0.5),
    "affine-without-statistics": lambda layer: layer.reset_running_stats(),
    "never-updated": lambda layer: layer.reset_parameters(),
    "counters-disagree": put("num_batches_tracked", 99),
    "exploded-variance": put("running_var", 1e12),
    "collapsed-variance": put("running_var", 1e-8),
    "dead-gamma": put("weight", 1e-7),
    "outlying-gain": put("weight", 5e3),
    "foreign-momentum": settings(momentum=0.99, eps=1e-5),
    "foreign-eps": settings(eps=1e-3),
}


def test_every_rule_is_planted():
    assert set(FAULTS) == {rule.name for rule in RULES}


@pytest.mark.parametrize("convert", [nn.Module.train, bn.convert], ids=["torch's", "ours"])
@pytest.mark.parametrize("rule", FAULTS)
def test_planted_fault_is_found_alone(rule, convert):
    model = convert(trained()).requires_grad_(False)
    FAULTS[rule](model[1])
    report = diagnose(model)
    assert [f.rule for f in report.findings] == [rule]
    assert "1" in report.findings[0].layers
    assert all(report.findings[0].evidence[name] for name in report.findings[0].layers)
    assert json.loads(report.to_json())["worst"] == report.worst


@pytest.mark.parametrize("steps", [1, 5, 100])
def test_healthy_is_clean(steps):
    assert diagnose(trained(steps)).findings == ()


def test_a_converted_keras_layer_is_clean():
    layer = bn.from_keras([1.0, 2.0], [4.0, 9.0], gamma=[1.0, 2.0], beta=[0.5, 0.0])
    assert diagnose(layer).findings == ()


@pytest.mark.parametrize("kind", ["pt", "safetensors"])
def test_files(tmp_path, kind):
    path = tmp_path / f"model.{kind}"
    (torch.save if kind == "pt" else save_file)(trained().state_dict(), path)
    states = read(path)
    assert [s.name for s in states] == ["1", "3"]
    assert diagnose_states(states).worst is None
    data = path.read_bytes()
    for cut in (0, 1, 7, 100, len(data) // 2):
        path.write_bytes(data[:cut])
        with pytest.raises(BadFileError) as caught:
            read(path)
        assert "\n" not in str(caught.value)


class Hostile:
    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return open, (str(self.target), "w")


def test_hostile_pickle_is_not_executed(tmp_path):
    path, target = tmp_path / "evil.pt", tmp_path / "executed"
    path.write_bytes(pickle.dumps(Hostile(target)))
    with pytest.raises(BadFileError):
        read(path)
    assert not target.exists()
