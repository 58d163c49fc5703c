"""Batch norms with masks, virtual batches, shared statistics or renormalisation, composed of the four primitives.

Between the primitives, statistics are shared and the values to normalise by are chosen. In eager mode one autograd
Function saves the input and per-channel values only. Transforms, and compilers that fuse plain torch operations, get
the same composition in plain operations.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from batchnorm.backends import Primitives, reference
from batchnorm.core import channel_math, ops, recipes, sharing
from batchnorm.core.channel_math import Details, Standard
from batchnorm.core.moments import Moments
from batchnorm.core.torch_internals import transformed


class Decisions(NamedTuple):
    """The options of a call that apply between the primitives."""

    eps: float
    activation: str | None
    virtual_batch_size: int  # 0: one batch
    group: Any | None
    label: str  # the name of the layer in errors between ranks
    single_by_population: bool
    recompute: bool = True


class Anchor(NamedTuple):
    """The running statistics before this batch, and the limits of renormalisation towards them, if any."""

    mean: Tensor  # (1, C)
    rstd: Tensor
    r_max: Tensor | None
    d_max: Tensor | None


NO_ANCHOR = (None, None, None, None)


def anchor(
    running_mean: Tensor, running_var: Tensor, eps: float, limits: tuple[float | Tensor, float | Tensor] | None
) -> Anchor:
    """The running statistics as constants: copies, because later batches update the buffers."""
    if transformed() or hasattr(running_mean, "placements"):  # transforms and DTensors need plain operations
        mean, rstd, *_ = Standard.of_population(running_mean, running_var, eps)
    else:
        mean, rstd = ops.anchor(running_mean.detach(), running_var.detach(), eps)
    if limits is None:
        return Anchor(mean, rstd, None, None)
    r_max, d_max = (limit.to(mean) if isinstance(limit, Tensor) else mean.new_tensor(limit) for limit in limits)
    return Anchor(mean, rstd, r_max, d_max)


def in_plain_operations(
    kernels: Primitives,
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    mask: Tensor | None,
    population: Anchor | None,
    decisions: Decisions,
) -> tuple[Tensor, Standard, Moments]:
    """The output, the constants it was normalised by, and the moments (1, C) of all values."""
    own = Moments(*kernels.moments(x, decisions.virtual_batch_size, mask))
    shared = own if decisions.group is None else sharing.pooled_over_ranks(own, decisions.group, decisions.label)
    standard = Standard.of_batch(shared, decisions.eps)
    if population is not None:
        standard = _renormalized(population, standard, shared, decisions)
    details = Details(residual, decisions.activation, decisions.virtual_batch_size, mask)
    return channel_math.forward(kernels, x, weight, bias, standard, details), standard, shared.pooled()


def _renormalized(population: Anchor, standard: Standard, shared: Moments, decisions: Decisions) -> Standard:
    """Apply batch renormalisation, and normalise groups of one value by the running statistics."""
    if decisions.single_by_population and isinstance(shared.count, Tensor):
        several = shared.count > 1
        standard = standard._replace(
            mean=torch.where(several, standard.mean, population.mean),
            rstd=torch.where(several, standard.rstd, population.rstd),
            share=torch.where(several, standard.share, 0),
        )
    if population.r_max is None or population.d_max is None:
        return standard
    r = (population.rstd / standard.rstd.detach()).clamp(1 / population.r_max, population.r_max)
    d = ((standard.mean.detach() - population.mean) * population.rstd).clamp(-population.d_max, population.d_max)
    return standard._replace(r=r, d=d)


class Composed(torch.autograd.Function):
    """`in_plain_operations` over the operators, with its derivative: y, and the batch's count, mean and m2 (1, C).

    The forward pass saves everything that the backward pass reads: a later step may have updated the buffers.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        residual: Tensor | None,
        weight: Tensor | None,
        bias: Tensor | None,
        mask: Tensor | None,
        mean: Tensor | None,
        rstd: Tensor | None,
        r_max: Tensor | None,
        d_max: Tensor | None,
        *decisions: Any,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        population = None if mean is None or rstd is None else Anchor(mean, rstd, r_max, d_max)
        chosen = Decisions(*decisions)
        kernels: Primitives = ops if x.numel() else reference  # a rank may have no values
        y, standard, batch = in_plain_operations(kernels, x, residual, weight, bias, mask, population, chosen)
        kept = residual if chosen.activation else None
        ctx.decisions = chosen
        if not torch.compiler.is_compiling() and chosen.recompute:
            details = Details(residual, chosen.activation, chosen.virtual_batch_size, mask)
            recipes.composed(y, x, residual, weight, bias, standard, details, any(ctx.needs_input_grad))
        # bias is saved for its dtype, and for activations whose derivative needs it
        ctx.save_for_backward(x, kept, weight, bias, mask, mean, rstd, r_max, d_max, *standard)
        count = torch.zeros_like(batch.mean) + batch.count
        ctx.mark_non_differentiable(count, batch.mean, batch.m2)
        return y, count, batch.mean, batch.m2

    @staticmethod
    def backward(ctx: Any, grad: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        x, residual, weight, bias, mask, mean, rstd, r_max, d_max, *standard = ctx.saved_tensors
        decisions = ctx.decisions
        needs = ctx.needs_input_grad[:4]
        dx: Tensor | None
        dresidual: Tensor | None
        dweight: Tensor | None
        dbias: Tensor | None
        if torch.is_grad_enabled():
            population = None if mean is None else Anchor(mean, rstd, r_max, d_max)

            def y(x: Tensor, residual: Tensor | None, weight: Tensor | None, bias: Tensor | None) -> Tensor:
                return in_plain_operations(reference, x, residual, weight, bias, mask, population, decisions)[0]

            keeps = (needs[0], needs[1] and residual is not None, needs[2], needs[3])
            dx, dresidual, dweight, dbias = channel_math.differentiable(y, grad, (x, residual, weight, bias), keeps)
        else:
            details = Details(residual, decisions.activation, decisions.virtual_batch_size, mask)
            if isinstance(decisions.group, sharing.MicroBatches):
                decisions.group.exchange.holds(grad, x, residual)
            dx, dresidual, dweight, dbias = channel_math.backward(
                ops if x.numel() else reference,
                grad,
                x,
                weight,
                bias,
                Standard(*standard),
                details,
                _reduction(decisions),
            )
        if decisions.activation is None and needs[1]:  # the output is linear in the residual, which was not saved
            dresidual = grad if mask is None else torch.where(mask > 0, grad, 0)
        return (
            dx if needs[0] else None,
            dresidual if needs[1] else None,
            dweight.to(weight.dtype) if needs[2] and dweight is not None else None,
            dbias.to(bias.dtype) if needs[3] and dbias is not None else None,
            *[None] * (len(ctx.needs_input_grad) - 4),
        )


def _reduction(decisions: Decisions) -> channel_math.Reduction:
    if decisions.group is None:
        return lambda sums: sums
    return lambda sums: sharing.summed_over_ranks(sums, decisions.group, decisions.label)
