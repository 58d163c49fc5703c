"""The command line in a separate process: wrong input gives one line and status 2, Ctrl-C keeps what was finished."""

import json
import os
import re
import signal
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from batchnorm import cli
from batchnorm.benchmark import big_batch_steps, comparison, memory_networks, memory_of_steps
from batchnorm.benchmark.cases import LAYOUTS, Case
from batchnorm.benchmark.memory_networks import _head
from batchnorm.benchmark.targets import PAIRS, TARGETS
from batchnorm.benchmark.whole_networks import Builder
from batchnorm.layers import BatchNorm
from tests.support.commands import call

SMALL = ("wine", "--quick", "--lr", "0.3", "--seeds", "2", "--epochs", "1")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with tables in it."""
    monkeypatch.chdir(tmp_path)
    table = pd.DataFrame({"a": np.arange(60.0), "b": np.arange(60) % 7, "label": np.arange(60) % 2})
    table.to_csv("good.csv", index=False)
    table.assign(a=["red", "blue"] * 30).to_csv("text.csv", index=False)
    table.assign(a=[None, 1.0] * 30).to_csv("missing.csv", index=False)
    table.assign(label=1).to_csv("one.csv", index=False)
    table.iloc[:0].to_csv("header.csv", index=False)
    table.assign(b=table.b * 1e200).to_csv("huge.csv", index=False)
    np.savez("nan.npz", x=np.full((60, 2), np.nan), y=np.arange(60) % 2)
    return tmp_path


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("good.csv", "--target", "price"), "no column 'price'; its columns are a, b, label"),
        (("good.csv",), "say which column to predict with --target"),
        (("text.csv", "--target", "label"), "column 'a' holds text, such as 'red'"),
        (("missing.csv", "--target", "label"), "column 'a' has no value in 30 rows"),
        (("nan.npz",), "the inputs hold NaN"),
        (("nowhere.csv",), "nowhere.csv: no such file"),
        (("digits", "--target", "x"), "--target is for tables"),
        (("header.csv", "--target", "label"), "no rows below the header"),
        (("huge.csv", "--target", "label"), "go up to 6e+200, beyond the range of float32"),
        (("good.csv", "--target", "label", "--norms", "batch,instance"), "--norms batch,instance: expected some of"),
        (("good.csv", "--target", "label", "--norms", "batch,layer"), "the claims compare batch with none"),
        (("one.csv", "--target", "label"), "only one class"),
        (("good.csv", "--target", "label", "--network", "resnet"), "--network resnet: expected mlp, conv, deep"),
        (("good.csv", "--target", "label", "--network", "conv"), "--network conv needs images"),
        (("good.csv", "--target", "label", "--lr", "fast"), "--lr fast: expected numbers"),
        (("good.csv", "--target", "label", "--task", "guess"), "--task guess: expected classification"),
        (("good.csv", "--target", "label", "--seeds", "0"), "seeds 0: expected at least 1"),
    ],
)
def test_wrong_input_is_one_line_and_status_2(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: tuple[str, ...],
    message: str,
) -> None:
    assert call(monkeypatch, "study", *arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert message in err
    assert err.startswith("batchnorm: ")
    assert err.splitlines()[-1:] == [line for line in err.splitlines() if line.strip()]
    assert not (folder / "study").exists()


def start(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "batchnorm", "study", *arguments, "--output", "out"]
    source = str(Path(cli.__file__).parents[1])
    return subprocess.Popen(
        command,
        cwd=folder,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": source, "OMP_NUM_THREADS": "1"},
    )


def test_json_is_all_there_is_on_stdout(tmp_path: Path) -> None:
    process = start(tmp_path, *SMALL, "--json")
    out, err = process.communicate()
    assert process.returncode == 0, err
    assert json.loads(out) == json.loads((tmp_path / "out" / "report.json").read_text(encoding="utf-8"))
    assert len(json.loads(out)["claims"]) == 9
    assert "--quick is a first look" in err
    assert (tmp_path / "out" / "report.html").exists()


def test_a_traceback_never_reaches_the_user(tmp_path: Path) -> None:
    process = start(tmp_path, "nowhere.csv")
    out, err = process.communicate()
    assert process.returncode == 2
    assert out == ""
    names = "digits, wine, diabetes, iris, breast_cancer, fashion, mnist"
    assert err == f"batchnorm: nowhere.csv: no such file, and not one of {names}\n"


NETWORK = """
import os, signal
from torch import nn
made = 0

def make():
    "The sixth network of the study presses Ctrl-C."
    global made
    made += 1
    if made == 6:
        os.kill(os.getpid(), signal.SIGINT)
    return nn.Sequential(nn.Linear(13, 8), nn.BatchNorm1d(8), nn.Linear(8, 3))
