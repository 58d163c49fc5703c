"""The per-channel arithmetic between the four primitives of the kernels, the same for every kind of batch norm.

Forward: moments → `Standard` (the constants of the normalisation) → normalize.
Backward: backward_reduce → three coefficients → backward_apply.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from batchnorm.backends import Primitives
from batchnorm.backends.reference import statistics_dtype
from batchnorm.core.moments import Moments, at_least_one

Reduction = Callable[
    [Tensor], Tensor
]  # of a gradient's sums, over all ranks and micro-batches that share the statistics


class Standard(NamedTuple):
    """Per-channel constants of the normalisation x̂ = (x − mean)·rstd·r + d, each (G, C).

    `share` is 1/count if mean and rstd are computed from the values, and 0 if they are constants to the gradient.
    `r` and `d` are constants too (batch renormalisation), or None for 1 and 0.
    """

    mean: Tensor
    rstd: Tensor
    share: Tensor
    r: Tensor | None = None
    d: Tensor | None = None

    @classmethod
    def of_batch(cls, batch: Moments, eps: float) -> "Standard":
        """The batch's own mean and biased variance."""
        rstd = (batch.variance + eps).rsqrt()
        return cls(batch.mean, rstd, torch.ones_like(rstd) / at_least_one(batch.count))

    @classmethod
    def of_population(cls, running_mean: Tensor, running_var: Tensor, eps: float) -> "Standard":
        """Running statistics (C,) as constants (1, C).

        They are copies, because autograd must not hold a buffer that a later batch writes.
        """
        dtype = statistics_dtype(running_mean)
        mean, var = (s.detach().to(dtype, copy=True).unsqueeze(0) for s in (running_mean, running_var))
        return cls(mean, (var + eps).rsqrt(), torch.zeros_like(mean))

    def with_affine(self, weight: Tensor | None, bias: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """The kernels' (mean, scale, shift): γ·x̂ + β = (x − mean)·scale + shift."""
        scale = self.rstd if self.r is None else self.rstd * self.r
        shift = torch.zeros_like(self.rstd) if self.d is None else self.d
        if weight is not None:
            weight = weight.to(scale.dtype)  # once: autograd would round the gradient of each conversion
            scale, shift = scale * weight, shift * weight
        return self.mean, scale, shift if bias is None else shift + bias


class Details(NamedTuple):
    """The arguments of the kernels other than the statistics."""

    residual: Tensor | None = None
    activation: str | None = None
    virtual: int = 0
    mask: Tensor | None = None


def forward(
    kernels: Primitives, x: Tensor, weight: Tensor | None, bias: Tensor | None, standard: Standard, details: Details
) -> Tensor:
    mean, scale, shift = standard.with_affine(weight, bias)
    return kernels.normalize(x, mean, scale, shift, *details)


def backward(
    kernels: Primitives,
    grad: Tensor,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    standard: Standard,
    details: Details,
    reduce: Reduction = lambda sums: sums,
) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
    """The gradients of x, the residual, γ and β; `reduce` sums over all that share the statistics.

    With s = γ·rstd·r: dx = s·(g′ − Σg′/n − (x − mean)·rstd²·Σ(g′·(x − mean))/n). γ and β take the sums before `reduce`.
    """
    if grad.stride() != x.stride():  # the gradient may have another layout, for example an expanded scalar
        grad = torch.empty_like(x, dtype=grad.dtype).copy_(grad)
    mean, scale, shift = standard.with_affine(weight, bias)
    own = kernels.backward_reduce(grad, x, mean, scale, shift, *details)
    total, total_x = reduce(torch.stack(own)).unbind()
    each = scale * standard.share
    b, c = -each * standard.rstd.square() * total_x, -each * total
    dx, dresidual = kernels.backward_apply(grad, x, mean, scale, shift, scale, b, c, *details)
    dscale = own[1] * standard.rstd
    if standard.r is not None and standard.d is not None:
        dscale = dscale * standard.r + own[0] * standard.d
    return dx, dresidual, dscale.sum(0), own[0].sum(0)


def differentiable(
    function: Callable[..., Tensor],
    grad: Tensor,
    inputs: tuple[Tensor | None, ...],
    needs: tuple[bool, ...],
) -> list[Tensor | None]:
    """The gradients of `function`, themselves differentiable: `function` runs once more under autograd."""
    # views, so that one tensor in two roles gets a gradient for each
    views = [None if t is None else t.view_as(t) if t.requires_grad else t.detach().requires_grad_() for t in inputs]
    y = function(*views)
    wanted = {i: t for i, t in enumerate(views) if t is not None and needs[i]}
    grads: list[Tensor | None] = [None] * len(views)
    if wanted:
        derived = torch.autograd.grad(y, list(wanted.values()), grad, create_graph=True)
        for i, g in zip(wanted, derived, strict=True):
            grads[i] = g
    return grads
