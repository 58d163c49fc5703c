"""The operators: schemas, fakes, second derivatives, and plain torch operations for devices without kernels.

Compilers, exporters and tensor modes record these operators. On CPU the native library implements them, with the
autograd node of `forward`. On other devices, and without a C++ compiler, the reference implements them.

Shapes: x, residual and gradients (N, C, *); weight, bias, mean and var (C,); statistics (3, C): the mean,
1/√(var + eps) and the biased variance that normalised, in float64. Parameters of the primitives are (G, C), a row for
each virtual batch, or (1, C).
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from batchnorm.backends import reference
from batchnorm.core import channel_math, population
from batchnorm.core.channel_math import Details, Standard
from batchnorm.core.moments import Moments
from batchnorm.core.torch_internals import below_autograd
from batchnorm.core.validation import check_memory

library = torch.library.Library("batchnorm", "DEF")
library.define("moments(Tensor x, int virtual_batch_size, Tensor? mask) -> (Tensor count, Tensor mean, Tensor m2)")
library.define(
    "normalize(Tensor x, Tensor mean, Tensor scale, Tensor shift, Tensor? residual, str? activation,"
    " int virtual_batch_size, Tensor? mask) -> Tensor"
)
library.define(
    "backward_reduce(Tensor grad, Tensor x, Tensor mean, Tensor scale, Tensor shift, Tensor? residual,"
    " str? activation, int virtual_batch_size, Tensor? mask) -> (Tensor sum_g, Tensor sum_gx)"
)
library.define(
    "backward_apply(Tensor grad, Tensor x, Tensor mean, Tensor scale, Tensor shift, Tensor a, Tensor b, Tensor c,"
    " Tensor? residual, str? activation, int virtual_batch_size, Tensor? mask) -> (Tensor dx, Tensor dresidual)"
)
# Normalises by `mean` and `var` if given, by the batch if not. The batch updates the running statistics and is counted;
# `skipped_batches` counts batches that did not update some channel's running statistics.
library.define(
    "forward(Tensor x, Tensor? residual, Tensor? weight, Tensor? bias, Tensor? mean, Tensor? var,"
    " Tensor(a!)? running_mean, Tensor(b!)? running_var, Tensor(c!)? num_batches_tracked,"
    " Tensor(d!)? skipped_batches, float? momentum, float eps, str? activation, bool skip_nonfinite)"
    " -> (Tensor y, Tensor statistics)"
)
# `extra` is the output for activations whose derivative follows from the output, else the residual. A result that is
# not needed is empty.
library.define(
    "backward(Tensor grad, Tensor x, Tensor? extra, Tensor? weight, Tensor? bias, Tensor statistics, float eps,"
    " str? activation, bool constant, bool[4] needs)"
    " -> (Tensor dx, Tensor dresidual, Tensor dweight, Tensor dbias)"
)
# `population.update_in_place`, which a device may do in one launch.
library.define(
    "move_population(Tensor(a!) running_mean, Tensor(b!) running_var, Tensor(c!)? num_batches_tracked,"
    " Tensor(d!)? skipped_batches, Tensor mean, Tensor var, float? momentum, bool skip_nonfinite) -> ()"
)
# A copy of running statistics, opaque to compilers: they would otherwise compute it again in the backward pass, from
# buffers that have been updated since.
library.define("anchor(Tensor mean, Tensor var, float eps) -> (Tensor mean, Tensor rstd)")
# nonfinite="raise" in compiled code: see `population.refuse_unfit`.
library.define("refuse(Tensor not_fit, str dtype, str label) -> Tensor")

forward = torch.ops.batchnorm.forward.default
anchor = torch.ops.batchnorm.anchor.default
backward = torch.ops.batchnorm.backward.default
move_population = torch.ops.batchnorm.move_population.default


# ---- the primitives, as the reference computes them


def moments(x: Tensor, virtual_batch_size: int = 0, mask: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Count, mean and m2 of each group and channel, (G, C) in float64."""
    return torch.ops.batchnorm.moments.default(x, virtual_batch_size, mask)


def normalize(
    x: Tensor,
    mean: Tensor,
    scale: Tensor,
    shift: Tensor,
    residual: Tensor | None = None,
    activation: str | None = None,
    virtual_batch_size: int = 0,
    mask: Tensor | None = None,
) -> Tensor:
    """act((x − mean)·scale + shift + residual)."""
    return torch.ops.batchnorm.normalize.default(x, mean, scale, shift, residual, activation, virtual_batch_size, mask)


