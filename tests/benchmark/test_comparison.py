"""The comparison: refused if a result is wrong; an interrupted one keeps the finished part."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import batchnorm as bn
from batchnorm.benchmark import build_time, comparison, timing
from batchnorm.benchmark.agreement import DisagreementError
from batchnorm.benchmark.build_time import CannotBuild, seconds_to_build
from batchnorm.benchmark.comparison import Settings, compare, processor
from batchnorm.benchmark.memory import kept
from batchnorm.benchmark.steps import images, kept_by
from batchnorm.benchmark.timing import Times, alternate
from batchnorm.benchmark.whole_networks import NETWORKS

PAIRS = (("float32", "plain"), ("bfloat16", "add-relu"))
QUICK = Settings(PAIRS, ("contiguous",), seconds=0, quick=True, networks=False)
SMALL = "small inputs, to see that it works: no times to quote"


@pytest.fixture(autouse=True)
def cheap(monkeypatch: pytest.MonkeyPatch) -> None:
    """A compiler that changes nothing, a short warm-up, and nobody else on the machine: a real run takes long."""
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    monkeypatch.setattr(timing, "WARM", 0.0)
    monkeypatch.setattr(comparison.load, "warnings", lambda *_: [])


def test_everything_asked_for_is_there() -> None:
    seen = []
    result = compare(QUICK, lambda done, total, what: seen.append((done, total, what)))
    assert [(case["shape"], case["dtype"], case["block"], case["group"]) for case in result["cases"]] == [
        ([8, 16, 16, 16], "float32", "plain", "medium"),
        ([64, 128], "float32", "plain", "medium"),
        ([2, 16, 8, 8], "float32", "plain", "small"),
        ([8, 16, 16, 16], "bfloat16", "add-relu", "medium"),
        ([64, 128], "bfloat16", "add-relu", "medium"),
        ([2, 16, 8, 8], "bfloat16", "add-relu", "small"),
    ]
    for case in result["cases"]:
        assert case["milliseconds"].keys() == {"torch", "ours", "forward", "copy", "compiled"}
        assert case["ratios"].keys() == {"torch", "compiled"}
        for ratio in (*case["ratios"].values(), *case["copies"].values()):
            assert 0 < ratio["low"] <= ratio["median"] <= ratio["high"]
        assert case["turns"] == 5
    assert [done for done, *_ in seen] == list(range(7))
    assert not result["interrupted"]
    assert result["notes"] == [SMALL]
    assert result["networks"] == result["memory"] == []
    assert result["build"] is None
    assert result["load"].keys() == {"before", "after", "others"}
    assert len(result["targets"]) > 15
    json.dumps(result, allow_nan=False)


def test_ctrl_c_keeps_what_was_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def third_time(*arguments: Any) -> Times:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return alternate(*arguments)

    monkeypatch.setattr(comparison, "alternate", third_time)
    result = compare(QUICK)
    assert result["interrupted"]
    assert len(result["cases"]) == 2
    assert len(result["totals"]) == 1


def test_wrong_results_are_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(comparison, "alternate", lambda *_: pytest.fail("timed"))
    monkeypatch.setattr(comparison.Case, "ours", lambda case: bn.BatchNorm(case.shape[1], eps=0.1))
    with pytest.raises(DisagreementError):
        compare(QUICK)


def test_without_a_compiler_that_is_said_once(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any, **__: Any) -> Any:
        def call(*_: Any) -> None:
            raise RuntimeError("no C++ compiler\nwas found")

        return call

    monkeypatch.setattr(torch, "compile", broken)
    result = compare(QUICK)
    assert result["notes"] == [SMALL, "torch.compile does not work here: no C++ compiler was found"]
    assert all(case["ratios"].keys() == {"torch"} for case in result["cases"])


def test_a_stall_reaches_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch's layer waits for a core in most of its turns: the ratio is flagged, and no total has it."""

    def stalling(*arguments: Any) -> Times:
        times = alternate(*arguments)
        least = min(times.turns["torch"])
        return replace(times, turns=times.turns | {"torch": [least, *[100 * least] * 4]})

    monkeypatch.setattr(comparison, "alternate", stalling)
    result = compare(replace(QUICK, compile=False))
    for case in result["cases"]:
        assert case["ratios"]["torch"]["doubt"].startswith("torch stalls: its median")
    for total in result["totals"]:
        assert total["mean"] == {"torch": None}
        assert total["left_out"] == {"torch": total["cases"]}


