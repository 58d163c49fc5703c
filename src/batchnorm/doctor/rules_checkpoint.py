"""Faults visible in the stored numbers alone; each rule says why its threshold is safe."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from .findings import Finding
from .states import LayerState

# Standard deviation 1e5: beyond float16's range (65,504), so no mixed-precision run trains there.
EXPLODED = 1e10


def not_finite(layers: list[LayerState]) -> list[Finding]:
    """A single NaN in the population makes every evaluation NaN: no threshold needed."""
    bad = {n: k for n, k in ((s.name, _count_nonfinite(s)) for s in layers) if k}
    if not bad:
        return []
    return [
        Finding(
            "error", "not-finite", tuple(bad), "statistics or affine hold NaN or Inf",
            "a non-finite batch reached the moving average, which never forgets it",
            'bn.convert(model, nonfinite="skip") and bn.calibrate(model, batches)', dict(bad),
        )
    ]  # fmt: skip


def negative_variance(layers: list[LayerState]) -> list[Finding]:
    """A variance is a mean of squares: any value below zero is wrong."""
    bad = {s.name: float(s.var.min()) for s in layers if bool((s.var < 0).any())}
    if not bad:
        return []
    return [
        Finding(
            "error", "negative-variance", tuple(bad), "a running variance is below zero",
            "weights were averaged or extrapolated together with buffers, or E[x²]−E[x]² cancelled",
            "bn.calibrate(model, batches)", dict(bad),
        )
    ]  # fmt: skip


def never_updated(layers: list[LayerState]) -> list[Finding]:
    """Exactly mean 0 and variance 1 in all channels is the initial value, not data."""
    idle = [s for s in layers if bool((s.mean == 0).all()) and bool((s.var == 1).all())]
    if not idle:
        return []
    return [
        Finding(
            "warning", "never-updated", tuple(s.name for s in idle),
            "statistics still hold their initial values",
            "the layer never ran in training mode, or only its weights were loaded",
            "bn.calibrate(model, batches)",
            {s.name: -1 if s.counter is None else s.counter for s in idle},
        )
    ]  # fmt: skip


def counters_disagree(layers: list[LayerState]) -> list[Finding]:
    """Layers that train together count together; frozen ones (0) are another rule's."""
    counts = {s.name: s.counter for s in layers if s.counter}
    if len(set(counts.values())) < 2:
        return []
    return [
        Finding(
            "warning", "counters-disagree", tuple(counts),
            "layers of one network counted different numbers of updates",
            "a shared layer, a second forward per step, or layers frozen for part of training",
            "bn.paused(model) around the extra forward; bn.calibrate(model, batches)", dict(counts),
        )
    ]  # fmt: skip


def exploded_variance(layers: list[LayerState]) -> list[Finding]:
    """A finite running variance above `EXPLODED`."""
    bad = {s.name: float(s.var.max()) for s in layers if _any_finite_above(s.var)}
    if not bad:
        return []
    return [
        Finding(
            "warning", "exploded-variance", tuple(bad), f"a running variance exceeds {EXPLODED:g}",
            "activations diverged, or the input is not standardised",
            "bn.Standardize on the input; lower the learning rate; bn.calibrate(model, batches)",
            dict(bad),
        )
    ]  # fmt: skip


def _any_finite_above(var: Tensor) -> bool:
    return bool((var.isfinite() & (var > EXPLODED)).any())


def _count_nonfinite(state: LayerState) -> int:
    parts = (state.mean, state.var, state.weight, state.bias)
    return sum(int((~p.isfinite()).sum()) for p in parts if p is not None)


RULES: tuple[Callable[[list[LayerState]], list[Finding]], ...] = (
    not_finite, negative_variance, never_updated, counters_disagree, exploded_variance,
)  # fmt: skip
