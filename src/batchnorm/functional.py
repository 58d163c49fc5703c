"""Batch normalization as a function: validate, decide, call."""

from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from batchnorm.backends.reference import ACTIVATIONS
from batchnorm.core import ops, population, sharing
from batchnorm.core.channel_math import Standard
from batchnorm.core.gradients import Decisions
from batchnorm.core.moments import Moments, values_per_channel, weights_of
from batchnorm.core.rules import Options, Renorm, Running, Single
from batchnorm.core.validation import validate


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
    mask: Tensor | None = None,
    lengths: Tensor | None = None,
    virtual_batch_size: int | None = None,
    process_group: Any | None = None,
    renorm: Renorm | None = None,
    single: Single = "error",
    nonfinite: population.NonFinite = "skip",
    return_stats: bool = False,
) -> Any:
    """Batch normalization, as `torch.nn.functional.batch_norm` with more to it.

    y = activation((x − μ) / √(σ² + eps) · weight + bias + residual), per channel: by the mean μ and biased variance σ²
    of the batch when `training`, by `running_mean` and `running_var` otherwise. In training the running statistics
    move to (1 − momentum)·running + momentum·batch, with the unbiased variance.

    Args:
        input: (N, C, *), floating point.
        running_mean, running_var: (C,), both or neither; written in training, read otherwise.
        weight, bias: (C,) or None: γ and β.
        residual: the shape of `input`; added before the activation.
        activation: "relu", "relu6", "leaky_relu" (slope 0.01), "silu", "gelu" or "hardswish".
        mask: which values count: booleans, or weights ≥ 0, that broadcast over `input`, or over (N, *) for all
            channels alike. Where it is 0 the output is 0 and no gradient passes.
        lengths: (N,) how many positions of each sample of an (N, C, L) input count, in place of a mask.
        virtual_batch_size: each so many samples are normalised by their own statistics in training (ghost batches;
            Hoffer et al. 2017). What is remembered are the moments of the whole batch.
        process_group: share the statistics with these ranks in training; True for all.
        renorm: batch renormalisation; needs running statistics.
        single: one value per channel in training has no variance: an "error", or normalise it by the "population".
        nonfinite: what a channel with NaN or Inf in its batch does to the running statistics: "skip" leaves them,
            "propagate" takes it in (as torch does), "raise" raises.
        return_stats: return (y, new_running_mean, new_running_var) and write nothing.

    Returns:
        y with the shape, dtype and memory format of `input`.

    Raises:
        ValueError: one value per channel in training, only one running statistic, options that are bad or exclude
            one another.
        RuntimeError: a shape or dtype that does not fit the input, or no running statistics out of training.
        FloatingPointError: non-finite batch statistics with ``nonfinite="raise"``.

    >>> import torch, batchnorm as bn
    >>> x = torch.tensor([[1.0], [2.0], [3.0]])
    >>> y, mean, var = bn.batch_norm(x, torch.zeros(1), torch.ones(1), training=True, momentum=1.0, return_stats=True)
    >>> y.mean().item(), mean.item(), var.item()
    (0.0, 2.0, 1.0)

    Source: Ioffe & Szegedy 2015, algorithms 1 and 2.
    """
    limits = None if renorm is None else renorm.limits(None)
    running: Running | Literal[False] | None = None
    if running_mean is None or running_var is None:
        running = False
    elif not return_stats and nonfinite != "raise" and isinstance(momentum, float):
        running = Running(running_mean, running_var, None, momentum, nonfinite)
    options = Options(residual, activation, mask, lengths, virtual_batch_size, process_group, limits, single, running)
    output, batch = normalized(input, running_mean, running_var, weight, bias, training, eps, options)
    stats = running_mean, running_var
    if isinstance(batch, Moments) and running_mean is not None and running_var is not None:
        *new, _ = population.moved(running_mean, running_var, batch, momentum, nonfinite)
        stats = new[0], new[1]
        if not return_stats:
            population.remember(running_mean, running_var, (new[0], new[1]))
    return (output, *stats) if return_stats else output


def normalized(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    training: bool,
    eps: float,
    options: Options,
) -> tuple[Tensor, Moments | ops.Remembered | None]:
    """The output, and the batch's moments per channel (C,) where there is something to remember.

    Where the kernels have remembered it already, in `options.running`, that is said instead.
    """
    if not torch.jit.is_tracing():  # sizes are tensors there: to compare them is to warn, and to bake them in
        validate(input, running_mean, running_var, weight, bias, training, eps, options)
    stats, affine = (running_mean, running_var), (weight, bias)
    mask = weights_of(input, options.mask, options.lengths)
    if not training:
        return _by_population(input, *stats, *affine, eps, options, mask), None
    group = sharing.resolve(options.process_group)
    virtual = options.virtual_batch_size or 0
    virtual = virtual if virtual and virtual < input.shape[0] else 0
    if mask is None and not virtual and group is None and options.renorm is None:  # nearly every call
        if input.numel() == 0:
            return _of_nothing(input, *affine), None
        if values_per_channel(input) == 1:
            return _by_population(input, *stats, *affine, eps, options, None), None
        x, (residual,) = _dense(input, options.residual)
        return ops.train(x, residual, *affine, eps, options.activation, options.running)
    if virtual and group is not None:
        raise ValueError(
            "virtual_batch_size and process_group exclude one another: the first makes the group that shares "
            "statistics smaller than the batch, the second larger. Choose one"
        )
    x, (residual, mask) = _dense(input, options.residual, mask)
    by_population = options.renorm is not None or options.single == "population"
    constant = Standard.of_population(*_population(running_mean, running_var), eps) if by_population else None
    choice = _Choice(group, options.label, eps, constant, options.renorm, options.single == "population")
    decisions = Decisions(choice.standard, choice.reduce, options.activation, virtual)
    y, batch = ops.general(x, residual, *affine, mask, decisions)
    return y, batch.channels()


