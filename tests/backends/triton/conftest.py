"""Skips if Triton is not installed or does not interpret, and tiles so small that small tensors meet every edge."""

from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

import pytest

from batchnorm.backends import triton as backend
from tests.support.interpreter import quickly

SMALL = {
    "TILE": 32,
    "SEGMENT": 16,
    "WHOLE": 64,
    "WHOLE_SEGMENT": 16,
    "PROGRAMS": 12,
    "APPLIED": 3,
    "MERGED": 8,
    "CHANNELS": 8,
}
SMALL |= {"LEAST": {False: 1, True: 2}}

# The tests of what is not run by the interpreter.
WITHOUT_INTERPRETER = {"test_compile", "test_cover", "test_pairs", "test_table"}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    why = None if backend.interpreted() else "run by `make gpu`, which sets TRITON_INTERPRET=1"
    why = why if backend.installed() else "triton is not installed: pip install 'batchnorm[triton]'"
    for item in items:
        module: Any = getattr(item, "module", None)
        if module is None or not module.__name__.startswith("tests.backends.triton."):
            continue
        if why is not None and module.__name__.rpartition(".")[2] not in WITHOUT_INTERPRETER:
            item.add_marker(pytest.mark.skip(reason=why))


@pytest.fixture(autouse=True)
def interpreter() -> Iterator[None]:
    """The interpreter without the work that it repeats."""
    with quickly() if backend.interpreted() and backend.installed() else nullcontext():
        yield


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Tiles of 32 values, 16 bytes of a row in one, at most 12 programs of a reduction, 64 values on chip."""
    from batchnorm.backends.triton import plan

    def forget() -> None:
        for cached in (plan.reduction, plan.elementwise, plan.whole, plan.population):
            cached.cache_clear()

    for name, value in SMALL.items():
        monkeypatch.setattr(plan, name, value)
    forget()
    yield
    forget()
