"""The operators: schemas, fakes, derivatives, and the choice between them, a fast function and plain torch.

`batchnorm::train`, `::frozen` and `::backward` are what compilers, exporters and tensor modes see. Loading this file
loads torch and the reference alone.

Shapes: x, residual and gradients (N, C, *), dense; weight and bias (C,); mean, rstd = 1/√(var + eps) and var (1, C).
"""

from types import ModuleType
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.autograd import forward_ad

from batchnorm.backends import KERNELS, kernels_for, reference
from batchnorm.core import channel_math
from batchnorm.core.channel_math import Details, Standard
from batchnorm.core.gradients import (
    Call,
    Decisions,
    Frozen,
    Fused,
    General,
    asked_for,
    by_batch,
    by_constants,
    by_decisions,
    differentiable,
    fused,
    keep,
)
from batchnorm.core.moments import Moments
from batchnorm.core.rules import Running

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


class Remembered(NamedTuple):
    """What stands in place of a batch's moments where the kernels have moved the population by them, or nobody will."""

    skipped: bool


def train(
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    activation: str | None,
    running: Running | Literal[False] | None = None,
) -> tuple[Tensor, Moments | Remembered]:
    """Normalise by the batch: y and the batch's moments, or word that nobody needs them any more.

    That is where the kernels have moved `running` by them, or where it is False: nothing is to be remembered.
    """
    if _eager(x):
        kernels = kernels_for(x)
        if running is not None and _fuses(kernels, weight, bias, *(running[:2] if running else ())):
            y, skipped = _fused(x, residual, weight, bias, Call(kernels, eps, activation, running or None, None))
            return y, Remembered(skipped)
        by_itself = Decisions(lambda own: (Standard.of_batch(own, eps), own), lambda sums: sums, activation, 0)
        y, *batch = General.apply(kernels, x, residual, weight, bias, None, by_itself)
        return y, Moments(*batch).channels()
    if _wants_plain_torch(x):
        y, _, batch = by_batch(reference, x, residual, weight, bias, eps, activation)
        return y, Moments(batch.count, batch.mean[0].detach(), batch.m2[0].detach())
    y, mean, _, var = torch.ops.batchnorm.train(x, residual, weight, bias, eps, activation)
    count = x.numel() // x.shape[1]
    return y, Moments(count, mean[0], var[0] * count)


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
    """Normalise by a population's mean and variance (C,), constants to the gradient."""
    eager = _eager(x)
    if eager and _fuses(kernels := kernels_for(x), weight, bias, mean, var):
        return _fused(x, residual, weight, bias, Call(kernels, eps, activation, None, (mean, var)))[0]
    constant = Standard.of_population(mean, var, eps)
    arguments = x, residual, weight, bias, constant.mean, constant.rstd, activation
    if eager:
        return Frozen.apply(kernels_for(x), *arguments)
    return by_constants(reference, *arguments) if _wants_plain_torch(x) else torch.ops.batchnorm.frozen(*arguments)


def _fuses(kernels: ModuleType, *raw: Tensor | None) -> bool:
    """Whether the kernels have fused paths, and may take these parameters and buffers by address."""
    if kernels is reference:
        return False
    for t in raw:
        if t is not None and not t.is_contiguous():
            return False
    return len(raw) < 4 or raw[2].dtype is raw[3].dtype  # type: ignore[union-attr]  # buffers are never None


# Autograd's own, below the wrapper for torch.func, which comes another way (`transformed`)
_apply_fused = super(torch.autograd.Function, Fused).apply


def _fused(*inputs: Any) -> tuple[Tensor, bool]:
    """`Fused`, where a gradient may be asked for: autograd's bookkeeping costs as much as a small tensor's kernel."""
    if torch.is_grad_enabled():
        for t in inputs[:4]:
            if t is not None and t.requires_grad:
                return _apply_fused(*inputs)
    y, _, skipped = fused(*inputs)
    return y, skipped


def general(
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    mask: Tensor | None,
    decisions: Decisions,
) -> tuple[Tensor, Moments]:
    """Any combination of masks, virtual batches, shared statistics and renormalisation: y and the batch's moments."""
    if _wants_plain_torch(x) or torch.compiler.is_compiling():
        y, _, batch = by_decisions(reference, x, residual, weight, bias, mask, decisions)
        count, mean, m2 = batch.count, batch.mean.detach(), batch.m2.detach()
    else:
        y, count, mean, m2 = General.apply(kernels_for(x, mask), x, residual, weight, bias, mask, decisions)
    return y, Moments(count, mean, m2)


def transformed() -> bool:
    """Whether a transform is active that differentiates or vectorises plain torch operations only."""
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0


def _eager(x: Tensor) -> bool:
    """Whether nobody is watching: no transform, no compiler, no tensor mode, no subclass that has to see operators."""
    if transformed() or torch.compiler.is_compiling():
        return False
    plain = type(x) is Tensor or type(x) is torch.nn.Parameter
    return plain and torch._C._len_torch_dispatch_stack() == 0


def _wants_plain_torch(x: Tensor) -> bool:
    """Whether to run the reference in the open: for a transform, or for a compiler that fuses it best."""
    return transformed() or (torch.compiler.is_compiling() and x.device.type not in KERNELS)


def _train(x: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    y, standard, batch = by_batch(kernels_for(x), x, *rest)
    return y, batch.mean, standard.rstd, batch.variance


def _frozen(x: Tensor, *rest: Any) -> Tensor:
    return by_constants(kernels_for(x), x, *rest)


def _backward(
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
    standard = Standard(mean, rstd, torch.full_like(mean, 0.0 if frozen else x.shape[1] / x.numel()))
    details = Details(residual, activation)
    dx, dresidual, dweight, dbias = channel_math.backward(kernels_for(x), grad, x, weight, bias, standard, details)
    dresidual = x.new_empty(0) if dresidual is None else dresidual  # an operator has no optional results
    return dx, dresidual, dweight.to(affine_dtype), dbias.to(affine_dtype)


for _name, _function in {"train": _train, "frozen": _frozen, "backward": _backward}.items():
    _library.impl(_name, _function, "CompositeExplicitAutograd")  # below autograd, on every device


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
    x, residual, weight, bias, *rest, activation = inputs
    ctx.frozen = len(rest) == 2
    if ctx.frozen:
        mean, rstd = rest
    else:
        (ctx.eps,), (_, mean, rstd, _) = rest, output
        ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)
    keep(ctx, x, residual, weight, bias, activation, mean, rstd)


def _differentiate(ctx: Any, grad: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
    nothing = (None,) * (7 if ctx.frozen else 6)
    if grad is None:
        return nothing
    needs = ctx.needs_input_grad[:4]
    x, residual, weight, bias, mean, rstd = ctx.saved_tensors
    if torch.is_grad_enabled():

        def y(x: Any, residual: Any, weight: Any, bias: Any) -> Tensor:
            if ctx.frozen:
                return by_constants(reference, x, residual, weight, bias, mean, rstd, ctx.activation)
            return by_batch(reference, x, residual, weight, bias, ctx.eps, ctx.activation)[0]

        grads: Any = differentiable(y, grad, (x, residual, weight, bias), needs)
    else:
        grads = torch.ops.batchnorm.backward(
            grad, x, residual, weight, bias, mean, rstd, ctx.activation, ctx.frozen, ctx.affine_dtype
        )
    return *asked_for(ctx, grads, grad, needs), *nothing[4:]


for _name in ("train", "frozen"):
    torch.library.register_autograd(f"batchnorm::{_name}", _differentiate, setup_context=_setup, lib=_library)