class _Choice(NamedTuple):
    """Decisions 2 and 3 between the primitives: who shares statistics, and what we normalise by."""

    group: Any | None
    label: str
    eps: float
    constant: Standard | None  # the population as it was before this batch
    renorm: tuple[float | Tensor, float | Tensor] | None
    single_by_population: bool

    def standard(self, own: Moments) -> tuple[Standard, Moments]:
        shared = own if self.group is None else sharing.pooled_over_ranks(own, self.group, self.label)
        standard = Standard.of_batch(shared, self.eps)
        if self.constant is not None and self.single_by_population and isinstance(shared.count, Tensor):
            several = shared.count > 1
            standard = standard._replace(
                mean=torch.where(several, standard.mean, self.constant.mean),
                rstd=torch.where(several, standard.rstd, self.constant.rstd),
                share=torch.where(several, standard.share, 0),
            )
        if self.constant is not None and self.renorm is not None:
            standard = _renormalized(standard, self.constant, *self.renorm)
        return standard, shared.pooled()

    def reduce(self, sums: Tensor) -> Tensor:
        return sums if self.group is None else sharing.summed_over_ranks(sums, self.group, self.label)


def _renormalized(standard: Standard, constant: Standard, r_max: float | Tensor, d_max: float | Tensor) -> Standard:
    r_max, d_max = (torch.as_tensor(limit).to(standard.mean) for limit in (r_max, d_max))
    r = (constant.rstd / standard.rstd.detach()).clamp(1 / r_max, r_max)
    d = ((standard.mean.detach() - constant.mean) * constant.rstd).clamp(-d_max, d_max)
    return standard._replace(r=r, d=d)


def _population(running_mean: Tensor | None, running_var: Tensor | None) -> tuple[Tensor, Tensor]:
    if running_mean is None or running_var is None:
        raise RuntimeError(
            "running_mean and running_var must be given when training is False: there is nothing to normalise by. "
            "Pass them, or training=True to use the batch's own statistics"
        )
    return running_mean, running_var


def _by_population(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    options: Options,
    mask: Tensor | None,
) -> Tensor:
    residual, activation = options.residual, options.activation
    if mask is not None:
        input, (mask,) = _dense(input, mask)
        input = torch.where(mask > 0, input, 0)  # whatever stands there, NaN too
    if torch.compiler.is_compiling() or torch.jit.is_tracing():
        # A standard operator: exporters know it, and compilers fuse it with its neighbours.
        y = F.batch_norm(input, running_mean, running_var, weight, bias, eps=eps)
        y = y if residual is None else y + residual
        y = y if activation is None else ACTIVATIONS[activation][0](y)
    elif input.numel() == 0:
        return _of_nothing(input, weight, bias)
    else:
        x, (residual,) = _dense(input, residual)
        y = ops.frozen(x, residual, weight, bias, *_population(running_mean, running_var), eps, activation)
    return y if mask is None else torch.where(mask > 0, y, 0)


def _of_nothing(input: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    """An empty output that still reaches the parameters: their gradients are zeros rather than None."""
    y = input.clone()
    for parameter in (weight, bias):
        if parameter is not None:
            y = y * parameter.reshape(1, -1, *[1] * (input.dim() - 2)).to(y.dtype)
    return y


def _dense(x: Tensor, *others: Any) -> tuple[Tensor, list[Any]]:
    """`x` as torch lays out the result, contiguous or channels_last (copied if it is not), and the others like it."""
    if ops.transformed():  # plain operations follow: any layout will do, and vmap cannot say which one it is
        return x, list(others)
    memory_format = torch.contiguous_format
    if x.dim() in (4, 5) and not x.is_contiguous():
        channels_last = torch.channels_last if x.dim() == 4 else torch.channels_last_3d
        # torch's own rule: a copy with the strides preserved says whether they are those of channels_last
        if x.is_contiguous(memory_format=channels_last) or torch.empty_like(x, device="meta").is_contiguous(
            memory_format=channels_last
        ):
            memory_format = channels_last
    return x.contiguous(memory_format=memory_format), [
        None if t is None else t.contiguous(memory_format=memory_format) for t in others
    ]
