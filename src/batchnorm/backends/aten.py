"""torch's own operator for the plain case: on accelerators, and on CPU without a compiler.

It is as exact as torch, and autograd differentiates it. Plain torch operations add a residual and an activation.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from batchnorm.backends.reference import ACTIVATIONS


def by_batch(
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    activation: str | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Normalise by the batch: y, and the batch's mean and unbiased variance (C,)."""
    dtype = torch.promote_types(x.dtype, torch.float32)  # torch takes all four in the input's dtype, or in float32
    mean, var = x.new_zeros((2, x.shape[1]), dtype=dtype).unbind()
    # with a momentum of 1 the running statistics become the batch's
    return moving_by_batch(x, residual, weight, bias, mean, var, 1.0, eps, activation), mean, var


def moving_by_batch(
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor,
    running_var: Tensor,
    momentum: float,
    eps: float,
    activation: str | None,
) -> Tensor:
    """Normalise by the batch, and have torch update the running statistics, also if the batch is not finite."""
    weight, bias = (None if t is None else t.to(running_mean.dtype) for t in (weight, bias))
    y = F.batch_norm(x, running_mean, running_var, weight, bias, training=True, momentum=momentum, eps=eps)
    return _after(y, residual, activation)


def moving(
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    batches: Tensor | None,
    momentum: float | None,
    eps: float,
    activation: str | None,
) -> Tensor:
    """Normalise by the batch and update the running statistics, as torch's layers do in traces and exported graphs.

    Unlike in our operators, a batch that is not finite updates them too.
    """

    def batch_norm(mean: Tensor | None, var: Tensor | None, momentum: float) -> Tensor:
        # not F.batch_norm: its check of the size warns in traces
        return torch.batch_norm(x, weight, bias, mean, var, True, momentum, eps, torch.backends.cudnn.enabled)

    if running_mean is None or running_var is None:
        return _after(batch_norm(None, None, 0.0), residual, activation)
    if momentum is not None:
        y = batch_norm(running_mean, running_var, momentum)
    else:  # an average over all batches: its weight is a tensor, which the operator does not take
        mean, var = torch.zeros_like(running_mean), torch.ones_like(running_var)
        y = batch_norm(mean, var, 1.0)
        assert batches is not None
        with torch.no_grad():
            running_mean.add_((mean - running_mean) / (batches + 1))
            running_var.add_((var - running_var) / (batches + 1))
    if batches is not None:
        batches.add_(1)
    return _after(y, residual, activation)


def by_population(
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor,
    var: Tensor,
    eps: float,
    activation: str | None,
) -> Tensor:
    """Normalise by running statistics (C,)."""
    if torch.is_grad_enabled() and not torch.compiler.is_compiling() and not torch.jit.is_tracing():
        mean, var = torch.stack(
            (mean, var)
        ).unbind()  # autograd keeps them, and they may be updated before the backward pass
    return _after(F.batch_norm(x, mean, var, weight, bias, eps=eps), residual, activation)


def _after(y: Tensor, residual: Tensor | None, activation: str | None) -> Tensor:
    y = y if residual is None else y + residual
    return y if activation is None else ACTIVATIONS[activation][0](y)
