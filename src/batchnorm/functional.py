"""Batch normalization as a function: validate, decide, call."""

from typing import Literal, overload

import torch
from torch import Tensor
from torch.nn import functional as F

from batchnorm import ops, population
from batchnorm.kernels.reference import ACTIVATIONS
from batchnorm.moments import Moments, values_per_channel


@overload
def batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = ...,
    bias: Tensor | None = ...,
    training: bool = ...,
    momentum: float | Tensor = ...,
    eps: float = ...,
    *,
    residual: Tensor | None = ...,
    activation: str | None = ...,
    nonfinite: population.NonFinite = ...,
    return_stats: Literal[False] = ...,
) -> Tensor: ...
@overload
def batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = ...,
    bias: Tensor | None = ...,
    training: bool = ...,
    momentum: float | Tensor = ...,
    eps: float = ...,
    *,
    residual: Tensor | None = ...,
    activation: str | None = ...,
    nonfinite: population.NonFinite = ...,
    return_stats: Literal[True],
) -> tuple[Tensor, Tensor | None, Tensor | None]: ...
def batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float | Tensor = 0.1,
    eps: float = 1e-5,
    *,
    residual: Tensor | None = None,
    activation: str | None = None,
    nonfinite: population.NonFinite = "skip",
    return_stats: bool = False,
) -> Tensor | tuple[Tensor, Tensor | None, Tensor | None]:
    """Batch normalization, as `torch.nn.functional.batch_norm` with more to it.

    y = activation((x − μ) / √(σ² + eps) · weight + bias + residual), per channel: by the mean μ and biased variance σ²
    of the batch when `training`, by `running_mean` and `running_var` otherwise. In training the running statistics
    move to (1 − momentum)·running + momentum·batch, with the unbiased variance.

    Args:
        input: (N, C, *), floating point.
        running_mean, running_var: (C,), both or neither; written in training, read otherwise.
        weight, bias: (C,) or None: γ and β.
        residual: the shape of `input`; added before the activation.
        activation: "relu", "leaky_relu" (slope 0.01), "silu", "gelu" or "hardswish".
        nonfinite: what a channel with NaN or Inf in its batch does to the running statistics: "skip" leaves them,
            "propagate" takes it in (as torch does), "raise" raises.
        return_stats: return (y, new_running_mean, new_running_var) and write nothing.

    Returns:
        y with the shape, dtype and memory format of `input`.

    Raises:
        ValueError: one value per channel in training, only one running statistic, a bad `eps` or `activation`.
        RuntimeError: a shape or dtype that does not fit the input, or no running statistics out of training.
        FloatingPointError: non-finite batch statistics with ``nonfinite="raise"``.

    >>> import torch, batchnorm as bn
    >>> x = torch.tensor([[1.0], [2.0], [3.0]])
    >>> y, mean, var = bn.batch_norm(x, torch.zeros(1), torch.ones(1), training=True, momentum=1.0, return_stats=True)
    >>> y.mean().item(), mean.item(), var.item()
    (0.0, 2.0, 1.0)

    Source: Ioffe & Szegedy 2015, algorithms 1 and 2.
    """
    if not torch.jit.is_tracing():  # sizes are tensors there: to compare them is to warn, and to bake them in
        _validate(input, running_mean, running_var, weight, bias, training, eps, residual, activation)
    stats = running_mean, running_var
    if not training:
        output = _by_population(input, running_mean, running_var, weight, bias, eps, residual, activation)
    elif input.numel() == 0:
        output = _of_nothing(input, weight, bias)
    else:
        output, batch = _by_batch(input, weight, bias, eps, residual, activation)
        if running_mean is not None and running_var is not None:
            stats = population.moved(running_mean, running_var, batch, momentum, nonfinite)
            if not return_stats:
                population.remember(running_mean, running_var, stats)
    return (output, *stats) if return_stats else output


def _by_batch(
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    residual: Tensor | None,
    activation: str | None,
) -> tuple[Tensor, Moments]:
    x, residual = _dense(input, residual)
    y, mean, var = ops.train(x, residual, weight, bias, eps, activation)
    count = values_per_channel(input)
    return y, Moments(count, mean[0], var[0] * count)


