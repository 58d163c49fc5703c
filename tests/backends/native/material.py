"""Shapes at the edges of the kernels' pieces of work, layouts, and a call of the operators as a function."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from batchnorm.core import ops
from tests.support.material import LAYOUTS as EVERY_LAYOUT
from tests.support.material import drifting

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
PLACES = {name: EVERY_LAYOUT[name] for name in ("contiguous", "channels_last")}
LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {**PLACES, "stepped": EVERY_LAYOUT["stepped"]}

# As (N, C, S): each is cut as planes and, in the layout "channels_last", as rows. The constants are those of `cut` in
# kernels.cpp.
SHAPES = [
    # a block of a run: 1024 values, in multiples of 64
    (3, 2, 1023), (3, 2, 1024), (3, 2, 1025), (2, 2, 2048), (3, 2, 2049), (5, 17, 4097), (1, 1, 9001),
    # a run that is a block of its own: 512; below it, blocks stack the runs of 1024 // S samples
    (4, 5, 511), (4, 5, 512), (4, 5, 513), (19, 3, 49), (20, 3, 49), (21, 3, 49), (41, 3, 49), (1030, 1, 1), (3, 1, 2),
    # bands: of all channels up to 64 in small tensors, of a sixteenth in those that threads share
    (2, 63, 9), (2, 64, 9), (2, 65, 9), (2, 130, 9), (64, 15, 64), (64, 16, 64), (64, 33, 64), (7, 160, 300),
    # more than a band of 16,384 values side by side; a channel of more than 262,144
    (2, 40, 1500), (3, 3, 90001),
    # few channels, so several chunks of each: 16,384 values at least
    (6, 2, 17423), (1, 1, 40000), (2, 15, 16384), (40, 2, 1023),
    # rows: a tile of 32, of which the first 8 find the centre
    (7, 5, 1), (8, 5, 1), (9, 5, 1), (31, 6, 1), (32, 6, 1), (33, 6, 1), (65, 6, 1), (2, 511, 1),
    # slices of columns: 64 of those that threads share, 1024 at most
    (600, 63, 1), (600, 65, 1), (33, 1023, 1), (33, 1024, 1), (33, 1025, 1), (9, 2050, 1),
    # past 262,144 values: chunks of 128 rows at least, and a second launch
    (4096, 65, 1), (300, 1030, 1), (260, 1025, 1),
]  # fmt: skip
ids = pytest.mark.parametrize("shape", SHAPES, ids=str)
every_place = pytest.mark.parametrize("place", PLACES)
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)


def batch_norm(
    x: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    training: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
    residual: Tensor | None = None,
    activation: str | None = None,
) -> Tensor:
    """`ops.forward` with the signature of `F.batch_norm`; autograd calls `ops.backward`."""
    population = (None, None, running_mean, running_var) if training else (running_mean, running_var, None, None)
    return forward(x, residual, weight, bias, *population, momentum=momentum, eps=eps, activation=activation)[0]


def forward(
    x: Tensor,
    residual: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    mean: Tensor | None = None,
    var: Tensor | None = None,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    batches: Tensor | None = None,
    skipped: Tensor | None = None,
    *,
    momentum: float | None = 0.1,
    eps: float = 1e-5,
    activation: str | None = None,
    skip: bool = True,
) -> tuple[Tensor, Tensor]:
    """`ops.forward` with defaults: y and the statistics."""
    return ops.forward(
        x, residual, weight, bias, mean, var, running_mean, running_var, batches, skipped, momentum, eps, activation,
        skip,
    )  # fmt: skip


def parameters(channels: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """running_mean, running_var, weight, bias: none of them trivial."""
    mean, bias = torch.randn(2, channels, dtype=torch.float64)
    var, weight = torch.rand(2, channels, dtype=torch.float64) * 2 + 0.5
    weight[::2] *= -1
    return [t.to(dtype, copy=True) for t in (mean, var, weight, bias)]


def wide(dtype: torch.dtype) -> torch.dtype:
    """The parameters' dtype that goes with inputs of `dtype`."""
    return torch.promote_types(dtype, torch.float32)


def tensors(shape: tuple[int, ...], dtype: torch.dtype, place: str, **offsets: float) -> Any:
    """x, a residual and a gradient in a layout, or those that `offsets` name."""
    offsets = offsets or {"x": 3.0, "residual": 1.0, "grad": 0.3}
    return [LAYOUTS[place](drifting(*shape, dtype=dtype, offset=offset)) for offset in offsets.values()]
