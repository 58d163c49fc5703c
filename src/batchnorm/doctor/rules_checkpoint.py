"""Rules for faults that show in the stored numbers; each docstring says why the threshold is safe."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from .findings import Evidence, rule
from .states import LayerState

Layers = list[LayerState]

EXPLODED = 1e10
COLLAPSED = 0.01  # times eps
DEAD = 1e-3  # times the layer's median |γ|
OUTLYING = 1e3  # times the layer's median γ/σ

MAX_LISTED = 8  # channels whose numbers a finding lists

CALIBRATE = "bn.calibrate(model, batches)"


@rule(
    "not-finite", "error", "running statistics, γ or β contain NaN or Inf",
    "a batch with NaN or Inf entered the moving average, which then stays NaN or Inf",
    'bn.convert(model, nonfinite="skip"), then bn.calibrate(model, batches)',
)  # fmt: skip
def not_finite(layers: Layers) -> Evidence:
    """No threshold is needed: a single NaN in the running statistics makes every evaluation NaN."""
    return {s.name: found for s in layers if (found := _not_finite(s))}


def _not_finite(layer: LayerState) -> dict[str, Any]:
    """The number of non-finite values, and a text about each tensor, such as `channel 2 of 8 is NaN`."""
    bad = {name: t for name, t in layer.tensors().items() if not t.isfinite().all()}
    words = {}
    for name, t in bad.items():
        kinds = "NaN" if not t.isinf().any() else "Inf" if not t.isnan().any() else "NaN or Inf"
        channels = ~t.isfinite()
        many = int(channels.sum()) > 1
        words[name] = f"channel{'s' * many} {_which(channels)} of {len(t)} {'are' if many else 'is'} {kinds}"
    return {"values": sum(int((~t.isfinite()).sum()) for t in bad.values())} | words if bad else {}


@rule(
    "negative-variance", "error", "a running variance is below zero",
    "buffers were averaged or extrapolated together with the weights, or E[x²]−E[x]² cancelled",
    CALIBRATE,
)  # fmt: skip
def negative_variance(layers: Layers) -> Evidence:
    """A variance is a mean of squares, so any value below zero is wrong."""
    return {s.name: _channels(s.var < 0) | {"smallest": float(s.var.min())} for s in layers if (s.var < 0).any()}


@rule(
    "affine-without-statistics", "error", "γ or β is trained, but the running statistics have their initial values",
    "only the parameters were loaded or averaged, or the layer trained with its running statistics switched off",
    CALIBRATE,
)  # fmt: skip
def affine_without_statistics(layers: Layers) -> Evidence:
    """Data never give exactly mean 0 and variance 1 in all channels; trained γ and β are not exactly 1 and 0."""
    return {s.name: {"updates": s.counter, "γ": _range(s.weight)} for s in layers if _initial(s) and _trained(s)}


@rule(
    "never-updated", "warning", "running statistics still have their initial values",
    "the layer never ran in training mode",
    CALIBRATE,
)  # fmt: skip
def never_updated(layers: Layers) -> Evidence:
    """Data never give exactly mean 0 and variance 1 in all channels; these are the initial values."""
    return {s.name: {"updates": s.counter} for s in layers if _initial(s) and not _trained(s)}


@rule(
    "counters-disagree", "warning", "layers of one network counted different numbers of updates",
    "a shared layer, a second forward pass per step, or layers frozen for part of training",
    "bn.paused(model) around the extra forward pass; bn.calibrate(model, batches)",
)  # fmt: skip
def counters_disagree(layers: Layers) -> Evidence:
    """Layers that train together count the same number of updates; layers without updates are left to other rules."""
    counts = {s.name: {"updates": s.counter} for s in layers if s.counter}
    return counts if len({c["updates"] for c in counts.values()}) > 1 else {}


@rule(
    "exploded-variance", "warning", f"a running variance exceeds {EXPLODED:g}",
    "activations diverged, or the input is not standardised",
    "bn.Standardize on the input, a lower learning rate; bn.calibrate(model, batches)",
)  # fmt: skip
def exploded_variance(layers: Layers) -> Evidence:
    """A standard deviation of 1e5 is beyond the range of float16 (65,504): no mixed-precision run trains with it."""
    found = {s.name: s.var.isfinite() & (s.var > EXPLODED) for s in layers}
    return {s.name: _channels(found[s.name]) | {"largest": float(s.var.max())} for s in layers if found[s.name].any()}


@rule(
    "collapsed-variance", "warning", "a running variance is far below eps: the channel is almost constant",
    "a constant input, or dead weights before the layer; in evaluation, any difference is amplified by γ/√eps",
    "prune the channel, or look at the layer before; bn.calibrate(model, batches) if the channel does vary",
)  # fmt: skip
def collapsed_variance(layers: Layers) -> Evidence:
    """Below a hundredth of eps, the output's deviation is below a tenth of γ: the channel is no longer normalised."""
    low = {s.name: (s.var >= 0) & (s.var < COLLAPSED * s.known_eps) for s in layers}
    return {s.name: _channels(low[s.name]) | {"smallest": float(s.var.min())} for s in layers if low[s.name].any()}