"""


def test_ctrl_c_keeps_what_was_finished(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(NETWORK)
    process = start(tmp_path, *SMALL, "--network", "mine:make", "--workers", "1")
    out, err = process.communicate()
    assert process.returncode == 128 + signal.SIGINT, err
    found = json.loads((tmp_path / "out" / "report.json").read_text(encoding="utf-8"))
    # two networks are made to check it; the run of the sixth is finished
    assert found["interrupted"]
    assert found["runs_finished"] == 4 < found["runs_planned"]
    assert "stopping after this run" in err
    assert f"kept the 4 of {found['runs_planned']} runs" in err
    assert "Traceback" not in err
    assert "Interrupted: 4 of" in out
    assert "Interrupted" in (tmp_path / "out" / "report.html").read_text(encoding="utf-8")


def test_ctrl_c_in_the_terminal_reaches_every_process_and_keeps_what_was_finished(tmp_path: Path) -> None:
    """The signal goes to the whole group, as from a terminal, after the first runs."""
    arguments = ("wine", "--lr", "0.1,0.3", "--seeds", "9", "--workers", "2", "--output", "out")
    command = [sys.executable, "-m", "batchnorm", "study", *arguments]
    source = str(Path(cli.__file__).parents[1])
    env = os.environ | {"PYTHONPATH": source, "OMP_NUM_THREADS": "1", "FORCE_COLOR": "1"}
    streams: dict[str, Any] = {"text": True, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    process = subprocess.Popen(command, cwd=tmp_path, env=env, start_new_session=True, **streams)
    assert process.stderr is not None
    seen = ""
    while "seed 1" not in seen:
        seen += process.stderr.read(50)
    os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate()
    assert process.returncode == 128 + signal.SIGINT, err
    found = json.loads((tmp_path / "out" / "report.json").read_text(encoding="utf-8"))
    assert found["interrupted"]
    assert 0 < found["runs_finished"] < found["runs_planned"]
    assert "Traceback" not in seen + err


IMPORTING = """
import os, signal, sys
class Presses:
    "Ctrl-C comes while torch is imported."
    def find_spec(self, name, path=None, target=None):
        if name == "torch":
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Presses())
sys.argv = ["batchnorm", "study"]
import batchnorm_command
batchnorm_command.main()
"""


def test_ctrl_c_while_modules_are_imported_shows_no_traceback(tmp_path: Path) -> None:
    source = str(Path(cli.__file__).parents[1])
    command, env = [sys.executable, "-c", IMPORTING], os.environ | {"PYTHONPATH": source}
    found = subprocess.run(command, cwd=tmp_path, text=True, capture_output=True, env=env)
    assert found.returncode == 128 + signal.SIGINT
    assert found.stderr == ""


BENCH = ("bench", "--quick", "--no-compile", "--no-networks", "--seconds", "0")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("bench", "--dtype", "int8"), "--dtype int8: expected one of float32, bfloat16, float16, float64"),
        (("bench", "--layout", "rows"), "--layout rows: expected one of contiguous, channels_last, both"),
        (("bench", "--block", "plain", "--block", "tanh"), "--block tanh: expected one of plain, relu, add-relu"),
        (("bench", "--targets", "--block", "relu"), "--targets sets dtypes, layouts and blocks"),
        (("bench", "--recompute", "--targets"), "--recompute measures networks only: leave out --targets"),
        (
            ("bench", "--big-batch", "--dtype", "float32"),
            "--big-batch measures networks only: leave out --targets, --dtype",
        ),
    ],
)
def test_wrong_options_are_one_line_and_status_2(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: tuple[str, ...],
    message: str,
) -> None:
    assert call(monkeypatch, *arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"batchnorm: {message}")


def test_bench_small(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    threads = torch.get_num_threads()
    assert call(monkeypatch, *BENCH, "--layout", "contiguous", "--block", "relu", "--threads", "1") == 0
    out, _ = capsys.readouterr()
    assert "relu, float32, contiguous" in out
    assert "bench/report.html" in out
    found = json.loads((folder / "bench" / "report.json").read_text(encoding="utf-8"))
    assert found["environment"]["threads"] == 1
    assert [case["block"] for case in found["cases"]] == ["relu"] * 3
    torch.set_num_threads(threads)


def test_bench_json_is_all_there_is_on_stdout(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, *BENCH, "--json", "--dtype", "bfloat16", "--output", "out") == 0
    found = json.loads(capsys.readouterr().out)
    assert found == json.loads((folder / "out" / "report.json").read_text(encoding="utf-8"))
    assert {case["dtype"] for case in found["cases"]} == {"bfloat16"}
    assert (folder / "out" / "report.html").exists()


def test_bench_targets(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Every row of the table of aims is printed, beside what was measured of it."""
    monkeypatch.setattr(comparison, "alternate", lambda subjects, seconds: pytest.fail("no case in this run"))
    monkeypatch.setattr(comparison, "cases", lambda pairs, layouts, quick: asked.append((pairs, layouts)) or [])
    monkeypatch.setattr(comparison, "seconds_to_build", lambda: 33.0)
    asked: list[Any] = []
    assert call(monkeypatch, "bench", "--targets", "--no-networks") == 0
    assert asked == [(tuple(PAIRS), LAYOUTS)]
    out, _ = capsys.readouterr()
    for target in TARGETS:
        assert target.name in out
    assert re.search(r"build of the native kernels, one core +33 s +90 s +40 s", out)


