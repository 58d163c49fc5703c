"""Compilers, masks and ranks."""

import copy
import inspect
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from batchnorm.conformance import oracle, ranks
from batchnorm.conformance.conftest import Make


def steps(layer: nn.Module, called: Callable[[Tensor], Tensor]) -> list[Tensor]:
    """Outputs and gradients of three steps, and the buffers afterwards."""
    found: list[Any] = []
    for step in range(3):
        g = torch.Generator().manual_seed(step)
        x = (torch.randn(6, 3, 5, 5, generator=g, dtype=torch.float64) + step).requires_grad_()
        y = called(x)
        y.backward(x.detach().sin())
        found += [y.detach(), x.grad]
    return [*found, layer.weight.grad, *layer.buffers()]


def test_compiled_as_eager(make: Make) -> None:
    """torch.compile gives the same outputs, gradients and running statistics over several steps."""
    eager = make(3, torch.float64)
    layer = copy.deepcopy(eager)
    torch.compiler.reset()
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    for got, wanted in zip(steps(layer, compiled), steps(eager, eager), strict=True):
        torch.testing.assert_close(got, wanted)


def test_masks(make: Make) -> None:
    """Padding does not count in the statistics, and its output is 0."""
    layer = make(3, torch.float64)
    if "mask" not in inspect.signature(layer.forward).parameters:
        pytest.skip(f"{type(layer).__name__} has no masks")
    x = torch.randn(4, 3, 5, 2, dtype=torch.float64)
    mask = torch.rand(4, 1, 5, 2) < 0.6
    y = layer(torch.where(mask, x, torch.nan), mask=mask)
    rows = mask.expand_as(x).movedim(1, -1)[..., 0]
    exact = oracle.normalized(x.movedim(1, -1)[rows].reshape(-1, 3, 1, 1)).flatten(1)
    assert oracle.error(y.movedim(1, -1)[rows], exact) < 1e-10
    assert y.movedim(1, -1)[~rows].abs().sum() == 0


@pytest.mark.parametrize("split", [(4, 4), (7, 1)], ids=["equal ranks", "ragged ranks"])
def test_ranks(pytestconfig: pytest.Config, tmp_path: Path, split: tuple[int, int]) -> None:
    """Statistics shared between two processes over gloo are those of the whole batch."""
    name = pytestconfig.getoption("--sync")
    if name is None:
        pytest.skip("no class that shares statistics was named: --sync package:Class")
    commands = [[sys.executable, ranks.__file__, name, str(r), str(tmp_path), *map(str, split)] for r in range(2)]
    running = [subprocess.Popen(c, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for c in commands]
    for process in running:
        _, said = process.communicate(timeout=120)
        assert process.returncode == 0, said[-2000:]
