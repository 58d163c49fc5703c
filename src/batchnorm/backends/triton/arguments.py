"""Tensors as kernel arguments: views, masks, per-channel tables, scratch memory. No function reads values."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor

from batchnorm.backends.triton import plan
from batchnorm.backends.triton.plan import View

DTYPES = (torch.float32, torch.float16, torch.bfloat16)

# By device and stream: counters that every kernel leaves at 0. Kernels of one stream run one after another.
_counters: dict[tuple[torch.device, int], Tensor] = {}


class Input(NamedTuple):
    """A tensor (N, C, *) that is dense in one of the two memory formats, and its view."""

    x: Tensor
    view: View

    def alike(self, t: Tensor | None, name: str) -> Tensor | None:
        """`t` with the strides of x; its dtype may be another that the kernels read."""
        if t is None:
            return None
        if t.shape != self.x.shape or t.device != self.x.device:
            raise RuntimeError(
                f"expected {name} of shape {tuple(self.x.shape)} on {self.x.device}, as the input, got "
                f"{tuple(t.shape)} on {t.device}"
            )
        if t.stride() == self.x.stride() and t.dtype in DTYPES:
            return t
        return torch.empty_like(self.x, dtype=t.dtype if t.dtype in DTYPES else torch.float32).copy_(t)

    def required(self, t: Tensor, name: str) -> Tensor:
        """`alike` for a tensor that is not None."""
        found = self.alike(t, name)
        assert found is not None
        return found

    @property
    def sizes(self) -> tuple[int, int, int, int]:
        """A, C, S and GROUP."""
        return self.view.outer, self.view.channels, self.view.inner, self.view.group


def prepare(x: Tensor, virtual_batch_size: int = 0) -> Input:
    """`x` as the kernels read it: itself, or a contiguous copy if it is dense in neither memory format.

    Raises:
        RuntimeError: a dtype that no kernel reads, or a tensor without values or channels.
    """
    if x.dtype not in DTYPES or x.dim() < 2 or x.numel() == 0:
        raise RuntimeError(
            f"expected a float32, float16 or bfloat16 input (N, C, *) with values, got {x.dtype} {tuple(x.shape)}"
        )
    channels_last = not x.is_contiguous() and x.movedim(1, -1).is_contiguous()
    x = x if channels_last else x.contiguous()
    return Input(x, plan.view(tuple(x.shape), channels_last, virtual_batch_size))


def mask_of(given: Input, mask: Tensor | None) -> tuple[Tensor | None, int]:
    """Weights in float32, and the kernels' MASK: 0 without, 1 for a weight per position, 2 for a weight per value."""
    if mask is None:
        return None, 0
    x = given.x
    if mask.shape[1] != 1:
        return torch.empty_like(x, dtype=torch.float32).copy_(mask.expand(x.shape)), 2
    return mask.expand(x.shape[0], 1, *x.shape[2:]).to(torch.float32).contiguous(), 1


def tables(given: Input, *parameters: Tensor) -> tuple[list[Tensor], int]:
    """Per-channel parameters (G or 1, C) in float64, and STRIDE: C, or 0 if each has a single row.

    Raises:
        RuntimeError: a parameter that has neither one row nor one for each virtual batch.
    """
    groups, channels = given.view.groups, given.view.channels
    most = max(t.shape[0] for t in parameters)
    if most not in (1, groups):
        raise RuntimeError(f"expected parameters of {groups} virtual batches, or of one, got {most}")
    found = [t.to(torch.float64).expand(most, channels).contiguous() for t in parameters]
    return found, channels if most > 1 else 0


def vector(given: Input, t: Tensor | None, name: str) -> Tensor | None:
    """A parameter (C,) on the input's device, contiguous.

    Raises:
        RuntimeError: another number of channels, or another device.
    """
    if t is None:
        return None
    if t.numel() != given.view.channels or t.device != given.x.device:
        raise RuntimeError(
            f"expected {name} of {given.view.channels} channels on {given.x.device}, got {tuple(t.shape)} on {t.device}"
        )
    return t.contiguous()


def counters(x: Tensor, slots: int) -> Tensor:
    """Zeros by which kernels count the programs that have arrived; kernels reset them to 0.

    Memory is kept by device and stream. A CUDA graph that is being captured gets its own: it may run on any stream.
    """
    size = 2 + slots
    kind = x.device.type
    if kind == "meta" or (kind == "cuda" and torch.cuda.is_current_stream_capturing()):
        return torch.zeros(size, dtype=torch.int32, device=x.device)
    key = x.device, _stream(x.device)
    kept = _counters.get(key)
    if kept is None or kept.numel() < size:
        kept = _counters[key] = torch.zeros(plan.power_of_two(max(size, 4096)), dtype=torch.int32, device=x.device)
    return kept


def _stream(device: torch.device) -> int:
    if device.type == "cuda":
        return int(torch.cuda.current_stream(device).cuda_stream)
    if device.type == "xpu":
        return int(torch.xpu.current_stream(device).sycl_queue)
    return 0


def current(x: Tensor) -> AbstractContextManager[Any]:
    """A context in which kernels run on the input's device, whichever device was current."""
    if x.device.type == "cuda":
        return torch.cuda.device(x.device)
    return torch.xpu.device(x.device) if x.device.type == "xpu" else nullcontext()
