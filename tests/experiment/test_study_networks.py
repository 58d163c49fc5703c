"""The two arms differ only by batch norm."""

from collections.abc import Callable

import pytest
import torch
from torch import nn

import batchnorm as bn
from batchnorm.experiment.arms import Replacement, build, check, group_count, named_arms, norms, with_norms_replaced
from batchnorm.experiment.data import Data, InputError, split
from batchnorm.experiment.run_log import RunLog
from batchnorm.experiment.runs import loss_of
from batchnorm.experiment.study_networks import NETWORKS, conv, deep, deep_residual, mlp, named


def images(outputs: int = 3) -> Data:
    return split("images", torch.randn(60, 1, 8, 8), torch.arange(60) % outputs)


@pytest.mark.parametrize("make", [mlp, conv])
def test_both_arms_start_from_the_same_weights(make: Callable[..., nn.Module]) -> None:
    with_norm, plain = (build(make, images(), 7, arm) for arm in ("batch norm", "plain"))
    assert norms(with_norm)
    assert not norms(plain)
    shared = dict(plain.named_parameters())
    assert shared
    assert all(torch.equal(value, with_norm.get_parameter(name)) for name, value in shared.items())


def test_building_leaves_the_generator_as_it_was() -> None:
    data, state = images(), torch.get_rng_state()
    build(mlp, data, 3, "batch norm")
    assert torch.equal(torch.get_rng_state(), state)


def test_seeds_give_other_weights() -> None:
    first, again, other = (build(mlp, images(), seed, "batch norm")[1].weight for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_the_plain_arm_is_the_network_without_its_norms() -> None:
    network = mlp((1, 8, 8), 3)
    plain, x = with_norms_replaced(network), torch.randn(5, 1, 8, 8)
    expected = x
    for layer in network:
        expected = expected if isinstance(layer, nn.BatchNorm1d) else layer(expected)
    assert torch.equal(plain(x), expected)
    assert norms(network), "the original is left as it was"


def test_a_norm_that_gave_the_only_shift_leaves_one_behind() -> None:
    network = nn.Sequential(
        nn.Linear(2, 3, bias=False), nn.BatchNorm1d(3), nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Linear(3, 2)
    )
    plain = with_norms_replaced(network)
    assert isinstance(plain[1], Replacement)
    assert isinstance(plain[3], Replacement)
    assert plain[1].shift is not None
    assert plain[3].shift is None


def test_residual_and_activation_stay() -> None:
    norm = bn.BatchNorm(4, activation="relu")
    plain = with_norms_replaced(nn.Sequential(nn.Linear(4, 4), norm))[1]
    x, residual = torch.randn(6, 4), torch.randn(6, 4)
    assert torch.equal(plain(x, residual), (x + residual).relu())


class Block(nn.Module):
    """A norm inside a submodule, as in most networks."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Conv2d(1, 4, 3, bias=False), nn.BatchNorm2d(4))
        self.head = nn.Linear(4 * 36, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.inner(x).flatten(1))


def test_nested_norms_are_found() -> None:
    check(Block, images())
    plain = build(Block, images(), 0, "plain")
    assert not norms(plain)
    assert isinstance(plain.inner[1], Replacement)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 3)), "has no batch norm"),
        (lambda: nn.Sequential(nn.Linear(9, 3), nn.BatchNorm1d(3)), "does not take inputs of shape"),
        (lambda: nn.Sequential(nn.Flatten(), nn.BatchNorm1d(64)), "gives outputs of shape"),
        (lambda: 3, "returned int, expected a torch.nn.Module"),
        (lambda shape: nn.Flatten(), "takes 1 arguments"),
    ],
)
def test_networks_that_cannot_be_studied(make: Callable[..., nn.Module], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        check(make, images())
    assert "\n" not in str(caught.value)


def test_conv_needs_images() -> None:
    with pytest.raises(InputError, match="needs images"):
        conv((13,), 3)


def test_networks_by_name() -> None:
    assert {name: named(name) for name in NETWORKS} == NETWORKS
    assert set(NETWORKS) == {"mlp", "conv", "deep", "deep-residual"}
    assert named("torch.nn:Flatten") is nn.Flatten


@pytest.mark.parametrize("name", ["resnet", "no_such_module:f", "torch.nn:NoSuch", "torch:__version__"])
def test_unknown_names(name: str) -> None:
    with pytest.raises(InputError, match=f"--network {name}: "):
        named(name)


def grown(make: Callable[..., nn.Module], arm: str) -> tuple[float, float]:
    """How much the signal and its gradient grow over the layers before the first step."""
    data = images()
    torch.manual_seed(0)
    network, log = build(make, data, 0, arm), RunLog()  # type: ignore[arg-type]
    log.observe(network, data.train.x, lambda output: loss_of(output, data.train.y, data), 0)
    signal, gradient = (list(found.values()) for found in (log.scales, log.gradients))
    return signal[-2][0] / signal[1][0], gradient[1][0] / gradient[-2][0]


def test_in_a_deep_plain_network_the_gradient_vanishes_and_batch_norm_keeps_it() -> None:
    assert grown(deep, "plain")[1] < 1e-4
    signal, gradient = grown(deep, "batch norm")
    assert 0.1 < signal < 10
    assert 0.1 < gradient < 1000, "it grows a little with every batch norm, see Yang et al. 2019"


def test_in_a_deep_residual_network_signal_and_gradient_explode_and_batch_norm_keeps_them() -> None:
    assert min(grown(deep_residual, "plain")) > 100
    signal, gradient = grown(deep_residual, "batch norm")
    assert signal < 10
    assert gradient < 100


@pytest.mark.parametrize("make", [deep, deep_residual])
def test_deep_networks_have_twenty_norms(make: Callable[..., nn.Module]) -> None:
    assert len(norms(make((3,), 2))) == 20


@pytest.mark.parametrize(("arm", "groups"), [("layer norm", 1), ("group norm", 4)])
def test_other_norms_stand_in_for_batch_norm(arm: str, groups: int) -> None:
    network = nn.Sequential(nn.Conv2d(1, 32, 3), nn.BatchNorm2d(32, eps=0.1))
    replaced = with_norms_replaced(network, arm)  # type: ignore[arg-type]
    x = torch.randn(4, 1, 8, 8)
    torch.testing.assert_close(replaced(x), nn.functional.group_norm(network[0](x), groups, eps=0.1))
    assert torch.equal(replaced[0].weight, network[0].weight)


def test_group_sizes() -> None:
    assert [group_count(c) for c in (4, 16, 64, 100, 512)] == [1, 2, 8, 10, 32]


def test_arms_by_name() -> None:
    assert named_arms("none, batch") == ("batch norm", "plain")
    assert named_arms("batch,group,none,layer") == ("batch norm", "plain", "layer norm", "group norm")
    for norms_asked in ("batch", "batch,layer", "batch,none,instance"):
        with pytest.raises(InputError, match=f"--norms {norms_asked}: "):
            named_arms(norms_asked)