def test_bench_refuses_wrong_results_with_status_1(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Case, "ours", lambda case: BatchNorm(case.shape[1], eps=0.1))
    assert call(monkeypatch, *BENCH) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert re.search(r"batchnorm: plain \(8, 16, 16, 16\) float32 contiguous: output is off by", err)
    assert not (folder / "bench").exists()


def test_bench_interrupted(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def second_time(*arguments: Any) -> None:
        if made:
            raise KeyboardInterrupt
        made.append(1)
        check(*arguments)

    made: list[int] = []
    check = comparison.check
    monkeypatch.setattr(comparison, "check", second_time)
    assert call(monkeypatch, *BENCH) == 128 + signal.SIGINT
    assert "Interrupted: only what was measured until then" in capsys.readouterr().out
    found = json.loads((folder / "bench" / "report.json").read_text(encoding="utf-8"))
    assert len(found["cases"]) == 1


def test_bench_recompute(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """On one network, in place of all."""
    network = {"tiny": lambda fused: nn.Sequential(*Builder(fused).conv(3, 4, 3, "silu"), *_head(4))}
    monkeypatch.setattr(memory_networks, "MEMORY_NETWORKS", network)
    monkeypatch.setattr(memory_of_steps, "MEMORY_NETWORKS", network)
    monkeypatch.setattr(memory_of_steps, "AIMS", {"tiny": 0.8})
    monkeypatch.setattr(memory_of_steps, "peak_of_a_step", lambda name, kind, *sizes: 1000 + len(kind))
    assert call(monkeypatch, "bench", "--recompute", "--quick", "--seconds", "0") == 0
    out, _ = capsys.readouterr()
    found = json.loads((folder / "bench" / "report.json").read_text(encoding="utf-8"))
    (step,) = found["steps"]
    assert step["kept"]["recompute"] <= step["kept"]["fused"] < step["kept"]["torch"]
    assert set(step["times"]) == {"recompute", "chain", "checkpoint"}
    assert re.search(r"tiny +kept +0 MiB +0\.\d\d +0\.\d\d", out)
    assert re.search(r"resident +0 MiB +1\.00", out)
    assert "bench/report.json" in out


def test_version(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(monkeypatch, "--version") == 0
    assert capsys.readouterr().out == f"batchnorm {version('batchnorm')}\n"


def test_bench_big_batch(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    asked = []

    def measured(seconds: float, quick: bool, progress: object) -> dict[str, Any]:
        asked.append((seconds, quick))
        empty = {"exact": [], "times": [], "memory": [], "notes": [], "environment": {}}
        sizes = {"exact": [12, 5, 64], "timed": [64, 16, 64], "micro_batch": 8, "pixels": 96}
        load = {"before": 0.0, "after": 0.0, "others": 0.0}
        return empty | {"settings": sizes, "load": load, "interrupted": len(asked) == 2}

    monkeypatch.setattr(big_batch_steps, "measure", measured)
    assert call(monkeypatch, "bench", "--big-batch", "--quick", "--seconds", "1") == 0
    assert "bench/report.json" in capsys.readouterr().out
    assert call(monkeypatch, "bench", "--big-batch", "--json") == 130
    assert json.loads(capsys.readouterr().out) == json.loads((folder / "bench" / "report.json").read_text("utf-8"))
    assert asked == [(1.0, True), (2.0, False)]
    (folder / "taken").touch()
    assert call(monkeypatch, "bench", "--big-batch", "--output", "taken") == 2
    assert "cannot write to taken" in capsys.readouterr().err


def test_an_interrupt_while_torch_is_imported_has_no_traceback(tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("import os, signal, time\nos.kill(os.getpid(), signal.SIGINT)\ntime.sleep(60)\n")
    source = str(Path(cli.__file__).parents[1])
    process = subprocess.run(
        [sys.executable, "-m", "batchnorm", "--version"],
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), source])},
        capture_output=True,
        text=True,
    )
    assert (process.returncode, process.stdout, process.stderr) == (130, "", "")
