"""Every claim on planted runs: it holds where it should, and does not where the opposite was planted."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from batchnorm.experiment import layer_claims
from batchnorm.experiment.claims import CLAIMS, measure
from batchnorm.experiment.data import Data, split
from batchnorm.experiment.evidence import NOTHING, Evidence, Lap, race
from batchnorm.experiment.runs import Arm, Run, Setting
from batchnorm.experiment.sweep import Sweep
from batchnorm.experiment.verdict import Claim, NotMeasured

SEEDS, RATES = (0, 1, 2), (0.1, 1.0)
STEPS = [0, 10, 20, 30, 40]
FAST, SLOW = [0.5, 0.9, 0.9, 0.9, 0.9], [0.5, 0.6, 0.7, 0.8, 0.9]
STILL, MOVING = [0.0, 0.01, 0.0, 0.01, 0.0], [0.0, 1.0, 2.0, 3.0, 4.0]
HISTOGRAM = {"edges": [0.0, 1.0, 2.0], "counts": [3.0, 4.0]}
GOOD_NORM = {"mean": 1e-7, "std": 1e-4, "correlation": 1.0, "inverse": 1e-6}


def data() -> Data:
    return split("planted", torch.arange(800.0).reshape(400, 2), torch.arange(400) % 2)


def percentiles(places: list[float]) -> list[Tensor]:
    return [torch.tensor([[p - 1.0], [p], [p + 1.0]]) for p in places]


def planted(
    arm: Arm,
    seed: int,
    rate: float = 1.0,
    size: int = 8,
    curve: list[float] = FAST,
    score: float = 0.9,
    train_score: float = 0.9,
    diverged: bool = False,
    places: list[float] = STILL,
    ratio: float = 1.0,
    norm: dict[str, Any] = GOOD_NORM,
) -> Run:
    """A run as training would have left it, with the given outcome; seeds differ a little."""
    jitter = 1e-3 * seed
    run = Run(Setting(arm, rate, seed, size, STEPS[-1]), steps=STEPS, curve=curve, diverged=diverged)
    run.score, run.test_score, run.train_score = score + jitter, score, train_score + jitter
    run.log.steps = STEPS
    run.log.percentiles = {"0": percentiles(places), "1": percentiles(places)}
    run.log.scales = {"first": [1.0] * len(STEPS), "last": [1.0] * len(STEPS)}
    run.log.gradients = {"first": [ratio * (1 + jitter)] * len(STEPS), "last": [1.0] * len(STEPS)}
    if arm == "batch norm":
        run.log.normalised = {"0": norm | {"left_out": 0, "before": HISTOGRAM, "after": HISTOGRAM}}
    return run


def evidence(with_norm: dict[str, Any], without: dict[str, Any]) -> Evidence:
    """with_norm, without: what `planted` makes of each arm, at every seed and rate."""

    def sweep(arms: tuple[Arm, Arm], outcomes: tuple[dict[str, Any], dict[str, Any]]) -> Sweep:
        pairs = list(zip(arms, outcomes, strict=True))
        return Sweep(data(), arms, RATES, [planted(a, s, r, **kw) for a, kw in pairs for s in SEEDS for r in RATES])

    return Evidence(sweep(("batch norm", "plain"), (with_norm, without)), sweep(("raw", "plain"), (without, with_norm)))


def claim(number: int, with_norm: dict[str, Any], without: dict[str, Any]) -> Claim:
    return CLAIMS[number](evidence(with_norm, without))


TWO_SIDED = {
    1: ({"curve": FAST}, {"curve": SLOW}),
    3: ({"places": STILL}, {"places": MOVING}),
    6: ({"curve": FAST}, {"curve": SLOW}),
    7: ({"ratio": 1.1}, {"ratio": 1e-4}),
    8: ({"train_score": 0.91}, {"train_score": 0.99}),
}


@pytest.mark.parametrize("number", TWO_SIDED)
def test_holds_where_planted_and_not_where_the_opposite_is(number: int) -> None:
    good, bad = TWO_SIDED[number]
    right, wrong, same = claim(number, good, bad), claim(number, bad, good), claim(number, good, good)
    assert right.verdict == "holds", right.reason
    assert right.median is not None
    assert right.median > 0
    assert wrong.verdict == "does not hold here"
    assert wrong.median is not None
    assert wrong.median < 0
    assert same.verdict == "does not hold here"


def test_drift_in_words() -> None:
    wide = [40 * place for place in MOVING]
    found = claim(3, {"places": MOVING}, {"places": wide}).sentence
    assert "shifts by 0.71 of its width with batch norm, and by 28 times its width without." in found


def steadier(norm_works: list[float], plain_works: list[float], norm_diverges: list[float] = []) -> Claim:  # noqa: B006
    runs = []
    for arm, works in (("batch norm", norm_works), ("plain", plain_works)):
        for rate in (0.1, 1.0, 10.0):
            for seed in SEEDS:
                diverged = arm == "batch norm" and rate in norm_diverges
                score = 0.9 if rate in works else 0.5
                runs.append(planted(arm, seed, rate, score=score, diverged=diverged))  # type: ignore[arg-type]
    return CLAIMS[2](Evidence(Sweep(data(), ("batch norm", "plain"), (0.1, 1.0, 10.0), runs), None))


def test_steadier() -> None:
    assert steadier([0.1, 1.0, 10.0], [0.1]).verdict == "holds"
    assert steadier([0.1], [0.1, 1.0]).verdict == "does not hold here"
    assert steadier([0.1, 1.0], [0.1, 1.0]).verdict == "does not hold here"


def test_steadier_fails_if_more_runs_diverge() -> None:
    found = steadier([0.1, 1.0], [0.1], norm_diverges=[10.0])
    assert found.median == 1
    assert found.verdict == "does not hold here"
    assert "a larger share of runs diverges" in found.reason


@pytest.mark.parametrize("key", ["mean", "std"])
def test_mean_and_deviation(key: str) -> None:
    assert claim(4, {}, {}).verdict == "holds"
    found = claim(4, {"norm": GOOD_NORM | {key: 0.02}}, {})
    assert found.verdict == "does not hold here"
    assert found.median == pytest.approx(-0.01)


@pytest.mark.parametrize(("key", "value"), [("correlation", 0.9), ("inverse", 0.1)])
def test_shape(key: str, value: float) -> None:
    assert claim(5, {}, {}).verdict == "holds"
    assert claim(5, {"norm": GOOD_NORM | {key: value}}, {}).verdict == "does not hold here"


def small_batches(with_norm: float, without: float) -> Claim:
    """Scores at batches of 2; at the sweep's batches of 8 both have 0.9."""
    found = evidence({}, {})
    for arm, score in (("batch norm", with_norm), ("plain", without)):
        found.batches += [planted(arm, s, size=2, score=score) for s in SEEDS]  # type: ignore[arg-type]
    return CLAIMS[9](found)