def _by_population(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    residual: Tensor | None,
    activation: str | None,
) -> Tensor:
    if torch.compiler.is_compiling() or torch.jit.is_tracing():
        # A standard operator: exporters know it, and compilers fuse it with its neighbours.
        y = F.batch_norm(input, running_mean, running_var, weight, bias, eps=eps)
        y = y if residual is None else y + residual
        return y if activation is None else ACTIVATIONS[activation][0](y)
    if running_mean is None or running_var is None:
        raise RuntimeError(
            "running_mean and running_var must be given when training is False: there is nothing to normalise by. "
            "Pass them, or training=True to use the batch's own statistics"
        )
    if input.numel() == 0:
        return _of_nothing(input, weight, bias)
    x, residual = _dense(input, residual)
    # Copies, so that autograd never holds a buffer that a later batch writes to.
    dtype = torch.promote_types(running_mean.dtype, torch.float32)
    mean, var = (s.detach().to(dtype, copy=True).unsqueeze(0) for s in (running_mean, running_var))
    return ops.frozen(x, residual, weight, bias, mean, var, eps, activation)


def _of_nothing(input: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    """An empty output that still reaches the parameters: their gradients are zeros rather than None."""
    y = input.clone()
    for parameter in (weight, bias):
        if parameter is not None:
            y = y * parameter.reshape(1, -1, *[1] * (input.dim() - 2)).to(y.dtype)
    return y


def _dense(x: Tensor, residual: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """`x` (and the residual like it) as torch lays out the result: contiguous or channels_last; copied if it is not."""
    if ops.transformed():  # plain operations follow: any layout will do, and vmap cannot say which one it is
        return x, residual
    memory_format = torch.contiguous_format
    if x.dim() in (4, 5) and not x.is_contiguous():
        channels_last = torch.channels_last if x.dim() == 4 else torch.channels_last_3d
        # torch's own rule: a copy with the strides preserved says whether they are those of channels_last
        if x.is_contiguous(memory_format=channels_last) or torch.empty_like(x, device="meta").is_contiguous(
            memory_format=channels_last
        ):
            memory_format = channels_last
    x = x.contiguous(memory_format=memory_format)
    return x, None if residual is None else residual.contiguous(memory_format=memory_format)


def _validate(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    training: bool,
    eps: float,
    residual: Tensor | None,
    activation: str | None,
) -> None:
    if not input.is_floating_point():
        raise NotImplementedError(
            f"batch_norm needs a floating-point input, got {input.dtype}; convert it, say .float()"
        )
    if (running_mean is None) != (running_var is None):
        raise ValueError("running_mean and running_var must either both be None or neither be None")
    if eps < 0 or (training and eps == 0):
        raise ValueError(f"eps must be {'positive in training' if training else 'non-negative'}, got {eps}")
    channels = input.shape[1] if input.dim() > 1 else 0
    for name, t in (
        ("running_mean", running_mean),
        ("running_var", running_var),
        ("weight", weight),
        ("bias", bias),
    ):
        if t is None:
            continue
        if t.numel() != channels:
            raise RuntimeError(
                f"{name} should contain {channels} elements not {t.numel()}: input of shape {tuple(input.shape)} has "
                f"{channels} channels (dimension 1)"
            )
        if t.dtype is not input.dtype and (t.dtype is not torch.float32 or input.dtype is torch.float64):
            raise RuntimeError(
                f"mixed dtype: expected {name} to have {input.dtype}, as the input, "
                f"{'' if input.dtype is torch.float64 else 'or torch.float32, '}got {t.dtype}"
            )
    if input.dim() < 2 and input.numel() > 0:
        raise IndexError(f"batch_norm needs an input of shape (N, C, *), got {tuple(input.shape)}: it has no channels")
    if training and input.dim() > 1 and values_per_channel(input) == 1:
        raise ValueError(
            f"Expected more than 1 value per channel when training, got input size {input.shape}: one value has no "
            "variance. Use a larger batch, drop the last incomplete one (drop_last=True), or .eval()"
        )
    if residual is not None and residual.shape != input.shape:
        raise RuntimeError(
            f"expected residual of shape {tuple(input.shape)}, as the input, got {tuple(residual.shape)}"
        )
    if activation is not None and activation not in ACTIVATIONS:
        raise ValueError(f"unknown activation {activation!r}; there are {', '.join(map(repr, ACTIVATIONS))}")
