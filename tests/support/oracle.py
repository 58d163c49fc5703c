"""The paper's equations once more, in float64 and as plainly as they can be written, and the one tolerance.

Source: Ioffe & Szegedy 2015, "Batch Normalization", algorithms 1 and 2; for renormalisation Ioffe 2017, algorithm 1.
Gradients are autograd's, of these equations. The code under test shares nothing with this file.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

ACTIVATIONS: dict[str | None, Callable[[Tensor], Tensor]] = {
    None: lambda z: z,
    **{name: getattr(F, name) for name in ["relu", "relu6", "leaky_relu", "silu", "gelu", "hardswish"]},
}
KINKS = {"relu": (0.0,), "leaky_relu": (0.0,), "relu6": (0.0, 6.0), "hardswish": (-3.0, 3.0)}
LEAVES = ("x", "residual", "weight", "bias")


@dataclass
class Answer:
    """The results of a call: the output, the running statistics after it, and the gradients by argument name.

    `z` is the output before its activation. `sizes` holds, for each part by its name, the magnitude of the terms that
    a right computation rounds on the way; the terms may cancel, their rounding errors do not.
    """

    y: Tensor
    running_mean: Tensor | None = None
    running_var: Tensor | None = None
    grads: dict[str, Tensor | None] = field(default_factory=dict)
    z: Tensor | None = None
    sizes: dict[str, float] = field(default_factory=dict)

    def parts(self) -> Iterator[tuple[str, Tensor | None]]:
        """Every result by its name."""
        yield from (("y", self.y), ("running_mean", self.running_mean), ("running_var", self.running_var))
        yield from self.grads.items()


# ---- the equations


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
    nonfinite: str = "skip",
    **options: Any,
) -> Answer:
    """All results that a call should give, in float64; the gradients are those for the gradient `grad` of the output.

    `options` are the mask, virtual_batch_size, renorm and single of `before_activation`.
    """
    given = {"x": x, "residual": residual, "weight": weight, "bias": bias}
    leaves = {k: None if t is None else t.detach().double().requires_grad_() for k, t in given.items()}
    population = [None if s is None else s.detach().double() for s in (running_mean, running_var)]
    z, terms = before_activation(**leaves, mean=population[0], var=population[1], by_batch=training, eps=eps, **options)
    z.retain_grad()
    counted = weights_like(x, options.get("mask")) > 0
    y = torch.where(counted, ACTIVATIONS[activation](z), 0)
    if training and population[0] is not None:
        population = moved(leaves["x"].detach(), *population, momentum, nonfinite, options.get("mask"))
    sizes = {"y": sum(_largest(terms[k]) for k in ("scaled", "bias", "residual"))}
    for name, after, before in zip(
        ("running_mean", "running_var"), population, (running_mean, running_var), strict=True
    ):
        sizes[name] = _largest(after) + _largest(before)
    if grad is not None:
        y.backward(grad.double())
        slope, hat, dz = (t.detach() for t in (terms["slope"], terms["hat"], z.grad))
        over = [0, *range(2, x.dim())]
        by_weight = (hat * dz).square().sum(over).sqrt()  # √n, as rounding errors add up
        sizes |= {"residual": _largest(dz), "x": _largest(slope) * _largest(dz) * (2 + _largest(hat))}
        sizes |= {"weight": 4 * _largest(by_weight), "bias": 4 * _largest(dz.square().sum(over).sqrt())}
    return Answer(
        y.detach(), *population, {k: None if t is None else t.grad for k, t in leaves.items()}, z.detach(), sizes
    )


def before_activation(
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor | None,
    var: Tensor | None,
    by_batch: bool,
    eps: float,
    *,
    mask: Tensor | None = None,
    virtual_batch_size: int | None = None,
    renorm: Any = None,
    single: str = "error",
) -> tuple[Tensor, dict[str, Tensor | None]]:
    """γ·x̂ + β + residual in float64, and its terms; differentiable. Values that do not count are read as 0."""
    weights = weights_like(x, mask)
    x = torch.where(weights > 0, x, 0)
    residual = None if residual is None else torch.where(weights > 0, residual, 0)
    size = virtual_batch_size if virtual_batch_size and by_batch else max(len(x), 1)
    hats, slopes = [], []
    for values, counts in zip(x.split(size), weights.split(size), strict=True):
        mu, slope, shift = _normalizer(values, counts, mean, var, by_batch, eps, renorm, single)
        hats.append((values - over(mu, x)) * over(slope, x) + over(shift, x))
        slopes.append(over(slope, x).expand(len(values), *[-1] * (x.dim() - 1)))
    hat, slope = torch.cat(hats), torch.cat(slopes)
    scaled = hat if weight is None else hat * over(weight, x)
    slope = slope if weight is None else slope * over(weight, x)
    z = scaled if bias is None else scaled + over(bias, x)
    terms = {"scaled": scaled, "bias": bias, "residual": residual, "hat": hat, "slope": slope}
    return z if residual is None else z + residual, terms


def _normalizer(
    x: Tensor, weights: Tensor, mean: Any, var: Any, by_batch: bool, eps: float, renorm: Any, single: str
) -> tuple[Tensor, Tensor, Tensor]:
    """μ, slope and shift of x̂ = (x − μ)·slope + shift, per channel of one group."""
    if not by_batch:
        return mean, (var + eps).rsqrt(), torch.zeros_like(mean)
    count, mu, m2 = moments(x, weights)
    slope = (m2 / _some(count) + eps).rsqrt()
    shift = torch.zeros_like(slope)
    if renorm is not None:
        sigma, population = slope.detach().reciprocal(), (var + eps).sqrt()
        r = (sigma / population).clamp(1 / renorm.r_max, renorm.r_max)
        shift = ((mu.detach() - mean) / population).clamp(-renorm.d_max, renorm.d_max)
        slope = slope * r
    if single == "population":
        alone = count <= 1
        mu, slope = torch.where(alone, mean, mu), torch.where(alone, (var + eps).rsqrt(), slope)
        shift = torch.where(alone, 0, shift)
    return mu, slope, shift


def moments(x: Tensor, weights: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Count, mean and sum of squared deviations, (C,) in float64; values of weight 0 are read as 0."""
    dims, w = [0, *range(2, x.dim())], weights.double()
    x = torch.where(w > 0, x.double(), 0)
    count = w.sum(dims)
    mean = (x * w).sum(dims) / _some(count)
    mean = mean + ((x - over(mean, x)) * w).sum(dims) / _some(count)  # float64 rounds too: again, from the estimate
    return count, mean, ((x - over(mean, x)).square() * w).sum(dims)


