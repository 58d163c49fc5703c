"""A sweep chooses the steadier of equal rates, and is extended if the best rate is at its edge."""

import pytest

from batchnorm.experiment.headline import notes
from batchnorm.experiment.sweep import MOST_ADDED, Sweep
from tests.experiment.test_claims import SEEDS, data, planted


def sweep(scores: dict[float, list[float]], diverged: dict[float, list[bool]] = {}) -> Sweep:  # noqa: B006
    """Scores per rate, one a seed, the same for both arms."""
    runs = []
    for arm in ("batch norm", "plain"):
        for rate, found in scores.items():
            for seed, score in zip(SEEDS, found, strict=True):
                run = planted(arm, seed, rate)  # type: ignore[arg-type]
                run.score, run.diverged = score, diverged.get(rate, [False] * 3)[seed]
                runs.append(run)
    return Sweep(data(), ("batch norm", "plain"), tuple(sorted(scores)), runs)


def test_within_noise_the_steadier_rate_is_chosen() -> None:
    found = sweep({0.1: [0.90, 0.90, 0.90], 1.0: [0.97, 0.80, 0.97], 10.0: [0.5, 0.5, 0.5]})
    assert found.best_rate("plain") == 0.1, "1.0 has the higher mean, and a spread of 0.1"


def test_a_rate_that_is_better_beyond_noise_is_chosen() -> None:
    found = sweep({0.1: [0.80, 0.80, 0.80], 1.0: [0.95, 0.93, 0.97], 10.0: [0.5, 0.5, 0.5]})
    assert found.best_rate("plain") == 1.0


def test_of_equal_rates_the_one_without_divergence_is_chosen() -> None:
    found = sweep({0.1: [0.9] * 3, 1.0: [0.9] * 3, 10.0: [0.1] * 3}, {1.0: [False, True, False]})
    assert found.best_rate("plain") == 0.1


@pytest.mark.parametrize(("best", "asked"), [(0.1, (0.01,)), (1.0, ()), (10.0, (100.0,))])
def test_it_asks_for_a_rate_beyond_the_edge_that_is_best(best: float, asked: tuple[float, ...]) -> None:
    found = sweep({rate: [0.9 if rate == best else 0.5] * 3 for rate in (0.1, 1.0, 10.0)})
    assert found.beyond() == asked
    assert set(found.at_edge().values()) == ({best} if asked else set())


def test_it_grows_up_to_a_bound_and_says_so() -> None:
    rates: tuple[float, ...] = (0.1, 1.0, 10.0)
    found = sweep({rate: [rate / 1e5] * 3 for rate in rates})
    for _ in range(MOST_ADDED):
        (new,) = found.beyond()
        found.grow([new])
        found.runs += sweep({new: [new / 1e5] * 3}).runs
    assert found.beyond() == ()
    assert found.added == (100.0, 1000.0, 10000.0)
    grown, *edges = notes(found, None)
    assert "these rates were added: 100, 1000, 10000" in grown
    assert len(edges) == 2
    assert "with batch norm, 10000, is at the edge" in edges[0]
