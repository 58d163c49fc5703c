"""The registry of cases: one layer on one input, forward and backward."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from batchnorm.layers import BatchNorm

Shape = tuple[int, ...]

# The distinct batch-norm shapes of ResNet-50 at batch 32 and 224 px; then rows of features, and a volume.
LARGE: list[Shape] = [
    (32, 64, 112, 112),
    (32, 64, 56, 56),
    (32, 256, 56, 56),
    (32, 128, 56, 56),
    (32, 128, 28, 28),
    (32, 512, 28, 28),
    (32, 256, 28, 28),
    (32, 256, 14, 14),
    (32, 1024, 14, 14),
    (32, 512, 14, 14),
    (32, 512, 7, 7),
    (32, 2048, 7, 7),
    (256, 1024),
    (4096, 1024),
    (4, 64, 16, 28, 28),
]
# Rows of an MLP, and small images: the fixed cost of a call is about as large as the cost of its values.
MEDIUM: list[Shape] = [(256, 64), (256, 256), (8, 16, 16, 16)]
# Fewer than 8,192 values: the fixed cost of a call is the larger part.
SMALL: list[Shape] = [(2, 16, 8, 8), (4, 32, 7, 7), (32, 128), (64, 32), (16, 128), (2, 8, 100)]
# Inputs of batch norms in MLPs; all of them are also in the lists above.
ROWS: list[Shape] = [(32, 128), (256, 64), (256, 1024), (4096, 1024)]
QUICK: list[Shape] = [(8, 16, 16, 16), (64, 128), (2, 16, 8, 8)]

GROUPS = {"large": 2**18, "medium": 8192, "small": 0}  # the least number of values

BLOCKS: dict[str, tuple[str | None, bool]] = {  # activation; True with a residual
    "plain": (None, False),
    "relu": ("relu", False),
    "add-relu": ("relu", True),
    "silu": ("silu", False),
    "gelu": ("gelu", False),
}
DTYPES = {name: getattr(torch, name) for name in ("float32", "bfloat16", "float16", "float64")}
LAYOUTS = ("contiguous", "channels_last")


@dataclass(frozen=True)
class Case:
    """A block (batch norm, residual, activation) on an input of one shape, dtype and layout."""

    shape: Shape
    dtype: torch.dtype
    layout: str
    block: str

    @property
    def activation(self) -> str | None:
        return BLOCKS[self.block][0]

    @property
    def group(self) -> str:
        values = torch.Size(self.shape).numel()
        return next(name for name, least in GROUPS.items() if values >= least)

    @property
    def facts(self) -> dict[str, Any]:
        """The case as plain values."""
        dtype = str(self.dtype).removeprefix("torch.")
        facts = {"dtype": dtype, "block": self.block, "layout": self.layout, "group": self.group}
        return {**facts, "shape": list(self.shape)}

    def __str__(self) -> str:
        return f"{self.block} {self.shape} {str(self.dtype).removeprefix('torch.')} {self.layout}"

    def inputs(self) -> list[Tensor]:
        """The input and, if there is one, the residual: not centred, and the same at every call."""
        return [self._tensor(seed) * 2 + 1 for seed in range(2 if BLOCKS[self.block][1] else 1)]

    def gradient(self) -> Tensor:
        """The gradient of the output."""
        return self._tensor(2)

    def _tensor(self, seed: int) -> Tensor:
        x = torch.randn(self.shape, generator=torch.Generator().manual_seed(seed)).to(self.dtype)
        formats = {4: torch.channels_last, 5: torch.channels_last_3d}
        return x if self.layout == "contiguous" else x.contiguous(memory_format=formats[len(self.shape)])

    def torchs(self) -> nn.Module:
        """The block with torch's layers; the bare layer if the block is only a norm."""
        ranks = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}
        norm = ranks[len(self.shape)](self.shape[1], dtype=self.parameter_dtype)
        activation = None if self.activation is None else getattr(F, self.activation)
        return norm if self.block == "plain" else _Block(norm, activation)

    def ours(self) -> nn.Module:
        return BatchNorm(self.shape[1], activation=self.activation, dtype=self.parameter_dtype)

    @property
    def parameter_dtype(self) -> torch.dtype:
        """The dtype of the parameters: float32 for inputs of 16 bits, as with autocast."""
        return torch.promote_types(self.dtype, torch.float32)


class _Block(nn.Module):
    def __init__(self, norm: nn.Module, activation: Callable[[Tensor], Tensor] | None) -> None:
        super().__init__()
        self.norm, self.activation = norm, activation

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        y = self.norm(x)
        y = y if residual is None else y + residual
        return y if self.activation is None else self.activation(y)


def cases(pairs: Sequence[tuple[str, str]], layouts: Sequence[str], quick: bool = False) -> list[Case]:
    """Every input in every layout, for each (dtype, block); channels_last needs inputs of four or five dimensions."""
    shapes = QUICK if quick else LARGE + MEDIUM + SMALL
    return [
        Case(shape, DTYPES[dtype], layout, block)
        for dtype, block in pairs
        for layout in layouts
        for shape in shapes
        if layout == "contiguous" or len(shape) > 3
    ]
