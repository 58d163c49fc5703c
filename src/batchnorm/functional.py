"""Batch normalization as a function: validate, decide, call."""

from functools import partial
from typing import Any, Literal, NamedTuple, NoReturn

import torch
from torch import Tensor

from batchnorm import backends
from batchnorm.backends import aten, native, reference, triton
from batchnorm.backends.triton import table
from batchnorm.core import channel_math, composition, device_ops, ops, population, recipes, sharing
from batchnorm.core.channel_math import Details, Standard
from batchnorm.core.composition import NO_ANCHOR, Anchor, Composed, Decisions
from batchnorm.core.moments import Moments, values_per_channel, weights_of
from batchnorm.core.rules import NonFinite, Renorm, Rules, Single
from batchnorm.core.sharing import MicroBatches
from batchnorm.core.torch_internals import constant_to_compilers, transformed, unwatched
from batchnorm.core.validation import Call, validate

Statistic = Tensor | None
Limits = tuple[float | Tensor, float | Tensor]


class Moving(NamedTuple):
    """Running statistics that the call itself may update."""

    running_mean: Tensor
    running_var: Tensor
    batches: Tensor | None
    skipped: Tensor | None  # counts batches that did not update some channel
    momentum: float | None


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
    nonfinite: NonFinite = "skip",
    return_stats: bool = False,
) -> Any:
    """Batch normalization: `torch.nn.functional.batch_norm` with the options of `BatchNorm`.

    y = activation((x − μ) / √(σ² + eps) · weight + bias + residual), per channel: by the mean μ and biased variance σ²
    of the batch when `training`, by `running_mean` and `running_var` otherwise. In training the running statistics
    become (1 − momentum)·running + momentum·batch, with the unbiased variance.

    Args:
        input: (N, C, *), floating point.
        running_mean: (C,), updated in training, read otherwise; None if there are no running statistics.
        running_var: the same; both or neither.
        weight: γ (C,), or None.
        bias: β (C,), or None.
        training: True to normalise by the batch, False to normalise by the running statistics.
        momentum: the weight of the batch in the running statistics.
        eps: added to the variance.
        residual: the shape of `input`; added before the activation.
        activation: "relu", "relu6", "leaky_relu" (slope 0.01), "silu", "gelu" or "hardswish".
        mask: which values count: booleans, or weights ≥ 0, that broadcast over `input`, or over (N, *) for all
            channels alike. Where it is 0 the output is 0 and no gradient passes.
        lengths: (N,) the number of positions that count in each sample of an (N, C, L) input, instead of a mask.
        virtual_batch_size: size of the ghost batches (arXiv:1705.08741): in training, each is normalised by its own
            statistics. The running statistics are updated by the whole batch.
        process_group: share the statistics with these ranks in training; True for all.
        renorm: batch renormalisation; needs running statistics.
        single: one value per channel in training has no variance: an "error", or normalise it by the "population".
        nonfinite: if a channel's batch holds NaN or Inf, its running statistics are not updated ("skip"), are updated
            as in torch ("propagate"), or an error is raised ("raise").
        return_stats: return (y, new_running_mean, new_running_var) and write nothing.

    Returns:
        y with the shape, dtype and memory format of `input`.

    Raises:
        ValueError: one value per channel in training, only one running statistic, options that are bad or exclude
            one another.
        RuntimeError: a shape or dtype that does not fit the input, or no running statistics out of training.
        FloatingPointError: non-finite batch statistics with ``nonfinite="raise"``.

    Examples:
        >>> import torch, batchnorm as bn
        >>> x = torch.tensor([[1.0], [2.0], [3.0]])
        >>> running = torch.zeros(1), torch.ones(1)
        >>> y, mean, var = bn.batch_norm(x, *running, training=True, momentum=1.0, return_stats=True)
        >>> y.mean().item(), mean.item(), var.item()
        (0.0, 2.0, 1.0)

    Source: Ioffe & Szegedy 2015 (arXiv:1502.03167), algorithms 1 and 2.
    """
    rules = Rules(activation, virtual_batch_size, process_group, renorm, single, nonfinite)
    moving = None
    if running_mean is not None and running_var is not None and training and not return_stats and nonfinite != "raise":
        moving = Moving(running_mean, running_var, None, None, momentum) if isinstance(momentum, float) else None
    call = Call(input, residual, mask, lengths, weight, bias, running_mean, running_var, training, eps, rules)
    output, batch = normalized(
        call, None if renorm is None else renorm.limits(None), moving, sharing.resolve(process_group), "batch_norm"
    )
    if not return_stats:
        if (
            batch is not None
            and sharing.updates_running_statistics()
            and running_mean is not None
            and running_var is not None
        ):
            population.move(running_mean, running_var, None, batch, momentum, nonfinite)
        return output
    if batch is None or running_mean is None or running_var is None:
        return output, running_mean, running_var
    new_mean, new_var, _ = population.moved(running_mean, running_var, batch, momentum, nonfinite)
    return output, new_mean, new_var


