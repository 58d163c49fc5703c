"""Claims about training: faster, steadier, scales, overfitting, small batches."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import Any

from .evidence import Evidence, Lap, need_learning, race
from .runs import Arm, Run, chance_score
from .sweep import Sweep
from .verdict import Claim, NotMeasured, judge

ARMS: tuple[Arm, Arm] = ("batch norm", "plain")
GAP = 0.01  # of accuracy or R²: a smaller gap between training and validation is no overfitting
ENOUGH = 0.8  # of the way from chance to its best score; the plain network must get so far with small batches


def faster(evidence: Evidence) -> Claim:
    need_learning(evidence.main)
    claim = _race(1, evidence.main, "plain", "batch norm", ("with batch norm", "without"))
    claim.detail["losses"] = {arm: _losses(evidence.main.best(arm)) for arm in evidence.main.arms}
    return claim


def scales(evidence: Evidence) -> Claim:
    sweep = evidence.scales
    if sweep is None:
        raise NotMeasured(evidence.scales_missing)
    need_learning(
        sweep,
        f"the two networks of this claim, on {sweep.data.name} with raw and with normalised columns, learned nothing",
    )
    claim = _race(6, sweep, "raw", "plain", ("on the normalised table", "on the raw one"))
    deviations = sweep.data.train.x.double().std(0, correction=0)
    claim.detail |= {
        "table": sweep.data.name,
        "smallest_deviation": deviations.min().item(),
        "largest_deviation": deviations.max().item(),
    }
    return claim


def _race(number: int, sweep: Sweep, slow: Arm, fast: Arm, words: tuple[str, str]) -> Claim:
    runs = {slow: sweep.best(slow), fast: sweep.best(fast)} | {arm: sweep.best(arm) for arm in sweep.arms[2:]}
    laps = race(runs[slow], runs[fast], chance_score(sweep.data))
    effects = [math.log2(lap.slow / lap.fast) for lap in laps]
    ratios = sorted(lap.slow / lap.fast for lap in laps)
    figure = f"{2 ** statistics.median(effects):.2g}× as fast ({ratios[0]:.2g} to {ratios[-1]:.2g} over seeds)"
    missed = sum(not lap.fast_reached for lap in laps)
    if missed:
        figure += f"; target missed {words[0]} in {missed} of {len(laps)}"
    detail = {
        "score": sweep.data.score_name,
        "steps_without": [lap.slow for lap in laps],
        "steps_with": [lap.fast for lap in laps],
        "target": [lap.target for lap in laps],
        "target_reached": [lap.fast_reached for lap in laps],
        "target_reached_without": [lap.slow_reached for lap in laps],
        "arms": {arm: _curves(chosen) for arm, chosen in runs.items()},
    }
    return judge(Claim(number, _race_in_words(laps, sweep.data.score_name, words), figure, effects, detail=detail))


def _race_in_words(laps: list[Lap], score: str, words: tuple[str, str]) -> str:
    """A sentence about the typical seed: the medians of the target and of the steps to it."""
    target = statistics.median(lap.target for lap in laps)
    goal = f"{100 * target:.0f} %" if score == "accuracy" else f"{score} {target:.2f}"
    fast, slow = (statistics.median(steps) for steps in zip(*((lap.fast, lap.slow) for lap in laps), strict=True))
    reached = {
        "fast": sum(lap.fast_reached for lap in laps) > len(laps) / 2,
        "slow": sum(lap.slow_reached for lap in laps) > len(laps) / 2,
    }
    if not reached["fast"]:
        return f"{goal} was never reached {words[0]}, but in {slow:.0f} steps {words[1]}."
    if not reached["slow"]:
        return f"Reached {goal} in {fast:.0f} steps {words[0]}, and not in {slow:.0f} steps {words[1]}."
    return f"Reached {goal} in {fast:.0f} steps {words[0]} instead of {slow:.0f} {words[1]}."


def _curves(runs: list[Run]) -> dict[str, Any]:
    return {"rate": runs[0].setting.rate, "steps": [run.steps for run in runs], "curves": [run.curve for run in runs]}


def _losses(runs: list[Run]) -> dict[str, Any]:
    steps = [run.steps[: len(run.losses)] for run in runs]
    return {"rate": runs[0].setting.rate, "steps": steps, "curves": [run.losses for run in runs]}


def steadier(evidence: Evidence) -> Claim:
    main = evidence.main
    need_learning(main)
    working = {arm: main.working(arm) for arm in main.arms}
    counts = {arm: [len(rates) for rates in working[arm]] for arm in ARMS}
    diverged = {
        arm: statistics.fmean(r.diverged for rate in main.rates for r in main.at(arm, rate)) for arm in main.arms
    }
    with_norm, without = (statistics.median(counts[arm]) for arm in ARMS)
    claim = Claim(
        2,
        sentence=f"{with_norm:g} of {len(main.rates)} learning rates work with batch norm, {without:g} without.",
        figure=f"{diverged['batch norm']:.0%} of runs diverge with batch norm, {diverged['plain']:.0%} without",
        effects=[float(a - b) for a, b in zip(counts["batch norm"], counts["plain"], strict=True)],
        detail={
            "score": main.data.score_name,
            "rates": list(main.rates),
            "bar": main.bar(),
            "chance": chance_score(main.data),
            "working": working,
            "diverged": diverged,
            "scores": {
                arm: _spread([[run.score for run in main.at(arm, rate)] for rate in main.rates]) for arm in main.arms
            },
        },
    )
    judge(claim)
    if claim.verdict == "holds" and diverged["batch norm"] > diverged["plain"]:
        claim.verdict, claim.reason = "does not hold here", "more rates work, but a larger share of runs diverges"
    return claim


def overfitting(evidence: Evidence) -> Claim:
    """The claim on overfitting, judged on few samples, where networks overfit; the gap on all samples is also shown."""
    main = evidence.main
    need_learning(main)
    groups = {f"all {len(main.data.train)} samples": {arm: main.best(arm) for arm in main.arms}}
    few = {arm: [run for run in evidence.few if run.setting.arm == arm] for arm in main.arms}
    seeds = {arm: {run.setting.seed for run in runs} for arm, runs in few.items()}
    complete = set.intersection(*seeds.values())
    if complete:
        kept = {arm: [run for run in runs if run.setting.seed in complete] for arm, runs in few.items()}
        groups = {f"{kept['plain'][0].setting.samples} samples": kept} | groups
    judged, best = next(iter(groups.items()))
    if not all(main.learned(arm) for arm in ARMS):
        raise NotMeasured("only one of the networks learned, so there are not two gaps to compare")
    gaps = {arm: [max(run.train_score - run.score, 0.0) for run in best[arm]] for arm in ARMS}
    with_norm, without = (statistics.median(gaps[arm]) for arm in ARMS)
    if max(with_norm, without) < GAP:
        raise NotMeasured(f"neither network overfits: both gaps are below {GAP:g}")
    name = main.data.score_name
    scores = {arm: statistics.median(run.score for run in best[arm]) for arm in ARMS}
    return judge(
        Claim(
            8,
            sentence=f"On {judged}, the gap between training and validation {name} is {with_norm:.2f} with batch norm, "
            f"{without:.2f} without.",
            figure=f"validation {name} on {judged}: {scores['batch norm']:.3f}, {scores['plain']:.3f} without",
            effects=[b - a for a, b in zip(gaps["batch norm"], gaps["plain"], strict=True)],
            detail={"score": name, "gaps": gaps, "groups": {key: _ends(runs) for key, runs in groups.items()}},
        )
    )


def _ends(best: dict[Arm, list[Run]]) -> dict[str, dict[str, list[float]]]:
    return {
        "training": {arm: [run.train_score for run in runs] for arm, runs in best.items()},
        "validation": {arm: [run.score for run in runs] for arm, runs in best.items()},
    }


def small_batches(evidence: Evidence) -> Claim:
    """The claim on small batches: the score lost with the smallest ones, compared with the batches of the sweep."""
    main = evidence.main
    need_learning(main)
    by_key = {(r.setting.arm, r.setting.batch_size, r.setting.seed): r for r in evidence.batches}
    sizes = sorted({size for _, size, _ in by_key})
    seeds = [s for s in main.seeds if all((arm, size, s) in by_key for arm in main.arms for size in sizes)]
    large = main.runs[0].setting.batch_size
    if not seeds or not sizes:
        raise NotMeasured("no seed's runs over batch sizes were complete")
    if sizes[0] >= large:
        raise NotMeasured(f"the sweep's batches of {large} are small already: there is nothing larger to compare with")
    best = {arm: [run for run in main.best(arm) if run.setting.seed in seeds] for arm in main.arms}
    scores = {
        arm: {size: [by_key[arm, size, seed].score for seed in seeds] for size in sizes}
        | {large: [run.score for run in best[arm]]}
        for arm in main.arms
    }
    small = sizes[0]
    at = {(arm, size): statistics.median(scores[arm][size]) for arm in ARMS for size in (small, large)}
    _need_enough(main, small, at["plain", small], at["plain", large])
    lost = {arm: [a - b for a, b in zip(scores[arm][large], scores[arm][small], strict=True)] for arm in ARMS}
    name = main.data.score_name
    return judge(
        Claim(
            9,
            sentence=f"Batches of {small} instead of {large} change {name} from {at['batch norm', large]:.2f} to "
            f"{at['batch norm', small]:.2f} with batch norm, and from {at['plain', large]:.2f} to "
            f"{at['plain', small]:.2f} without.",
            figure=f"{name} lost: {statistics.median(lost['batch norm']):.3f} with batch norm, "
            f"{statistics.median(lost['plain']):.3f} without",
            effects=[a - max(b, 0.0) for a, b in zip(lost["batch norm"], lost["plain"], strict=True)],
            detail={
                "score": name,
                "sizes": sorted({*sizes, large}),
                "lost": lost,
                "scores": {arm: _spread([found[size] for size in sorted(found)]) for arm, found in scores.items()},
            },
        )
    )


def _need_enough(main: Sweep, small: int, reached: float, best: float) -> None:
    """Raises NotMeasured unless the plain network learns from small batches, so that the samples are enough."""
    for arm in ARMS:
        if not main.learned(arm):
            word = "with" if arm == "batch norm" else "without"
            raise NotMeasured(f"the network {word} batch norm did not learn, so it has no score to lose")
    chance = chance_score(main.data)
    if reached - chance < ENOUGH * (best - chance):
        raise NotMeasured(
            f"with batches of {small}, even the network without batch norm only reaches {reached:.2f} instead of "
            f"{best:.2f}: the runs are too short to tell what small batches cost"
        )


def _spread(groups: Sequence[list[float]]) -> dict[str, list[float]]:
    return {
        "median": [statistics.median(s) for s in groups],
        "low": [min(s) for s in groups],
        "high": [max(s) for s in groups],
    }
