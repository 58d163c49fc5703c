"""Claims about how training goes: faster, steadier, scales, overfitting, small batches."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import Any

from .evidence import Evidence, Sweep, race
from .runs import Arm, Run, chance_score
from .verdict import Claim, NotMeasured, judge

ARMS: tuple[Arm, Arm] = ("batch norm", "plain")


def faster(evidence: Evidence) -> Claim:
    return _race(1, evidence.main, "plain", "batch norm")


def scales(evidence: Evidence) -> Claim:
    sweep = evidence.scales
    if sweep is None:
        raise NotMeasured(evidence.scales_missing)
    claim = _race(6, sweep, "raw", "plain")
    deviations = sweep.data.train.x.double().std(0, correction=0)
    claim.detail |= {
        "table": sweep.data.name,
        "smallest_deviation": deviations.min().item(),
        "largest_deviation": deviations.max().item(),
    }
    return claim


def _race(number: int, sweep: Sweep, slow: Arm, fast: Arm) -> Claim:
    runs = {slow: sweep.best(slow), fast: sweep.best(fast)}
    laps = race(runs[slow], runs[fast], chance_score(sweep.data))
    effects = [math.log2(a / b) for a, b, _ in laps]
    ratios = sorted(a / b for a, b, _ in laps)
    figure = f"{2 ** statistics.median(effects):.2g}× fewer steps ({ratios[0]:.2g} to {ratios[-1]:.2g} over seeds)"
    missed = sum(not reached for *_, reached in laps)
    if missed:
        figure += f"; target missed in {missed} of {len(laps)}"
    detail = {
        "score": sweep.data.score_name,
        "steps_without": [a for a, _, _ in laps],
        "steps_with": [b for _, b, _ in laps],
        "target_reached": [reached for *_, reached in laps],
        "arms": {arm: _curves(chosen) for arm, chosen in runs.items()},
    }
    return judge(Claim(number, figure, effects, detail=detail))


def _curves(runs: list[Run]) -> dict[str, Any]:
    return {"rate": runs[0].setting.rate, "steps": [run.steps for run in runs], "curves": [run.curve for run in runs]}


def steadier(evidence: Evidence) -> Claim:
    main = evidence.main
    counts = {arm: [len(main.working(arm, seed)) for seed in main.seeds] for arm in ARMS}
    diverged = {arm: statistics.fmean(r.diverged for rate in main.rates for r in main.at(arm, rate)) for arm in ARMS}
    with_norm, without = (statistics.median(counts[arm]) for arm in ARMS)
    claim = Claim(
        2,
        figure=f"{with_norm:g} of {len(main.rates)} rates work, {without:g} without; "
        f"{diverged['batch norm']:.0%} of runs diverge, {diverged['plain']:.0%} without",
        effects=[float(a - b) for a, b in zip(counts["batch norm"], counts["plain"], strict=True)],
        detail={
            "score": main.data.score_name,
            "rates": list(main.rates),
            "bar": main.bar(),
            "working": {arm: [main.working(arm, seed) for seed in main.seeds] for arm in ARMS},
            "diverged": diverged,
            "scores": {arm: _spread([main.at(arm, rate) for rate in main.rates]) for arm in ARMS},
        },
    )
    judge(claim)
    if claim.verdict == "holds" and diverged["batch norm"] > diverged["plain"]:
        claim.verdict, claim.reason = "does not hold here", "more rates work, but a larger share of runs diverges"
    return claim


def overfitting(evidence: Evidence) -> Claim:
    main = evidence.main
    best = {arm: main.best(arm) for arm in ARMS}
    gaps = {arm: [run.train_score - run.score for run in best[arm]] for arm in ARMS}
    with_norm, without = (statistics.median(gaps[arm]) for arm in ARMS)
    name = main.data.score_name
    return judge(
        Claim(
            8,
            figure=f"the gap is {with_norm:.3f} of {name}, {without:.3f} without",
            effects=[b - a for a, b in zip(gaps["batch norm"], gaps["plain"], strict=True)],
            detail={
                "score": name,
                "gaps": gaps,
                "train": {arm: [run.train_score for run in best[arm]] for arm in ARMS},
                "validation": {arm: [run.score for run in best[arm]] for arm in ARMS},
            },
        )
    )


def small_batches(evidence: Evidence) -> Claim:
    by_key = {(r.setting.arm, r.setting.batch_size, r.setting.seed): r for r in evidence.batches}
    sizes = sorted({size for _, size, _ in by_key})
    started = sorted({seed for *_, seed in by_key})
    seeds = [s for s in started if all((arm, size, s) in by_key for arm in ARMS for size in sizes)]
    if not seeds or len(sizes) < 2:
        raise NotMeasured("the study was interrupted before a seed's batch sizes were complete")
    small, large = sizes[0], sizes[-1]

    def score(arm: Arm, size: int) -> list[float]:
        return [by_key[arm, size, seed].score for seed in seeds]

    lost = {arm: [a - b for a, b in zip(score(arm, large), score(arm, small), strict=True)] for arm in ARMS}
    name = evidence.main.data.score_name
    with_norm, without = (statistics.median(score(arm, small)) for arm in ARMS)
    return judge(
        Claim(
            9,
            figure=f"at batches of {small}, {name} {with_norm:.3f}, {without:.3f} without; going down from {large} "
            f"costs {statistics.median(lost['batch norm']):.3f}, {statistics.median(lost['plain']):.3f} without",
            effects=[a - max(b, 0.0) for a, b in zip(lost["batch norm"], lost["plain"], strict=True)],
            detail={
                "score": name,
                "sizes": sizes,
                "lost": lost,
                "scores": {arm: _spread([[by_key[arm, z, s] for s in seeds] for z in sizes]) for arm in ARMS},
            },
        )
    )


def _spread(groups: Sequence[list[Run]]) -> dict[str, list[float]]:
    scores = [[run.score for run in runs] for runs in groups]
    return {
        "median": [statistics.median(s) for s in scores],
        "low": [min(s) for s in scores],
        "high": [max(s) for s in scores],
    }
