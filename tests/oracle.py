"""The paper's equations once more, in float64 and as plainly as they can be written, and the one tolerance.

Source: Ioffe & Szegedy 2015, "Batch Normalization", algorithms 1 and 2. Gradients are autograd's, of these equations.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional as F

ACTIVATIONS = {
    None: lambda z: z,
    **{name: getattr(F, name) for name in ["relu", "leaky_relu", "silu", "gelu", "hardswish"]},
}
KINKS = {"relu": (0.0,), "leaky_relu": (0.0,), "hardswish": (-3.0, 3.0)}


@dataclass
class Answer:
    """What a call computes: the output, the running statistics after it, and the gradients by argument name."""

    y: Tensor
    running_mean: Tensor | None = None
    running_var: Tensor | None = None
    grads: dict[str, Tensor | None] = field(default_factory=dict)
    z: Tensor | None = None  # before the activation


def exact(
    x: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
    *,
    residual: Tensor | None = None,
    activation: str | None = None,
    grad: Tensor | None = None,
) -> Answer:
    """Everything a call should give, in float64; the gradients are those for `grad` arriving at the output."""
    given = {"x": x, "weight": weight, "bias": bias, "residual": residual}
    leaves = {k: None if t is None else t.detach().double().requires_grad_() for k, t in given.items()}
    x, weight, bias, residual = leaves.values()
    memory = [None if s is None else s.detach().double() for s in (running_mean, running_var)]

    over = [0, *range(2, x.dim())]
    count = x.numel() // x.shape[1]
    if training:
        mean = x.mean(over)
        mean = mean + (x - _per_channel(mean, x)).mean(over)  # float64 rounds too: once more, from nearby
        var = (x - _per_channel(mean, x)).square().mean(over)
        if memory[0] is not None:
            unbiased = var.detach() * count / (count - 1)
            memory[0] = (1 - momentum) * memory[0] + momentum * mean.detach()
            memory[1] = (1 - momentum) * memory[1] + momentum * unbiased
    else:
        mean, var = memory
    z = (x - _per_channel(mean, x)) / (_per_channel(var, x) + eps).sqrt()
    z = z if weight is None else z * _per_channel(weight, x)
    z = z if bias is None else z + _per_channel(bias, x)
    z = z if residual is None else z + residual
    y = ACTIVATIONS[activation](z)
    if grad is not None:
        y.backward(grad.double())
    return Answer(y.detach(), *memory, {k: None if t is None else t.grad for k, t in leaves.items()}, z.detach())


def away_from_kinks(z: Tensor, activation: str | None, dtype: torch.dtype) -> Tensor:
    """Where two right gradients must agree: further from the activation's kinks than rounding can reach."""
    reach = 2 * torch.finfo(dtype).eps * (1 + z.abs().max())
    away = torch.ones_like(z, dtype=torch.bool)
    for kink in KINKS.get(activation, ()):
        away &= (z - kink).abs() > reach
    return away


def judge(what: str, got: Tensor, exact: Tensor, rival: Tensor | None = None, *, budget: float | None = None) -> None:
    """Assert that `got` is as close to `exact` as a right answer is, and print error and budget side by side.

    The budget is twice the error of `rival` (torch's own answer from the same input) plus eps·max|exact|, with the eps
    of the answer's dtype (eight of them in float64, where `exact` rounds as much as the answer does); or the one that
    is given. NaN and Inf must stand where they stand in `exact`.
    """
    assert got.shape == exact.shape, f"{what}: shape {tuple(got.shape)}, expected {tuple(exact.shape)}"
    if exact.numel() == 0:
        return
    if budget is None:
        assert rival is None or got.dtype == rival.dtype, f"{what}: {got.dtype}, torch gives {rival.dtype}"
        budget = torch.finfo(got.dtype).eps * exact[exact.isfinite()].abs().max().item()
        budget *= 8 if got.dtype is torch.float64 else 1
        budget += 0.0 if rival is None else 2 * _error(rival, exact)
    error = _error(got, exact)
    print(f"{what}: error {error:.3g}, budget {budget:.3g}")
    assert error <= budget, f"{what}: error {error:.3g}, budget {budget:.3g}"


def _error(got: Tensor, exact: Tensor) -> float:
    got, exact = got.detach().double(), exact.double()
    same = (got == exact) | (got.isnan() & exact.isnan())  # Inf − Inf is no zero
    difference = torch.where(same, 0.0, (got - exact).abs())
    return torch.where(difference.isnan(), torch.inf, difference).max().item()


def _per_channel(statistic: Tensor, x: Tensor) -> Tensor:
    return statistic.reshape(1, -1, *[1] * (x.dim() - 2))