Route = Literal["operators", "aten", "open"]
INTERPRETED_ALONE = "the CPU has its native kernels; BATCHNORM_NATIVE=0 switches them off"


def normalized(
    call: Call, limits: Limits | None, moving: Moving | None, group: Any, label: str
) -> tuple[Tensor, Moments | None]:
    """The output, and the batch's moments (C,) if the running statistics have not been updated by them yet.

    `limits` are those of batch renormalisation. `moving` is updated in the same pass if the backend can do that.
    `label` is the layer's name in errors.
    """
    plain = call.mask is None and call.lengths is None and (not call.by_batch or (group is None and call.rules.plain))
    moves_here = moving is not None or call.mean is None
    if plain and call.by_batch and moves_here and _as_torchs_layers():
        _validate(call, group)
        mean, var, batches, _, momentum = moving or (None, None, None, None, None)
        y = aten.moving(
            call.input, call.residual, call.weight, call.bias, mean, var, batches, momentum, call.eps,
            call.rules.activation,
        )  # fmt: skip
        return y, None
    if plain and is_common(call.input):
        if call.residual is not None:  # the operator would accept integers and booleans
            _validate(call, group)
        try:  # nearly every call: the operator does its own checks
            return _by_operator(call, moving)
        except Exception:
            # raises a clear error, or returns if the input is valid and only the operator refuses it
            _validate(call, group)
            if call.input.numel() > 0 and not (call.by_batch and values_per_channel(call.input) == 1):
                raise
    route = _route(call.input, _kind(call, plain))
    _validate(call, group)
    mask = weights_of(call.input, call.mask, call.lengths)
    if not call.by_batch:
        return _by_population(call, mask, route), None
    if isinstance(group, MicroBatches):
        return _of_micro_batch(call, mask, limits, group, label, route)
    virtual = call.rules.virtual_batch_size or 0
    virtual = virtual if virtual and virtual < call.input.shape[0] else 0
    if virtual and group is not None:
        _exclude_one_another()
    if mask is None and not virtual and group is None and call.rules.renorm is None:
        if call.input.numel() == 0:
            return _of_nothing(call), _no_moments(call.input, 0)
        if values_per_channel(call.input) == 1:
            return _by_population(call, None, route), _no_moments(call.input, 1)
        return _by_batch(call, moving, route)
    return _composed(call, mask, Decisions(
        call.eps, call.rules.activation, virtual, group, label, call.rules.single == "population",
        call.rules.recompute,
    ), limits, route)  # fmt: skip


def _of_micro_batch(
    call: Call, mask: Tensor | None, limits: Limits | None, group: MicroBatches, label: str, route: Route
) -> tuple[Tensor, Moments]:
    """The output of one micro-batch, and the moments of the big batch. Each virtual batch lies in one micro-batch."""
    rules, rows = call.rules, call.input.shape[0]
    size = rules.virtual_batch_size or 0
    decisions = Decisions(call.eps, rules.activation, 0, group, label, rules.single == "population", rules.recompute)
    if not size or not group.exchange.split(rows, size, label):
        return _composed(call, mask, decisions, limits, route)
    if group.ranks is not None:
        _exclude_one_another()
    validate(call, shared=False)
    decisions = decisions._replace(group=None, virtual_batch_size=size if size < rows else 0)
    output, own = _composed(call, mask, decisions, limits, route)
    with torch.no_grad():
        own = Moments(own.count, own.mean.unsqueeze(0), own.m2.unsqueeze(0))
        return output, group.exchange.pooled(own, None, label).channels()