def test_networks_and_dtypes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(comparison, "EVERY", ["MLP", "ResNet-18"])
    monkeypatch.setattr(comparison, "NETWORKS", ["ResNet-18"])
    monkeypatch.setattr(comparison, "cases", lambda *_: [])
    result = compare(Settings(seconds=0, quick=True))
    steps = [(found["name"], found["layout"], found["dtype"]) for found in result["networks"]]
    assert steps == [
        ("MLP", "contiguous", "float32"),
        ("ResNet-18", "contiguous", "float32"),
        ("ResNet-18", "channels_last", "float32"),
    ]
    for step in result["networks"]:
        assert step["ratios"].keys() == {"converted", "fused"}
        assert step["turns"] == 5
    assert [found["activation"] for found in result["memory"]] == ["relu", "silu", "gelu"]
    none = compare(Settings((("float16", "plain"),), seconds=0, quick=True))
    assert none["notes"] == [SMALL, "networks are trained in float32 and bfloat16, so not in float16"]
    assert none["networks"] == []


def test_targets_are_trained_in_float32_and_built(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(comparison, "EVERY", ["MLP"])
    monkeypatch.setattr(comparison, "NETWORKS", [])
    monkeypatch.setattr(comparison, "cases", lambda *_: [])
    monkeypatch.setattr(comparison, "seconds_to_build", lambda: 33.0)
    pairs = (("bfloat16", "plain"), ("float64", "plain"))
    result = compare(Settings(pairs, seconds=0, targets=True))
    assert [found["dtype"] for found in result["networks"]] == ["float32"]
    assert result["build"] == 33.0
    assert result["notes"] == []

    def fails() -> float:
        raise CannotBuild("no compiler was found")

    monkeypatch.setattr(comparison, "seconds_to_build", fails)
    result = compare(Settings(pairs, seconds=0, networks=False, targets=True))
    assert result["build"] is None
    assert result["notes"] == ["the native kernels do not compile here: no compiler was found"]


@pytest.mark.parametrize("compiles", [True, False])
def test_the_build_is_timed_in_a_cache_of_its_own(monkeypatch: pytest.MonkeyPatch, compiles: bool) -> None:
    """The real build takes a minute: here the program only looks at its surroundings."""
    program = "import os; cache = os.environ['BATCHNORM_CACHE']; assert not os.listdir(cache); print(1.5)"
    monkeypatch.setattr(build_time, "PROGRAM", program if compiles else "raise RuntimeError('no compiler')")
    if compiles:
        assert seconds_to_build() == 1.5
    else:
        with pytest.raises(CannotBuild, match="RuntimeError: no compiler"):
            seconds_to_build()


def test_the_program_that_builds_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BATCHNORM_NATIVE", "0")
    with pytest.raises(CannotBuild, match="switched off by BATCHNORM_NATIVE=0"):
        seconds_to_build()


def test_the_processor_by_name(tmp_path: Path) -> None:
    (tmp_path / "cpuinfo").write_text("processor : 0\nmodel name\t: Some EPYC 9000\nflags : avx\n")
    capability = torch.backends.cpu.get_cpu_capability()
    assert processor(tmp_path / "cpuinfo") == f"Some EPYC 9000, {capability}"
    assert processor(tmp_path / "nowhere") == capability


def test_kept_counts_each_storage_once_and_no_parameters() -> None:
    x = torch.randn(10, 4, requires_grad=True)
    assert kept(nn.Linear(4, 4, bias=False), x) == 160
    assert kept(nn.Sequential(nn.ReLU(), nn.Flatten(), nn.Linear(4, 4)), x) == 160, "the output of ReLU, for both"
    assert kept(nn.Identity(), x) == 0


@pytest.mark.parametrize("activation", ["silu", "gelu"])
def test_fused_keeps_only_the_input(activation: str) -> None:
    x = torch.randn(32, 16, 14, 14, requires_grad=True)
    functions = {"silu": nn.SiLU, "gelu": nn.GELU}
    theirs = kept(nn.Sequential(nn.BatchNorm2d(16), functions[activation]()), x)
    ours = kept(bn.BatchNorm2d(16, activation=activation), x)
    nbytes = x.untyped_storage().nbytes()
    assert theirs >= 2 * nbytes
    assert nbytes <= ours < 1.01 * nbytes


@pytest.mark.parametrize("name", ["ResNet-18", "MobileNetV2"])
def test_what_whole_networks_keep(name: str) -> None:
    x = images(2, 64, "contiguous")[0]
    channels = sum(m.num_features for m in NETWORKS[name]().modules() if isinstance(m, nn.BatchNorm2d))
    # With ReLU torch keeps no more than the input either, and ours a residual that comes from another norm as well.
    # Ours keeps three statistics in float64 for each channel, torch two in float32.
    for activation, share in (("relu", 1.1), ("silu", 0.8), ("gelu", 0.8)):
        found = kept_by(name, activation, x)
        print(name, activation, found)
        assert found["converted"] <= found["torch"] + (3 * 8 - 2 * 4) * channels
        assert found["fused"] < share * found["torch"]
