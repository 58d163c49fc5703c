"""Rules for faults that show with data; each docstring says why the threshold is safe."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from batchnorm.core.moments import Moments
from batchnorm.tools.model_populations import bank

from .findings import OUTPUT, Evidence, rule
from .measuring import Measured
from .observed_batches import Seen

GAP = 0.5  # of the output's standard deviation
NAMED_SHARE = 0.05  # of the sum of the layers' squared parts of the gap; layers with more are named
STALE, BY_CHANCE = 0.3, 3.0  # in σ; and in multiples of the distance that chance explains
MIN_VALUES = 12  # independent values of a batch
DRIFT, MIN_RATIO, MIN_BATCHES = 0.25, 4.0, 6  # in σ; variance between batches over that within; number of batches
PADDED = 0.05  # of the positions
DEAD_VALUES = 100  # values per channel; fewer cannot show that the channel is dead

CALIBRATE = "bn.calibrate(model, batches)"


@rule(
    "nonfinite-activations", "error", "NaN or Inf reaches these layers; look at the first one",
    "NaN in the data, an overflow in half precision, or weights that diverged",
    'clean the data; bn.convert(model, nonfinite="skip") keeps such batches out of the running statistics',
)  # fmt: skip
def nonfinite_activations(found: Measured) -> Evidence:
    """No threshold is needed: one such value makes its whole channel NaN."""
    return {name: {"forward passes": s.nonfinite} for name, s in found.layers.items() if s.nonfinite}


@rule(
    "single-value", "error", "a batch has one value per channel, so no variance: torch's layer raises an error",
    "a last batch of one sample, or pooling to 1×1 with a batch of one",
    'DataLoader(drop_last=True), or bn.convert(model, single="population")',
)  # fmt: skip
def single_value(found: Measured) -> Evidence:
    """No threshold is needed: the shape decides. Layers with another `single` than "error" accept such batches."""
    return {
        name: {"batches": s.single}
        for name, s in found.layers.items()
        if s.single and getattr(s.layer, "single", "error") == "error"
    }


@rule(
    "train-eval-gap", "error", f"outputs in training and in evaluation differ by over {GAP:g} standard deviations",
    "running statistics that do not fit the data (stale-population), or small batches (batch-too-small)",
    CALIBRATE + "; larger or shared batches if they are small. The layers that cause most come first",
)  # fmt: skip
def train_eval_gap(found: Measured) -> Evidence:
    """The noise of batches of 32 changes outputs by about a fifth of their standard deviation, far below one half."""
    if found.gap.relative <= GAP:
        return {}
    at_output = {"gap": found.gap.relative}
    if found.gap.predictions:
        at_output["predictions that differ"] = found.gap.differ / found.gap.predictions
    total = sum(g * g for g in found.caused.values()) or 1.0
    worst = sorted(found.caused.items(), key=lambda item: -item[1])
    return {OUTPUT: at_output} | {
        name: {"part of the gap": g, "share": g * g / total} for name, g in worst if g * g / total > NAMED_SHARE
    }


@rule(
    "stale-population", "warning", f"the running statistics are over {STALE:g} σ from those of the inputs in training",
    "weights changed after the statistics (averaging, a frozen layer, too small a momentum), other data or "
    "augmentation, or dropout before the layer",
    CALIBRATE,
)  # fmt: skip
def stale_population(found: Measured) -> Evidence:
    """Chance does not reach three times the distance that the noise of the batches leaves in a moving average."""
    evidence = {}
    for name, s in found.layers.items():
        off, chance = stale(s)
        if off > STALE and off > BY_CHANCE * chance:
            evidence[name] = {"σ from the data": off, "by chance": chance}
    return evidence


@rule(
    "batch-too-small", "warning", f"a batch is worth fewer than {MIN_VALUES} independent values per channel",
    "few samples in a batch (many positions do not replace them: neighbours are alike)",
    "bn.convert(model, process_group=True) over ranks, larger batches, bn.Renorm, or bn.freeze for fine-tuning",
)  # fmt: skip
def batch_too_small(found: Measured) -> Evidence:
    """With 12 values, a batch's mean is off by 0.3 σ. The halves of each batch show this noise."""
    evidence = {}
    for name, s in found.layers.items():
        values = independent(s)
        if values is not None and values < MIN_VALUES:
            evidence[name] = {"independent values": values, "noise of the mean, σ": values**-0.5}
    return evidence


