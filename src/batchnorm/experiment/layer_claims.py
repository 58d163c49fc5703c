"""Claims about the inside of a network: distributions, normalised values, gradients."""

from __future__ import annotations

import math
import statistics
from typing import Any

from .evidence import Evidence, need_learning
from .run_log import drift, typical_channel
from .runs import Run
from .training_claims import ARMS
from .verdict import Claim, NotMeasured, judge

TOLERANCE = 0.01  # for mean 0 and standard deviation 1
SHAPE_TOLERANCE = 1e-3  # for 1 − rank correlation, and for the error of the inverse in standard deviations
VANISHING, EXPLODING = 1e-2, 1e2  # first layer's gradient over the last layer's


def same_distribution(evidence: Evidence) -> Claim:
    need_learning(evidence.main)
    best = {arm: evidence.main.best(arm) for arm in ARMS}
    drifts = {arm: _drifts(best[arm]) for arm in ARMS}
    per_seed = {arm: _over_layers(drifts[arm]) for arm in ARMS}
    with_norm, without = (statistics.median(per_seed[arm]) for arm in ARMS)
    return judge(
        Claim(
            3,
            sentence=f"Through training, the distribution of a layer's inputs shifts by {_widths(with_norm)} with "
            f"batch norm, and by {_widths(without)} without.",
            effects=[
                math.log2(max(b, 1e-12) / max(a, 1e-12))
                for a, b in zip(per_seed["batch norm"], per_seed["plain"], strict=True)
            ],
            detail={"drift": drifts, "trace": {arm: _trace(best[arm][0]) for arm in ARMS}},
        )
    )


def _widths(drift: float) -> str:
    return f"{drift:.2f} of its width" if drift < 10 else f"{float(f'{drift:.2g}'):,.0f} times its width"


def _drifts(runs: list[Run]) -> dict[str, list[float]]:
    if any(not run.log.percentiles or len(run.log.steps) < 2 for run in runs):
        raise NotMeasured("no layer's inputs were recorded at the best learning rate")
    return {site: [drift(run.log.percentiles[site]) for run in runs] for site in runs[0].log.percentiles}


def _over_layers(by_layer: dict[str, list[float]]) -> list[float]:
    return [statistics.fmean(values) for values in zip(*by_layer.values(), strict=True)]


def _trace(run: Run) -> dict[str, Any]:
    site = list(run.log.percentiles)[-1]
    return {
        "layer": site,
        "steps": run.log.steps,
        "percentiles": typical_channel(run.log.percentiles[site]),
    }


def mean_and_deviation(evidence: Evidence) -> Claim:
    layers = _normalised(evidence)
    worst = [max(max(s["mean"], s["std"]) for s in seed.values()) for seed in layers]
    mean = max(s["mean"] for seed in layers for s in seed.values())
    std = max(s["std"] for seed in layers for s in seed.values())
    left_out = sum(s["left_out"] for seed in layers for s in seed.values())
    return judge(
        Claim(
            4,
            sentence=f"Over all channels, the mean differs from 0 by at most {_bound(mean)}, and the standard "
            f"deviation from 1 by at most {_bound(std)}.",
            figure=f"|mean| ≤ {mean:.1e}, |deviation − 1| ≤ {std:.1e}",
            effects=[TOLERANCE - value for value in worst],
            detail={"layers": _worst_by_layer(layers, ("mean", "std")), "left_out": left_out},
        )
    )


def _bound(value: float) -> str:
    """The value as text with four decimals, rounded up."""
    return f"{math.ceil(1e4 * value) / 1e4 if math.isfinite(value) else value:.4f}"


def shape_kept(evidence: Evidence) -> Claim:
    layers = _normalised(evidence)
    correlation = min(s["correlation"] for seed in layers for s in seed.values())
    inverse = max(s["inverse"] for seed in layers for s in seed.values())
    last = list(layers[0].values())[-1]
    return judge(
        Claim(
            5,
            sentence=_shape_in_words(correlation, inverse),
            figure=f"rank correlation ≥ {correlation:.6f}, inverse off by ≤ {inverse:.1e} deviations",
            effects=[
                SHAPE_TOLERANCE - max(max(1 - s["correlation"], s["inverse"]) for s in seed.values()) for seed in layers
            ],
            detail={
                "layers": _worst_by_layer(layers, ("correlation", "inverse")),
                "before": last["before"],
                "after": last["after"],
            },
        )
    )


