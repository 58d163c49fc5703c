"""The paper's equations once more, in float64 and as plainly as they can be written, and the one tolerance.

Source: Ioffe & Szegedy 2015, "Batch Normalization", algorithms 1 and 2. Gradients are autograd's, of these equations.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional as F

ACTIVATIONS = {
    None: lambda z: z,
    **{name: getattr(F, name) for name in ["relu", "relu6", "leaky_relu", "silu", "gelu", "hardswish"]},
}
KINKS = {"relu": (0.0,), "leaky_relu": (0.0,), "relu6": (0.0, 6.0), "hardswish": (-3.0, 3.0)}


@dataclass
class Answer:
    """What a call computes: the output, the running statistics after it, and the gradients by argument name.

    `z` is the output before its activation. `sizes` holds, for each part by its name, the magnitude of the terms that
    a right computation rounds on the way; they may cancel, and what they leave behind does not.
    """

    y: Tensor
    running_mean: Tensor | None = None
    running_var: Tensor | None = None
    grads: dict[str, Tensor | None] = field(default_factory=dict)
    z: Tensor | None = None
    sizes: dict[str, float] = field(default_factory=dict)


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
    normalized = (x - _per_channel(mean, x)) / (_per_channel(var, x) + eps).sqrt()
    scaled = normalized if weight is None else normalized * _per_channel(weight, x)
    z = scaled if bias is None else scaled + _per_channel(bias, x)
    z = z if residual is None else z + residual
    z.retain_grad()
    y = ACTIVATIONS[activation](z)
    sizes = {"y": sum(_largest(t) for t in (scaled, bias, residual))}
    sizes |= {"running_mean": _largest(mean) + _largest(memory[0]), "running_var": _largest(var) + _largest(memory[1])}
    if grad is not None:
        y.backward(grad.double())
        slope = _largest((var + eps).rsqrt() if weight is None else weight / (var + eps).sqrt())
        by_weight = (normalized * z.grad).square().sum(over).sqrt()  # √n, as rounding errors add up
        sizes |= {"residual": _largest(z.grad), "x": slope * _largest(z.grad) * (2 + _largest(normalized))}
        sizes |= {"weight": 4 * _largest(by_weight), "bias": 4 * _largest(z.grad.square().sum(over).sqrt())}
    return Answer(y.detach(), *memory, {k: None if t is None else t.grad for k, t in leaves.items()}, z.detach(), sizes)


def away_from_kinks(z: Tensor, activation: str | None, dtype: torch.dtype) -> Tensor:
    """Where two right gradients must agree: further from the activation's kinks than rounding can reach."""
    reach = 2 * torch.finfo(dtype).eps * (1 + z.abs().max())
    away = torch.ones_like(z, dtype=torch.bool)
    for kink in KINKS.get(activation, ()):
        away &= (z - kink).abs() > reach
    return away


def judge(
    what: str,
    got: Tensor,
    exact: Tensor,
    rival: Tensor | None = None,
    *,
    size: float = 0.0,
    budget: float | None = None,
) -> None:
    """Assert that `got` is as close to `exact` as a right answer is, and print error and budget side by side.

    The budget is twice the error of `rival` (torch's own answer from the same input) plus eps·max|exact|, with the eps
    of the answer's dtype (eight of them in float64, where `exact` rounds as much as the answer does); or the one that
    is given. `size` is that of terms which float32 rounds and which may cancel: in a tiny tensor they exceed what is
    left of them, and the rival may be right by luck. NaN and Inf must stand where they stand in `exact`.
    """
    assert got.shape == exact.shape, f"{what}: shape {tuple(got.shape)}, expected {tuple(exact.shape)}"
    if exact.numel() == 0:
        return
    if budget is None:
        assert rival is None or got.dtype == rival.dtype, f"{what}: {got.dtype}, torch gives {rival.dtype}"
        eps, working = torch.finfo(got.dtype).eps, torch.finfo(torch.float32).eps
        if got.dtype is torch.float64:
            eps = working = 8 * eps
        budget = eps * _largest(exact[exact.isfinite()]) + working * size
        budget += 0.0 if rival is None else 2 * _error(rival, exact)
    error = _error(got, exact)
    print(f"{what}: error {error:.3g}, budget {budget:.3g}")
    assert error <= budget, f"{what}: error {error:.3g}, budget {budget:.3g}"


def _error(got: Tensor, exact: Tensor) -> float:
    got, exact = got.detach().double(), exact.double()
    same = (got == exact) | (got.isnan() & exact.isnan())  # Inf − Inf is no zero
    difference = torch.where(same, 0.0, (got - exact).abs())
    return torch.where(difference.isnan(), torch.inf, difference).max().item()


def _largest(t: Tensor | None) -> float:
    return 0.0 if t is None or t.numel() == 0 else t.detach().abs().max().item()


def _per_channel(statistic: Tensor, x: Tensor) -> Tensor:
    return statistic.reshape(1, -1, *[1] * (x.dim() - 2))