@rule(
    "dead-gamma", "warning", "γ is almost zero: the output of the channel is constant",
    "weight decay on γ, or a residual branch that started at γ = 0 and never trained",
    "bn.parameter_groups(model, weight_decay), or prune the channel",
)  # fmt: skip
def dead_gamma(layers: Layers) -> Evidence:
    """A γ of a thousandth of the layer's median is lost when a sum with the other channels is rounded to bfloat16."""
    gammas = {s.name: s.weight.abs() for s in layers if s.weight is not None}
    dead = {name: gamma <= DEAD * gamma.median().clamp(min=DEAD) for name, gamma in gammas.items()}
    return {name: _channels(found) for name, found in dead.items() if found.any()}


@rule(
    "outlying-gain", "warning", f"γ/σ of a channel is over {OUTLYING:g} times the layer's median",
    "running statistics of one network with γ and β of another, or damaged statistics of the channel",
    CALIBRATE,
)  # fmt: skip
def outlying_gain(layers: Layers) -> Evidence:
    """In a layer that was trained as a whole, γ/σ of any two channels differ by no more than a few powers of ten."""
    gains = {s.name: s.weight.abs() / (s.var.clamp(min=0) + s.known_eps).sqrt() for s in layers if s.weight is not None}
    times = {name: gain / gain.median() for name, gain in gains.items() if gain.median() > 0}
    high = {name: t.isfinite() & (t > OUTLYING) for name, t in times.items()}
    return {name: _channels(h) | {"times": float(times[name][h].max())} for name, h in high.items() if h.any()}


@rule(
    "foreign-momentum", "warning", "momentum 0.5 or more: the running statistics are mostly those of the last batch",
    "Keras, Flax and ONNX give the share of the old value (0.9, 0.99); torch gives that of the new one",
    "bn.from_keras(…, momentum=0.99), or momentum = 1 − that share; then bn.calibrate(model, batches)",
)  # fmt: skip
def foreign_momentum(layers: Layers) -> Evidence:
    """From 0.5 on, one batch weighs at least as much as all earlier ones; torch's default, 0.1, is far below."""
    return {s.name: {"momentum": s.momentum} for s in layers if s.momentum is not None and s.momentum >= 0.5}


@rule(
    "foreign-eps", "info", "eps is Keras's 1e-3 but momentum is not Keras's, or eps is outside [1e-8, 1e-2]",
    "only some of another framework's settings were copied",
    "bn.from_keras(…) takes both; eps must be the one used in training",
)  # fmt: skip
def foreign_eps(layers: Layers) -> Evidence:
    """Keras's default eps, 1e-3, belongs to its momentum 0.99 (torch's 0.01); known defaults are 1e-6 to 1e-3."""
    return {s.name: {"eps": s.eps, "momentum": s.momentum} for s in layers if s.eps is not None and _odd_eps(s)}


def _odd_eps(s: LayerState) -> bool:
    keras = s.eps == 1e-3 and s.momentum is not None and abs(s.momentum - 0.01) > 1e-6
    return keras or not 1e-8 <= s.known_eps <= 1e-2


def _initial(s: LayerState) -> bool:
    return bool((s.mean == 0).all() and (s.var == 1).all())


def _trained(s: LayerState) -> bool:
    return any(bool((t != start).any()) for t, start in ((s.weight, 1), (s.bias, 0)) if t is not None)


def _channels(found: Tensor) -> dict[str, Any]:
    return {"channels": int(found.sum()), "of": found.numel(), "which": _which(found)}


def _which(found: Tensor) -> str:
    """The numbers of the first few channels, counted from 0, as text."""
    numbers = found.nonzero().flatten().tolist()
    more = f" and {len(numbers) - MAX_LISTED} more" if len(numbers) > MAX_LISTED else ""
    return ", ".join(map(str, numbers[:MAX_LISTED])) + more


def _range(t: Tensor | None) -> list[float] | None:
    return None if t is None else [float(t.min()), float(t.max())]


RULES = (
    not_finite, negative_variance, affine_without_statistics, never_updated, counters_disagree, exploded_variance,
    collapsed_variance, dead_gamma, outlying_gain, foreign_momentum, foreign_eps,
)  # fmt: skip
