"""Faults that show when data go through; each rule says why its threshold is safe."""

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
CULPRIT = 0.05  # of the squared parts
STALE, BY_CHANCE = 0.3, 3.0  # σ; and so many times what chance explains
FEW = 12  # independent values
DRIFT, RATIO, ENOUGH = 0.25, 4.0, 6  # σ; over the noise within batches, as variances; batches
PADDED = 0.05
RARE = 100  # values a channel: fewer do not show that it is dead

CALIBRATE = "bn.calibrate(model, batches)"


@rule(
    "nonfinite-activations", "error", "NaN or Inf reaches these layers; look at the first one",
    "NaN in the data, an overflow in half precision, or weights that diverged",
    'clean the data; bn.convert(model, nonfinite="skip") keeps such batches out of the running statistics',
)  # fmt: skip
def nonfinite_activations(found: Measured) -> Evidence:
    """One value spoils its whole channel: no threshold needed."""
    return {name: {"forward passes": s.nonfinite} for name, s in found.layers.items() if s.nonfinite}


@rule(
    "single-value", "error", "a batch has one value per channel, so no variance: torch's layer raises an error",
    "a last batch of one sample, or pooling to 1×1 with a batch of one",
    'DataLoader(drop_last=True), or bn.convert(model, single="population")',
)  # fmt: skip
def single_value(found: Measured) -> Evidence:
    """It is a fact of the shapes. Layers told to take the population then are right."""
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
    """The noise of batches of 32 moves outputs by about a fifth of their spread, far below one half."""
    if found.gap.relative <= GAP:
        return {}
    at_output = {"gap": found.gap.relative}
    if found.gap.predictions:
        at_output["predictions that differ"] = found.gap.differ / found.gap.predictions
    total = sum(g * g for g in found.caused.values()) or 1.0
    worst = sorted(found.caused.items(), key=lambda item: -item[1])
    return {OUTPUT: at_output} | {
        name: {"part of the gap": g, "share": g * g / total} for name, g in worst if g * g / total > CULPRIT
    }


@rule(
    "stale-population", "warning", f"the running statistics are over {STALE:g} σ from those of the inputs in training",
    "weights changed after the statistics (averaging, a frozen layer, too small a momentum), other data or "
    "augmentation, or dropout before the layer",
    CALIBRATE,
)  # fmt: skip
def stale_population(found: Measured) -> Evidence:
    """Three times what the batches' noise leaves in a moving average: chance does not come that far."""
    evidence = {}
    for name, s in found.layers.items():
        off, chance = stale(s)
        if off > STALE and off > BY_CHANCE * chance:
            evidence[name] = {"σ from the data": off, "by chance": chance}
    return evidence


@rule(
    "batch-too-small", "warning", f"a batch is worth fewer than {FEW} independent values per channel",
    "few samples in a batch (many positions do not replace them: neighbours are alike)",
    "bn.convert(model, process_group=True) over ranks, larger batches, bn.Renorm, or bn.freeze for fine-tuning",
)  # fmt: skip
def batch_too_small(found: Measured) -> Evidence:
    """With 12 values a batch's mean is off by 0.3 σ. Measured: the halves of each batch differ by their noise."""
    evidence = {}
    for name, s in found.layers.items():
        values = independent(s)
        if values is not None and values < FEW:
            evidence[name] = {"independent values": values, "noise of the mean, σ": values**-0.5}
    return evidence


@rule(
    "drift", "warning", "batches differ from one another more than chance explains",
    "data sorted by class, source or time, or one augmentation for a whole batch",
    "shuffle; bn.domain(model, name) for sources that differ; " + CALIBRATE,
)  # fmt: skip
def drift_between_batches(found: Measured) -> Evidence:
    """Variance between batches over four times that of halves within, in at least six batches, and 0.25 σ in size."""
    evidence = {}
    for name, s in found.layers.items():
        within, between = spread(s)
        size = math.sqrt(max(between - within, 0))
        if len(s.halves) >= ENOUGH and size > DRIFT and between > RATIO * within:
            evidence[name] = {"between batches, σ": size, "by chance": math.sqrt(within)}
    return evidence


@rule(
    "padding", "warning", "the ends of sequences repeat one value: padding is counted in the statistics",
    "sequences of unequal length, padded, without a mask",
    "bn.convert(model), then layer(x, lengths=lengths) or layer(x, mask=mask)",
)  # fmt: skip
def padding(found: Measured) -> Evidence:
    """Equal in every channel, to the last bit, at one position after another: data do not do that by chance."""
    shares = {name: sum(s.padded) / len(s.padded) for name, s in found.layers.items() if s.padded}
    return {name: {"share of positions": share} for name, share in shares.items() if share > PADDED}


@rule(
    "double-updates", "warning", "a training step updates the running statistics more often than the layer is used",
    "activation checkpointing runs the forward pass again in the backward pass, "
    "which updates the running statistics twice",
    "bn.convert(model): our layers recognise a recomputation",
)  # fmt: skip
def double_updates(found: Measured) -> Evidence:
    """Counted: no threshold needed."""
    return {
        name: {"updates": s.steps, "uses": s.step_calls}
        for name, s in found.layers.items()
        if s.step_calls and s.steps > s.step_calls
    }


