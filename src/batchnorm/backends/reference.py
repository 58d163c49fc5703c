"""The paper's equations in plain torch: any device, any dtype; autograd differentiates `moments` and `normalize`.

Every kernel module offers the functions below with these signatures. `x` is (N, C, *). Statistics are float64 (float32
where the device has no float64) and shaped (G, C), a row for each group of samples that shares them: all N together
(`virtual=0`), or each `virtual` samples in turn (the last group may be smaller). `mask` holds weights ≥ 0 that
broadcast over `x`, or None. Values of weight 0 take no part in the statistics, give an output of 0 and pass no
gradient.

Source: Ioffe & Szegedy 2015, "Batch Normalization", algorithm 1 and the gradients of section 3.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

aten = torch.ops.aten

# name -> (the activation, its gradient from (grad, z))
ACTIVATIONS: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor, Tensor], Tensor]]] = {
    "relu": (F.relu, lambda grad, z: aten.threshold_backward(grad, z, 0)),
    "relu6": (F.relu6, lambda grad, z: aten.hardtanh_backward(grad, z, 0, 6)),
    "leaky_relu": (F.leaky_relu, lambda grad, z: aten.leaky_relu_backward(grad, z, 0.01, False)),
    "silu": (F.silu, lambda grad, z: aten.silu_backward(grad, z)),
    "gelu": (F.gelu, lambda grad, z: aten.gelu_backward(grad, z)),
    "hardswish": (F.hardswish, lambda grad, z: aten.hardswish_backward(grad, z)),
}
BY_OUTPUT = {"relu", "relu6", "leaky_relu"}  # their derivative at z is that at act(z)


def statistics_dtype(x: Tensor) -> torch.dtype:
    """float64, or float32 on devices that have no float64."""
    return torch.float32 if x.device.type == "mps" else torch.float64


def moments(x: Tensor, virtual: int = 0, mask: Tensor | None = None) -> tuple[int | Tensor, Tensor, Tensor]:
    """Count the values, and take their mean and the sum of their squared deviations from it: count, mean, m2."""
    x, weights = widen(x), None
    if mask is not None:
        x, weights = torch.where(mask > 0, x, 0), mask.to(x.dtype)
    count: int | Tensor = x.numel() // max(x.shape[1], 1)
    if virtual or weights is not None:
        count = _total(torch.ones_like(x) if weights is None else weights.expand_as(x), virtual)
    some = count.where(count > 0, 1) if isinstance(count, Tensor) else max(count, 1)  # a mask may leave no values
    mean = _total(x, virtual) / some if weights is None else _weighted_mean(x, weights, some, virtual)
    deviations = _centered(x, mean, virtual)
    squares = deviations.square()
    if weights is not None:
        squares = torch.where(weights > 0, squares * weights, 0)  # a square that overflows, times 0, is NaN
    m2 = _total(squares, virtual)
    if x.dtype is torch.float64:  # a mean of 10¹² has an error of 10⁻⁴, which the sum of the deviations shows
        left = _total(deviations if weights is None else deviations * weights, virtual)
        m2 = (m2 - left.square() / some).clamp(min=0)
    return count, mean, m2


def _weighted_mean(x: Tensor, weights: Tensor, count: int | Tensor, virtual: int) -> Tensor:
    """The weighted mean: an estimate plus the weighted mean of x − estimate, whose smaller products round less."""
    estimate = _total((x * weights).detach(), virtual) / count
    return estimate + _total(_centered(x, estimate, virtual) * weights, virtual) / count


def normalize(
    x: Tensor,
    mean: Tensor,
    scale: Tensor,
    shift: Tensor,
    residual: Tensor | None = None,
    activation: str | None = None,
    virtual: int = 0,
    mask: Tensor | None = None,
) -> Tensor:
    """act((x − mean)·scale + shift + residual) in the dtype of `x`."""
    centered = _centered(x, mean, virtual)
    if mask is not None:  # before any product: a gradient of 0 times NaN is NaN
        centered = torch.where(mask > 0, centered, 0)
        residual = None if residual is None else torch.where(mask > 0, residual, 0)
    y = _preactivation(x, centered, scale, shift, residual, virtual)
    if activation is not None:
        y = ACTIVATIONS[activation][0](y)
    return (y if mask is None else torch.where(mask > 0, y, 0)).to(x.dtype)


def backward_reduce(
    grad: Tensor,
    x: Tensor,
    mean: Tensor,
    scale: Tensor,
    shift: Tensor,
    residual: Tensor | None = None,
    activation: str | None = None,
    virtual: int = 0,
    mask: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Σ g′ and Σ g′·(x − mean), each (G, C), where g′ is the gradient before the activation."""
    centered, grad = _before_activation(grad, x, mean, scale, shift, residual, activation, virtual, mask)
    return _total(grad, virtual), _total(grad * centered, virtual)


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
    virtual: int = 0,
    mask: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """a·g′ + (b·(x − mean) + c)·mask, and g′ itself as the gradient of the residual if there is one."""
    centered, grad = _before_activation(grad, x, mean, scale, shift, residual, activation, virtual, mask)
    through = centered * _over(b, grad, virtual) + _over(c, grad, virtual)
    if mask is not None:
        through = through * mask
    dx = grad * _over(a, grad, virtual) + through
    return dx.to(x.dtype), None if residual is None else grad.to(residual.dtype)