@rule(
    "drift", "warning", "batches differ from one another more than chance explains",
    "data sorted by class, source or time, or one augmentation for a whole batch",
    "shuffle; bn.domain(model, name) for sources that differ; " + CALIBRATE,
)  # fmt: skip
def drift_between_batches(found: Measured) -> Evidence:
    """Chance hardly makes six or more batches differ by 0.25 σ, with a variance over four times that of their noise."""
    evidence = {}
    for name, s in found.layers.items():
        within, between = spread(s)
        size = math.sqrt(max(between - within, 0))
        if len(s.halves) >= MIN_BATCHES and size > DRIFT and between > MIN_RATIO * within:
            evidence[name] = {"between batches, σ": size, "by chance": math.sqrt(within)}
    return evidence


@rule(
    "padding", "warning", "the ends of sequences repeat one value: padding is counted in the statistics",
    "sequences of unequal length, padded, without a mask",
    "bn.convert(model), then layer(x, lengths=lengths) or layer(x, mask=mask)",
)  # fmt: skip
def padding(found: Measured) -> Evidence:
    """Data do not by chance repeat a position to the last bit, in every channel, at one position after another."""
    shares = {name: sum(s.padded) / len(s.padded) for name, s in found.layers.items() if s.padded}
    return {name: {"share of positions": share} for name, share in shares.items() if share > PADDED}


@rule(
    "double-updates", "warning", "a training step updates the running statistics more often than the layer is used",
    "activation checkpointing runs the forward pass again in the backward pass, "
    "which updates the running statistics twice",
    "bn.convert(model): our layers recognise a recomputation",
)  # fmt: skip
def double_updates(found: Measured) -> Evidence:
    """No threshold is needed: updates and uses are counted."""
    return {
        name: {"updates": s.step_updates, "uses": s.step_calls}
        for name, s in found.layers.items()
        if s.step_calls and s.step_updates > s.step_calls
    }


@rule(
    "shared-layer", "warning", "one layer is used several times in a forward pass: its statistics mix different inputs",
    "one module object used at several places, or a loop over one block",
    "a separate layer for each place, or bn.domain(model, name) for each use",
)  # fmt: skip
def shared_layer(found: Measured) -> Evidence:
    """No threshold is needed: uses are counted."""
    return {name: {"uses": s.calls} for name, s in found.layers.items() if s.calls > 1}


@rule(
    "dying-activations", "warning", "channels for which the ReLU gives only zeros",
    "β far below zero compared with γ: too large a learning rate, or weight decay on γ but not on β",
    "lower the learning rate; bn.parameter_groups(model, weight_decay); prune the channels",
)  # fmt: skip
def dying_activations(found: Measured) -> Evidence:
    """A channel that works has an output above zero among a hundred values or more; a dead one has none."""
    evidence = {}
    for name, s in found.layers.items():
        if s.rectified and s.peak is not None and sum(count(m) for m in s.moments) >= DEAD_VALUES:
            dead = int((s.peak <= 0).sum())
            if dead:
                evidence[name] = {"channels": dead, "of": s.peak.numel()}
    return evidence


@rule(
    "always-eval", "warning", "the layer stays in evaluation while the model trains",
    "a train() method that skips the layer, or .eval() in the forward pass",
    "bn.freeze(model) if this is intended: train() does not undo it; otherwise layer.train()",
)  # fmt: skip
def always_eval(found: Measured) -> Evidence:
    """No threshold is needed: the mode is read after model.train() and in the forward pass. `bn.freeze` is no fault."""
    names = found.always_eval | {name for name, s in found.layers.items() if s.flipped & {"training", "step"}}
    return {name: {"population": s.layer.running_mean is not None} for name, s in found.layers.items() if name in names}


@rule(
    "never-eval", "warning", "the layer normalises by the batch in evaluation too: outputs depend on other samples",
    "track_running_stats=False, an eval() method that skips the layer, or .train() in the forward pass",
    "track_running_stats=True and " + CALIBRATE + "; layer.eval()",
)  # fmt: skip
def never_eval(found: Measured) -> Evidence:
    """No threshold is needed: the mode is read after model.eval() and in the forward pass."""
    names = found.never_eval | {name for name, s in found.layers.items() if "evaluation" in s.flipped}
    return {name: {"population": s.layer.running_mean is not None} for name, s in found.layers.items() if name in names}


@rule(
    "unreached", "info", "no batch reached the layer",
    "a branch that these batches do not take, or a module that is not used",
    "nothing, if this is intended; otherwise look at the forward pass",
)  # fmt: skip
def unreached(found: Measured) -> Evidence:
    """No threshold is needed: the batches that reach the layer are counted."""
    return {name: {"batches": found.batches} for name, s in found.layers.items() if not s.passes}


