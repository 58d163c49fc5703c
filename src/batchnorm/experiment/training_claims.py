"""Claims about how training goes: faster, steadier, scales, overfitting, small batches."""

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
ENOUGH = 0.8  # of the way from chance to its best that an arm must get at the largest batch, to lose anything


def faster(evidence: Evidence) -> Claim:
    need_learning(evidence.main)
    claim = _race(1, evidence.main, "plain", "batch norm", ("with batch norm", "without"))
    claim.detail["losses"] = {arm: _losses(evidence.main.best(arm)) for arm in evidence.main.arms}
    return claim


def scales(evidence: Evidence) -> Claim:
    sweep = evidence.scales
    if sweep is None:
        raise NotMeasured(evidence.scales_missing)
    need_learning(sweep)
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
    """The typical seed: the medians of the target and of the steps to it."""
    target = statistics.median(lap.target for lap in laps)
    goal = f"{100 * target:.0f} %" if score == "accuracy" else f"{score} {target:.2f}"
    fast, slow = (statistics.median(steps) for steps in zip(*((lap.fast, lap.slow) for lap in laps), strict=True))
    reached = {
        "fast": sum(lap.fast_reached for lap in laps) > len(laps) / 2,
        "slow": sum(lap.slow_reached for lap in laps) > len(laps) / 2,
    }
    if not reached["fast"]:
        return f"Never reached {goal} {words[0]}; {words[1]} it took {slow:.0f} steps."
    if not reached["slow"]:
        return f"Reached {goal} in {fast:.0f} steps {words[0]}; {words[1]} it was not reached in {slow:.0f}."
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
        figure=f"{diverged['batch norm']:.0%} of runs diverge, {diverged['plain']:.0%} without",
        effects=[float(a - b) for a, b in zip(counts["batch norm"], counts["plain"], strict=True)],
        detail={
            "score": main.data.score_name,
            "rates": list(main.rates),
            "bar": main.bar(),
            "chance": chance_score(main.data),
            "working": working,
            "diverged": diverged,
            "scores": {arm: _spread([main.at(arm, rate) for rate in main.rates]) for arm in main.arms},
        },
    )
    judge(claim)
    if claim.verdict == "holds" and diverged["batch norm"] > diverged["plain"]:
        claim.verdict, claim.reason = "does not hold here", "more rates work, but a larger share of runs diverges"
    return claim


def overfitting(evidence: Evidence) -> Claim:
    """Judged on few samples, where networks overfit; the gap on all samples is shown beside it."""
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
        raise NotMeasured("only one of the networks learned, and one that learned nothing has no gap to compare")
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
    main = evidence.main
    need_learning(main)
    by_key = {(r.setting.arm, r.setting.batch_size, r.setting.seed): r for r in evidence.batches}
    sizes = sorted({size for _, size, _ in by_key})
    started = sorted({seed for *_, seed in by_key})
    seeds = [s for s in started if all((arm, size, s) in by_key for arm in main.arms for size in sizes)]
    if not seeds or len(sizes) < 2:
        raise NotMeasured("the study was interrupted before a seed's batch sizes were complete")
    small, large = sizes[0], sizes[-1]

    def score(arm: Arm, size: int) -> list[float]:
        return [by_key[arm, size, seed].score for seed in seeds]

    _need_a_start(main, large, {arm: statistics.median(score(arm, large)) for arm in ARMS})
    lost = {arm: [a - b for a, b in zip(score(arm, large), score(arm, small), strict=True)] for arm in ARMS}
    name = main.data.score_name
    with_norm, before = (statistics.median(score("batch norm", size)) for size in (small, large))
    plain, plain_before = (statistics.median(score("plain", size)) for size in (small, large))
    return judge(
        Claim(
            9,
            sentence=f"From batches of {large} to batches of {small}, {name} goes from {before:.2f} to {with_norm:.2f} "
            f"with batch norm, from {plain_before:.2f} to {plain:.2f} without.",
            figure=f"lost: {statistics.median(lost['batch norm']):.3f}, {statistics.median(lost['plain']):.3f} without",
            effects=[a - max(b, 0.0) for a, b in zip(lost["batch norm"], lost["plain"], strict=True)],
            detail={
                "score": name,
                "sizes": sizes,
                "lost": lost,
                "scores": {arm: _spread([[by_key[arm, z, s] for s in seeds] for z in sizes]) for arm in main.arms},
            },
        )
    )


def _need_a_start(main: Sweep, large: int, reached: dict[Arm, float]) -> None:
    """NotMeasured unless both arms learn at the largest batch most of what they learn in the sweep."""
    chance = chance_score(main.data)
    for arm, score in reached.items():
        best = statistics.median(run.score for run in main.best(arm))
        word = "with" if arm == "batch norm" else "without"
        if not main.learned(arm):
            raise NotMeasured(f"the network {word} batch norm learned nothing at any batch size to lose")
        if score - chance < ENOUGH * (best - chance):
            raise NotMeasured(
                f"at batches of {large} the network {word} batch norm reaches {score:.2f} where it reaches {best:.2f} "
                "in the sweep: it saw too few samples to show what smaller batches cost"
            )


def _spread(groups: Sequence[list[Run]]) -> dict[str, list[float]]:
    scores = [[run.score for run in runs] for runs in groups]
    return {
        "median": [statistics.median(s) for s in scores],
        "low": [min(s) for s in scores],
        "high": [max(s) for s in scores],
    }
