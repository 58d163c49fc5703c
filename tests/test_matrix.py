"""Every option with every other, sampled, against an oracle that is written differently: float64, one group and one
channel at a time, the counted values gathered out of the tensor, differentiated by autograd."""

import itertools
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

import batchnorm as bn

EPS = 1e-3
ACTIVATIONS = {
    None: lambda z: z, "relu": F.relu, "relu6": F.relu6, "leaky_relu": F.leaky_relu,
    "silu": F.silu, "gelu": F.gelu, "hardswish": F.hardswish,
}  # fmt: skip
SMOOTH = (None, "silu", "gelu")  # a kink lets two right answers differ; the kernels' own tests look at kinks


@dataclass(frozen=True)
class Setting:
    shape: tuple[int, ...]
    dtype: torch.dtype
    channels_last: bool
    mask: str | None  # "positions", "values", "weights", "empties a channel"
    virtual: int | None
    renorm: bn.Renorm | None
    single: str
    residual: bool
    activation: str | None
    affine: bool
    state: str  # "train", "eval", "frozen", "paused"
    offset: float
    seed: int


SETTINGS = st.builds(
    Setting,
    shape=st.sampled_from([(7, 3), (2, 4), (6, 3, 5), (5, 2, 3, 4), (9, 3, 1, 1), (4, 2, 2, 3, 2), (1, 3, 6)]),
    dtype=st.sampled_from([torch.float64, torch.float32, torch.bfloat16, torch.float16]),
    channels_last=st.booleans(),
    mask=st.sampled_from([None, None, "positions", "values", "weights", "empties a channel"]),
    virtual=st.sampled_from([None, None, 2, 3, 4]),
    renorm=st.sampled_from([None, None, bn.Renorm(1.5, 0.5), bn.Renorm(3, 5)]),
    single=st.just("population"),
    residual=st.booleans(),
    activation=st.sampled_from(SMOOTH),
    affine=st.booleans(),
    state=st.sampled_from(["train", "train", "eval", "frozen", "paused"]),
    offset=st.sampled_from([0.0, 3.0, 1000.0]),
    seed=st.integers(0, 10_000),
)


def data(s: Setting) -> dict[str, Tensor | None]:
    g = torch.Generator().manual_seed(s.seed)
    normal = lambda *shape: torch.randn(*shape, generator=g, dtype=torch.float64)  # noqa: E731
    drift = torch.linspace(-1, 1, s.shape[0], dtype=torch.float64).reshape(-1, *[1] * (len(s.shape) - 1))
    offset = s.offset if s.dtype is torch.float32 else min(s.offset, 3.0)  # the oracle is itself float64
    x = normal(*s.shape) * 2 + drift + offset
    mask = None
    if s.mask == "positions":
        mask = torch.rand(s.shape[0], *s.shape[2:], generator=g) < 0.6
    elif s.mask == "weights":
        mask = torch.rand(s.shape, generator=g) * (torch.rand(s.shape, generator=g) < 0.7)
    elif s.mask is not None:
        mask = torch.rand(s.shape, generator=g) < 0.6
        if s.mask == "empties a channel":
            mask[:, 0] = False
    c = s.shape[1]
    rounded = lambda t: t.to(s.dtype)  # noqa: E731
    return {
        "x": rounded(x), "residual": rounded(normal(*s.shape)) if s.residual else None, "mask": mask,
        "weight": rounded(normal(c)) if s.affine else None, "bias": rounded(normal(c)) if s.affine else None,
        "mean": rounded(normal(c) + offset), "var": rounded(normal(c).square() + 0.5),
        "grad": rounded(normal(*s.shape)),
    }  # fmt: skip


def oracle(s: Setting, d: dict[str, Tensor | None]) -> tuple[Tensor, list[Tensor | None], tuple[Tensor, Tensor], float]:
    """Output, gradients of (x, residual, weight, bias), the population after the batch, and the largest 1/σ."""
    wide = {k: None if t is None else t.double() for k, t in d.items()}
    x, residual, weight, bias = leaves = [
        None if wide[k] is None else wide[k].clone().requires_grad_() for k in ("x", "residual", "weight", "bias")
    ]
    m = torch.ones_like(x) if wide["mask"] is None else wide["mask"]
    m = (m.unsqueeze(1) if m.dim() == x.dim() - 1 else m).expand_as(x)
    mean, var = wide["mean"], wide["var"]
    by_batch = s.state in ("train", "paused")
    size = s.virtual if s.virtual and by_batch else len(x)
    rows, gain = [], 1.0
    for start in range(0, len(x), size):
        columns = []
        for c in range(x.shape[1]):
            values, weights = x[start : start + size, c], m[start : start + size, c]
            n = weights.sum()
            use = values[weights > 0], weights[weights > 0]
            by_population = not by_batch or n <= 1
            mu, sigma = (mean[c], (var[c] + EPS).sqrt()) if by_population else _own(use, n)
            hat = (values - mu) / sigma
            gain = max(gain, (1 / sigma).item())
            if s.renorm is not None and not by_population:
                population = (var[c] + EPS).sqrt()
                r = (sigma / population).detach().clamp(1 / s.renorm.r_max, s.renorm.r_max)
                shift = ((mu - mean[c]) / population).detach().clamp(-s.renorm.d_max, s.renorm.d_max)
                hat = hat * r + shift
            z = hat if weight is None else hat * weight[c]
            z = z if bias is None else z + bias[c]
            z = z if residual is None else z + residual[start : start + size, c]
            columns.append(torch.where(weights > 0, ACTIVATIONS[s.activation](z), 0))
        rows.append(torch.stack(columns, 1))
    y = torch.cat(rows)
    wanted = [t for t in leaves if t is not None]
    grads = iter(torch.autograd.grad(y, wanted, wide["grad"], allow_unused=True, materialize_grads=True))
    return y.detach(), [None if t is None else next(grads) for t in leaves], _moved(s, x.detach(), m, mean, var), gain


