"""The values read inside a network are right, and reading them does not change the training."""

import copy

import pytest
import torch
from torch import nn

from batchnorm import BatchNorm1d
from batchnorm.experiment.run_log import VALUES, RunLog, describe_normalised, drift, rank_correlation


def squares(output: torch.Tensor) -> torch.Tensor:
    return output.square().sum()


def network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Dropout(0.5), nn.Linear(6, 2))


def test_looking_leaves_the_network_and_the_generator_as_they_were() -> None:
    model = network()
    before, state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    log = RunLog()
    log.observe(model, torch.randn(32, 4, generator=torch.Generator().manual_seed(0)), squares, 5)
    log.examine(model, torch.randn(32, 4, generator=torch.Generator().manual_seed(1)))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert log.steps == [5]


def test_percentiles_of_a_normalised_site() -> None:
    log = RunLog()
    log.observe(network(), torch.randn(2000, 4), squares, 0)
    (found,) = log.percentiles["norm 1"]
    assert found.shape == (3, 6)
    # of a normal distribution: ∓1.036 standard deviations and 0
    torch.testing.assert_close(found.mean(1), torch.tensor([-1.036, 0.0, 1.036]), atol=0.05, rtol=0)


def test_sizes_of_signal_and_gradient_are_root_mean_squares_at_the_outputs_of_layers_with_weights() -> None:
    torch.manual_seed(0)
    model, log, x = nn.Sequential(nn.Linear(4, 6), nn.ReLU(inplace=True), nn.Linear(6, 2)), RunLog(), torch.randn(8, 4)
    log.observe(model, x, squares, 3)
    assert list(log.gradients) == list(log.scales) == ["Linear 0", "Linear 2"]
    first = model[0](x)
    output = model[2](first.relu())
    of_first, of_output = torch.autograd.grad(squares(output), (first, output))
    for found, tensors in ((log.scales, (first, output)), (log.gradients, (of_first, of_output))):
        expected = [pytest.approx(t.double().square().mean().sqrt().item()) for t in tensors]
        assert [v for (v,) in found.values()] == expected


def test_drift_is_in_widths() -> None:
    still = [torch.tensor([[-1.0], [0.0], [1.0]])] * 4
    # the centre goes 0, 2, 0, 2: standard deviation 1, where the width is 2
    moving = [torch.tensor([[-1.0], [0.0], [1.0]]) + shift for shift in (0.0, 2.0, 0.0, 2.0)]
    assert drift(still) == 0
    assert drift(moving) == pytest.approx(0.5)
    assert drift([100 * p for p in moving]) == pytest.approx(0.5)


def test_rank_correlation() -> None:
    x = torch.randn(3, 50).double()
    torch.testing.assert_close(rank_correlation(x, x.exp()), torch.ones(3).double())
    torch.testing.assert_close(rank_correlation(x, -x), -torch.ones(3).double())
    assert rank_correlation(x, torch.randn(3, 50).double()).abs().max() < 0.6


def test_a_right_layer_is_described_as_right() -> None:
    norm = nn.BatchNorm1d(3)
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([2.0, -0.5, 1.0]))
        norm.bias.copy_(torch.tensor([1.0, 0.0, -3.0]))
    x = torch.randn(400, 3) * 4 + 10
    found = describe_normalised(x.T, norm(x).detach().T, norm)
    assert found is not None
    assert found["mean"] < 1e-5
    assert found["std"] < 1e-3
    assert found["correlation"] == pytest.approx(1)
    assert found["inverse"] < 1e-4
    assert sum(found["before"]["counts"]) == 400


def test_wrong_layers_are_found_out() -> None:
    norm, x = nn.BatchNorm1d(2, affine=False), torch.randn(2, 400) * 4 + 10
    right = (x - x.mean(1, keepdim=True)) / x.std(1, correction=0, keepdim=True)
    shifted, scaled = describe_normalised(x, right + 0.1, norm), describe_normalised(x, right * 1.2, norm)
    shuffled = describe_normalised(x, right[:, torch.randperm(400)], norm)
    assert shifted is not None
    assert shifted["mean"] == pytest.approx(0.1, abs=1e-3)
    assert scaled is not None
    assert scaled["std"] == pytest.approx(0.2, abs=1e-3)
    assert shuffled is not None
    assert shuffled["correlation"] < 0.5
    assert shuffled["inverse"] > 1


def test_channels_that_say_nothing_are_left_out_and_counted() -> None:
    norm, x = nn.BatchNorm1d(3), torch.randn(3, 100)
    x[0] = 5.0  # constant
    with torch.no_grad():
        norm.weight[1] = 0.0
    found = describe_normalised(x, norm(x.T).detach().T, norm)
    assert found is not None
    assert found["left_out"] == 2
    assert describe_normalised(x[:1], x[:1], nn.BatchNorm1d(1)) is None


def test_moments_are_those_of_all_values_and_not_of_a_part() -> None:
    """A channel with more values than ranks are taken from: its own mean and deviation are still those found."""
    norm = nn.BatchNorm2d(2)
    x = torch.randn(3, 2, 50, 60, generator=torch.Generator().manual_seed(0))
    x[:, :, ::2, :7] += 3.0  # an even subset has another mean
    log = RunLog()
    log.examine(nn.Sequential(norm), x)
    assert x[:, 0].numel() > VALUES
    assert log.normalised["norm 0"]["mean"] < 1e-5
    assert log.normalised["norm 0"]["std"] < 1e-3
    assert sum(log.normalised["norm 0"]["before"]["counts"]) == VALUES


def test_a_layer_that_adds_a_residual_is_left_out() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = BatchNorm1d(4), BatchNorm1d(4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.second(self.first(x), residual=x)

    log = RunLog()
    log.examine(Block(), torch.randn(64, 4, generator=torch.Generator().manual_seed(0)))
    assert set(log.normalised) == {"first"}
