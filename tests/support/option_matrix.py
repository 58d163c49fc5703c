"""Settings that combine every option, and steps of a layer with them against the oracle."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from hypothesis import strategies as st
from torch import Tensor

import batchnorm as bn
from tests.support.backends import NATIVE
from tests.support.oracle import ACTIVATIONS, LEAVES, Answer, away_from_kinks, exact, judge, weights_like

EPS, MOMENTUM = 1e-3, 0.1
Total = Callable[[Tensor], Tensor]
Data = dict[str, Any]


@dataclass(frozen=True)
class Setting:
    shape: tuple[int, ...] = (6, 3, 5)
    dtype: torch.dtype = torch.float64
    channels_last: bool = False
    mask: str | None = None  # "positions", "values", "weights", "empties a channel"
    virtual: int | None = None
    renorm: bn.Renorm | None = None
    single: str = "population"
    residual: bool = False
    activation: str | None = None
    affine: bool = True
    momentum: float | None = MOMENTUM
    state: str = "train"  # "train", "eval", "frozen", "paused"
    nonfinite: str = "skip"
    poisoned: bool = False  # a NaN among the values that count, in the last channel
    backend: str | None = None
    offset: float = 3.0
    seed: int = 0

    @property
    def by_batch(self) -> bool:
        return self.state in ("train", "paused")

    @property
    def by_torch(self) -> bool:
        """True if torch's own operator serves every call that it can serve."""
        return self.backend == "aten" or (self.backend is None and not NATIVE)

    @property
    def plain(self) -> bool:
        """True if torch's own operator can serve the call."""
        virtual = self.virtual is not None and self.virtual < self.shape[0]
        return not (self.by_batch and (self.mask or virtual or self.renorm))

    def options(self) -> dict[str, Any]:
        """The options of the layer beyond torch's."""
        names = ("activation", "renorm", "single", "nonfinite")
        return {name: getattr(self, name) for name in names} | {"virtual_batch_size": self.virtual}


SETTINGS = st.builds(
    Setting,
    shape=st.sampled_from([(7, 3), (2, 4), (6, 3, 5), (5, 2, 3, 4), (9, 3, 1, 1), (4, 2, 2, 3, 2), (1, 3, 6)]),
    dtype=st.sampled_from([torch.float64, torch.float32, torch.bfloat16, torch.float16]),
    channels_last=st.booleans(),
    mask=st.sampled_from([None, None, "positions", "values", "weights", "empties a channel"]),
    virtual=st.sampled_from([None, None, 2, 3, 4]),
    renorm=st.sampled_from([None, None, bn.Renorm(1.5, 0.5), bn.Renorm(3, 5), bn.Renorm(3, 5, warmup=2)]),
    single=st.just("population"),
    residual=st.booleans(),
    activation=st.sampled_from(list(ACTIVATIONS)),
    affine=st.booleans(),
    momentum=st.sampled_from([MOMENTUM, MOMENTUM, None]),
    state=st.sampled_from(["train", "train", "eval", "frozen", "paused"]),
    nonfinite=st.sampled_from(["skip", "raise", "propagate"]),
    poisoned=st.sampled_from([False, False, True]),
    backend=st.sampled_from([None, "native" if NATIVE else None, "reference", "aten"]),
    offset=st.sampled_from([0.0, 3.0, 1000.0]),
    seed=st.integers(0, 10_000),
).filter(lambda s: not s.by_torch or (s.dtype.itemsize >= 4 and s.shape[0] > 2))  # torch's operator adds up
# gradients in the dtype of the input, and two samples may lie so near each other that it loses their difference


