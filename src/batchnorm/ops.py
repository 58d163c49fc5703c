"""Operator schemas, fakes, autograd and the device table.

This file imports torch and the reference alone; a device's own kernels load when its first tensor comes. The kernels
know nothing of autograd: `batchnorm::backward` is the derivative of both forward operators, and where a gradient is
itself to be differentiated (`create_graph=True`, `torch.func`, forward-mode) the reference is, by torch.

Shapes: x, residual and gradients (N, C, *), dense; weight and bias (C,); mean and var (1, C) in the statistics' dtype.
"""

from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from batchnorm.kernels import reference

# The device table: which kernels serve which device; every other device runs the reference.
KERNELS: dict[str, ModuleType] = {}

_library = torch.library.Library("batchnorm", "DEF")
_library.define(
    "train(Tensor x, Tensor? residual, Tensor? weight, Tensor? bias, float eps, str? activation)"
    " -> (Tensor y, Tensor mean, Tensor var)"
)
_library.define(
    "frozen(Tensor x, Tensor? residual, Tensor? weight, Tensor? bias, Tensor mean, Tensor var, float eps,"
    " str? activation) -> Tensor"
)
_library.define(
    "backward(Tensor grad, Tensor x, Tensor? residual, Tensor? weight, Tensor? bias, Tensor mean, Tensor var,"
    " float eps, str? activation, bool frozen, ScalarType affine_dtype)"
    " -> (Tensor dx, Tensor dresidual, Tensor dweight, Tensor dbias)"
)