def test_small_batches() -> None:
    assert small_batches(0.5, 0.9).verdict == "holds"
    assert small_batches(0.9, 0.85).verdict == "does not hold here"
    assert small_batches(0.9, 0.9).verdict == "does not hold here"
    assert small_batches(0.9, 0.99).verdict == "does not hold here", "a gain without it is no loss with it"


def test_small_batches_are_not_judged_on_runs_that_are_too_short() -> None:
    with pytest.raises(NotMeasured, match="too short to tell"):
        small_batches(0.5, 0.55)


def test_nothing_is_said_of_training_where_nothing_was_learned() -> None:
    """Scores at chance, whatever else was planted, such as a faster curve: only the arithmetic is judged."""
    fast, slow = {"curve": FAST, "score": 0.51}, {"curve": SLOW, "score": 0.5, "places": MOVING, "ratio": 1e-4}
    claims = measure(evidence(fast, slow))
    assert [c.number for c in claims if c.verdict != "not measured"] == [4, 5]
    assert {c.reason for c in claims if c.number not in (4, 5, 6)} == {NOTHING}
    assert claims[5].reason.startswith("the two networks of this claim, on "), "they are not those of the headline"
    assert [c.number for c in claims if c.kind == "construction"] == [4, 5]


def test_one_arm_that_learned_is_enough_to_judge_speed_but_not_a_gap() -> None:
    claims = {c.number: c for c in measure(evidence({"curve": FAST}, {"curve": [0.5] * 5, "score": 0.5}))}
    assert claims[1].verdict == "holds"
    assert "not in 40 steps without" in claims[1].sentence
    assert claims[8].verdict == "not measured"
    assert "only one of the networks learned" in claims[8].reason


