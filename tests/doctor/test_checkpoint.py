"""Each fault that the stored numbers show is planted and found alone; a healthy network is clean."""

import json

import pytest
import torch
from torch import nn

import batchnorm as bn
from batchnorm.doctor import diagnose
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


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({2: float("nan")}, "channel 2 of 8 is NaN"),
        ({0: float("inf"), 7: float("-inf")}, "channels 0, 7 of 8 are Inf"),
        ({1: float("inf"), 3: float("nan")}, "channels 1, 3 of 8 are NaN or Inf"),
    ],
)
def test_sick_channels_are_named(values, words):
    model = trained()
    for channel, value in values.items():
        model[1].running_mean[channel] = value
    (finding,) = diagnose(model).findings
    assert finding.evidence["1"] == {"values": len(values), "running_mean": words}


def test_of_many_channels_the_first_are_named():
    model = trained().requires_grad_(False)
    wide = nn.BatchNorm1d(40)
    wide.load_state_dict({k: v[:1].repeat(40) if v.ndim else v for k, v in model[1].state_dict().items()})
    wide.running_var[5:25] = -1
    (finding,) = diagnose(wide).findings
    assert finding.evidence["BatchNorm1d"]["which"] == "5, 6, 7, 8, 9, 10, 11, 12 and 12 more"
