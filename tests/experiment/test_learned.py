"""The check that a network has learned: chance does not pass it, and learning does."""

import math

import torch

from batchnorm.experiment.data import Data, split, standardise
from batchnorm.experiment.learned import bar, learned
from batchnorm.experiment.runs import Run, Setting, train
from batchnorm.experiment.study_networks import mlp


def test_the_bar_is_three_deviations_above_the_best_constant() -> None:
    data = split("even", torch.randn(1000, 2), torch.arange(1000) % 2)
    assert bar(data) == 0.5 + 3 * math.sqrt(0.25 / 200)
    values = split("values", torch.randn(1000, 2), torch.randn(1000))
    assert bar(values) == 9 / 200


def runs(data: Data, rate: float = 0.3) -> list[Run]:
    return [train(mlp, data, Setting("batch norm", rate, seed, 30, 150, record=False)) for seed in (0, 1)]


def test_random_labels_are_not_learned_and_a_rule_is() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(500, 4, generator=generator)
    random = standardise(split("random", x, torch.randint(0, 2, (500,), generator=generator)))
    rule = standardise(split("rule", x, (x.sum(1) > 0).long()))
    assert not learned(runs(random), random)
    assert learned(runs(rule), rule)


def test_noise_is_not_learned_by_regression() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(500, 4, generator=generator)
    noise = standardise(split("noise", x, torch.randn(500, generator=generator)))
    line = standardise(split("line", x, x.sum(1)))
    assert not learned(runs(noise, 0.03), noise)
    assert learned(runs(line, 0.03), line)
