"""Settings that combine every option, and an oracle for them that is written differently.

The oracle works in float64, one group and one channel at a time. It gathers the counted values out of the tensor, and
autograd differentiates it.
"""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

import batchnorm as bn

EPS = 1e-3
Total = Callable[[Tensor], Tensor]
LEAVES = ("x", "residual", "weight", "bias")
ACTIVATIONS = {
    None: lambda z: z, "relu": F.relu, "relu6": F.relu6, "leaky_relu": F.leaky_relu,
    "silu": F.silu, "gelu": F.gelu, "hardswish": F.hardswish,
}  # fmt: skip
KINKS = {"relu": (0.0,), "relu6": (0.0, 6.0), "leaky_relu": (0.0,), "hardswish": (-3.0, 3.0)}


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
    nonfinite: str
    poisoned: bool  # a NaN among the values that count, in the last channel
    backend: str
    offset: float
    seed: int


def few_kernels(s: Setting) -> Setting:
    """Each dtype and activation compiles kernels of its own: of those a few here, and all in their own tests."""
    if s.backend == "reference":
        return s
    return replace(s, dtype=torch.float32, activation="hardswish" if s.residual else None)


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
    activation=st.sampled_from(list(ACTIVATIONS)),
    affine=st.booleans(),
    state=st.sampled_from(["train", "train", "eval", "frozen", "paused"]),
    nonfinite=st.sampled_from(["skip", "raise", "propagate"]),
    poisoned=st.sampled_from([False, False, True]),
    backend=st.sampled_from(["reference", "cpu"]),
    offset=st.sampled_from([0.0, 3.0, 1000.0]),
    seed=st.integers(0, 10_000),
).map(few_kernels)


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
    if s.poisoned and mask is not None and mask.dim() == x.dim():
        mask[0, -1].view(-1)[0] = 1
    elif s.poisoned and mask is not None:
        mask[0].view(-1)[0] = True
    if s.poisoned:
        x[0, -1].view(-1)[0] = torch.nan
    c = s.shape[1]
    rounded = lambda t: t.to(s.dtype)  # noqa: E731
    return {
        "x": rounded(x), "residual": rounded(normal(*s.shape)) if s.residual else None, "mask": mask,
        "weight": rounded(normal(c)) if s.affine else None, "bias": rounded(normal(c)) if s.affine else None,
        "mean": rounded(normal(c) + offset), "var": rounded(normal(c).square() + 0.5),
        "grad": rounded(normal(*s.shape)),
    }  # fmt: skip


@dataclass(frozen=True)
class Truth:
    """What the oracle says. At a kink of the activation the gradient that comes in is 0: either side of it is right."""

    y: Tensor
    grad: Tensor
    grads: list[Tensor | None]  # of x, residual, weight, bias
    population: tuple[Tensor, Tensor]
    gain: float  # the largest 1/σ


def oracle(s: Setting, d: dict[str, Tensor | None]) -> Truth:
    leaves = [None if d[k] is None else d[k].double().clone().requires_grad_() for k in LEAVES]
    z, counted, gain = preactivation(s, d, *leaves)
    y = torch.where(counted, ACTIVATIONS[s.activation](z), 0)
    at_a_kink = sum((z - kink).abs() < 1e-4 for kink in KINKS.get(s.activation, ()))
    grad = torch.where(torch.as_tensor(at_a_kink) > 0, 0, d["grad"].double())
    wanted = [t for t in leaves if t is not None]
    grads = iter(torch.autograd.grad(y, wanted, grad, allow_unused=True, materialize_grads=True))
    in_order = [None if t is None else next(grads) for t in leaves]
    return Truth(y.detach(), grad, in_order, _moved(s, d), gain)


def preactivation(
    s: Setting,
    d: dict[str, Tensor | None],
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
) -> tuple[Tensor, Tensor, float]:
    """γ·x̂ + β + residual in float64, which values count, and the largest 1/σ."""
    m, mean, var = weights_of(d), d["mean"].double(), d["var"].double()
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
            columns.append(z if residual is None else z + residual[start : start + size, c])
        rows.append(torch.stack(columns, 1))
    return torch.cat(rows), m > 0, gain


def weights_of(d: dict[str, Tensor | None]) -> Tensor:
    m = torch.ones_like(d["x"], dtype=torch.float64) if d["mask"] is None else d["mask"].double()
    return (m.unsqueeze(1) if m.dim() == d["x"].dim() - 1 else m).expand_as(d["x"])


def _own(use: tuple[Tensor, Tensor], n: Tensor) -> tuple[Tensor, Tensor]:
    values, weights = use
    mu = (values * weights).sum() / n
    return mu, ((weights * (values - mu).square()).sum() / n + EPS).sqrt()


