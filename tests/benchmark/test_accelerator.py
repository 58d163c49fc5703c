"""The comparison on an accelerator, planned and run on CPU: what is measured, the figures, what is refused."""

from unittest import mock

import pytest
import torch
from rich.console import Console

from batchnorm.benchmark import accelerator, accelerator_steps
from batchnorm.benchmark.accelerator import bytes_moved, cases, measure, subjects
from batchnorm.benchmark.agreement import DisagreementError
from batchnorm.benchmark.cases import Case
from batchnorm.report.accelerator_table import show
from tests.support.commands import call

CPU = torch.device("cpu")
CASE = Case((4, 3, 5, 5), torch.float32, "channels_last", "add-relu")


def half_a_second(steps, device):
    for step in steps.values():
        step()
    return {name: [0.5] * 7 for name in steps}


@pytest.fixture
def brief(monkeypatch):
    """A turn is one call, and torch.compile does not run: neither is what the test is about."""
    monkeypatch.setattr(accelerator, "TURN", 0.0)
    monkeypatch.setattr(accelerator, "turns", half_a_second)
    eager = [s for s in subjects(CPU, "plain") if not s.compiled]
    monkeypatch.setattr(accelerator, "subjects", lambda device, block: eager)


def test_the_plan_has_every_dtype_block_and_layout():
    planned = cases(quick=False)
    kinds = {(str(c.dtype).removeprefix("torch."), c.block, c.layout) for c in planned}
    assert kinds == {(d, b, f) for d, b in accelerator.PAIRS for f in ("contiguous", "channels_last")}
    assert {c.shape for c in cases(quick=True)} != {c.shape for c in planned}


def test_the_subjects_of_a_card():
    with mock.patch("batchnorm.backends.triton.reason_against", return_value=None), mock.patch.object(torch, "empty"):
        names = [s.name for s in subjects(torch.device("cuda", 0), "plain")]
    assert [n for n in names if "cuDNN" not in n] == ["torch", "torch.compile", "ours: aten", "ours: triton"]
    assert "ours: triton" not in [s.name for s in subjects(CPU, "plain")]


def test_bytes():
    plain = Case((4, 3, 5, 5), torch.bfloat16, "contiguous", "relu")
    assert bytes_moved(plain) == {"forward": 3 * 600, "both": 8 * 600}
    assert bytes_moved(CASE) == {"forward": 4 * 1200, "both": 12 * 1200}


def test_a_case_is_judged_timed_and_described(brief):
    aten_alone = [s for s in accelerator.subjects(CPU, "plain") if s.name != "ours: triton"]
    with mock.patch.object(accelerator, "subjects", return_value=aten_alone):
        found = measure(CASE, CPU)
    ours = found["both"]["ours: aten"]
    assert ours["over torch"] == 1
    assert ours["terabytes per second"] == pytest.approx(12 * 1200 / 0.5 / 1e12)
    assert ours["share of a copy"] == pytest.approx(6)
    assert found["notes"] == []


def test_a_wrong_result_is_not_timed(brief):
    wrong = lambda y, residual, activation: torch.relu(1.5 * y + residual)  # noqa: E731
    with mock.patch("batchnorm.backends.aten._after", wrong), pytest.raises(DisagreementError, match="ours: aten"):
        measure(CASE, CPU)


def test_turns_alternate_and_time_every_subject():
    order = []
    steps = {name: lambda name=name: order.append(name) for name in "ab"}
    found = accelerator.turns(steps, CPU, least=0.0)
    assert {name: len(times) for name, times in found.items()} == {"a": 7, "b": 7}
    assert "".join(order[-6:]) == "abbaab"


def test_a_network_runs_in_every_way_and_the_tables_show_it(brief):
    with mock.patch.object(accelerator_steps, "NETWORKS", ("MobileNetV2",)):
        step = accelerator_steps.network("MobileNetV2", "channels_last", "float32", CPU, quick=True)
    assert set(step["milliseconds"]) >= {"torch", "ours: converted", "ours: fused", "ours: fused, recompute"}
    result = {"environment": accelerator_steps.environment(CPU), "quick": True, "interrupted": False}
    result |= {"cases": [measure(CASE, CPU)], "steps": [step]}
    console = Console(record=True, width=200)
    show(result, console)
    text = console.export_text()
    assert "add-relu (4, 3, 5, 5) float32 channels_last" in text
    assert "ours: fused, recompute" in text


def test_the_command_says_what_is_missing(monkeypatch, capsys):
    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    assert call(monkeypatch, "bench", "--device", "cuda") != 0
    assert "finds none here" in capsys.readouterr().err
    assert call(monkeypatch, "bench", "--device", "cuda", "--targets") != 0
    assert "sets the cases" in capsys.readouterr().err
