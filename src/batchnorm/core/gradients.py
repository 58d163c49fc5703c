"""Autograd: the derivative of every path is `channel_math.backward`; where a gradient is itself to be differentiated
(`create_graph=True`), the reference is, by torch.

What is kept for the backward pass: the input, per-channel values, and the residual (or the output) where the
activation's derivative needs it. Normalised values and that derivative are computed again.
"""

from collections.abc import Callable
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from batchnorm.backends import reference
from batchnorm.core import channel_math
from batchnorm.core.channel_math import Details, Standard
from batchnorm.core.moments import Moments
from batchnorm.core.rules import Running

Gradients = tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]  # of x, residual, weight and bias


class Decisions(NamedTuple):
    """What the general path asks between the primitives.

    `standard` turns the moments of each group into what normalises it, and the moments for the population; `reduce`
    sums a gradient's sums over all who share the statistics.
    """

    standard: Callable[[Moments], tuple[Standard, Moments]]
    reduce: Callable[[Tensor], Tensor]
    activation: str | None
    virtual: int


def by_batch(
    kernels: ModuleType,
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    activation: str | None,
) -> tuple[Tensor, Standard, Moments]:
    """Normalise by the batch's own moments: y, what normalised, the moments."""
    batch = Moments(*kernels.moments(x))
    standard = Standard.of_batch(batch, eps)
    return channel_math.forward(kernels, x, weight, bias, standard, Details(residual, activation)), standard, batch


def by_constants(
    kernels: ModuleType,
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor,
    rstd: Tensor,
    activation: str | None,
) -> Tensor:
    """Normalise by given statistics."""
    standard = Standard(mean, rstd, torch.zeros_like(mean))
    return channel_math.forward(kernels, x, weight, bias, standard, Details(residual, activation))


def by_decisions(
    kernels: ModuleType,
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    mask: Tensor | None,
    decisions: Decisions,
) -> tuple[Tensor, Standard, Moments]:
    """Normalise by what is decided between the primitives: y, what normalised, the moments for the population."""
    standard, batch = decisions.standard(Moments(*kernels.moments(x, decisions.virtual, mask)))
    details = Details(residual, decisions.activation, decisions.virtual, mask)
    return channel_math.forward(kernels, x, weight, bias, standard, details), standard, batch


class Call(NamedTuple):
    """What the fused path is told beside the tensors that gradients flow to."""

    kernels: ModuleType
    eps: float
    activation: str | None
    running: Running | None  # to be moved by the batch
    population: tuple[Tensor, Tensor] | None  # mean and variance to normalise by, in place of the batch's


def fused(
    x: Tensor, residual: Tensor | None, weight: Tensor | None, bias: Tensor | None, call: Call
) -> tuple[Tensor, Tensor, bool]:
    """Normalise in the kernels' one pass: y, mean and rstd (2, 1, C), whether a channel of `running` was skipped."""
    kernels, eps, activation, running, population = call
    if population is None:
        y, statistics, skipped = kernels.forward(x, residual, weight, bias, eps, activation, running)
        return y, statistics, skipped
    return *kernels.frozen(x, residual, weight, bias, eps, activation, population), False