def _shape_in_words(correlation: float, inverse: float) -> str:
    if max(1 - correlation, inverse) < SHAPE_TOLERANCE:
        return "The order and the relative distances of the values are kept, and the inverse restores the values."
    return "The order or the relative distances of the values changed."


def _normalised(evidence: Evidence) -> list[dict[str, dict[str, Any]]]:
    runs = evidence.main.best("batch norm")
    if any(not run.log.normalised for run in runs):
        raise NotMeasured(
            "no normalised values could be read: all batch norms add a residual, apply an activation, or are constant"
        )
    return [run.log.normalised for run in runs]


def _worst_by_layer(layers: list[dict[str, dict[str, Any]]], names: tuple[str, ...]) -> dict[str, dict[str, float]]:
    worst: dict[str, dict[str, float]] = {}
    for site in layers[0]:
        seeds = [seed[site] for seed in layers if site in seed]
        worst[site] = {n: (min if n == "correlation" else max)(s[n] for s in seeds) for n in names}
    return worst


def gradients(evidence: Evidence) -> Claim:
    main = evidence.main
    need_learning(main)
    best = {arm: main.best(arm) for arm in main.arms}
    if any(len(run.log.gradients) < 2 for arm in ARMS for run in best[arm]):
        raise NotMeasured("the network has fewer than two layers with weights")
    ratios = {arm: [statistics.median(_ratios(run)) for run in best[arm]] for arm in ARMS}
    every = {arm: [r for rate in main.rates for run in main.at(arm, rate) for r in _ratios(run)] for arm in ARMS}
    vanishing = {arm: statistics.fmean(r < VANISHING for r in every[arm]) for arm in ARMS}
    exploding = {arm: statistics.fmean(r > EXPLODING for r in every[arm]) for arm in ARMS}
    with_norm, without = (statistics.median(ratios[arm]) for arm in ARMS)
    return judge(
        Claim(
            7,
            sentence=f"The first layer's gradient is {_times(with_norm)} the last layer's with batch norm, "
            f"{_times(without)} the last layer's without.",
            figure=f"vanishing in {vanishing['batch norm']:.0%} of the steps with batch norm, {vanishing['plain']:.0%} "
            f"without; exploding in {exploding['batch norm']:.0%}, {exploding['plain']:.0%} without",
            effects=[_distance(b) - _distance(a) for a, b in zip(ratios["batch norm"], ratios["plain"], strict=True)],
            detail={
                "ratio": ratios,
                "vanishing": vanishing,
                "exploding": exploding,
                "steps": {arm: runs[0].log.steps for arm, runs in best.items()},
                "layers": {arm: _medians([run.log.gradients for run in runs]) for arm, runs in best.items()},
                "start": {
                    "gradient": {arm: _first([run.log.gradients for run in runs]) for arm, runs in best.items()},
                    "signal": {arm: _first([run.log.scales for run in runs]) for arm, runs in best.items()},
                },
            },
        )
    )


def _times(ratio: float) -> str:
    """A ratio as text, such as `12 times` or `1/12 of`."""
    if ratio <= 0 or not math.isfinite(ratio):
        return "0 times" if ratio <= 0 else "infinitely many times"
    if 0.1 <= ratio < 10:
        return f"{ratio:.2g} times"
    value = max(ratio, 1 / ratio)
    digits = f"{float(f'{value:.2g}'):,.0f}" if value < 1e15 else f"{value:.0e}"
    return f"{digits} times" if ratio > 1 else f"1/{digits} of"


def _ratios(run: Run) -> list[float]:
    """The first layer's gradient over the last layer's at each recorded step; 0 if both are 0."""
    layers = list(run.log.gradients.values())
    if len(layers) < 2:
        return []
    return [
        a / b if b > 0 and math.isfinite(a / b) else (0.0 if a == 0 else math.inf)
        for a, b in zip(layers[0], layers[-1], strict=True)
    ]


def _distance(ratio: float) -> float:
    return min(abs(math.log10(ratio)) if ratio > 0 else math.inf, 12.0)


def _medians(by_layer: list[dict[str, list[float]]]) -> dict[str, list[float]]:
    """The median over seeds, at each recorded step."""
    return {
        name: [statistics.median(v) for v in zip(*(layers[name] for layers in by_layer), strict=False)]
        for name in by_layer[0]
    }


def _first(by_layer: list[dict[str, list[float]]]) -> dict[str, float]:
    """The median over seeds, before the first step."""
    return {name: values[0] for name, values in _medians(by_layer).items() if values}
