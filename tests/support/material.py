"""Realistic data: channels that differ, a drift within the batch, and every layout."""

from collections.abc import Callable

import torch
from torch import Tensor


def drifting(*shape: int, dtype: torch.dtype = torch.float32, offset: float = 3.0) -> Tensor:
    """(N, C, *): channels with different offsets and scales, and a shift of the second half of the batch."""
    n, c = shape[:2]
    column = (1, c, *[1] * (len(shape) - 2))
    x = torch.randn(shape, dtype=torch.float64) * torch.linspace(0.5, 2.0, c).reshape(column)
    x += offset * torch.linspace(-1.0, 1.5, c).reshape(column)
    x[n // 2 :] += 0.75
    return x.to(dtype)


def _within(x: Tensor, step: int = 1) -> Tensor:
    """The same values as a window of something larger, every `step`-th along the last dimension."""
    around = x.new_full([*(n + 2 for n in x.shape[:-1]), step * x.shape[-1] + 2], torch.nan)
    window = around[(*(slice(1, -1) for _ in x.shape[:-1]), slice(1, 1 + step * x.shape[-1], step))]
    return window.copy_(x)


def _stored(x: Tensor, *order: int) -> Tensor:
    """The same tensor, its memory in another order of dimensions."""
    back = sorted(range(x.dim()), key=order.__getitem__)
    return x.permute(order).contiguous().permute(back)


# Each gives a tensor of the same shape with other strides; all but "expanded" keep the values.
LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": lambda x: x.contiguous(),
    "channels_last": lambda x: _stored(x, 0, *range(2, x.dim()), 1),
    "batch_last": lambda x: _stored(x, *range(1, x.dim()), 0),
    "reversed": lambda x: _stored(x, *reversed(range(x.dim()))),
    "sliced": _within,
    "stepped": lambda x: _within(x, 2),
    "channels_last_sliced": lambda x: _within(_stored(x, 0, *range(2, x.dim()), 1).movedim(1, -1)).movedim(-1, 1),
    "expanded": lambda x: x[..., :1].expand(x.shape),
    "one_sample": lambda x: x[:1].expand(x.shape),
}
