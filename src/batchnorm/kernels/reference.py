"""The paper's equations in plain torch: any device, any dtype; autograd differentiates `moments` and `normalize`.

Every kernel module offers the functions below with these signatures. Statistics are float64 (float32 where the
device has no float64), shaped (1, C); `x` is (N, C, *).

Source: Ioffe & Szegedy 2015, "Batch Normalization", algorithm 1 and the gradients of section 3.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

aten = torch.ops.aten

# name -> (the activation, its gradient from (grad, z)). The only list of activations.
ACTIVATIONS: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor, Tensor], Tensor]]] = {
    "relu": (F.relu, lambda grad, z: aten.threshold_backward(grad, z, 0)),
    "relu6": (F.relu6, lambda grad, z: aten.hardtanh_backward(grad, z, 0, 6)),
    "leaky_relu": (F.leaky_relu, lambda grad, z: aten.leaky_relu_backward(grad, z, 0.01, False)),
    "silu": (F.silu, lambda grad, z: aten.silu_backward(grad, z)),
    "gelu": (F.gelu, lambda grad, z: aten.gelu_backward(grad, z)),
    "hardswish": (F.hardswish, lambda grad, z: aten.hardswish_backward(grad, z)),
}


def statistics_dtype(x: Tensor) -> torch.dtype:
    """float64, or float32 on devices that have no float64."""
    return torch.float32 if x.device.type == "mps" else torch.float64


def moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and sum of squared deviations per channel, each (1, C).

    The deviations are taken from a first estimate of the mean, so nothing cancels however far the data are from 0.
    """
    over = [0, *range(2, x.dim())]
    x = _widen(x)
    estimate = x.detach().mean(over, keepdim=True)
    deviation = x - estimate
    correction = deviation.mean(over, keepdim=True)
    m2 = (deviation - correction).square().sum(over)
    dtype = statistics_dtype(x)
    mean = estimate.to(dtype) + correction.to(dtype)
    return mean.reshape(1, -1), m2.to(dtype).reshape(1, -1)


def normalize(
    x: Tensor,
    mean: Tensor,
    scale: Tensor,
    shift: Tensor,
    residual: Tensor | None = None,
    activation: str | None = None,
) -> Tensor:
    """act((x − mean)·scale + shift + residual) in the dtype of `x`."""
    z = _preactivation(x, _centered(x, mean), scale, shift, residual)
    return (z if activation is None else ACTIVATIONS[activation][0](z)).to(x.dtype)


def backward_reduce(
    grad: Tensor,
    x: Tensor,
    mean: Tensor,
    scale: Tensor,
    shift: Tensor,
    residual: Tensor | None = None,
    activation: str | None = None,
) -> tuple[Tensor, Tensor]:
    """Σ g′ and Σ g′·(x − mean), each (1, C), where g′ is the gradient before the activation."""
    over = [0, *range(2, x.dim())]
    centered, grad = _before_activation(grad, x, mean, scale, shift, residual, activation)
    dtype = statistics_dtype(x)
    sums = grad.sum(over, dtype=dtype), (grad * centered).sum(over, dtype=dtype)
    return sums[0].reshape(1, -1), sums[1].reshape(1, -1)


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
) -> tuple[Tensor, Tensor | None]:
    """a·g′ + b·(x − mean) + c, and g′ itself as the gradient of the residual where there is one."""
    centered, grad = _before_activation(grad, x, mean, scale, shift, residual, activation)
    dx = grad * _over(a, grad) + centered * _over(b, grad) + _over(c, grad)
    return dx.to(x.dtype), None if residual is None else grad.to(residual.dtype)


def _before_activation(
    grad: Tensor,
    x: Tensor,
    mean: Tensor,
    scale: Tensor,
    shift: Tensor,
    residual: Tensor | None,
    activation: str | None,
) -> tuple[Tensor, Tensor]:
    centered, grad = _centered(x, mean), _widen(grad)
    if activation is not None:
        grad = ACTIVATIONS[activation][1](grad, _preactivation(x, centered, scale, shift, residual))
    return centered, grad


def _preactivation(x: Tensor, centered: Tensor, scale: Tensor, shift: Tensor, residual: Tensor | None) -> Tensor:
    z = centered * _over(scale, centered) + _over(shift, centered)
    return z if residual is None else z + residual


def _centered(x: Tensor, mean: Tensor) -> Tensor:
    """x − mean with the mean as two floats: one float32 is off by 0.03 at a mean of 1e6."""
    x = _widen(x)
    high = mean.detach().to(x.dtype)
    low = mean - high
    return (x - _over(high, x)) - _over(low, x)


def _widen(x: Tensor) -> Tensor:
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def _over(statistic: Tensor, x: Tensor) -> Tensor:
    """A (1, C) statistic, shaped and typed to broadcast over `x`."""
    return statistic.to(x.dtype).reshape(1, -1, *[1] * (x.dim() - 2))