def data(s: Setting, step: int = 0) -> Data:
    """The tensors of a step. Where the mask is 0 there may be anything; half of the settings put NaN there."""
    g = torch.Generator().manual_seed(s.seed + 7919 * step)
    normal = lambda *shape: torch.randn(*shape, generator=g, dtype=torch.float64)  # noqa: E731
    drift = torch.linspace(-1, 1, s.shape[0], dtype=torch.float64).reshape(-1, *[1] * (len(s.shape) - 1))
    # the oracle itself has only float64, and torch's operator loses precision far from zero
    offset = s.offset if s.dtype is torch.float32 and not s.by_torch else min(s.offset, 3.0)
    x, residual = normal(*s.shape) * 2 + drift + offset + step, normal(*s.shape)
    mask = _mask(s, g)
    if s.poisoned and mask is not None:
        (mask[0, -1] if mask.dim() == x.dim() else mask[0]).view(-1)[0] = 1
    if mask is not None and s.seed % 2:
        x, residual = (torch.where(weights_like(x, mask) > 0, t, torch.nan) for t in (x, residual))
    if s.poisoned:
        x[0, -1].view(-1)[0] = torch.nan
    c = s.shape[1]
    rounded = lambda t: t.to(s.dtype)  # noqa: E731
    return {
        "x": rounded(x), "residual": rounded(residual) if s.residual else None, "mask": mask,
        "weight": rounded(normal(c)) if s.affine else None, "bias": rounded(normal(c)) if s.affine else None,
        "mean": rounded(normal(c) + offset), "var": rounded(normal(c).square() + 0.5),
        "grad": rounded(normal(*s.shape)),
    }  # fmt: skip


def _mask(s: Setting, g: torch.Generator) -> Tensor | None:
    if s.mask is None:
        return None
    if s.mask == "positions":
        return torch.rand(s.shape[0], *s.shape[2:], generator=g) < 0.6
    if s.mask == "weights":
        return torch.rand(s.shape, generator=g) * (torch.rand(s.shape, generator=g) < 0.7)
    mask = torch.rand(s.shape, generator=g) < 0.6
    if s.mask == "empties a channel":
        mask[:, 0] = False
    return mask


def layer_for(s: Setting, d: Data, process_group: Any = None) -> bn.BatchNorm:
    layer = bn.BatchNorm(
        s.shape[1], EPS, s.momentum, s.affine, dtype=s.dtype, process_group=process_group, **s.options()
    )
    with torch.no_grad():
        layer.running_mean.copy_(d["mean"])
        layer.running_var.copy_(d["var"])
        if s.affine:
            layer.weight.copy_(d["weight"])
            layer.bias.copy_(d["bias"])
    if s.state == "frozen":
        bn.freeze(layer)
    return layer.eval() if s.state == "eval" else layer


def truth(s: Setting, d: Data, layer: bn.BatchNorm) -> Answer:
    """The oracle's answer to a step of the layer in its present state.

    At a kink of the activation the gradient that comes in is 0 (`d["grad"]` changes): either side of it is right.
    """
    batches = int(layer.num_batches_tracked)
    renorm = s.renorm if s.by_batch else None
    if renorm is not None and renorm.warmup:
        part = min(batches / renorm.warmup, 1)
        renorm = bn.Renorm(1 + (renorm.r_max - 1) * part, renorm.d_max * part)
    momentum = 1 / (batches + 1) if s.momentum is None else s.momentum
    arguments = (d["x"], layer.running_mean, layer.running_var, layer.weight, layer.bias, s.by_batch, momentum, EPS)
    options = {"residual": d["residual"], "activation": s.activation, "mask": d["mask"], "single": s.single}
    options |= {"virtual_batch_size": s.virtual, "renorm": renorm, "nonfinite": s.nonfinite}
    z = exact(*arguments, **options).z
    away = away_from_kinks(z, s.activation, torch.promote_types(s.dtype, torch.float32), stored=s.dtype)
    d["grad"] = torch.where(away, d["grad"], 0)
    right = exact(*arguments, **options, grad=d["grad"])
    if s.state != "train":
        right = replace(right, running_mean=layer.running_mean.double(), running_var=layer.running_var.double())
    return right


def take_step(s: Setting, layer: bn.BatchNorm, call: Callable[..., Tensor], d: Data) -> tuple[Tensor, Data]:
    """The output of a step and its gradients by name."""
    x = d["x"]
    if s.channels_last and x.dim() in (4, 5):
        x = x.contiguous(memory_format=torch.channels_last if x.dim() == 4 else torch.channels_last_3d)
    x = x.detach().requires_grad_()
    residual = None if d["residual"] is None else d["residual"].detach().requires_grad_()
    with context(s, layer):
        y = call(x, residual, mask=d["mask"])
    assert x.numel() == 0 or y.stride() == torch.empty_like(x).stride()
    assert y.dtype is s.dtype
    leaves = dict(zip(LEAVES, (x, residual, layer.weight, layer.bias), strict=True))
    wanted = {k: t for k, t in leaves.items() if t is not None}
    grads = torch.autograd.grad(y, list(wanted.values()), d["grad"], allow_unused=True, materialize_grads=True)
    return y.detach(), dict(zip(wanted, grads, strict=True))