def numbers(found: Measured, name: str) -> dict[str, Any]:
    """The measurements of a layer for the report; None for those that could not be made."""
    s = found.layers[name]
    within, between = spread(s)
    off, chance = stale(s)
    return {
        "gap": gap(s),
        "σ from the data": off,
        "by chance": chance,
        "independent values": independent(s),
        "drift": math.sqrt(max(between - within, 0)),
        "part of the gap": found.caused.get(name),
        "means, σ": _means(s),
    }


def gap(s: Seen) -> float:
    """The RMS difference between normalising by the batch and by the running statistics, over batches and channels."""
    return _rms([distance(m, population) for m in s.moments]) if (population := _population(s)) else 0.0


def stale(s: Seen) -> tuple[float, float]:
    """The distance of the running statistics from those of all batches together, and the part due to chance, in σ."""
    population = _population(s)
    if population is None or not s.halves:
        return 0.0, 0.0
    pooled = _pooled(s)
    mean, var = pooled.mean, pooled.variance + s.layer.eps
    noise = _rms([distance(m, (mean, var)) for m in s.moments])
    momentum = s.layer.momentum
    kept_noise = momentum / (2 - momentum) if momentum is not None else 0.0  # share of the variance that remains
    return distance(pooled, population), noise * math.sqrt(kept_noise + 1 / len(s.halves))


def distance(batch: Moments, reference: tuple[Tensor, Tensor]) -> float:
    """The distance between x normalised by `batch` and x normalised by `reference`, RMS over channels.

    (x − μ)/σ − (x − μ')/σ' for x ~ (μ, σ) has the mean square (r − 1)² + d², r = σ/σ' and d = (μ − μ')/σ'. The batch
    has μ and σ, the reference μ' and σ'.
    """
    mean, var = reference
    ratio = (batch.variance / var).sqrt()
    return float(((ratio - 1).square() + (batch.mean - mean).square() / var).mean().sqrt())


def independent(s: Seen) -> float | None:
    """The number of independent values whose mean is as precise as the layer's batch mean; None if not measured."""
    within, between = spread(s)
    noise = within or between
    return s.sharing / noise if len(s.halves) >= 4 and noise > 0 else None


def spread(s: Seen) -> tuple[float, float]:
    """The variance of a batch's mean, estimated from the halves of each batch and from all batches.

    Both estimates are in σ², averaged over channels.
    """
    if len(s.halves) < 2:
        return 0.0, 0.0
    var = _pooled(s).variance + s.layer.eps
    within = [_noise(even, odd) / var for even, odd in s.halves if count(odd)]
    means = torch.stack([m.mean for m in s.moments])
    return float(torch.stack(within).mean()) if within else 0.0, float((means.var(0) / var).mean())


def _noise(even: Moments, odd: Moments) -> Tensor:
    """An estimate of the variance of a batch's mean: Δ²·n₁n₂/n² with Δ the difference of the halves' means.

    It is unbiased for independent samples.
    """
    n1, n2 = torch.as_tensor(even.count), torch.as_tensor(odd.count)
    return (even.mean - odd.mean).square() * n1 * n2 / (n1 + n2).square().clamp(min=1)


def _pooled(s: Seen) -> Moments:
    pooled, *others = s.moments
    for moments in others:
        pooled = pooled.merge(moments)
    return pooled


def _population(s: Seen) -> tuple[Tensor, Tensor] | None:
    at = bank(s.layer)
    return None if at.running_mean is None else (at.running_mean.double(), at.running_var.double() + s.layer.eps)


def count(moments: Moments) -> int:
    """The largest number of values in a channel."""
    return int(torch.as_tensor(moments.count).max())


def _means(s: Seen) -> list[float]:
    """The distance of each batch's mean from the pooled mean, in σ (RMS over channels), for the figure of drift."""
    if not s.halves:
        return []
    pooled = _pooled(s)
    var = pooled.variance + s.layer.eps
    return [float(((m.mean - pooled.mean).square() / var).mean().sqrt()) for m in s.moments]


def _rms(values: list[float]) -> float:
    return math.sqrt(sum(v * v for v in values) / len(values)) if values else 0.0


RULES = (
    nonfinite_activations, single_value, train_eval_gap, stale_population, batch_too_small, drift_between_batches,
    padding, double_updates, shared_layer, dying_activations, always_eval, never_eval, unreached,
)  # fmt: skip