def _own(use: tuple[Tensor, Tensor], n: Tensor) -> tuple[Tensor, Tensor]:
    values, weights = use
    mu = (values * weights).sum() / n
    return mu, ((weights * (values - mu).square()).sum() / n + EPS).sqrt()


def _moved(s: Setting, x: Tensor, m: Tensor, mean: Tensor, var: Tensor) -> tuple[Tensor, Tensor]:
    mean, var = mean.clone(), var.clone()
    for c in range(x.shape[1] if s.state == "train" else 0):
        weights, values = m[:, c], x[:, c]
        n = weights.sum()
        if n > 1:
            mu = (values * weights).sum() / n
            mean[c] += 0.1 * (mu - mean[c])
            var[c] += 0.1 * ((weights * (values - mu).square()).sum() / (n - 1) - var[c])
    return mean, var


def layer_for(s: Setting, d: dict[str, Tensor | None]) -> bn.BatchNorm:
    layer = bn.BatchNorm(
        s.shape[1], eps=EPS, affine=s.affine, dtype=s.dtype, activation=s.activation,
        virtual_batch_size=s.virtual, renorm=s.renorm, single=s.single,
    )  # fmt: skip
    with torch.no_grad():
        layer.running_mean.copy_(d["mean"])
        layer.running_var.copy_(d["var"])
        if s.affine:
            layer.weight.copy_(d["weight"])
            layer.bias.copy_(d["bias"])
    if s.state == "frozen":
        bn.freeze(layer)
    return layer.eval() if s.state == "eval" else layer


def ours(s: Setting, d: dict[str, Tensor | None]) -> tuple[Tensor, list[Tensor | None], bn.BatchNorm]:
    layer, x = layer_for(s, d), d["x"]
    if s.channels_last and x.dim() in (4, 5):
        x = x.contiguous(memory_format=torch.channels_last if x.dim() == 4 else torch.channels_last_3d)
    x = x.detach().requires_grad_()
    residual = None if d["residual"] is None else d["residual"].detach().requires_grad_()
    if s.state == "paused":
        with bn.paused(layer):
            y = layer(x, residual, mask=d["mask"])
    else:
        y = layer(x, residual, mask=d["mask"])
    assert y.stride() == torch.empty_like(x).stride()
    assert y.dtype is s.dtype
    leaves = [x, residual, layer.weight, layer.bias]
    wanted = [t for t in leaves if t is not None]
    grads = iter(torch.autograd.grad(y, wanted, d["grad"], allow_unused=True, materialize_grads=True))
    return y.detach(), [None if t is None else next(grads) for t in leaves], layer


def close(what: str, actual: Tensor | None, expected: Tensor | None, s: Setting, size: float = 1.0) -> None:
    if expected is None:
        assert actual is None, what
        return
    # Rounding, on values of this size; never of n.
    budget = 40 * torch.finfo(s.dtype).eps * max(size, expected.abs().max().item())
    error = (actual.double() - expected).abs().max().item()
    assert error <= budget, f"{what}: error {error:.3g}, budget {budget:.3g}, {s}"


@settings(max_examples=200, deadline=None)
@given(SETTINGS)
def test_every_combination_agrees_with_the_oracle(s: Setting) -> None:
    d = data(s)
    y, grads, layer = ours(s, d)
    y64, grads64, population, gain = oracle(s, d)
    close("output", y, y64, s)
    for name, grad, grad64 in zip(("x", "residual", "weight", "bias"), grads, grads64, strict=True):
        # the gradient of x is a difference of terms of the size of grad/σ
        close(f"gradient of {name}", grad, grad64, s, size=3 * gain if name == "x" else 1.0)
    close("running_mean", layer.running_mean, population[0], s)
    close("running_var", layer.running_var, population[1], s)


COVERING = list(itertools.product([None, "values", "weights"], [None, 2], [None, bn.Renorm(1.5, 0.5)], [None, "silu"]))


@pytest.mark.parametrize(("mask", "virtual", "renorm", "activation"), COVERING)
def test_first_and_second_derivatives(mask, virtual, renorm, activation) -> None:
    s = Setting(
        (5, 2, 3), torch.float64, False, mask, virtual, renorm, "population", activation is not None, activation, True,
        "train", 0.5, 3,
    )  # fmt: skip
    d = data(s)
    layer = layer_for(s, d)
    inputs = [d[k].requires_grad_() for k in ("x", "residual", "weight", "bias") if d[k] is not None]

    def function(*tensors: Tensor) -> Tensor:
        x, *rest = tensors
        residual = rest.pop(0) if s.residual else None
        with bn.paused(layer):
            parameters = {"weight": rest[0], "bias": rest[1]}
            return torch.func.functional_call(layer, parameters, (x, residual), {"mask": d["mask"]})

    # the constants of a renormalisation are constants to the gradient, but not to finite differences
    if renorm is None:
        assert torch.autograd.gradcheck(function, inputs)
        assert torch.autograd.gradgradcheck(function, inputs)
    else:
        first = torch.autograd.grad(function(*inputs), inputs, d["grad"], create_graph=True)
        plain = torch.autograd.grad(function(*inputs), inputs, d["grad"])
        for a, b in zip(first, plain, strict=True):
            torch.testing.assert_close(a, b)
