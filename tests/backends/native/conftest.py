"""A folder to build in, and the modules under test as a separate package."""

import importlib
import sys
import types
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.builds import NATIVE, REAL, Place


@pytest.fixture
def place(tmp_path: Path) -> Place:
    if not REAL or not sys.platform.startswith("linux"):
        pytest.skip("needs Linux and g++ or clang++")
    return Place(tmp_path)


@pytest.fixture
def native(place: Place, monkeypatch: pytest.MonkeyPatch) -> Iterator[types.ModuleType]:
    """A fresh copy of build.py in this process, which builds in `place`."""
    for name, value in place.environment.items():
        monkeypatch.setenv(name, value)
    for name in ("BATCHNORM_CACHE", "BATCHNORM_NATIVE", "XDG_CACHE_HOME", "CXXFLAGS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("tempfile.tempdir", str(place.temporary))
    package = types.ModuleType("native_copy")
    package.__path__ = [str(NATIVE)]
    sys.modules["native_copy"] = package
    build = importlib.import_module("native_copy.build")
    monkeypatch.setattr(build, "CPUINFO", place.cpuinfo)
    yield build
    for name in [name for name in sys.modules if name.partition(".")[0] == "native_copy"]:
        del sys.modules[name]
