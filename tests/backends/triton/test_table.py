"""The device table: calls that a measured row covers run Triton's kernels, all others do not."""

import subprocess
import sys
from unittest import mock

import pytest
import torch

from batchnorm.backends import triton as backend
from batchnorm.backends.triton import table
from batchnorm.backends.triton.table import Row

ROW = Row((9, 0), "planes", torch.bfloat16, "fused", 1000, "2026-11-27", "1.5")


def on_card(shape=(10, 10, 10), dtype=torch.bfloat16):
    """A tensor as the table sees it on a card."""
    x = torch.empty(shape, dtype=dtype, device="meta")
    return mock.Mock(wraps=x, device=torch.device("cuda", 0), dtype=dtype)


@pytest.fixture
def measured(monkeypatch):
    monkeypatch.setattr(table, "MEASURED", (ROW,))
    monkeypatch.setattr(table, "capability", lambda device: (9, 0))
    monkeypatch.setattr(backend, "installed", lambda: True)


def test_a_row_covers_its_calls_and_no_others(measured, monkeypatch):
    assert table.prefers(on_card(), "fused")
    assert not table.prefers(on_card(), "plain")
    assert not table.prefers(on_card((10, 10, 9)), "fused")
    assert not table.prefers(on_card((100, 10)), "fused")
    assert not table.prefers(on_card(dtype=torch.float32), "fused")
    assert not table.prefers(torch.empty(10, 10, 10, dtype=torch.bfloat16, device="meta"), "fused")
    monkeypatch.setattr(table, "capability", lambda device: (8, 0))
    assert not table.prefers(on_card(), "fused")


def test_rows_carry_the_figure_and_the_date_of_their_measurement():
    for row in table.MEASURED:
        assert row.date
        assert row.figure


def test_nothing_that_was_not_measured_is_preferred():
    if not table.MEASURED:
        assert not table.prefers(on_card(), "plain")


def test_importing_the_package_does_not_import_triton():
    """Not on CPU, whatever is installed and asked for."""
    program = """
import sys, torch
before = set(sys.modules)
import batchnorm as bn
with bn.backend("triton"):
    try:
        bn.BatchNorm1d(3)(torch.ones(2, 3))
    except RuntimeError as error:
        assert "it runs on CUDA, ROCm and XPU devices" in str(error), error
    else:
        raise AssertionError("served")
assert "triton" not in set(sys.modules) - before
"""
    done = subprocess.run(
        [sys.executable, "-c", program], env={"BATCHNORM_NATIVE": "0"} | _environment(), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def _environment():
    import os

    return {k: v for k, v in os.environ.items() if k not in ("TRITON_INTERPRET", "BATCHNORM_NATIVE")}
