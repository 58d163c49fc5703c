"""The benchmark of `big_batch`: exact where accumulation is not, and less memory where it is offloaded."""

import sys
from dataclasses import replace

import pytest
from torch import nn

from batchnorm.benchmark import big_batch_memory, big_batch_steps, timing
from batchnorm.benchmark.big_batch_steps import QUICK, Sizes


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> Sizes:
    """A network that takes no time, and sizes for it."""
    monkeypatch.setattr(timing, "WARM", 0.0)
    monkeypatch.setitem(
        big_batch_steps.NETWORKS,
        "tiny",
        lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(144, 1000)),
    )
    sizes = replace(QUICK, exact=(6, 3, 8), timed=(4, 2, 8), networks=("tiny",), measured=("tiny",))
    monkeypatch.setattr(big_batch_steps, "QUICK", sizes)
    return sizes


def test_gradients_are_compared_in_float64(tiny: Sizes) -> None:
    found = big_batch_steps._exact("tiny", tiny)
    assert found["big_batch"] < 1e-10
    assert found["accumulation"] > 0.1


@pytest.mark.skipif(sys.platform != "linux", reason="the system does not tell a process's highest memory")
def test_a_step_that_waits_outside_of_memory_needs_less() -> None:
    ways = "one batch", "big_batch, offload"
    peaks = [big_batch_memory.peak_of_a_step("MobileNetV2", way, 12, 2, 64, 1) for way in ways]
    assert peaks[1] < 0.6 * peaks[0], peaks


def test_a_step_that_fails_says_so() -> None:
    with pytest.raises(RuntimeError, match=r"a step of MobileNetV2 \(one batch\) failed: .*more than 1 value"):
        big_batch_memory.peak_of_a_step("MobileNetV2", "one batch", 1, 1, 32, 1)


def test_every_part_is_measured_and_ctrl_c_keeps_what_is_there(tiny: Sizes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(big_batch_steps, "peak_of_a_step", lambda *_: 2**20)
    said = []
    result = big_batch_steps.measure(0.0, True, lambda done, total, what: said.append(what))
    assert not result["interrupted"]
    assert [row["micro_batches"] for row in result["memory"]] == list(tiny.counts)
    assert len(result["exact"]) == len(result["times"]) == 1
    assert said[-1] == ""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(big_batch_steps, "_times", interrupt)
    result = big_batch_steps.measure(0.0, True)
    assert result["interrupted"]
    assert len(result["exact"]) == 1
    assert not result["memory"]