def is_common(x: Tensor) -> bool:
    """True if the native operator, which checks its arguments, can be called on `x` at once: no tracer records it."""
    return unwatched() and type(x) is Tensor and x.is_cpu and backends.forced() is None and _has_native()


def _exclude_one_another() -> NoReturn:
    raise ValueError(
        "virtual_batch_size and process_group exclude one another: the first makes the group that shares "
        "statistics smaller than the batch, the second larger. Choose one"
    )


def _as_torchs_layers() -> bool:
    """True if a trace or an exported graph must contain torch's own operator in training too."""
    return torch.jit.is_tracing() or (torch.compiler.is_exporting() and _aten_is_forced())


@constant_to_compilers
def _aten_is_forced() -> bool:
    return backends.forced() == "aten"


def _validate(call: Call, group: Any) -> None:
    if not torch.jit.is_tracing():  # sizes are tensors in a trace: comparing them would warn, and make them constants
        validate(call, shared=group is not None)


def _kind(call: Call, plain: bool) -> table.Kind:
    """The kind of a call, as the device table names it."""
    if not plain:
        return "composed"
    return "plain" if call.residual is None and call.rules.activation is None else "fused"


def _route(x: Tensor, kind: table.Kind = "plain") -> Route:
    """Choose for `x`: our operators, torch's, or the reference in plain torch, for transforms and compilers."""
    compiling = torch.compiler.is_compiling()
    asked = None if compiling else backends.forced()
    if transformed() or (type(x) is not Tensor and _is_distributed(x)):
        return "open"
    if asked is None:
        if x.is_cpu:
            return "operators" if _has_native() else "aten"
        if not compiling and table.prefers(x, kind):
            asked = "triton"
        else:
            return "open" if compiling else "aten"
    if asked == "reference":
        return "open"
    if asked == "triton":
        if reason := triton.reason_against(x) or (x.is_cpu and _has_native() and INTERPRETED_ALONE):
            _cannot_serve(x, "triton", reason)
        device_ops.register(x.device.type)
        return "operators"
    if asked == "native" and not (x.is_cpu and _has_native()):
        _cannot_serve(x, "native", "it runs on CPU tensors, with a C++ compiler")
    return "operators" if asked == "native" else "aten"


@constant_to_compilers
def _has_native() -> bool:
    return native.available()


def _is_distributed(x: Tensor) -> bool:
    """True for a DTensor: torch shards plain operations itself, so the statistics are shared."""
    return hasattr(x, "placements")


def _cannot_serve(x: Tensor, name: str, why: str) -> None:
    raise RuntimeError(
        f"backend {name!r} was asked for and cannot serve {x.dtype} {tuple(x.shape)} on {x.device}: {why}. "
        "Use bn.backend('reference'), or leave the backend to batchnorm"
    )


def _by_operator(call: Call, moving: Moving | None) -> tuple[Tensor, Moments | None]:
    x = call.input
    if not x.is_contiguous():
        x = dense(x)[0]
    rules = call.rules
    if (call.mean is None) is not (call.var is None):
        raise ValueError("running_mean and running_var must either both be None or neither be None")
    given: tuple[Any, ...] = (None,) * 7  # running statistics: to normalise by, or to update
    if not call.by_batch:
        given = *_population(call), *(None,) * 5
    elif moving is not None:
        given = None, None, *moving
    skips = moving is not None and rules.nonfinite == "skip"
    inputs = x, call.residual, call.weight, call.bias
    y, statistics = ops.forward(*inputs, *given, call.eps, rules.activation, skips)
    if not torch.compiler.is_compiling() and rules.recompute:
        recipes.plain(y, *inputs, statistics, rules.activation)
    if not call.by_batch or moving is not None:
        return y, None
    count = values_per_channel(x)
    mean, _, variance = statistics.unbind()
    return y, Moments(count, mean, variance * count)