@rule(
    "shared-layer", "warning", "one layer is used several times in a forward pass: its statistics mix different inputs",
    "one module object used at several places, or a loop over one block",
    "a separate layer for each place, or bn.domain(model, name) for each use",
)  # fmt: skip
def shared_layer(found: Measured) -> Evidence:
    """Counted: no threshold needed."""
    return {name: {"uses": s.calls} for name, s in found.layers.items() if s.calls > 1}


@rule(
    "dying-activations", "warning", "channels for which the ReLU gives only zeros",
    "β far below zero compared with γ: too large a learning rate, or weight decay on γ but not on β",
    "lower the learning rate; bn.parameter_groups(model, weight_decay); prune the channels",
)  # fmt: skip
def dying_activations(found: Measured) -> Evidence:
    """Not one value above zero in all the data, in at least a hundred values."""
    evidence = {}
    for name, s in found.layers.items():
        if s.rectified and s.peak is not None and sum(count(m) for m in s.moments) >= RARE:
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
    """Its mode is read after model.train() and in the forward pass. Layers frozen by `bn.freeze` are meant to be."""
    names = found.always_eval | {name for name, s in found.layers.items() if s.flipped & {"training", "step"}}
    return {name: {"population": s.layer.running_mean is not None} for name, s in found.layers.items() if name in names}


@rule(
    "never-eval", "warning", "the layer normalises by the batch in evaluation too: outputs depend on other samples",
    "track_running_stats=False, an eval() method that skips the layer, or .train() in the forward pass",
    "track_running_stats=True and " + CALIBRATE + "; layer.eval()",
)  # fmt: skip
def never_eval(found: Measured) -> Evidence:
    """Its mode is read after model.eval() and in the forward pass."""
    names = found.never_eval | {name for name, s in found.layers.items() if "evaluation" in s.flipped}
    return {name: {"population": s.layer.running_mean is not None} for name, s in found.layers.items() if name in names}


@rule(
    "unreached", "info", "no batch reached the layer",
    "a branch that these batches do not take, or a module that is not used",
    "nothing, if this is intended; otherwise look at the forward pass",
)  # fmt: skip
def unreached(found: Measured) -> Evidence:
    """Counted: no threshold needed."""
    return {name: {"batches": found.batches} for name, s in found.layers.items() if not s.passes}


def numbers(found: Measured, name: str) -> dict[str, Any]:
    """The measurements of a layer, for the report; None if there was nothing to measure."""
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
    """Root mean square over batches and channels of what normalising by the batch changes, in σ."""
    return _rms([apart(m, population) for m in s.moments]) if (population := _population(s)) else 0.0


def stale(s: Seen) -> tuple[float, float]:
    """Distances in σ: of the population from all the batches together, and that which chance explains."""
    population = _population(s)
    if population is None or not s.halves:
        return 0.0, 0.0
    pooled = _pooled(s)
    mean, var = pooled.mean, pooled.variance + s.layer.eps
    noise = _rms([apart(m, (mean, var)) for m in s.moments])
    momentum = s.layer.momentum
    remembered = momentum / (2 - momentum) if momentum is not None else 0.0  # the noise left in a moving average
    return apart(pooled, population), noise * math.sqrt(remembered + 1 / len(s.halves))


def apart(batch: Moments, reference: tuple[Tensor, Tensor]) -> float:
    """RMS over channels of how far x normalised by the one is from x normalised by the other, in σ' of the reference.

    (x − μ)/σ − (x − μ')/σ' for x ~ (μ, σ) has the mean square (r − 1)² + d², r = σ/σ' and d = (μ − μ')/σ'.
    """
    mean, var = reference
    ratio = (batch.variance / var).sqrt()
    return float(((ratio - 1).square() + (batch.mean - mean).square() / var).mean().sqrt())


def independent(s: Seen) -> float | None:
    """The number of independent values that tell as much of a channel's mean as a batch, times those that share."""
    within, between = spread(s)
    noise = within or between
    return s.sharing / noise if len(s.halves) >= 4 and noise > 0 else None


def spread(s: Seen) -> tuple[float, float]:
    """Variance of a batch's mean, mean over channels, in σ²: as its halves differ, and as batches do."""
    if len(s.halves) < 2:
        return 0.0, 0.0
    var = _pooled(s).variance + s.layer.eps
    within = [_noise(even, odd) / var for even, odd in s.halves if count(odd)]
    means = torch.stack([m.mean for m in s.moments])
    return float(torch.stack(within).mean()) if within else 0.0, float((means.var(0) / var).mean())


def _noise(even: Moments, odd: Moments) -> Tensor:
    """An estimate of the variance of a batch's mean: Δ²·n₁n₂/n², exact for independent samples."""
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
    """Values per channel, the most of any."""
    return int(torch.as_tensor(moments.count).max())


def _means(s: Seen) -> list[float]:
    """Per batch, the distance of its mean from the pooled one, rms over channels in σ: for the figure of drift."""
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