class Fused(torch.autograd.Function):
    """`by_batch` in the kernels' one pass each way, or `by_constants` where there is a `population`: y, and whether a
    channel of `running` was skipped.

    Where the output says what an activation's derivative is, it is kept in place of the residual: mostly the next
    layer keeps it as well.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, residual: Tensor | None, weight: Tensor | None, bias: Tensor | None, call: Call
    ) -> tuple[Tensor, bool]:
        y, statistics, skipped = fused(x, residual, weight, bias, call)
        ctx.call = call
        by_output = residual is not None and call.activation in reference.BY_OUTPUT
        again = y if by_output else residual if call.activation else None
        # where the bias is not needed again but for its dtype, changing it before the backward pass is no error
        ctx.bias = None if call.activation and not by_output else bias
        ctx.save_for_backward(x, again, weight, bias if ctx.bias is None else None, statistics)
        return y, skipped

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: Any) -> tuple[Any, ...]:
        x, again, weight, bias, statistics = ctx.saved_tensors
        needs_x, needs_residual, needs_weight, needs_bias, _ = ctx.needs_input_grad
        bias = bias if ctx.bias is None else ctx.bias
        activation, frozen = ctx.call.activation, ctx.call.population is not None
        if torch.is_grad_enabled():
            if again is not None and activation in reference.BY_OUTPUT:  # from here on, as without an activation
                grad, again, activation = reference.ACTIVATIONS[activation][1](grad, again.detach()), None, None

            def y(x: Any, residual: Any, weight: Any, bias: Any) -> Tensor:
                if frozen:
                    return by_constants(reference, x, residual, weight, bias, statistics[0], statistics[1], activation)
                return by_batch(reference, x, residual, weight, bias, ctx.call.eps, activation)[0]

            needs = needs_x, needs_residual, needs_weight, needs_bias
            grads = differentiable(y, grad, (x, again, weight, bias), needs)
        else:
            affine = needs_weight or needs_bias
            grads = ctx.call.kernels.backward(
                grad, x, again, weight, bias, statistics, activation, frozen, needs_residual, affine
            )
        dx, dresidual, dweight, dbias = grads
        dresidual = grad if activation is None else dresidual
        return (
            dx if needs_x else None,
            dresidual if needs_residual else None,
            dweight if needs_weight else None,
            dbias if needs_bias else None,
            None,
        )


class Frozen(torch.autograd.Function):
    """`by_constants` for the eager mode."""

    @staticmethod
    def forward(ctx: Any, kernels: ModuleType, *inputs: Any) -> Tensor:
        x, residual, weight, bias, mean, rstd, activation = inputs
        ctx.kernels = kernels
        keep(ctx, x, residual, weight, bias, activation, mean, rstd)
        return by_constants(kernels, *inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        x, residual, weight, bias, mean, rstd = ctx.saved_tensors
        needs = ctx.needs_input_grad[1:5]
        grads: Any
        if torch.is_grad_enabled():

            def y(x: Any, residual: Any, weight: Any, bias: Any) -> Tensor:
                return by_constants(reference, x, residual, weight, bias, mean, rstd, ctx.activation)

            grads = differentiable(y, grad, (x, residual, weight, bias), needs)
        else:
            standard = Standard(mean, rstd, torch.zeros_like(mean))
            grads = channel_math.backward(
                ctx.kernels, grad, x, weight, bias, standard, Details(residual, ctx.activation)
            )
        return None, *asked_for(ctx, grads, grad, needs), None, None, None


class General(torch.autograd.Function):
    """`by_decisions` for the eager mode."""

    @staticmethod
    def forward(ctx: Any, kernels: ModuleType, *inputs: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        x, residual, weight, bias, mask, ctx.decisions = inputs
        y, ctx.standard, batch = by_decisions(kernels, *inputs)
        ctx.kernels = kernels
        keep(ctx, x, residual, weight, bias, ctx.decisions.activation, mask)
        count = torch.zeros_like(batch.mean) + batch.count
        ctx.mark_non_differentiable(count, batch.mean, batch.m2)
        return y, count, batch.mean, batch.m2

    @staticmethod
    def backward(ctx: Any, grad: Tensor, *_: Any) -> tuple[Any, ...]:
        x, residual, weight, bias, mask = ctx.saved_tensors
        needs = ctx.needs_input_grad[1:5]
        grads: Any
        if torch.is_grad_enabled():

            def y(x: Any, residual: Any, weight: Any, bias: Any) -> Tensor:
                return by_decisions(reference, x, residual, weight, bias, mask, ctx.decisions)[0]

            grads = differentiable(y, grad, (x, residual, weight, bias), needs)
        else:
            details = Details(residual, ctx.activation, ctx.decisions.virtual, mask)
            grads = channel_math.backward(
                ctx.kernels, grad, x, weight, bias, ctx.standard, details, ctx.decisions.reduce
            )
        grad = grad if mask is None else torch.where(mask > 0, grad, 0)
        return None, *asked_for(ctx, grads, grad, needs), None, None


def keep(
    ctx: Any,
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    activation: str | None,
    *others: Tensor | None,
) -> None:
    """Save for the backward pass; residual and bias only where an activation's derivative needs them."""
    affine = weight if weight is not None else bias
    ctx.activation, ctx.affine_dtype = activation, x.dtype if affine is None else affine.dtype
    again = (residual, bias) if activation else (None, None)
    ctx.save_for_backward(x, again[0], weight, again[1], *others)


def differentiable(
    function: Callable[..., Tensor], grad: Tensor, saved: tuple[Tensor | None, ...], needs: tuple[bool, ...]
) -> Gradients:
    """The gradients of `function` as functions of the inputs: run once more, and differentiated by autograd."""
    # views, so that one tensor in two roles has a gradient in each
    inputs = [None if t is None else t.view_as(t) for t in saved]
    y = function(*inputs)
    wanted = {i: t for i, t in enumerate(inputs) if t is not None and needs[i]}
    grads: list[Tensor | None] = [None] * 4
    if wanted:
        derived = torch.autograd.grad(y, list(wanted.values()), grad, create_graph=True)
        for i, g in zip(wanted, derived, strict=True):
            grads[i] = g
    return grads[0], grads[1], grads[2], grads[3]


def asked_for(ctx: Any, grads: Gradients, grad: Tensor, needs: tuple[bool, ...]) -> Gradients:
    """The gradients that are needed. Without an activation y is linear in residual and bias, which were not kept."""
    dx, dresidual, dweight, dbias = grads
    if ctx.activation is None:
        dresidual = grad
        if dbias is None and needs[3]:
            dbias = grad.sum([0, *range(2, grad.dim())])
    return (
        dx if needs[0] else None,
        dresidual if needs[1] else None,
        dweight.to(ctx.affine_dtype) if needs[2] and dweight is not None else None,
        dbias.to(ctx.affine_dtype) if needs[3] and dbias is not None else None,
    )