def backward_reduce(
    grad: Tensor,
    x: Tensor,
    mean: Tensor,
    scale: Tensor,
    shift: Tensor,
    residual: Tensor | None = None,
    activation: str | None = None,
    virtual_batch_size: int = 0,
    mask: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Σ g′ and Σ g′·(x − mean), where g′ is the gradient before the activation."""
    return torch.ops.batchnorm.backward_reduce.default(
        grad, x, mean, scale, shift, residual, activation, virtual_batch_size, mask
    )


def backward_apply(
    grad: Tensor,
    x: Tensor,
    mean: Tensor,
    scale: Tensor,
    shift: Tensor,
    a: Tensor,
    b: Tensor,
    c: Tensor,
    residual: Tensor | None = None,
    activation: str | None = None,
    virtual_batch_size: int = 0,
    mask: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """a·g′ + b·(x − mean) + c, and g′ for the residual if there is one."""
    dx, dresidual = torch.ops.batchnorm.backward_apply.default(
        grad, x, mean, scale, shift, a, b, c, residual, activation, virtual_batch_size, mask
    )
    return dx, None if residual is None else dresidual


def _moments(x: Tensor, virtual_batch_size: int, mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    count, mean, m2 = reference.moments(x, virtual_batch_size, mask)
    return torch.zeros_like(mean) + count, mean, m2


def _backward_apply(grad: Tensor, x: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    dx, dresidual = reference.backward_apply(grad, x, *rest)
    return dx, x.new_empty(0) if dresidual is None else dresidual.to(x.dtype)


# ---- the plain and the frozen case, as the reference computes them


class Statistics(NamedTuple):
    """The rows of an operator's statistics, each (1, C)."""

    mean: Tensor
    rstd: Tensor
    variance: Tensor


def rows(statistics: Tensor) -> Statistics:
    """Name the rows."""
    return Statistics(*statistics.unsqueeze(1).unbind())


def _forward(
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor | None,
    var: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    num_batches_tracked: Tensor | None,
    skipped_batches: Tensor | None,
    momentum: float | None,
    eps: float,
    activation: str | None,
    skip_nonfinite: bool,
) -> tuple[Tensor, Tensor]:
    """`forward` in plain torch: on any device, and differentiable by autograd."""
    for name, t in (("the input", x), ("residual", residual), ("weight", weight), ("bias", bias)):
        if t is not None:
            check_memory(name, t)
    if mean is not None and var is not None:
        standard, batch = Standard.of_population(mean, var, eps), None
        variance = var.to(standard.mean.dtype).unsqueeze(0)
    else:
        batch = Moments(*reference.moments(x))
        standard, variance = Standard.of_batch(batch, eps), batch.variance
    y = channel_math.forward(reference, x, weight, bias, standard, Details(residual, activation))
    if batch is not None and running_mean is not None and running_var is not None:
        with torch.no_grad():
            skipped = population.move(
                running_mean, running_var, num_batches_tracked, batch.channels(), momentum,
                "skip" if skip_nonfinite else "propagate",
            )  # fmt: skip
            if skipped_batches is not None:
                skipped_batches.add_(skipped.any())
    return y, torch.cat([standard.mean, standard.rstd, variance]).detach()


def _backward(
    grad: Tensor,
    x: Tensor,
    extra: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    statistics: Tensor,
    eps: float,
    activation: str | None,
    constant: bool,
    needs: Sequence[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    grad, residual, activation = _before_output(grad, extra, activation)
    mean, rstd, _ = rows(statistics)
    share = torch.full_like(mean, 0.0 if constant else x.shape[1] / x.numel())
    dx, dresidual, dweight, dbias = channel_math.backward(
        reference, grad, x, weight, bias, Standard(mean, rstd, share), Details(residual, activation)
    )
    dresidual = grad if dresidual is None else dresidual  # the output is linear in a residual that was not saved
    results: tuple[Tensor | None, ...] = (
        dx,
        torch.empty_like(x).copy_(grad) if dresidual is grad else dresidual,  # an operator must not return an input
        None if weight is None else dweight.to(weight.dtype),
        None if bias is None else dbias.to(bias.dtype),
    )
    empty = (x.new_empty(0) for _ in results)
    dx, dresidual, dweight, dbias = (
        r if r is not None and need else e for r, need, e in zip(results, needs, empty, strict=True)
    )
    return dx, dresidual, dweight, dbias


def _before_output(
    grad: Tensor, extra: Tensor | None, activation: str | None
) -> tuple[Tensor, Tensor | None, str | None]:
    """The gradient before an activation if its output was saved as `extra`; the residual and activation that remain."""
    if extra is None or activation not in reference.BY_OUTPUT:
        return grad, extra, activation
    return reference.ACTIVATIONS[activation][1](grad, extra.detach()), None, None


def _twice_differentiable_backward(
    grad: Tensor,
    x: Tensor,
    extra: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    statistics: Tensor,
    eps: float,
    activation: str | None,
    constant: bool,
    needs: Sequence[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """`backward` as a function that autograd can differentiate: the reference runs again under autograd."""
    tensors = grad, x, extra, weight, bias
    if not (torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)):
        with below_autograd():
            return backward(grad, x, extra, weight, bias, statistics, eps, activation, constant, needs)
    grad, residual, activation = _before_output(grad, extra, activation)
    mean, rstd, _ = rows(statistics)

    def y(x: Tensor, residual: Tensor | None, weight: Tensor | None, bias: Tensor | None) -> Tensor:
        standard = Standard.of_batch(Moments(*reference.moments(x)), eps)
        if constant:
            standard = Standard(mean, rstd, torch.zeros_like(mean))
        return channel_math.forward(reference, x, weight, bias, standard, Details(residual, activation))

    linear = extra is not None and residual is None  # the output is linear in the residual, which was not saved
    wanted = (needs[0], needs[1] and not linear, needs[2], needs[3])
    dx, dresidual, dweight, dbias = channel_math.differentiable(y, grad, (x, residual, weight, bias), wanted)
    dresidual = grad if linear and needs[1] else dresidual
    empty = x.new_empty(0)
    return (
        empty if dx is None else dx,
        empty if dresidual is None else dresidual,
        empty if dweight is None else dweight,
        empty if dbias is None else dbias,
    )


def _anchor(mean: Tensor, var: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    constant = Standard.of_population(mean, var, eps)
    return constant.mean, constant.rstd


for _name, _function in {
    "anchor": _anchor,
    "refuse": population.refuse_unfit,
    "move_population": population.update_in_place,
    "moments": _moments,
    "normalize": reference.normalize,
    "backward_reduce": reference.backward_reduce,
    "backward_apply": _backward_apply,
    "forward": _forward,
    "backward": _backward,
}.items():
    library.impl(_name, _function, "CompositeExplicitAutograd")  # below autograd, on every device
library.impl("forward", _forward, "Autograd")
library.impl("backward", _twice_differentiable_backward, "Autograd")


# ---- fakes: shapes, dtypes and strides


def _like(x: Tensor, *others: Tensor | None) -> Tensor:
    """An empty result with the strides that the kernels give it; checks that all tensors are on one device."""
    for t in others:
        if t is not None and t.device != x.device:
            raise RuntimeError(f"expected all tensors on {x.device}, as the input, got one on {t.device}")
    dense = x.is_contiguous() or x.movedim(1, -1).is_contiguous()
    return torch.empty_like(x) if dense else torch.empty_like(x, memory_format=torch.contiguous_format)


def _table(x: Tensor, groups: int) -> Tensor:
    return x.new_empty((groups, x.shape[1]), dtype=reference.statistics_dtype(x))


def _groups(x: Tensor, virtual_batch_size: int) -> int:
    return -(-x.shape[0] // virtual_batch_size) if virtual_batch_size else 1


@torch.library.register_fake("batchnorm::anchor", lib=library)
def _(mean: Tensor, var: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    row = mean.new_empty((1, mean.shape[0]), dtype=reference.statistics_dtype(mean))
    return row, torch.empty_like(row)


@torch.library.register_fake("batchnorm::refuse", lib=library)
def _(not_fit: Tensor, dtype: str, label: str) -> Tensor:
    return torch.empty_like(not_fit)


@torch.library.register_fake("batchnorm::move_population", lib=library)
def _(*_: Any) -> None:
    return None


@torch.library.register_fake("batchnorm::moments", lib=library)
def _(x: Tensor, virtual_batch_size: int, mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    groups = _groups(x, virtual_batch_size)
    return _table(x, groups), _table(x, groups), _table(x, groups)


@torch.library.register_fake("batchnorm::normalize", lib=library)
def _(x: Tensor, *_: Any) -> Tensor:
    return _like(x)


@torch.library.register_fake("batchnorm::backward_reduce", lib=library)
def _(grad: Tensor, x: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    groups = _groups(x, rest[-2])
    return _table(x, groups), _table(x, groups)


@torch.library.register_fake("batchnorm::backward_apply", lib=library)
def _(grad: Tensor, x: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    return _like(x), x.new_empty(0) if rest[6] is None else _like(x)


@torch.library.register_fake("batchnorm::forward", lib=library)
def _(x: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    return _like(x, *rest[:9]), _table(x, 3)


@torch.library.register_fake("batchnorm::backward", lib=library)
def _(
    grad: Tensor, x: Tensor, extra: Tensor | None, weight: Tensor | None, bias: Tensor | None, *rest: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    needs = rest[-1]
    return (
        _like(x) if needs[0] or needs[1] else x.new_empty(0),
        _like(x) if needs[1] else x.new_empty(0),
        x.new_empty(0) if weight is None or not needs[2] else torch.empty_like(weight),
        x.new_empty(0) if bias is None or not needs[3] else torch.empty_like(bias),
    )