def _by_batch(call: Call, moving: Moving | None, route: Route) -> tuple[Tensor, Moments | None]:
    if route == "operators":
        return _by_operator(call, moving)
    count = values_per_channel(call.input)
    if route == "aten":  # takes any layout; a copy in another layout would change the result
        y, rest = _by_torch(call, moving, count)
        if not torch.compiler.is_compiling() and call.rules.recompute:
            inputs = call.input, call.residual, call.weight, call.bias
            recipes.by_torch(y, partial(_again_by_batch, call.eps, call.rules.activation), *inputs)
        return y, rest
    x, (residual,) = dense(call.input, call.residual)
    wide = reference.widen(x)  # once: autograd would round the gradient of each conversion
    batch = Moments(*reference.moments(wide))
    details = Details(residual, call.rules.activation)
    standard = Standard.of_batch(batch, call.eps)
    y = channel_math.forward(reference, wide, call.weight, call.bias, standard, details).to(x.dtype)
    return y, Moments(count, batch.mean[0].detach(), batch.m2[0].detach())


def _by_torch(call: Call, moving: Moving | None, count: int) -> tuple[Tensor, Moments | None]:
    x, rules = call.input, call.rules
    operands = x, call.residual, call.weight, call.bias
    asked = None if torch.compiler.is_compiling() else backends.forced()
    launches = not x.is_cpu or asked == "aten"  # a CPU has no launches to save, and float64 costs little there
    if moving is None or not launches:
        y, mean, var = aten.by_batch(*operands, call.eps, rules.activation)
        dtype = reference.statistics_dtype(x)
        return y, Moments(count, mean.to(dtype), var.to(dtype) * (count - 1))
    running_mean, running_var, batches, skipped, momentum = moving
    own_precision = running_mean.dtype is running_var.dtype is torch.promote_types(x.dtype, torch.float32)
    if rules.nonfinite == "propagate" and momentum is not None and own_precision:  # torch's own update
        y = aten.moving_by_batch(*operands, running_mean, running_var, momentum, call.eps, rules.activation)
        if batches is not None:
            batches.add_(1)
        return y, None
    y, mean, var = aten.by_batch(*operands, call.eps, rules.activation)
    fused = device_ops.updates_in_one_launch(running_mean, running_var)
    move = ops.move_population if fused else population.update_in_place
    move(running_mean, running_var, batches, skipped, mean, var, momentum, rules.nonfinite == "skip")
    return y, None


def _again_by_batch(eps: float, activation: str | None, x: Tensor, *others: Any) -> Tensor:
    residual, weight, bias = others
    return aten.by_batch(x, residual, weight, bias, eps, activation)[0]


def _composed(
    call: Call, mask: Tensor | None, decisions: Decisions, limits: Limits | None, route: Route
) -> tuple[Tensor, Moments]:
    x, (residual, mask) = dense(call.input, call.residual, mask)
    towards: Anchor | None = None
    if limits is not None or decisions.single_by_population:
        towards = composition.anchor(*_population(call), call.eps, limits)
    if (torch.compiler.is_exporting() or not torch.compiler.is_compiling()) and _aten_is_forced():
        _cannot_serve(x, "aten", "torch has no batch norm with masks, virtual batches, shared statistics or renorm")
    inputs = x, residual, call.weight, call.bias, mask
    if route == "open":
        wide = reference.widen(x)  # once: autograd would round the gradient of each conversion
        y, _, batch = composition.in_plain_operations(reference, wide, *inputs[1:], towards, decisions)
        y = y.to(x.dtype)
    else:
        y, *moments = Composed.apply(*inputs, *(towards or NO_ANCHOR), *decisions)
        batch = Moments(*moments)
    batch = Moments(batch.count, batch.mean.detach(), batch.m2.detach()).channels()
    return y, batch


