"""Batch normalization written plainly in torch, for any dtype: in float64 it is the oracle, in others the rival."""

import torch
import torch.nn.functional as F
from torch import Tensor

ACTIVATIONS = {
    None: lambda z: z,
    "relu": F.relu,
    "leaky_relu": F.leaky_relu,
    "silu": F.silu,
    "gelu": F.gelu,
    "hardswish": F.hardswish,
}
KINKS = {"relu": (0.0,), "leaky_relu": (0.0,), "hardswish": (-3.0, 3.0)}


def data(shape: tuple[int, ...], dtype: torch.dtype, offset: float = 3.0, drift: float = 2.0) -> Tensor:
    """Values that are not i.i.d.: an offset, the second half of samples elsewhere, and a ramp along positions."""
    x = torch.randn(shape, dtype=torch.float64)
    x[shape[0] // 2 :] += drift
    x += torch.linspace(0, 1, shape[-1], dtype=torch.float64)
    return (x + offset).to(dtype)


def by_torch(
    x: Tensor, grad: Tensor, weight: Tensor, bias: Tensor, residual: Tensor | None, activation: str | None,
    eps: float = 1e-5,
) -> dict[str, Tensor]:  # fmt: skip
    """Output and gradients, by torch's own batch norm in the dtype of the arguments."""
    leaves = [t.detach().clone().requires_grad_() for t in (x, weight, bias, *([] if residual is None else [residual]))]
    z = F.batch_norm(leaves[0], None, None, leaves[1], leaves[2], True, 0.1, eps)
    y = ACTIVATIONS[activation](z if residual is None else z + leaves[3])
    gradients = torch.autograd.grad(y, leaves, grad)
    return {"y": y.detach(), **dict(zip(("dx", "dweight", "dbias", "dresidual"), gradients, strict=False))}


def moments(x: Tensor, virtual: int = 0, mask: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Count (G, 1), mean and m2 (G, C) in float64; values of weight zero are not looked at."""
    N, C = x.shape[:2]
    values = x.double().reshape(N, C, -1)
    weights = torch.ones(N, 1, values.shape[2]) if mask is None else mask.reshape(N, 1, -1)
    weights = weights.double().expand_as(values)
    values = torch.where(weights > 0, values, 0.0)
    results = []
    for v, w in zip(values.split(virtual or N), weights.split(virtual or N), strict=True):
        count = w[:, 0].sum()
        mean = (v * w).sum((0, 2)) / count.clamp(min=1e-30)  # of none: zero
        results.append((count[None], mean, ((v - mean[:, None]) ** 2 * w).sum((0, 2))))
    return tuple(torch.stack(column) for column in zip(*results, strict=True))  # type: ignore[return-value]


def per_sample(parameters: Tensor, x: Tensor, virtual: int = 0) -> Tensor:
    """(G or 1, C) parameters as they apply to each sample of `x`."""
    N, C = x.shape[:2]
    rows = torch.arange(N) // virtual if virtual and len(parameters) > 1 else torch.zeros(N, dtype=torch.long)
    return parameters[rows].reshape(N, C, *[1] * (x.dim() - 2))


def close(ours: Tensor, exact: Tensor, theirs: Tensor | None = None, where: Tensor | None = None) -> None:
    """At most twice torch's error on the same input, plus eps·max|exact| of the result's dtype.

    In float64 the oracle is no more exact than what it judges: there, a thousand times eps.
    """
    assert ours.shape == exact.shape
    error = (ours.double() - exact).abs()
    budget = torch.finfo(ours.dtype).eps * exact.abs().max().item() * (1000 if ours.dtype == torch.float64 else 1)
    if theirs is not None:
        budget += 2 * (theirs.double() - exact).abs().max().item()
    if where is not None:
        error = error[where]
    worst = error.max().item() if error.numel() else 0.0
    assert worst <= budget, f"error {worst:.3e}, budget {budget:.3e}"
