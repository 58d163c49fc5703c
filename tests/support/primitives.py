"""The four primitives of a backend against the equations in float64: masks, virtual batches, dtypes, activations."""

from typing import Any

import torch
from torch import Tensor

from tests.support import oracle
from tests.support.oracle import ACTIVATIONS, away_from_kinks, judge, weights_like

MASKS = {
    "none": lambda shape: None,
    "positions": lambda shape: (torch.rand(shape[0], 1, *shape[2:]) < 0.7).float(),
    "weighted positions": lambda shape: torch.rand(shape[0], 1, *shape[2:]).sub(0.3).relu(),
    "values": lambda shape: (torch.rand(shape) < 0.7).float(),
    "weights": lambda shape: torch.rand(shape) * (torch.rand(shape) < 0.7),
    "channels": lambda shape: (torch.arange(shape[1]) % 3 > 0).float().reshape(1, -1, *[1] * (len(shape) - 2)),
    "one sample": lambda shape: torch.eye(shape[0])[0].reshape(-1, *[1] * (len(shape) - 1)),
    "nothing": lambda shape: torch.zeros([1] * len(shape)),
}  # fmt: skip


def per_group(x: Tensor, virtual: int) -> list[slice]:
    size = virtual or len(x)
    return [slice(start, start + size) for start in range(0, len(x), size)]


def spread(parameters: Tensor, x: Tensor, virtual: int) -> Tensor:
    """(G, C) parameters as they apply to each sample of `x`."""
    rows = torch.arange(len(x)) // virtual if virtual else torch.zeros(len(x), dtype=torch.long)
    return parameters[rows].reshape(*parameters[rows].shape, *[1] * (x.dim() - 2))


def magnitude(t: Tensor) -> float:
    return t.abs().max().item()


def check_primitives(kernels: Any, tensors: list[Tensor], mask: str, virtual: int, activation: str | None) -> None:
    """Each primitive against the equations in float64 on x, a residual and a gradient.

    There is NaN wherever the mask is 0.
    """
    x, residual, grad = tensors
    shape, dtype = x.shape, x.dtype
    working = torch.promote_types(dtype, torch.float32)
    weights = MASKS[mask](tuple(shape))
    counted = weights_like(x, weights) > 0
    for t in (x, residual, grad):
        t[~counted] = torch.nan
    groups = per_group(x, virtual)
    parts = [oracle.moments(x[g], weights_like(x, weights)[g]) for g in groups]
    count, mean, m2 = (torch.stack(column) for column in zip(*parts, strict=True))
    rounding = torch.finfo(working).eps * (8 if dtype is torch.float64 else 1)

    got = kernels.moments(x, virtual, weights)
    assert got[0].shape == got[1].shape == got[2].shape == (len(groups), shape[1])
    x64 = torch.where(counted, x.double(), 0)
    deviation = torch.where(counted, x64 - spread(mean, x, virtual), 0)
    judge("count", got[0], count, budget=4 * rounding * magnitude(count))
    judge("mean", got[1], mean, budget=rounding * magnitude(deviation) + 1e-15 * magnitude(mean))
    judge("m2", got[2], m2, budget=4 * rounding * magnitude(m2) + 4 * rounding * magnitude(deviation.square()))

    scale = (m2 / count.clamp(min=1e-30) + 1e-2).rsqrt()
    shift = torch.randn_like(scale)
    r64, g64 = (torch.where(counted, t.double(), 0) for t in (residual, grad))
    scaled = deviation * spread(scale, x, virtual)
    z = (scaled + spread(shift, x, virtual) + r64).requires_grad_()
    g64 = torch.where(away_from_kinks(z, activation, working), g64, 0)
    grad = torch.where(counted, g64, torch.nan).to(dtype)
    terms = magnitude(scaled) + magnitude(shift) + magnitude(r64)
    y = kernels.normalize(x, mean, scale, shift, residual, activation, virtual, weights)
    judge("y", y, torch.where(counted, ACTIVATIONS[activation](z), 0).detach(), size=1.5 * terms)

    (g,) = torch.autograd.grad(ACTIVATIONS[activation](z), z, g64)
    slope = rounding * (magnitude(g) + magnitude(g64) * terms)  # a slope has the error of z
    inputs = grad, x, mean, scale, shift
    sums = kernels.backward_reduce(*inputs, residual, activation, virtual, weights)
    for what, sum_got, values in zip(("Σ g′", "Σ g′·(x − mean)"), sums, (g, g * deviation), strict=True):
        exact = torch.stack([values[part].movedim(1, 0).flatten(1).sum(1) for part in groups])
        samples = x.numel() // shape[1]
        judge(what, sum_got, exact, budget=slope * samples**0.5 * max(1.0, magnitude(deviation)))

    a, b, c = (torch.randn_like(scale) for _ in range(3))
    dx, dresidual = kernels.backward_apply(*inputs, a, b, c, residual, activation, virtual, weights)
    w = weights_like(x, weights)
    exact = spread(a, x, virtual) * g + w * (spread(b, x, virtual) * deviation + spread(c, x, virtual))
    exact = torch.where(counted, exact, 0)
    sizes = magnitude(a) * (magnitude(g) + magnitude(g64) * terms) + magnitude(b) * magnitude(deviation) + magnitude(c)
    judge("dx", dx, exact, size=sizes)
    judge("dresidual", dresidual, g, size=slope / rounding)