def _population(call: Call) -> tuple[Tensor, Tensor]:
    if call.mean is None or call.var is None:
        raise RuntimeError(
            "running_mean and running_var must be given when training is False: there is nothing to normalise by. "
            "Pass them, or training=True to use the batch's own statistics"
        )
    return call.mean, call.var


def _by_population(call: Call, mask: Tensor | None, route: Route) -> Tensor:
    mean, var = _population(call)
    input, residual, activation = call.input, call.residual, call.rules.activation
    if mask is not None:
        input, (residual, mask) = dense(input, residual, mask)
        input = torch.where(mask > 0, input, 0)  # masked values may be NaN
        residual = None if residual is None else torch.where(mask > 0, residual, 0)
    if torch.compiler.is_exporting() or torch.jit.is_tracing():  # a standard operator, which every exporter supports
        y = aten.by_population(input, residual, call.weight, call.bias, mean, var, call.eps, activation)
    elif torch.compiler.is_compiling():  # plain operations, which compilers fuse with their neighbours
        y = _in_plain_operations(input, residual, call, mean, var)
    elif input.numel() == 0:
        return _of_nothing(call)
    elif route == "operators":
        y, _ = _by_operator(call._replace(input=input, residual=residual, by_batch=False), None)
    else:
        if route == "aten":
            y = _by_population_of_torch(call._replace(input=input, residual=residual), mean, var)
        else:
            y = _in_plain_operations(input, residual, call, mean, var)
    return y if mask is None else torch.where(mask > 0, y, 0)


def _in_plain_operations(x: Tensor, residual: Tensor | None, call: Call, mean: Tensor, var: Tensor) -> Tensor:
    x, (residual,) = dense(x, residual)
    constant = Standard.of_population(mean, var, call.eps)
    return channel_math.forward(
        reference, x, call.weight, call.bias, constant, Details(residual, call.rules.activation)
    )  # fmt: skip


def _by_population_of_torch(call: Call, mean: Tensor, var: Tensor) -> Tensor:
    inputs = call.input, call.residual, call.weight, call.bias
    constants = call.eps, call.rules.activation
    if recipes.of_thread.listener is None or not call.rules.recompute:
        return aten.by_population(*inputs, mean, var, *constants)
    mean, var = torch.stack((mean, var)).unbind()  # the buffers may be updated before the backward pass
    y = aten.by_population(*inputs, mean, var, *constants)
    recipes.by_torch(y, partial(_again_by_population, *constants), *inputs, mean, var)
    return y


def _again_by_population(eps: float, activation: str | None, x: Tensor, *others: Any) -> Tensor:
    residual, weight, bias, mean, var = others
    return aten.by_population(x, residual, weight, bias, mean, var, eps, activation)


def _no_moments(x: Tensor, count: int) -> Moments:
    """Moments of too few values to update running statistics; the batch still counts."""
    nothing = x.new_zeros(x.shape[1:2], dtype=reference.statistics_dtype(x))
    return Moments(count, nothing, nothing)


def _of_nothing(call: Call) -> Tensor:
    """An empty output that depends on the parameters, so that their gradients are zeros rather than None."""
    y = call.input.clone()
    for parameter in (call.weight, call.bias):
        if parameter is not None:
            y = y * parameter.reshape(1, -1, *[1] * (y.dim() - 2)).to(y.dtype)
    return y


def dense(x: Tensor, *others: Any) -> tuple[Tensor, list[Any]]:
    """`x` as torch lays out the result, contiguous or channels_last (copied if it is not), and the others like it."""
    if transformed():  # plain operations follow, which take any layout; under vmap the layout cannot be read
        return x, list(others)
    memory_format = torch.contiguous_format
    if x.dim() in (4, 5) and not x.is_contiguous():
        channels_last = torch.channels_last if x.dim() == 4 else torch.channels_last_3d
        # torch's own rule: x is channels_last if a new tensor with its strides preserved is
        if x.is_contiguous(memory_format=channels_last) or torch.empty_like(x, device="meta").is_contiguous(
            memory_format=channels_last
        ):
            memory_format = channels_last
    return x.contiguous(memory_format=memory_format), [
        None if t is None else t.contiguous(memory_format=memory_format) for t in others
    ]
