"""Each fault is planted and found; a healthy network is clean; bad files give one line."""

import json
import pickle

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from batchnorm.doctor import diagnose, diagnose_states
from batchnorm.doctor.files import BadFileError, read


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


FAULTS = {
    "not-finite": put("running_mean", float("nan")),
    "negative-variance": put("running_var", -0.5),
    "never-updated": lambda layer: layer.reset_running_stats(),
    "counters-disagree": put("num_batches_tracked", 99),
    "exploded-variance": put("running_var", 1e12),
}


@pytest.mark.parametrize("rule", FAULTS)
def test_planted_fault_is_found_alone(rule):
    model = trained()
    FAULTS[rule](model[1])
    report = diagnose(model)
    assert [f.rule for f in report.findings] == [rule]
    assert "1" in report.findings[0].layers
    assert json.loads(report.to_json())["worst"] == report.worst


@pytest.mark.parametrize("steps", [1, 5, 100])
def test_healthy_is_clean(steps):
    assert diagnose(trained(steps)).findings == ()


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