def test_a_negative_gap_is_no_overfitting() -> None:
    with pytest.raises(NotMeasured, match="neither network overfits"):
        claim(8, {"train_score": 0.7}, {"train_score": 0.85})
    worse = claim(8, {"train_score": 0.99}, {"train_score": 0.7})
    assert worse.effects == pytest.approx([-0.09] * 3), "the plain gap counts as 0, not as −0.2"


def test_overfitting_is_judged_on_few_samples_where_there_are_such_runs() -> None:
    found = evidence({"train_score": 0.9}, {"train_score": 0.9})
    for arm, score in (("batch norm", 0.8), ("plain", 0.7)):
        for seed in SEEDS:
            run = planted(arm, seed, score=score, train_score=1.0)  # type: ignore[arg-type]
            run.setting = replace(run.setting, samples=50)
            found.few.append(run)
    judged = CLAIMS[8](found)
    assert judged.verdict == "holds"
    assert judged.median == pytest.approx(0.1)
    assert list(judged.detail["groups"]) == ["50 samples", "all 240 samples"]
    assert "On 50 samples" in judged.sentence


def test_the_sentence_says_the_steps() -> None:
    assert claim(1, {"curve": FAST}, {"curve": SLOW}).sentence == (
        "Reached 90 % in 10 steps with batch norm instead of 40 without."
    )


def test_each_claim_comes_in_order_and_says_why_it_is_not_measured() -> None:
    claims = measure(Evidence(Sweep(data(), ("batch norm", "plain"), RATES), None, scales_missing="no table"))
    assert [c.number for c in claims] == list(range(1, 10))
    assert {c.verdict for c in claims} == {"not measured"}
    assert claims[5].reason == "no table"
    assert all("interrupted" in c.reason for c in claims if c.number != 6)


def test_a_seed_without_all_of_its_runs_does_not_count() -> None:
    found = evidence({"curve": FAST}, {"curve": SLOW})
    found.main.runs = [r for r in found.main.runs if (r.setting.arm, r.setting.seed) != ("plain", 2)]
    assert found.main.seeds == [0, 1]
    assert len(CLAIMS[1](found).effects) == 2


def test_each_arm_runs_at_its_own_best_rate() -> None:
    runs = [
        planted(arm, seed, rate, score=0.9 if rate == best else 0.6)  # type: ignore[arg-type]
        for arm, best in (("batch norm", 1.0), ("plain", 0.1))
        for rate in RATES
        for seed in SEEDS
    ]
    sweep = Sweep(data(), ("batch norm", "plain"), RATES, runs)
    assert (sweep.best_rate("batch norm"), sweep.best_rate("plain")) == (1.0, 0.1)


def test_a_race_that_nobody_finishes_counts_all_steps() -> None:
    slow, fast = planted("plain", 0, curve=SLOW), planted("batch norm", 0, curve=[0.5] * 5)
    assert race([slow], [fast], 0.5) == [Lap(0.9, 40, 40, True, False)]


def test_a_network_that_never_leaves_chance_sets_no_mark() -> None:
    stuck, learns = planted("plain", 0, curve=[0.5] * 5), planted("batch norm", 0, curve=SLOW)
    # the target is halfway from 0.5 to 0.9, not the 0.5 that any network has at step 0
    assert race([stuck], [learns], 0.5) == [Lap(0.7, 40, 20, False, True)]


@pytest.mark.parametrize(("value", "text"), [(3e-8, "0.0001"), (1.2e-4, "0.0002"), (float("nan"), "nan")])
def test_a_bound_is_rounded_up(value: float, text: str) -> None:
    assert layer_claims._bound(value) == text
