"""Operator schemas, fakes, autograd and the device table.

This file imports torch and the reference alone; a device's own kernels load when its first tensor comes. The kernels
know nothing of autograd: the derivative of every path is `between.backward`, and where a gradient is itself to be
differentiated (`create_graph=True`, `torch.func`, forward-mode) the reference is, by torch.

Shapes: x, residual and gradients (N, C, *), dense; weight and bias (C,); mean, rstd = 1/√(var + eps) and var (1, C).
"""

from collections.abc import Callable
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import forward_ad

from batchnorm import between
from batchnorm.between import Details, Standard
from batchnorm.kernels import reference
from batchnorm.moments import Moments

# The device table: which kernels serve which device; every other device runs the reference.
KERNELS: dict[str, ModuleType] = {}

_library = torch.library.Library("batchnorm", "DEF")
_library.define(
    "train(Tensor x, Tensor? residual, Tensor? weight, Tensor? bias, float eps, str? activation)"
    " -> (Tensor y, Tensor mean, Tensor rstd, Tensor var)"
)
_library.define(
    "frozen(Tensor x, Tensor? residual, Tensor? weight, Tensor? bias, Tensor mean, Tensor rstd, str? activation)"
    " -> Tensor"
)
_library.define(
    "backward(Tensor grad, Tensor x, Tensor? residual, Tensor? weight, Tensor? bias, Tensor mean, Tensor rstd,"
    " str? activation, bool frozen, ScalarType affine_dtype)"
    " -> (Tensor dx, Tensor dresidual, Tensor dweight, Tensor dbias)"
)


