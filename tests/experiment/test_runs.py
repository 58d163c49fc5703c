"""One run: repeatable, fair to both arms, and honest about divergence."""

import math

import pytest
import torch
from torch import nn

from batchnorm.experiment.data import Data, split, standardise
from batchnorm.experiment.runs import MARKS, Run, Setting, chance_loss, chance_score, score, train
from batchnorm.experiment.study_networks import mlp


def easy() -> Data:
    x = torch.randn(200, 3, generator=torch.Generator().manual_seed(0))
    return standardise(split("easy", x, (x.sum(1) > 0).long()))


def run(rate: float = 0.5, seed: int = 0, arm: str = "batch norm", steps: int = 40, **more: object) -> Run:
    return train(mlp, easy(), Setting(arm, rate, seed, 20, steps, **more))  # type: ignore[arg-type]


def test_the_same_setting_gives_the_same_run_and_another_seed_another() -> None:
    first, again, other = run().to_dict(), run().to_dict(), run(seed=1).to_dict()
    assert first == again
    assert first["losses"] != other["losses"]


def test_a_run_leaves_the_generator_as_it_was() -> None:
    state = torch.get_rng_state()
    run(steps=4)
    assert torch.equal(torch.get_rng_state(), state)


def test_recording_does_not_change_a_run() -> None:
    assert run(record=True).to_dict() == run(record=False).to_dict()


def test_both_arms_see_the_same_batches() -> None:
    seen: dict[str, list[torch.Tensor]] = {"batch norm": [], "plain": []}

    class Watched(nn.Module):
        arm = ""

        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if torch.is_grad_enabled():
                seen[Watched.arm].append(x.clone())
            return self.net(x)

    for arm in seen:
        Watched.arm = arm
        train(Watched, easy(), Setting(arm, 0.1, 0, 20, 12, record=False))  # type: ignore[arg-type]
    assert len(seen["plain"]) == 12
    assert all(torch.equal(a, b) for a, b in zip(*seen.values(), strict=True))
    assert len(torch.cat(seen["plain"][:6]).unique(dim=0)) == 120, "an epoch sees every sample once"


def test_it_learns_and_is_scored_at_evenly_spaced_steps() -> None:
    found = run(steps=80)
    assert found.score > 0.85
    assert found.score == found.curve[-1]
    assert found.steps == [2 * i for i in range(MARKS + 1)]
    assert not found.diverged
    assert len(found.log.percentiles) == 3
    assert found.log.normalised


def test_a_run_that_diverges_says_so_and_scores_as_chance() -> None:
    found = run(rate=1e30, arm="plain", optimizer="adam")
    assert found.diverged
    assert found.score == found.test_score == found.train_score == chance_score(easy())


def test_a_loss_above_that_of_the_best_constant_counts_as_divergence() -> None:
    found = run(rate=1e4, arm="plain")
    assert math.isfinite(found.final_loss)
    assert found.final_loss > 1.1 * chance_loss(easy())
    assert found.diverged


def test_chance() -> None:
    y = torch.tensor([0] * 30 + [1] * 10)
    data = split("uneven", torch.randn(40, 2), y)
    assert chance_loss(data) == pytest.approx(-(0.75 * math.log(0.75) + 0.25 * math.log(0.25)))
    assert chance_score(data) == 0.75
    values = split("values", torch.randn(40, 2), torch.randn(40))
    assert chance_loss(values) == pytest.approx(1)
    assert chance_score(values) == 0


def test_scores_of_known_predictions() -> None:
    data = split("values", torch.randn(100, 1), torch.randn(100))
    perfect = nn.Linear(1, 1)
    part = type(data.test)(data.test.y[:, None], data.test.y)
    with torch.no_grad():
        perfect.weight.fill_(1)
        perfect.bias.zero_()
        assert score(perfect, part, data) == pytest.approx(1)
        perfect.weight.zero_()
        perfect.bias.fill_(part.y.mean().item())
        assert score(perfect, part, data) == pytest.approx(0, abs=1e-6)
        perfect.bias.fill_(math.inf)
        assert score(perfect, part, data) == -math.inf
