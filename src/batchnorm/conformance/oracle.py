"""Batch normalization in float64, by the formula: Ioffe & Szegedy 2015, algorithm 1."""

import torch
from torch import Tensor

EPS = 1e-5


def normalized(x: Tensor, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = EPS) -> Tensor:
    """γ·(x − μ)/√(σ² + eps) + β of (N, C, H, W), in float64, by the batch's own mean and biased variance."""
    x = x.double()
    mean = x.mean((0, 2, 3), keepdim=True)
    centred = x - mean
    centred = centred - centred.mean((0, 2, 3), keepdim=True)  # at a mean of 10⁶ the first difference rounds
    y = centred / (centred.square().mean((0, 2, 3), keepdim=True) + eps).sqrt()
    if weight is not None:
        y = y * weight.double().reshape(1, -1, 1, 1)
    return y if bias is None else y + bias.double().reshape(1, -1, 1, 1)


def moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and unbiased variance (C,) in float64."""
    values = x.double().movedim(1, 0).flatten(1)
    return values.mean(1), values.var(1)


def gradients(x: Tensor, grad: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, ...]:
    """Gradients of x, γ and β in float64."""
    x, weight, bias = (t.detach().double().requires_grad_() for t in (x, weight, bias))
    return torch.autograd.grad(normalized(x, weight, bias), (x, weight, bias), grad.double())


def error(got: Tensor, exact: Tensor) -> float:
    """The largest difference over the largest value."""
    return float((got.double() - exact).abs().max() / exact.abs().max().clamp(min=1e-30))
