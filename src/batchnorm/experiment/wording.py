"""The text of each claim, the definition of its effect, and the caption of its figure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

BEST = "each arm at its own best learning rate, seed by seed"
RACE = "at least halfway from chance to the best of both; a run that does not get there counts with all its steps"


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
        "Effect: log2(steps without / steps with) to the best validation score of the network without "
        f"({RACE}), {BEST}.",
        "Validation score through training, each arm at its own best learning rate, one line a seed.",
    ),
    2: Wording(
        "benefit",
        "Steadier",
        "More learning rates work with batch norm, and no more runs diverge.",
        "more rates that work",
        "Effect: learning rates that work with batch norm minus those that work without, seed by seed. A rate works if "
        "the run does not diverge and ends at least 90 % of the way from chance to the best score of either arm. A run "
        "diverges if a loss is not finite, or if the mean training loss of the last tenth is above 1.1 times "
        "that of the "
        "best constant. The claim fails too if a larger share of runs diverges with batch norm.",
        "Final validation score at each learning rate: median over seeds, bars from lowest to highest.",
    ),
    3: Wording(
        "benefit",
        "The same distribution",
        "Each layer's inputs keep their distribution through training with batch norm.",
        "halvings of the drift",
        f"Effect: log2(drift without / drift with), the mean over layers, {BEST}. Drift, one number a layer: "
        "the standard "
        "deviation through training of the 15th, 50th and 85th percentile of a channel, in units of the mean distance "
        "between the outer two; the median over channels.",
        "The 15th, 50th and 85th percentile of a typical input to the last layer's nonlinearity through "
        "training, as in "
        "Ioffe & Szegedy 2015, figure 1 b and c; and the drift of every layer.",
    ),
    4: Wording(
        "construction",
        "Mean 0, deviation 1",
        "Normalised values have mean 0 and standard deviation 1.",
        "below the tolerance",
        "Effect: 0.01 minus the largest |mean| or |deviation − 1| of any channel of any layer, measured on "
        "x̂ = (y − β)/γ of a training-mode pass at the end of training. ε alone brings the deviation a little below 1. "
        "Nearly constant channels and those with γ near 0 are left out and counted.",
        "The channel furthest from mean 0 and from deviation 1 in each layer, over all seeds (log scale).",
    ),
    5: Wording(
        "construction",
        "The shape is kept",
        "Normalising keeps the order and the relative distances, and can be undone.",
        "below the tolerance",
        "Effect: 0.001 minus the larger of 1 − Spearman's ρ between input and x̂ (lowest over channels and layers) and "
        "|x̂·√(σ² + ε) + μ − x|/σ (highest).",
        "A channel of the last batch norm before and after: another place, another scale, the same shape.",
    ),
    6: Wording(
        "benefit",
        "Different scales",
        "Columns on different scales slow training; normalising the table helps.",
        "doublings of speed",
        "Effect: log2(steps on the raw table / steps on the normalised one) to the best validation score on the "
        "raw table "
        f"({RACE}), the same network without batch norm, {BEST}.",
        "The network without batch norm on the raw and on the normalised table, one line a seed.",
    ),
    7: Wording(
        "benefit",
        "Gradients",
        "The first layer's gradient is closer in size to the last layer's with batch norm.",
        "powers of ten closer",
        "Effect: |log10 r| without minus with; r is the gradient at the first layer's output over that at the last's "
        f"(root mean square over its values), the median through training, {BEST}. Layers are those with a weight "
        "matrix or filters. Vanishing and exploding: the share of all recorded steps of the sweep, every rate, with "
        "r < 0.01 or r > 100.",
        "The gradient at each layer's output through training; and, before the first step, the size of the gradient "
        "and of the signal from layer to layer (log scales, medians over seeds).",
    ),
    8: Wording(
        "benefit",
        "Overfitting",
        "The gap between training and validation is smaller with batch norm.",
        "less of a gap",
        "Effect: the gap without batch norm minus the gap with; the gap is training score minus validation score at "
        "the end, 0 where that is negative. It is judged on a small part of the training samples, where the network "
        "overfits, at each arm's best rate of the sweep. Not measured if both gaps are below 0.01.",
        "Final score on the training and on the validation part, on few and on all training samples: median over "
        "seeds, lines from lowest to highest.",
    ),
    9: Wording(
        "cost",
        "Where it hurts",
        "Small batches cost a network with batch norm more than one without.",
        "of score lost",
        "Effect: score lost from the sweep's batches to the smallest ones, with batch norm minus without, seed by "
        "seed; a network that gains without batch norm counts as losing nothing. Each arm's own best learning rate is "
        "scaled by the square root of the batch size. Not measured unless the network without batch norm gets with "
        "small batches 80 % of the way from chance to its best score: then the runs are long enough.",
        "Final validation score at each batch size: median over seeds, lines from lowest to highest.",
    ),
}
