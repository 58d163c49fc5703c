"""The load of other processes: measured, and a reason for a warning."""

import time
from pathlib import Path

import pytest

from batchnorm.benchmark import load
from batchnorm.benchmark.load import Others, warnings


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """A machine whose clocks stand still until a test moves them, in seconds."""
    now = {"wall": 0.0, "own": 0.0, "busy": 0.0, "idle": 0.0}

    def stat(*_: object) -> str:
        ticks = [int(100 * now["busy"]), 0, 0, int(100 * now["idle"]), 0, 0, 0, 0, 0, 0]
        return f"cpu  {' '.join(map(str, ticks))}\ncpu0 1 2 3\n"

    monkeypatch.setattr(load.time, "perf_counter", lambda: now["wall"])
    monkeypatch.setattr(load.time, "process_time", lambda: now["own"])
    monkeypatch.setattr(Path, "read_text", stat)
    monkeypatch.setattr(load.os, "sysconf", lambda name: 100)
    return now


def pass_time(machine: dict[str, float], wall: float, own: float, others: float) -> None:
    machine["wall"] += wall
    machine["own"] += own
    machine["busy"] += own + others
    machine["idle"] += 2 * wall - own - others


def test_only_the_work_of_others_counts(machine: dict[str, float]) -> None:
    others = Others()
    assert others.cores is None, "nothing was watched"
    with others:
        pass_time(machine, 10, own=19, others=0)
    assert others.cores == pytest.approx(0)
    pass_time(machine, 100, own=1, others=100)  # between the blocks
    with others:
        pass_time(machine, 10, own=10, others=8)
    assert others.cores == pytest.approx(0.4)


def test_a_system_that_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load, "STAT", Path("nowhere"))
    monkeypatch.delattr(load.os, "getloadavg")
    others = Others()
    with others:
        pass
    assert others.cores is None
    assert load.average() is None
    assert warnings(None, None) == []


@pytest.mark.skipif(not load.STAT.exists(), reason="needs /proc/stat")
def test_this_machine_counts() -> None:
    others = Others()
    with others:
        time.sleep(0.05)
    assert others.cores is not None
    assert others.cores >= 0


def test_warnings() -> None:
    assert warnings(0.49, 0.19) == []
    assert warnings(0.5, 0.0) == ["the load average before the run was 0.5; figures to quote need less than 0.5"]
    assert warnings(0.0, 0.8) == ["other programs kept 0.8 cores busy during the turns: no figures to quote"]
