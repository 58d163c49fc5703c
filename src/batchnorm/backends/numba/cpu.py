"""Batch normalization on CPU: functions on tensors, with no autograd. What they compute is in design.md's "Kernels".

Statistics and coefficients are float64 tensors of shape (groups, C), one group unless `virtual` asks for more.
Memory layouts are taken as they are: contiguous, channels last, rows. Any other is copied once.
"""

import ctypes
import functools
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from batchnorm.backends.reference import BY_OUTPUT

from .cpu_args import KINDS, Args, Spec
from .cpu_compile import get
from .cpu_memory import empty_like
from .cpu_plan import Plan, plan
from .threads import launch

calls: Counter[str] = Counter()  # how often each function ran, so that a test can prove which did

# Outputs from this size on are written past the cache: they would push out what is still to be read, and a cache line
# that is written as a whole need not be read first. Both sides of the line are in docs/performance.md.
_PAST_CACHE = 4 << 20

_DTYPES = {getattr(torch, name): name for name in KINDS}
_KINDS = {getattr(torch, name): kind for name, kind in KINDS.items()}
_LARGEST = {dtype: torch.finfo(dtype).max for dtype in _DTYPES}


def supports(x: Tensor, mask: Tensor | None = None) -> bool:
    """Whether these kernels serve `x`, and its mask: weights that all channels share."""
    fits = x.device.type == "cpu" and x.dtype in _DTYPES and x.layout is torch.strided and x.dim() >= 2
    return fits and x.numel() > 0 and (mask is None or mask.shape[1] == 1)


def _is_dense(sizes: Sequence[int], strides: Sequence[int]) -> bool:
    """Whether memory holds these dimensions in this order, without gaps."""
    if 0 in sizes:
        return True
    step = 1
    for size, stride in zip(reversed(sizes), reversed(strides), strict=True):
        if size != 1 and stride != step:
            return False
        step *= size
    return True


@functools.lru_cache(maxsize=4096)
def _plan(shape: tuple[int, ...], strides: tuple[int, ...], virtual: int) -> Plan | None:
    """How a tensor is cut; None where its memory is neither contiguous nor rows of channels."""
    N, C, *space = shape
    values = math.prod(space)
    rows = _is_dense((N, *space, C), (strides[0], *strides[2:], strides[1]))
    if not rows and not _is_dense(shape, strides):
        return None
    return plan(rows and C > 1, N, C, values, virtual)


def _dense(x: Tensor) -> Tensor:
    """A copy in a layout that kernels read."""
    last = x.dim() in (4, 5) and x.stride(1) == 1 and x.shape[1] > 1
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    return x.contiguous(memory_format=formats[x.dim()] if last else torch.contiguous_format)


def _prepare(x: Tensor, virtual: int = 0) -> tuple[Tensor, Plan, Args]:
    how = _plan(x.shape, x.stride(), virtual)
    if how is None:
        x = _dense(x)
        how = _plan(x.shape, x.stride(), virtual)
        assert how is not None
    args = Args.from_buffer_copy(how.template)
    args.x = x.data_ptr()
    args.stream = x.nbytes >= _PAST_CACHE
    return x, how, args


def _alike(tensor: Tensor, x: Tensor) -> Tensor:
    """`tensor` with the strides and dtype of `x`."""
    if tensor.stride() == x.stride() and tensor.dtype == x.dtype:
        return tensor
    return torch.empty_like(x).copy_(tensor)


def _run(module: str, kernel: str, spec: Spec, args: Args, parallel: bool) -> None:
    function, address = get(module, kernel, spec)
    args.ticket = 0
    launch(function, address, ctypes.addressof(args), parallel)


_PLAIN = Spec()


def _finish(kernel: str, args: Args) -> None:
    _run("channel", kernel, _PLAIN, args, False)


def _moment_tables(how: Plan, C: int, args: Args) -> Tensor:
    tables = torch.empty(how.chunks * how.groups * (2 * C + 1), dtype=torch.float64)
    args.part_mean = tables.data_ptr()
    args.part_m2 = args.part_mean + how.chunks * how.groups * C * 8
    args.part_count = args.part_m2 + how.chunks * how.groups * C * 8
    return tables


