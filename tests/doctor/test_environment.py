"""`batchnorm doctor --environment`: the backend that serves, and the reason, in every state of the native library."""

import json
import os
from pathlib import Path

import pytest
import torch

from batchnorm import functional
from batchnorm.backends import native
from batchnorm.backends.native import build
from batchnorm.doctor.environment import BACKENDS, DeviceBackends, environment
from tests.support.commands import call


@pytest.fixture
def cold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, in which this process has not looked yet."""
    monkeypatch.delenv("BATCHNORM_NATIVE", raising=False)
    monkeypatch.setenv("BATCHNORM_CACHE", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr(build, "_known", {})
    return tmp_path


def cpu() -> DeviceBackends:
    return next(device for device in environment().devices if device.device == "cpu")


def test_the_table_is_what_layers_do() -> None:
    """The table of devices and the choice that each call makes, which the doctor must not invent a second time."""
    state = environment().native.state
    assert state == "ready" if native.available() else state in ("unavailable", "not built yet")
    if state != "not built yet":
        assert (cpu().plain, cpu().options) == BACKENDS[functional._route(torch.empty(0))]


def test_versions_and_processor() -> None:
    found = environment()
    assert found.torch == torch.__version__
    assert found.threads == torch.get_num_threads()
    assert 1 <= found.cores <= (os.cpu_count() or 1)
    assert found.processor


def test_switched_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BATCHNORM_NATIVE", "0")
    assert environment().native.reason == "switched off by BATCHNORM_NATIVE=0"
    assert (cpu().plain, cpu().options) == ("aten", "reference")


def test_not_built_yet(cold: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "true")
    found = environment()
    assert (found.native.state, found.native.reason, found.cache) == ("not built yet", None, str(cold))
    assert cpu().plain == "native"
    assert list(cold.iterdir()) == [], "the doctor builds nothing"


def test_no_compiler(cold: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", str(cold))
    found = environment()
    assert found.compiler is None
    assert found.native.state == "unavailable"
    assert "apt install g++" in (found.native.reason or "")
    assert cpu().plain == "aten"


def test_a_library_that_does_not_load(cold: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "true")
    library = build.describe().path
    assert library is not None
    library.write_bytes(b"cut off by a full disk")
    found = environment().native
    assert found.state == "unavailable"
    assert f"{library} cannot be loaded" in (found.reason or "")
    assert "delete it, then run `batchnorm warmup`" in (found.reason or "")


def test_json_is_all_there_is_on_stdout(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(monkeypatch, "doctor", "--environment", "--json") == 0
    assert json.loads(capsys.readouterr().out) == json.loads(json.dumps(environment().to_dict()))


def test_the_table_in_the_terminal(
    cold: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("BATCHNORM_NATIVE", "0")
    assert call(monkeypatch, "doctor", "--environment") == 0
    lines = capsys.readouterr().out.splitlines()
    assert "native kernels  unavailable: switched off by BATCHNORM_NATIVE=0" in [line.strip() for line in lines]
    assert any(line.split()[:3] == ["cpu", "aten", "reference"] for line in lines)


@pytest.mark.parametrize("arguments", [(), ("--environment", "model.pt")])
def test_a_file_or_the_environment(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...]
) -> None:
    assert call(monkeypatch, "doctor", *arguments) == 2
    assert (
        capsys.readouterr().err
        == "batchnorm: doctor: give either a FILE (.pt, .safetensors, .onnx or module:factory) or --environment\n"
    )