def moved(
    x: Tensor, mean: Tensor, var: Tensor, momentum: float, nonfinite: str, mask: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The running statistics after a batch: from all groups together, with the unbiased variance."""
    count, mu, m2 = moments(x, weights_like(x, mask))
    moves = count > 1
    if nonfinite == "skip":
        moves &= mu.isfinite() & m2.isfinite()
    steps = (1 - momentum) * mean + momentum * mu, (1 - momentum) * var + momentum * m2 / (count - 1)
    return torch.where(moves, steps[0], mean), torch.where(moves, steps[1], var)


def weights_like(x: Tensor, mask: Tensor | None) -> Tensor:
    """The weight of each value, in float64 and the shape of `x`, from a mask for all channels or for each."""
    if mask is None:
        return torch.ones_like(x, dtype=torch.float64)
    mask = mask.unsqueeze(1) if mask.dim() == x.dim() - 1 else mask
    return mask.double().expand_as(x)


def over(statistic: Tensor, x: Tensor) -> Tensor:
    """A statistic (C,) reshaped to broadcast over (N, C, *)."""
    return statistic.reshape(1, -1, *[1] * (x.dim() - 2))


def _some(count: Tensor) -> Tensor:
    return torch.where(count > 0, count, 1)  # the mean of no values is 0


# ---- the results of the functions under test and of torch


def answer(
    function: Callable[..., Tensor],
    x: Tensor,
    mean: Tensor | None,
    var: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    *args: Any,
    grad: Tensor,
    residual: Tensor | None = None,
    **keywords: Any,
) -> Answer:
    """A function with the signature of `F.batch_norm`: its output, the buffers after it, the gradients for `grad`."""
    leaves: dict[str, Any] = {"x": x, "residual": residual, "weight": weight, "bias": bias}
    leaves = {k: None if t is None else t.detach().requires_grad_() for k, t in leaves.items()}
    mean, var = (None if s is None else s.clone() for s in (mean, var))
    if residual is not None:
        keywords["residual"] = leaves["residual"]
    y = function(leaves["x"], mean, var, leaves["weight"], leaves["bias"], *args, **keywords)
    y.backward(grad)
    return Answer(y.detach(), mean, var, {k: None if t is None else t.grad for k, t in leaves.items()})


def by_torch(*args: Any, residual: Tensor | None = None, activation: str | None = None, **keywords: Any) -> Tensor:
    """A batch norm with a residual and an activation by torch's own functions: the rival."""
    y = F.batch_norm(*args, **keywords)
    return ACTIVATIONS[activation](y if residual is None else y + residual)


# ---- the tolerance


def judge(
    what: str,
    got: Tensor,
    exact: Tensor,
    rival: Tensor | None = None,
    *,
    size: float = 0.0,
    budget: float | None = None,
) -> None:
    """Assert that `got` is as close to `exact` as a right result, and print error and budget side by side.

    The budget is twice the error of `rival` (torch's own answer from the same input) plus eps·max|exact|, with the eps
    of the answer's dtype (eight of them in float64, where `exact` rounds as much as the answer does); or the `budget`
    that is given. `size` is the magnitude of terms that float32 rounds and that may cancel: in a tiny tensor they
    exceed their sum, and the rival may be right by luck. NaN and Inf must be in the same places as in `exact`.
    """
    assert got.shape == exact.shape, f"{what}: shape {tuple(got.shape)}, expected {tuple(exact.shape)}"
    if exact.numel() == 0:
        return
    if budget is None:
        assert rival is None or got.dtype == rival.dtype, f"{what}: {got.dtype}, torch gives {rival.dtype}"
        eps, working = torch.finfo(got.dtype).eps, torch.finfo(torch.float32).eps
        if got.dtype is torch.float64:
            eps = working = 8 * eps
        budget = eps * _largest(exact) + working * size
        budget += 0.0 if rival is None else 2 * _error(rival, exact)
    error = _error(got, exact)
    print(f"{what}: error {error:.3g}, budget {budget:.3g}")
    assert error <= budget, f"{what}: error {error:.3g}, budget {budget:.3g}"


def judge_all(ours: Answer, truth: Answer, torchs: Answer) -> None:
    """Every part of our answer is judged, and there is one wherever torch has one."""
    theirs, right = dict(torchs.parts()), dict(truth.parts())
    assert dict(ours.parts()).keys() == theirs.keys()
    for name, got in ours.parts():
        assert (got is None) == (theirs[name] is None), name
        if got is not None:
            judge(name, got, right[name], theirs[name], size=truth.sizes[name])


def away_from_kinks(z: Tensor, activation: str | None, dtype: torch.dtype, stored: torch.dtype | None = None) -> Tensor:
    """True where two right gradients must agree: further from the activation's kinks than rounding can reach.

    `z` rounds in `dtype`. The derivative may be computed from an output that is `stored` in a narrower dtype.
    """
    reach = 2 * torch.finfo(dtype).eps * (1 + z[z.isfinite()].abs().max())
    away = torch.ones_like(z, dtype=torch.bool)
    for kink in KINKS.get(activation, ()):
        away &= (z - kink).abs() > reach + 2 * torch.finfo(stored or dtype).eps * abs(kink)
    return away


def _error(got: Tensor, exact: Tensor) -> float:
    got, exact = got.detach().double(), exact.double()
    same = (got == exact) | (got.isnan() & exact.isnan())  # Inf − Inf is NaN, not 0
    difference = torch.where(same, 0.0, (got - exact).abs())
    return torch.where(difference.isnan(), torch.inf, difference).max().item()


def _largest(t: Tensor | None) -> float:
    t = torch.zeros(()) if t is None else t.detach()[t.isfinite()]
    return t.abs().max().item() if t.numel() else 0.0
