"""The text of each claim, the definition of its effect, and the caption of its figure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

BEST = "Each arm is at its own best learning rate"
RACE = "but at least halfway from chance to the best score of both. A run that misses it counts with all its steps"


Kind = Literal["benefit", "cost", "construction"]  # good news if it holds, bad news, or true by construction


@dataclass(frozen=True)
class Wording:
    kind: Kind
    title: str
    statement: str
    unit: str
    rule: str
    explanation: str


WORDING = {
    1: Wording(
        "benefit",
        "Faster",
        "Training needs fewer steps with batch norm.",
        "doublings of speed",
        "Effect: log2(steps without / steps with). Steps are counted until the target is reached: the best validation "
        f"score of the network without batch norm, {RACE}. {BEST}.",
        "Validation score through training, each arm at its own best learning rate, one line for each seed.",
    ),
    2: Wording(
        "benefit",
        "Steadier",
        "More learning rates work with batch norm, and no more runs diverge.",
        "more rates that work",
        "Effect: the number of learning rates that work with batch norm minus the number that work without. A rate "
        "works if the run does not diverge and ends at least 90 % of the way from chance to the best score of either "
        "arm. A run diverges if a loss is not finite, or if the mean training loss of its last tenth is above 1.1 "
        "times that of the best constant prediction. The claim cannot hold if a larger share of runs diverges with "
        "batch norm.",
        "Final validation score at each learning rate: median over seeds, bars from lowest to highest.",
    ),
    3: Wording(
        "benefit",
        "The same distribution",
        "Each layer's inputs keep their distribution through training with batch norm.",
        "halvings of the drift",
        f"Effect: log2(drift without / drift with), each averaged over layers. {BEST}. The drift of a channel is the "
        "standard deviation of its 15th, 50th and 85th percentile through training, averaged over the three and "
        "divided by the mean distance between the outer two. The drift of a layer is the median over its channels.",
        "The 15th, 50th and 85th percentile of a typical channel through training, at the output of the last batch "
        "norm or of the layer that replaces it, as in Ioffe & Szegedy 2015, figure 1 b and c; and the drift of every "
        "layer.",
    ),
    4: Wording(
        "construction",
        "Mean 0, deviation 1",
        "Normalised values have mean 0 and standard deviation 1.",
        "below the tolerance",
        "Effect: 0.01 minus the largest |mean| or |deviation − 1| of any channel of any layer, measured on "
        "x̂ = (y − β)/γ in training mode after the last step. ε alone makes the deviation a little smaller than 1. "
        "Nearly constant channels and those with γ near 0 are left out and counted. Layers that also add a residual or "
        "apply an activation are left out.",
        "The channel furthest from mean 0 and from deviation 1 in each layer, over all seeds (log scale).",
    ),
    5: Wording(
        "construction",
        "The shape is kept",
        "Normalising keeps the order and the relative distances, and can be undone.",
        "below the tolerance",
        "Effect: 0.001 minus the larger of two numbers, for the worst channel of any layer: 1 − Spearman's ρ between "
        "input and x̂, and the error of the inverse, |x̂·√(σ² + ε) + μ − x|/σ.",
        "A channel of the last batch norm before and after: position and scale change, the shape does not.",
    ),
    6: Wording(
        "benefit",
        "Different scales",
        "Columns on different scales slow training; normalising the table helps.",
        "doublings of speed",
        "Effect: log2(steps on the raw table / steps on the normalised one), for the same network without batch norm. "
        "Steps are counted until the target is reached: the best validation score on the raw table, "
        f"{RACE}. Each table has its own best learning rate.",
        "The network without batch norm on the raw and on the normalised table, one line for each seed.",
    ),
    7: Wording(
        "benefit",
        "Gradients",
        "The first layer's gradient is closer in size to the last layer's with batch norm.",
        "powers of ten closer",
        "Effect: |log10 r| without minus |log10 r| with. The ratio r is the size (root mean square) of the gradient at "
        "the first layer's output, divided by that at the last layer's output; the median through training is taken. "
        f"{BEST}. Layers are those with a weight matrix or filters. Vanishing and exploding: the share of all recorded "
        "steps of the sweep, at every rate, with r < 0.01 or r > 100.",
        "The gradient at each layer's output through training; and, before the first step, the size of the gradient "
        "and of the signal from layer to layer (log scales, medians over seeds).",
    ),
    8: Wording(
        "benefit",
        "Overfitting",
        "The gap between training and validation is smaller with batch norm.",
        "less of a gap",
        "Effect: the gap without batch norm minus the gap with it. The gap is the training score minus the validation "
        "score at the end, or 0 if that is negative. It is judged on a small part of the training samples, because the "
        "network overfits there, at each arm's best rate of the sweep. Not measured if both gaps are below 0.01.",
        "Final score on the training and on the validation part, on few and on all training samples: median over "
        "seeds, lines from lowest to highest.",
    ),
    9: Wording(
        "cost",
        "Where it hurts",
        "Small batches cost a network with batch norm more than one without.",
        "of score lost",
        "Effect: the drop in score with batch norm minus the drop without, from the sweep's batches to the smallest "
        "ones. A drop without batch norm that is negative counts as 0. Each arm's best learning rate is multiplied by "
        "the square root of the ratio of the batch sizes. Not measured if the runs are too short: with small batches, "
        "the network without batch norm must get 80 % of the way from chance to its score in the sweep.",
        "Final validation score at each batch size: median over seeds, lines from lowest to highest.",
    ),
}