def context(s: Setting, layer: bn.BatchNorm) -> AbstractContextManager[Any]:
    return bn.paused(layer) if s.state == "paused" else nullcontext()


def cut(d: Data, mine: slice) -> Data:
    """The samples of a rank."""
    per_sample = ("x", "residual", "mask", "grad")
    return {k: t[mine] if k in per_sample and t is not None else t for k, t in d.items()}


def compare(
    s: Setting,
    mine: slice = slice(None),
    total: Total | None = None,
    group: Any = None,
    steps: int = 1,
    through: Callable[[bn.BatchNorm], Callable[..., Tensor]] = lambda layer: layer,
) -> None:
    """Steps of a layer against the oracle: output, gradients, running statistics and counters.

    Ranks that share a batch see the samples `mine`, and `total` sums over them. `through` turns the layer into
    the function that is called, for example by compiling it.
    """
    layer = layer_for(s, data(s), group)
    call, learns, batches, skips = through(layer), s.state == "train", 0, 0
    with bn.backend(s.backend) if s.backend else nullcontext():
        for step in range(steps):
            d = data(s, step)
            before = layer.running_mean.clone(), layer.running_var.clone()
            right = truth(s, d, layer)
            own = cut(d, mine)
            bad = s.poisoned and learns and bool(weights_like(d["x"], d["mask"])[:, -1].sum() > 1)
            if s.backend == "aten" and not (s.plain and group is None):
                with pytest.raises(RuntimeError, match="'aten' was asked for and cannot serve"):
                    take_step(s, layer, call, own)
            elif bad and s.nonfinite == "raise":
                with pytest.raises(FloatingPointError, match=f"channels .{s.shape[1] - 1}. are not finite"):
                    take_step(s, layer, call, own)
            else:
                y, grads = take_step(s, layer, call, own)
                batches, skips = batches + learns, skips + (bad and s.nonfinite == "skip")
                judge_step(s, y, grads, right, d, mine, total)
                before = None
            after = layer.running_mean, layer.running_var
            for name, got in zip(("running_mean", "running_var"), after, strict=True):
                judge(name, got, getattr(right, name), size=right.sizes[name]) if before is None else None
            assert before is None or all(map(torch.equal, before, after)), "an error moved the population"
            assert (layer.num_batches_tracked, layer.skipped_batches) == (batches, skips)


def judge_step(
    s: Setting, y: Tensor, grads: Data, right: Answer, d: Data, mine: slice = slice(None), total: Total | None = None
) -> None:
    """Assert that each result of a step is within the tolerance of all tests, without a rival: torch lacks the options.

    Two budgets are special to the matrix. A smooth activation is up to 1.5 times as steep as its argument, and its
    slope has the same error: renormalisation and groups of few values make z large. (Elsewhere the rival has this error
    too.) Ranks round their parts of a gradient to the parameter's dtype before these are added.
    """
    smooth = s.activation in ("silu", "gelu", "hardswish")
    judge("y", y, right.y[mine], size=right.sizes["y"] * (1.5 if smooth else 1))
    fine = slice(0, -1) if s.poisoned else slice(None)  # channels; no gradient of the others means anything
    arriving, before = d["grad"].abs().max().item(), right.sizes["residual"]
    curved = 0.5 * arriving * right.sizes["y"] / before if smooth and before else 0
    for name, grad in grads.items():
        exactly, size = right.grads[name], right.sizes[name] * (1 + curved)
        if name in ("x", "residual"):
            judge(f"gradient of {name}", grad[:, fine], exactly[mine, fine], size=size)
        elif total is None:
            judge(f"gradient of {name}", grad[fine], exactly[fine], size=size)
        else:
            rounding = torch.finfo(grad.dtype).eps * (size + exactly[fine].abs().max().item())
            judge(f"gradient of {name}", total(grad)[fine], exactly[fine], budget=8 * rounding)
