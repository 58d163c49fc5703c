"""The operators on accelerators: Triton's kernels, registered with the dispatcher at the first call on such a device.

The reference serves dtypes that the kernels do not read, and devices without kernels. Under torch.compile these
operators are not called: the graph holds plain torch operations, which the compiler fuses with their neighbours.
"""

import warnings
from functools import cache
from typing import Any

import torch
from torch import Tensor

from batchnorm.backends import triton
from batchnorm.core import ops, population
from batchnorm.core.torch_internals import below_autograd, dispatch_mode_active

KEYS = {"cuda": "CUDA", "xpu": "XPU", "cpu": "CPU"}  # the dispatcher uses the key CUDA for ROCm too

_libraries: list[torch.library.Library] = []  # a registration lasts as long as its library
_moves: dict[torch.device, bool] = {}  # True if the device's kernel gave the same running statistics as plain torch


@cache
def register(device_type: str) -> None:
    """Give the operators their kernels on a kind of device, once per process. "cpu" is for Triton's interpreter."""
    from batchnorm.backends.triton import launch

    key = KEYS[device_type]
    library = torch.library.Library("batchnorm", "IMPL")
    for name, kernel, otherwise in (
        ("moments", launch.moments, ops._moments),
        ("normalize", launch.normalize, ops.reference.normalize),
        ("backward_reduce", launch.backward_reduce, ops.reference.backward_reduce),
        ("backward_apply", _empty_for_none(launch.backward_apply), ops._backward_apply),
        ("forward", launch.forward, ops._forward),
        ("backward", launch.backward, ops._backward),
    ):
        library.impl(name, _where_served(kernel, otherwise, 1 if name.startswith("backward") else 0), key)
    library.impl("forward", _differentiable_forward, f"Autograd{key}")
    _libraries.append(library)


def updates_in_one_launch(running_mean: Tensor, running_var: Tensor) -> bool:
    """True if one kernel, `ops.move_population`, can update these buffers.

    The kernel is tried once on each device. If it does not compile there, or gives other values than plain torch, it is
    not used, and a warning is shown. It is not tried while a CUDA graph is captured, nor under a dispatch mode, which
    would record the trial.
    """
    if type(running_mean) is not Tensor or running_var.dtype not in triton.DTYPES:
        return False
    if triton.reason_against(running_mean) is not None:
        return False
    device = running_mean.device
    if device not in _moves:
        capturing = device.type == "cuda" and torch.cuda.is_current_stream_capturing()
        if capturing or dispatch_mode_active():
            return False
        _moves[device] = _tried(device)
    return _moves[device]


def _tried(device: torch.device) -> bool:
    _register_population(device.type)
    olds = torch.tensor([[0.5, -2.0, 1e3, 0.0], [1.0, 3.0, 1e-3, 2.0]], device=device)
    news = torch.tensor([[1.5, -1.0, float("nan"), 7.0], [0.5, 4.0, 1.0, float("inf")]], device=device)
    results = []
    try:
        for move in (ops.move_population, population.update_in_place):
            (mean, var), counts = olds.clone().unbind(), torch.tensor([3, 0], device=device)
            move(mean, var, counts[0], counts[1], news[0], news[1], None, True)
            results.append((torch.stack((mean, var)), counts))
        (ours, counted), (plain, right) = results
        if torch.allclose(ours, plain, rtol=1e-6, atol=0) and torch.equal(counted, right):
            return True
        why = "its results are not those of plain torch"
    except Exception as error:  # Triton and its compilers raise many kinds
        why = f"{type(error).__name__}: {error}"
    warnings.warn(
        f"the kernel that updates running statistics does not work on {device} ({why}); plain torch operations do it",
        RuntimeWarning,
        stacklevel=2,
    )
    return False


@cache
def _register_population(device_type: str) -> None:
    from batchnorm.backends.triton import launch

    def move(running_mean: Tensor, running_var: Tensor, batches: Any, skipped: Any, *rest: Any) -> None:
        for written in (running_mean, running_var, batches, skipped):
            if written is not None and not written.is_inference():
                torch.autograd.graph.increment_version(written)
        launch.move_population(running_mean, running_var, batches, skipped, *rest)

    library = torch.library.Library("batchnorm", "IMPL")
    library.impl("move_population", _where_served(move, population.update_in_place, 0), KEYS[device_type])
    _libraries.append(library)


def _where_served(kernel: Any, otherwise: Any, position: int) -> Any:
    """`kernel`, or `otherwise` for an input that it cannot serve; the input is the argument at `position`."""

    def implementation(*arguments: Any) -> Any:
        x = arguments[position]
        served = triton.reason_against(x) is None and x.numel() > 0
        return (kernel if served else otherwise)(*arguments)

    return implementation


def _empty_for_none(backward_apply: Any) -> Any:
    """`backward_apply` with an empty tensor instead of None: an operator has no optional results."""

    def implementation(*arguments: Any) -> tuple[Tensor, Tensor]:
        dx, dresidual = backward_apply(*arguments)
        return dx, dx.new_empty(0) if dresidual is None else dresidual

    return implementation


class _Forward(torch.autograd.Function):
    """`forward` with its derivative, `backward`; the forward pass saves everything that the backward pass reads."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, residual: Tensor | None, weight: Tensor | None, bias: Tensor | None, *rest: Any
    ) -> tuple[Tensor, Tensor]:
        with below_autograd():
            y, statistics = ops.forward(x, residual, weight, bias, *rest)
        ctx.activation, ctx.eps, ctx.constant = rest[8], rest[7], rest[0] is not None
        extra = None
        if residual is not None and ctx.activation is not None:
            extra = y if ctx.activation in ops.reference.BY_OUTPUT else residual
        ctx.save_for_backward(x, extra, weight, bias, statistics)
        ctx.mark_non_differentiable(statistics)
        return y, statistics

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: Tensor | None) -> tuple[Tensor | None, ...]:
        needs, x = list(ctx.needs_input_grad[:4]), ctx.saved_tensors[0]
        linear = needs[1] and ctx.activation is None  # the output is linear in the residual
        needs[1] = needs[1] and not linear
        grads: list[Tensor | None] = [None] * 4
        if any(needs):
            computed = ops.backward(grad, *ctx.saved_tensors, ctx.eps, ctx.activation, ctx.constant, needs)
            grads = [g if need else None for g, need in zip(computed, needs, strict=True)]
        if linear:
            grads[1] = grad.to(x.dtype)
        return *grads, *[None] * (len(ctx.needs_input_grad) - 4)


def _differentiable_forward(*arguments: Any) -> tuple[Tensor, Tensor]:
    """`forward` under autograd; the buffers that the kernels write are marked as changed."""
    for written in arguments[6:10]:
        if written is not None and not written.is_inference():
            torch.autograd.graph.increment_version(written)
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in arguments[:4]):
        y, statistics = _Forward.apply(*arguments)
        return y, statistics
    with below_autograd():
        y, statistics = ops.forward(*arguments)
    return y, statistics