def _before_activation(
    grad: Tensor,
    x: Tensor,
    mean: Tensor,
    scale: Tensor,
    shift: Tensor,
    residual: Tensor | None,
    activation: str | None,
    virtual: int,
    mask: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """x − mean and g′, both 0 where the mask is 0, even if they were NaN."""
    centered, grad = _centered(x, mean, virtual), widen(grad)
    if activation is not None:
        grad = ACTIVATIONS[activation][1](grad, _preactivation(x, centered, scale, shift, residual, virtual))
    if mask is not None:
        centered, grad = torch.where(mask > 0, centered, 0), torch.where(mask > 0, grad, 0)
    return centered, grad


def _preactivation(
    x: Tensor, centered: Tensor, scale: Tensor, shift: Tensor, residual: Tensor | None, virtual: int
) -> Tensor:
    z = centered * _over(scale, centered, virtual) + _over(shift, centered, virtual)
    return z if residual is None else z + residual


def _centered(x: Tensor, mean: Tensor, virtual: int) -> Tensor:
    """x − mean with the mean as two floats: one float32 is off by 0.03 at a mean of 1e6."""
    x = widen(x)
    high = mean.detach().to(x.dtype)
    low = mean - high
    return (x - _over(high, x, virtual)) - _over(low, x, virtual)


def widen(x: Tensor) -> Tensor:
    """`x` in the precision of the computation: half precision becomes float32."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def _total(values: Tensor, virtual: int) -> Tensor:
    """Sums (G, C) of values (N, C, *) over each group."""
    dtype = statistics_dtype(values)
    if not virtual:
        return values.sum([0, *range(2, values.dim())], dtype=dtype).reshape(1, -1)
    samples = values.flatten(2).sum(2, dtype=dtype) if values.dim() > 2 else values.to(dtype)
    groups = samples.new_zeros(-(-samples.shape[0] // virtual), samples.shape[1])
    return groups.index_add(0, _group_of_each(samples, virtual), samples)


def _over(statistic: Tensor, x: Tensor, virtual: int) -> Tensor:
    """A statistic (G, C), or (1, C) for every group, shaped and typed to broadcast over `x`."""
    if virtual and statistic.shape[0] > 1:
        statistic = statistic[_group_of_each(x, virtual)]
    return statistic.to(x.dtype).reshape(*statistic.shape, *[1] * (x.dim() - 2))


def _group_of_each(x: Tensor, virtual: int) -> Tensor:
    return torch.arange(x.shape[0], device=x.device) // virtual