def _sum_tables(how: Plan, C: int, args: Args) -> Tensor:
    tables = torch.empty(how.chunks * how.groups * 2 * C, dtype=torch.float64)
    args.part_g = tables.data_ptr()
    args.part_gx = args.part_g + how.chunks * how.groups * C * 8
    return tables


def _set_parameters(args: Args, **tensors: Tensor) -> list[Tensor]:
    """Sets (groups or 1, C) float64 arrays by name; the list keeps them alive."""
    if len({tensor.shape for tensor in tensors.values()}) > 1:
        tensors = dict(zip(tensors, torch.broadcast_tensors(*tensors.values()), strict=True))
    kept = [tensor.contiguous() for tensor in tensors.values()]
    for name, tensor in zip(tensors, kept, strict=True):
        setattr(args, name, tensor.data_ptr())
    args.shared = int(kept[0].shape[0] == 1)
    return kept


def _set_mask(args: Args, x: Tensor, mask: Tensor | None) -> Tensor | None:
    """Sets weights, which broadcast over (N, 1, *), as (N, S) of the computing type; keep what is returned alive."""
    if mask is not None:
        dtype = torch.promote_types(x.dtype, torch.float32)
        mask = mask.expand(x.shape[0], 1, *x.shape[2:]).to(dtype).contiguous()
        args.mask = mask.data_ptr()
    return mask


def _set_affine(args: Args, weight: Tensor | None, bias: Tensor | None) -> None:
    if weight is not None:
        args.weight, args.weight_kind = weight.data_ptr(), _KINDS[weight.dtype]
    if bias is not None:
        args.bias, args.bias_kind = bias.data_ptr(), _KINDS[bias.dtype]


