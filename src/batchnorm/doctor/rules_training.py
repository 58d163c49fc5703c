"""Rules for faults that show while a model trains; each rule judges one reading of one layer."""

from __future__ import annotations

import math
from dataclasses import dataclass

from .findings import Evidence, rule

SILENT = 0.1  # of the channels
EXPLODING = 1e3  # times the layer's usual gradient


@dataclass(frozen=True)
class Reading:
    """The values measured at one layer in one step; `usual` is the median of earlier gradients, if there are enough."""

    layer: str
    step: int
    values: dict[str, float]
    usual: float | None = None

    def evidence(self, **more: float) -> Evidence:
        return {self.layer: {"step": self.step, **self.values, **more}}


@rule(
    "nonfinite-in-training", "error", "activations or gradients are NaN or Inf",
    "a learning rate that is too large, an overflow in half precision, or NaN in the data",
    'a lower learning rate or a gradient scaler; bn.convert(model, nonfinite="skip") keeps the statistics clean',
)  # fmt: skip
def nonfinite_in_training(reading: Reading) -> Evidence:
    """No threshold is needed: a single NaN or Inf spreads through the network."""
    return {} if all(map(math.isfinite, reading.values.values())) else reading.evidence()


@rule(
    "silent-channels", "warning", f"over {SILENT:.0%} of the channels are constant, or always below zero before a ReLU",
    "β far below zero, γ at zero, or a constant input",
    "a lower learning rate; bn.parameter_groups(model, weight_decay); bn.diagnose(model, batches)",
)  # fmt: skip
def silent_channels(reading: Reading) -> Evidence:
    """A channel counts if two recorded passes in a row see it silent; training does not revive a tenth of a layer."""
    return reading.evidence() if reading.values.get("silent_channels", 0) > SILENT else {}


@rule(
    "exploding-gradient", "warning", f"the gradient is over {EXPLODING:g} times its usual size at this layer",
    "a learning rate that is too large, or a batch unlike the others",
    "a lower learning rate, gradient clipping, or bn.Renorm",
)  # fmt: skip
def exploding_gradient(reading: Reading) -> Evidence:
    """The gradient of a layer varies by factors of tens, not of thousands; the median needs three earlier ones."""
    rms = reading.values.get("gradient_rms", 0.0)
    return reading.evidence(usual=reading.usual) if reading.usual and rms > EXPLODING * reading.usual else {}


@rule(
    "moved-twice", "warning", "the running statistics are updated more than once per step of the optimizer",
    "several forward passes a step (accumulation, adversarial examples, generator and critic), or checkpointing",
    "bn.accumulate(model, steps), bn.paused(model) around the extra passes, or bn.domain(model, name)",
)  # fmt: skip
def moved_twice(reading: Reading) -> Evidence:
    """No threshold is needed: updates are counted, at two steps of the optimizer."""
    return reading.evidence() if reading.values.get("updates", 1) > 1 else {}


RULES = (nonfinite_in_training, silent_channels, exploding_gradient, moved_twice)