def train(
    x: Tensor, residual: Tensor | None, weight: Tensor | None, bias: Tensor | None, eps: float, activation: str | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Normalise by the batch: y and, for the population, the batch's mean and biased variance."""
    if _transformed():
        y, mean, _, var = _train(reference, x, residual, weight, bias, eps, activation)
    else:
        y, mean, _, var = torch.ops.batchnorm.train(x, residual, weight, bias, eps, activation)
    return y, mean, var


def frozen(
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    constant: Standard,
    activation: str | None,
) -> Tensor:
    """Normalise by statistics that are constants to the gradient."""
    if _transformed():
        return _frozen(reference, x, residual, weight, bias, constant.mean, constant.rstd, activation)
    return torch.ops.batchnorm.frozen(x, residual, weight, bias, constant.mean, constant.rstd, activation)


class Decisions(NamedTuple):
    """What the general path asks between the primitives.

    `standard` turns the moments of each group into what normalises it, and the moments for the population; `reduce`
    sums a gradient's sums over all who share the statistics.
    """

    standard: Callable[[Moments], tuple[Standard, Moments]]
    reduce: Callable[[Tensor], Tensor]
    activation: str | None
    virtual: int


def general(
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    mask: Tensor | None,
    decisions: Decisions,
) -> tuple[Tensor, Moments]:
    """Any combination of masks, virtual batches, shared statistics and renormalisation: y and the batch's moments."""
    if _transformed() or torch.compiler.is_compiling():
        y, _, batch = _general(reference, x, residual, weight, bias, mask, decisions)
        count, mean, m2 = batch.count, batch.mean.detach(), batch.m2.detach()
    else:
        y, count, mean, m2 = _General.apply(x, residual, weight, bias, mask, decisions)
    return y, Moments(count, mean, m2)


def _transformed() -> bool:
    """Whether a transform is active that differentiates or vectorises plain torch operations only."""
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0


def _kernels_for(x: Tensor) -> ModuleType:
    return KERNELS.get(x.device.type, reference)


def _train(
    kernels: ModuleType,
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    activation: str | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    batch = Moments(*kernels.moments(x))
    standard = Standard.of_batch(batch, eps)
    y = between.forward(kernels, x, weight, bias, standard, Details(residual, activation))
    return y, batch.mean.detach(), standard.rstd.detach(), batch.variance.detach()


def _frozen(
    kernels: ModuleType,
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor,
    rstd: Tensor,
    activation: str | None,
) -> Tensor:
    standard = Standard(mean, rstd, torch.zeros_like(mean))
    return between.forward(kernels, x, weight, bias, standard, Details(residual, activation))


def _backward(
    kernels: ModuleType,
    grad: Tensor,
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor,
    rstd: Tensor,
    activation: str | None,
    frozen: bool,
    affine_dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    share = torch.full_like(mean, 0.0 if frozen else x.shape[1] / x.numel())
    standard = Standard(mean, rstd, share)
    details = Details(residual, activation)
    dx, dresidual, dweight, dbias = between.backward(kernels, grad, x, weight, bias, standard, details)
    dresidual = x.new_empty(0) if dresidual is None else dresidual  # an operator has no optional results
    return dx, dresidual, dweight.to(affine_dtype), dbias.to(affine_dtype)


def _general(
    kernels: ModuleType,
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    mask: Tensor | None,
    decisions: Decisions,
) -> tuple[Tensor, Standard, Moments]:
    standard, batch = decisions.standard(Moments(*kernels.moments(x, decisions.virtual, mask)))
    details = Details(residual, decisions.activation, decisions.virtual, mask)
    return between.forward(kernels, x, weight, bias, standard, details), standard, batch


for _name, _function in {"train": _train, "frozen": _frozen, "backward": _backward}.items():
    # below autograd, on every device
    _library.impl(
        _name,
        lambda first, *rest, _function=_function: _function(_kernels_for(first), first, *rest),
        "CompositeExplicitAutograd",
    )


@torch.library.register_fake("batchnorm::train", lib=_library)
def _(x: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    mean = x.new_empty((1, x.shape[1]), dtype=reference.statistics_dtype(x))
    return torch.empty_like(x), mean, torch.empty_like(mean), torch.empty_like(mean)


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
    x, residual, weight, bias, *rest, ctx.activation = inputs
    ctx.frozen = len(rest) == 2
    mean, rstd = rest if ctx.frozen else output[1:3]
    if not ctx.frozen:
        ctx.mark_non_differentiable(*output[1:])
        ctx.eps = rest[0]
    ctx.set_materialize_grads(False)
    affine = weight if weight is not None else bias
    ctx.affine_dtype = x.dtype if affine is None else affine.dtype
    again = (residual, bias) if ctx.activation else (None, None)
    ctx.save_for_backward(x, again[0], weight, again[1], mean, rstd)


def _differentiate(ctx: Any, grad: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
    nothing = (None,) * (7 if ctx.frozen else 6)
    if grad is None:
        return nothing
    needs = ctx.needs_input_grad[:4]
    x, residual, weight, bias, mean, rstd = ctx.saved_tensors
    if torch.is_grad_enabled():

        def y(x: Any, residual: Any, weight: Any, bias: Any) -> Tensor:
            if ctx.frozen:
                return _frozen(reference, x, residual, weight, bias, mean, rstd, ctx.activation)
            return _train(reference, x, residual, weight, bias, ctx.eps, ctx.activation)[0]

        grads = _differentiable_gradients(y, grad, (x, residual, weight, bias), needs)
    else:
        grads = torch.ops.batchnorm.backward(
            grad, x, residual, weight, bias, mean, rstd, ctx.activation, ctx.frozen, ctx.affine_dtype
        )
    return *_asked_for(grads, grad, needs, ctx), *nothing[4:]


class _General(torch.autograd.Function):
    """`_general` with the kernels' own derivative: it keeps its inputs and per-channel values alone."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        x, residual, weight, bias, mask, ctx.decisions = inputs
        y, ctx.standard, batch = _general(_kernels_for(x), *inputs)
        ctx.activation = ctx.decisions.activation
        affine = weight if weight is not None else bias
        ctx.affine_dtype = x.dtype if affine is None else affine.dtype
        again = (residual, bias) if ctx.activation else (None, None)
        ctx.save_for_backward(x, again[0], weight, again[1], mask)
        count = torch.as_tensor(batch.count, dtype=batch.mean.dtype, device=x.device)
        ctx.mark_non_differentiable(count, batch.mean, batch.m2)
        return y, count, batch.mean, batch.m2

    @staticmethod
    def backward(ctx: Any, grad: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        x, residual, weight, bias, mask = ctx.saved_tensors
        needs = ctx.needs_input_grad[:4]
        grads: Any
        details = Details(residual, ctx.activation, ctx.decisions.virtual, mask)
        if torch.is_grad_enabled():

            def y(x: Any, residual: Any, weight: Any, bias: Any) -> Tensor:
                return _general(reference, x, residual, weight, bias, mask, ctx.decisions)[0]

            grads = _differentiable_gradients(y, grad, (x, residual, weight, bias), needs)
        else:
            grads = between.backward(
                _kernels_for(x), grad, x, weight, bias, ctx.standard, details, ctx.decisions.reduce
            )
        return *_asked_for(grads, grad if mask is None else torch.where(mask > 0, grad, 0), needs, ctx), None, None


def _differentiable_gradients(
    function: Callable[..., Tensor], grad: Tensor, saved: tuple[Tensor | None, ...], needs: tuple[bool, ...]
) -> list[Tensor | None]:
    """The gradients as functions of the inputs: the reference once more, differentiated by autograd."""
    # views, so that one tensor in two roles has a gradient in each
    inputs = [None if t is None else t.view_as(t) for t in saved]
    y = function(*inputs)
    wanted = {i: t for i, t in enumerate(inputs) if t is not None and needs[i]}
    grads: list[Tensor | None] = [None] * 4
    if wanted:
        derived = torch.autograd.grad(y, list(wanted.values()), grad, create_graph=True)
        for i, g in zip(wanted, derived, strict=True):
            grads[i] = g
    return grads


def _asked_for(
    grads: Any, grad: Tensor, needs: tuple[bool, ...], ctx: Any
) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
    """The gradients of the inputs that need one. Without an activation y is linear in residual and bias."""
    dx, dresidual, dweight, dbias = grads
    if ctx.activation is None:
        dresidual = grad
        if dbias is None and needs[3]:
            dbias = grad.sum([0, *range(2, grad.dim())])
    return (
        dx if needs[0] else None,
        dresidual if needs[1] else None,
        dweight.to(ctx.affine_dtype) if needs[2] else None,
        dbias.to(ctx.affine_dtype) if needs[3] else None,
    )


for _name in ("train", "frozen"):
    torch.library.register_autograd(f"batchnorm::{_name}", _differentiate, setup_context=_setup, lib=_library)