def moments(x: Tensor, virtual: int = 0, mask: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Count (groups, 1), mean and sum of squared deviations (groups, C) of each channel."""
    calls["moments"] += 1
    x, how, args = _prepare(x, virtual)
    C = x.shape[1]
    tables = _moment_tables(how, C, args)  # noqa: F841 (kept alive)
    count = torch.empty((how.groups, 1), dtype=torch.float64)
    mean, m2 = torch.empty((2, how.groups, C), dtype=torch.float64).unbind()
    args.count, args.mean, args.m2 = count.data_ptr(), mean.data_ptr(), m2.data_ptr()
    mask = _set_mask(args, x, mask)
    kernel = "moments" if mask is None else "masked_moments"
    _run(how.module, kernel, Spec(_DTYPES[x.dtype], mask=mask is not None), args, how.parallel)
    _finish("merge_moments", args)
    return count, mean, m2


def normalize(
    x: Tensor,
    mean: Tensor,
    scale: Tensor,
    shift: Tensor,
    residual: Tensor | None = None,
    activation: str | None = None,
    virtual: int = 0,
    mask: Tensor | None = None,
) -> Tensor:
    """act((x − mean)·scale + shift + residual)."""
    calls["normalize"] += 1
    x, how, args = _prepare(x, virtual)
    y = empty_like(x)
    args.y = y.data_ptr()
    kept = _set_parameters(args, mean=mean, scale=scale, shift=shift)  # noqa: F841 (kept alive)
    if residual is not None:
        residual = _alike(residual, x)
        args.residual = residual.data_ptr()
    mask = _set_mask(args, x, mask)
    spec = Spec(_DTYPES[x.dtype], activation, residual is not None, mask is not None)
    _run(how.module, "normalize", spec, args, how.parallel)
    return y


def backward_reduce(
    grad: Tensor,
    x: Tensor,
    mean: Tensor,
    scale: Tensor,
    shift: Tensor,
    residual: Tensor | None = None,
    activation: str | None = None,
    virtual: int = 0,
    mask: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Σ g′ and Σ g′·(x − mean), where g′ is the gradient before the activation."""
    calls["backward_reduce"] += 1
    x, how, args = _prepare(x, virtual)
    C = x.shape[1]
    grad = _alike(grad, x)
    args.grad = grad.data_ptr()
    kept = _set_parameters(args, mean=mean, scale=scale, shift=shift)  # noqa: F841 (kept alive)
    if residual is not None:
        residual = _alike(residual, x)
        args.residual = residual.data_ptr()
    tables = _sum_tables(how, C, args)  # noqa: F841 (kept alive)
    sum_g, sum_gx = torch.empty((2, how.groups, C), dtype=torch.float64).unbind()
    args.sum_g, args.sum_gx = sum_g.data_ptr(), sum_gx.data_ptr()
    mask = _set_mask(args, x, mask)
    spec = Spec(_DTYPES[x.dtype], activation, residual is not None, mask is not None)
    _run(how.module, "reduce", spec, args, how.parallel)
    _finish("merge_sums", args)
    return sum_g, sum_gx


def backward_apply(
    grad: Tensor,
    x: Tensor,
    mean: Tensor,
    scale: Tensor,
    shift: Tensor,
    a: Tensor,
    b: Tensor,
    c: Tensor,
    residual: Tensor | None = None,
    activation: str | None = None,
    virtual: int = 0,
    mask: Tensor | None = None,
    need_residual: bool = True,
) -> tuple[Tensor, Tensor | None]:
    """The input's gradient a·g′ + b·(x − mean) + c, and the residual's, g′."""
    calls["backward_apply"] += 1
    x, how, args = _prepare(x, virtual)
    grad = _alike(grad, x)
    args.grad = grad.data_ptr()
    kept = _set_parameters(args, mean=mean, scale=scale, shift=shift, a=a, b=b, c=c)  # noqa: F841 (kept alive)
    dx = empty_like(x)
    args.y = dx.data_ptr()
    dresidual = None
    if residual is not None:
        residual = _alike(residual, x)
        args.residual = residual.data_ptr()
        if need_residual:
            dresidual = empty_like(x)
            args.dresidual = dresidual.data_ptr()
    mask = _set_mask(args, x, mask)
    spec = Spec(_DTYPES[x.dtype], activation, residual is not None, mask is not None)
    _run(how.module, "apply", spec, args, how.parallel)
    return dx, dresidual


def _set_running(args: Args, running: Any) -> None:
    """Counts the batch, and hands the population to the kernel, which moves it.

    `running`: the two buffers, the counter or None, torch's momentum or None for 1/counter, and "skip" or "propagate".
    """
    mean, var, batches, momentum, nonfinite = running
    changed = [mean, var]
    if batches is not None:
        counter = ctypes.c_int64.from_address(batches.data_ptr())
        counter.value += 1
        if momentum is None:
            momentum = 1.0 / counter.value
        changed.append(batches)
    if momentum is None:
        raise ValueError("a cumulative average (momentum=None) needs num_batches_tracked")
    args.momentum, args.flag = momentum, ctypes.addressof(args) + Args.skipped.offset
    args.limit = _LARGEST[mean.dtype] if nonfinite == "skip" else 0.0
    args.running_mean, args.running_var, args.running_kind = mean.data_ptr(), var.data_ptr(), _KINDS[mean.dtype]
    torch.autograd.graph.increment_version(changed)


def _set_statistics(args: Args, statistics: Tensor) -> None:
    args.mean = statistics.data_ptr()
    args.rstd = args.mean + statistics.shape[2] * 8
    args.shared = 1


def forward(
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    activation: str | None,
    running: Any = None,
) -> tuple[Tensor, Tensor, bool]:
    """Normalises by the batch's own statistics; returns them as (2, 1, C), mean and rstd, and moves `running`.

    The last result says whether a channel was skipped there, its statistics not being finite in the buffers' dtype.
    """
    calls["forward"] += 1
    x, how, args = _prepare(x)
    C = x.shape[1]
    y = empty_like(x)
    statistics = torch.empty((2, 1, C), dtype=torch.float64)
    args.y, args.eps = y.data_ptr(), eps
    _set_statistics(args, statistics)
    _set_affine(args, weight, bias)
    if residual is not None:
        residual = _alike(residual, x)
        args.residual = residual.data_ptr()
    if running is not None:
        _set_running(args, running)
    spec = Spec(_DTYPES[x.dtype], activation, residual is not None)
    if how.fused:
        _run(how.module, "forward", spec, args, how.parallel)
        return y, statistics, args.skipped != 0
    tables = _moment_tables(how, C, args)  # noqa: F841 (kept alive)
    rest = torch.empty(C + 1, dtype=torch.float64)
    args.m2 = rest.data_ptr()
    args.count = args.m2 + C * 8
    _run(how.module, "moments", Spec(spec.dtype), args, how.parallel)
    _finish("finish_forward", args)
    _run(how.module, "normalize", spec, args, how.parallel)
    return y, statistics, args.skipped != 0


def frozen(
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    activation: str | None,
    population: tuple[Tensor, Tensor],
) -> tuple[Tensor, Tensor]:
    """Normalises by a population's mean and variance, and returns them as `forward` does."""
    calls["frozen"] += 1
    x, how, args = _prepare(x)
    mean, var = population
    y = empty_like(x)
    statistics = torch.empty((2, 1, x.shape[1]), dtype=torch.float64)
    args.y, args.eps = y.data_ptr(), eps
    args.running_mean, args.running_var, args.running_kind = mean.data_ptr(), var.data_ptr(), _KINDS[mean.dtype]
    _set_statistics(args, statistics)
    _set_affine(args, weight, bias)
    if residual is not None:
        residual = _alike(residual, x)
        args.residual = residual.data_ptr()
    _finish("read_population", args)
    spec = Spec(_DTYPES[x.dtype], activation, residual is not None)
    _run(how.module, "normalize", spec, args, how.parallel)
    return y, statistics


def _backward_spec(dtype: str, activation: str | None, residual: bool) -> Spec:
    return Spec(dtype, activation, residual, output=residual and activation in BY_OUTPUT)


def backward(
    grad: Tensor,
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    statistics: Tensor,
    activation: str | None,
    frozen: bool,
    need_residual: bool,
    need_affine: bool,
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of input, residual, weight and bias; None where not asked for.

    The input's goes through the batch's statistics, unless they are those of a `frozen` population. For an activation
    `BY_OUTPUT`, what is passed as the residual is the output.
    """
    calls["backward"] += 1
    x, how, args = _prepare(x)
    grad = _alike(grad, x)
    dx = empty_like(x)
    args.grad, args.y, args.constant = grad.data_ptr(), dx.data_ptr(), frozen
    _set_statistics(args, statistics)
    _set_affine(args, weight, bias)
    dresidual = dweight = dbias = None
    if residual is not None:
        residual = _alike(residual, x)
        args.residual = residual.data_ptr()
        if need_residual:
            dresidual = empty_like(x)
            args.dresidual = dresidual.data_ptr()
    if need_affine and weight is not None:
        dweight = torch.empty_like(weight)
        args.dweight, args.dweight_kind = dweight.data_ptr(), args.weight_kind
    if need_affine and bias is not None:
        dbias = torch.empty_like(bias)
        args.dbias, args.dbias_kind = dbias.data_ptr(), args.bias_kind
    spec = _backward_spec(_DTYPES[x.dtype], activation, residual is not None)
    if how.fused:
        _run(how.module, "backward", spec, args, how.parallel)
        return dx, dresidual, dweight, dbias
    C = x.shape[1]
    tables = _sum_tables(how, C, args)  # noqa: F841 (kept alive)
    rest = torch.empty((5, C), dtype=torch.float64)
    args.sum_g = rest.data_ptr()
    args.sum_gx, args.a, args.b, args.c = (args.sum_g + i * C * 8 for i in range(1, 5))
    _run(how.module, "reduce", spec, args, how.parallel)
    _finish("finish_backward", args)
    _run(how.module, "apply", spec, args, how.parallel)
    return dx, dresidual, dweight, dbias


def warmup(
    dtypes: Iterable[torch.dtype] = (torch.float32, torch.bfloat16),
    activations: Iterable[str | None] = (None, "relu"),
) -> None:
    """Compiles what common networks need into the on-disk cache, in both layouts, with and without a residual."""
    for dtype in dtypes:
        name = _DTYPES[dtype]
        get("rows", "moments", Spec(name))
        for activation in activations:
            for residual in (False, True):
                for spec, kernels in (
                    (Spec(name, activation, residual), ("planes forward", "planes normalize", "rows normalize")),
                    (_backward_spec(name, activation, residual), ("planes backward", "rows reduce", "rows apply")),
                ):
                    for kernel in kernels:
                        get(*kernel.split(), spec)
    for kernel in ("finish_forward", "finish_backward", "read_population"):
        get("channel", kernel, _PLAIN)