def _moved(s: Setting, d: dict[str, Tensor | None]) -> tuple[Tensor, Tensor]:
    x, m, mean, var = d["x"].double(), weights_of(d), d["mean"].double().clone(), d["var"].double().clone()
    for c in range(x.shape[1] if s.state == "train" else 0):
        weights, values = m[:, c], x[:, c]
        n = weights.sum()
        if n > 1 and (values.isfinite().all() or s.nonfinite == "propagate"):
            mu = (values * weights).sum() / n
            mean[c] += 0.1 * (mu - mean[c])
            var[c] += 0.1 * ((weights * (values - mu).square()).sum() / (n - 1) - var[c])
    return mean, var


def layer_for(s: Setting, d: dict[str, Tensor | None], process_group: Any = None) -> bn.BatchNorm:
    layer = bn.BatchNorm(
        s.shape[1], eps=EPS, affine=s.affine, dtype=s.dtype, activation=s.activation, process_group=process_group,
        virtual_batch_size=s.virtual, renorm=s.renorm, single=s.single, nonfinite=s.nonfinite,
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


def ours(s: Setting, layer: bn.BatchNorm, d: dict[str, Tensor | None]) -> tuple[Tensor, list[Tensor | None]]:
    x = d["x"]
    if s.channels_last and x.dim() in (4, 5):
        x = x.contiguous(memory_format=torch.channels_last if x.dim() == 4 else torch.channels_last_3d)
    x = x.detach().requires_grad_()
    residual = None if d["residual"] is None else d["residual"].detach().requires_grad_()
    with bn.backend(s.backend), bn.paused(layer) if s.state == "paused" else nullcontext():
        y = layer(x, residual, mask=d["mask"])
    assert x.numel() == 0 or y.stride() == torch.empty_like(x).stride()
    assert y.dtype is s.dtype
    leaves = [x, residual, layer.weight, layer.bias]
    wanted = [t for t in leaves if t is not None]
    grads = iter(torch.autograd.grad(y, wanted, d["grad"], allow_unused=True, materialize_grads=True))
    return y.detach(), [None if t is None else next(grads) for t in leaves]


def close(what: str, actual: Tensor, expected: Tensor, s: Setting, size: float = 1.0) -> None:
    if expected.numel() == 0:
        assert actual.numel() == 0, what
        return
    # Rounding, on values of this size; never of n.
    budget = 40 * torch.finfo(s.dtype).eps * max(size, expected.abs().max().item())
    error = (actual.double() - expected).abs().max().item()
    assert error <= budget, f"{what}: error {error:.3g}, budget {budget:.3g}, {s}"


def cut(d: dict[str, Tensor | None], mine: slice) -> dict[str, Tensor | None]:
    """The samples of a rank."""
    per_sample = ("x", "residual", "mask", "grad")
    return {k: t[mine] if k in per_sample and t is not None else t for k, t in d.items()}


def compare(s: Setting, mine: slice = slice(None), total: Total = lambda t: t, group: Any = None) -> None:
    """The samples `mine`, of a batch that ranks may share, against the oracle on all; `total` sums over the ranks."""
    d = data(s)
    truth = oracle(s, d)
    d["grad"] = truth.grad.to(s.dtype)
    layer, own, learns = layer_for(s, d, group), cut(d, mine), s.state == "train"
    enough = bool(weights_of(d)[:, -1].sum() > 1)
    if s.backend == "cpu" and s.state in ("train", "paused") and per_channel_mask(d):
        with pytest.raises(RuntimeError, match=r"cannot serve.*mask"):
            ours(s, layer, own)
        return
    if s.poisoned and s.nonfinite == "raise" and learns and enough:
        with pytest.raises(FloatingPointError, match=f"channels .{s.shape[1] - 1}. are not finite"):
            ours(s, layer, own)
        assert torch.equal(layer.running_mean, d["mean"])
        assert layer.num_batches_tracked == 0
        return
    y, grads = ours(s, layer, own)
    assert layer.skipped_batches == (s.poisoned and s.nonfinite == "skip" and learns and enough)
    for name, after, wanted in zip(
        ("mean", "var"), (layer.running_mean, layer.running_var), truth.population, strict=True
    ):
        assert torch.equal(after.isfinite(), wanted.isfinite()), s
        close(f"running_{name}", after.nan_to_num(), wanted.nan_to_num(), s)
    assert torch.equal(y.isfinite(), truth.y[mine].isfinite()), s
    close("output", y.nan_to_num(), truth.y[mine].nan_to_num(), s)
    fine = slice(0, -1) if s.poisoned else slice(None)  # channels; no gradient of the others means anything
    for name, grad, grad64 in zip(LEAVES[:2], grads[:2], truth.grads[:2], strict=True):
        # the gradient of x is a difference of terms of the size of grad/σ
        size = 3 * truth.gain if name == "x" else 1.0
        if grad is not None:
            close(f"gradient of {name}", grad[:, fine], grad64[mine, fine], s, size)
    for name, grad, grad64 in zip(LEAVES[2:], grads[2:], truth.grads[2:], strict=True):
        if grad is not None:
            close(f"gradient of {name}", total(grad)[fine], grad64[fine], s)


def per_channel_mask(d: dict[str, Tensor | None]) -> bool:
    return d["mask"] is not None and d["mask"].dim() == d["x"].dim()