def train(
    x: Tensor, residual: Tensor | None, weight: Tensor | None, bias: Tensor | None, eps: float, activation: str | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Normalise by the batch: y and, for the population, the batch's mean and biased variance."""
    if transformed():
        return _train(reference, x, residual, weight, bias, eps, activation)
    return torch.ops.batchnorm.train(x, residual, weight, bias, eps, activation)


def frozen(
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor,
    var: Tensor,
    eps: float,
    activation: str | None,
) -> Tensor:
    """Normalise by statistics that are constants to the gradient."""
    if transformed():
        return _frozen(reference, x, residual, weight, bias, mean, var, eps, activation)
    return torch.ops.batchnorm.frozen(x, residual, weight, bias, mean, var, eps, activation)


def transformed() -> bool:
    """Whether a transform is active that differentiates or vectorises plain torch operations only."""
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0


def _train(
    kernels: ModuleType,
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    activation: str | None,
) -> tuple[Tensor, Tensor, Tensor]:
    mean, m2 = kernels.moments(x)
    var = m2 / (x.numel() // x.shape[1])
    return _frozen(kernels, x, residual, weight, bias, mean, var, eps, activation), mean.detach(), var.detach()


def _frozen(
    kernels: ModuleType,
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor,
    var: Tensor,
    eps: float,
    activation: str | None,
) -> Tensor:
    _, scale, shift = _scale_and_shift(weight, bias, var, eps)
    return kernels.normalize(x, mean, scale, shift, residual, activation)


def _backward(
    kernels: ModuleType,
    grad: Tensor,
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor,
    var: Tensor,
    eps: float,
    activation: str | None,
    frozen: bool,
    affine_dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    rstd, scale, shift = _scale_and_shift(weight, bias, var, eps)
    if grad.stride() != x.stride():  # autograd may send another layout: an expanded scalar, say
        grad = torch.empty_like(x, dtype=grad.dtype).copy_(grad)
    sum_grad, sum_grad_x = kernels.backward_reduce(grad, x, mean, scale, shift, residual, activation)
    # dx = scale·(g′ − mean(g′) − x̂·mean(g′·x̂)), as coefficients of g′, x − mean and 1; constants have no such means
    each = scale * (0.0 if frozen else 1 / (x.numel() // x.shape[1]))
    b, c = -each * rstd.square() * sum_grad_x, -each * sum_grad
    dx, dresidual = kernels.backward_apply(grad, x, mean, scale, shift, scale, b, c, residual, activation)
    dweight, dbias = (sum_grad_x * rstd)[0].to(affine_dtype), sum_grad[0].to(affine_dtype)
    return dx, x.new_empty(0) if dresidual is None else dresidual, dweight, dbias


def _scale_and_shift(
    weight: Tensor | None, bias: Tensor | None, var: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """1/√(var + eps), γ/√(var + eps) and β, each (1, C) in the statistics' dtype."""
    rstd = (var + eps).rsqrt()
    scale = rstd if weight is None else rstd * weight
    shift = torch.zeros_like(rstd) if bias is None else bias.to(rstd.dtype).reshape(rstd.shape)
    return rstd, scale, shift


def _kernels_for(x: Tensor) -> ModuleType:
    return KERNELS.get(x.device.type, reference)


for _name, _function in {"train": _train, "frozen": _frozen, "backward": _backward}.items():
    # below autograd, on every device
    _library.impl(
        _name,
        lambda first, *rest, _function=_function: _function(_kernels_for(first), first, *rest),
        "CompositeExplicitAutograd",
    )


@torch.library.register_fake("batchnorm::train", lib=_library)
def _(x: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
    mean = x.new_empty((1, x.shape[1]), dtype=reference.statistics_dtype(x))
    return torch.empty_like(x), mean, torch.empty_like(mean)


@torch.library.register_fake("batchnorm::frozen", lib=_library)
def _(x: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(x)


@torch.library.register_fake("batchnorm::backward", lib=_library)
def _(grad: Tensor, x: Tensor, residual: Tensor | None, *rest: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    dresidual = x.new_empty(0) if residual is None else torch.empty_like(residual)
    affine = x.new_empty(x.shape[1], dtype=rest[-1])
    return torch.empty_like(x), dresidual, affine, torch.empty_like(affine)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    """Keep the input and per-channel values; what the activation's derivative alone needs, where there is one."""
    x, residual, weight, bias, *constants, ctx.eps, ctx.activation = inputs
    ctx.frozen = bool(constants)
    mean, var = constants or output[1:]
    if not constants:
        ctx.mark_non_differentiable(mean, var)
    ctx.set_materialize_grads(False)
    affine = weight if weight is not None else bias
    ctx.affine_dtype = x.dtype if affine is None else affine.dtype
    again = (residual, bias) if ctx.activation else (None, None)
    ctx.save_for_backward(x, again[0], weight, again[1], mean, var)


def _differentiate(ctx: Any, grad: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
    nothing = (None,) * (8 if ctx.frozen else 6)
    if grad is None:
        return nothing
    needs = ctx.needs_input_grad[:4]
    x, residual, weight, bias, mean, var = ctx.saved_tensors
    if torch.is_grad_enabled():
        grads = _differentiable_gradients(ctx, grad, needs)
    else:
        grads = list(
            torch.ops.batchnorm.backward(
                grad, x, residual, weight, bias, mean, var, ctx.eps, ctx.activation, ctx.frozen, ctx.affine_dtype
            )
        )
        if residual is None:  # then its gradient is the output's
            grads[1] = grad
    return *(g if need else None for g, need in zip(grads, needs, strict=True)), *nothing[4:]


def _differentiable_gradients(ctx: Any, grad: Tensor, needs: tuple[bool, ...]) -> list[Tensor | None]:
    """The gradients as functions of the inputs: the reference once more, differentiated by autograd."""
    x, residual, weight, bias, mean, var = ctx.saved_tensors
    # views, so that one tensor in two roles has a gradient in each
    x, residual, weight, bias = inputs = [None if t is None else t.view_as(t) for t in (x, residual, weight, bias)]
    if ctx.frozen:
        y = _frozen(reference, x, residual, weight, bias, mean, var, ctx.eps, ctx.activation)
    else:
        y = _train(reference, x, residual, weight, bias, ctx.eps, ctx.activation)[0]
    wanted = {i: t for i, t in enumerate(inputs) if t is not None and needs[i]}
    grads: list[Tensor | None] = [None] * 4
    if wanted:
        derived = torch.autograd.grad(y, list(wanted.values()), grad, create_graph=True)
        for i, g in zip(wanted, derived, strict=True):
            grads[i] = g
    if ctx.activation is None:  # then they were not kept: y is linear in them
        grads[1] = grad
        grads[3] = grad.sum([0, *range(2, grad.dim())]).to(ctx.affine_dtype) if needs[3] else None
    return grads


for _name in ("train", "frozen"):
    torch.library.register_autograd(f"batchnorm::{_name}", _differentiate, setup_context=_setup, lib=_library)
