"""The calls that run Triton's kernels by default: those that a measurement on that kind of card found to be faster.

`batchnorm bench --device cuda` measures. Calls that no row covers run torch's own operator in the plain case, and the
reference's operations for everything else.
"""

from functools import cache
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from batchnorm.backends import triton

Kind = Literal["plain", "fused", "composed"]  # torch's own; with an activation or residual; everything else


class Row(NamedTuple):
    """Triton serves these calls on cards of this capability, because of the measurement of that date."""

    capability: tuple[int, int]
    layout: Literal["planes", "rows"]
    dtype: torch.dtype
    kind: Kind
    least: int  # values of the smallest input that was measured
    date: str
    figure: str  # the speed relative to the default before, and the place of the report


MEASURED: tuple[Row, ...] = ()  # no card has been measured yet


def prefers(x: Tensor, kind: Kind) -> bool:
    """True if a measured row covers a call of this kind on `x`."""
    if not MEASURED or triton.reason_against(x) is not None:
        return False
    layout = "planes" if x.is_contiguous() and x.dim() > 2 else "rows"
    return any(
        row.capability == capability(x.device)
        and (row.layout, row.dtype, row.kind) == (layout, x.dtype, kind)
        and row.least <= x.numel()
        for row in MEASURED
    )


@cache
def capability(device: torch.device) -> tuple[int, int]:
    """The compute capability of a CUDA or ROCm device; (0, 0) of others."""
    return torch.cuda.get_device_capability(device) if device.type == "cuda" else (0, 0)
