"""One set of running statistics from many, including the variance between their means."""

import copy

import pytest
import torch
from torch import nn

import batchnorm as bn
from batchnorm.tools.merge import population_keys


def client(x: torch.Tensor) -> nn.Module:
    """A model that has seen exactly `x`, with the biased variance so that shares of counts are exact."""
    model = nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 2)).double()
    model[0].running_mean.copy_(x.mean(0))
    model[0].running_var.copy_(x.var(0, correction=0))
    model[0].num_batches_tracked.fill_(2)
    return model


def test_the_population_of_all_data() -> None:
    x = torch.randn(30, 3).double() + torch.arange(30).double().unsqueeze(1)
    sizes = [3, 17, 10]
    clients = [client(part) for part in x.split(sizes)]
    before = [copy.deepcopy(c.state_dict()) for c in clients]
    for merged in (bn.merge(clients, sizes).state_dict(), bn.merge([c.state_dict() for c in clients], sizes)):
        torch.testing.assert_close(merged["0.running_mean"], x.mean(0))
        torch.testing.assert_close(merged["0.running_var"], x.var(0, correction=0))
        assert merged["0.num_batches_tracked"] == 6
        mean = sum(n / 30 * c[1].weight for n, c in zip(sizes, clients, strict=True))
        torch.testing.assert_close(merged["1.weight"], mean.detach())
    for old, c in zip(before, clients, strict=True):
        assert all(torch.equal(v, c.state_dict()[k]) for k, v in old.items())


def test_equal_parameters_stay_equal_bit_for_bit() -> None:
    one = nn.Sequential(nn.Linear(50, 50), nn.BatchNorm1d(50)).double()
    both = bn.merge([one, copy.deepcopy(one), copy.deepcopy(one)])
    assert torch.equal(both[0].weight, one[0].weight)
    assert type(both) is nn.Sequential


def test_states_keep_their_dtypes_and_share_no_memory() -> None:
    states = [{"running_mean": torch.rand(9), "running_var": torch.rand(9), "w": torch.rand(500)} for _ in range(3)]
    halves = [{k: v.half() for k, v in s.items()} | {"same": torch.ones(1), "n": torch.tensor(3)} for s in states]
    merged = bn.merge(halves)
    assert {k: v.dtype for k, v in merged.items()} == {k: v.dtype for k, v in halves[0].items()}
    exact = torch.stack([s["w"].double() for s in halves]).mean(0)
    assert torch.equal(merged["w"], exact.half())  # rounded once
    assert not {v.data_ptr() for v in merged.values()} & {v.data_ptr() for s in halves for v in s.values()}


def test_only_whole_names_are_those_of_a_population() -> None:
    states = [{"prerunning_mean": torch.tensor([m]), "prerunning_var": torch.ones(1)} for m in (0.0, 2.0)]
    assert bn.merge(states)["prerunning_var"].item() == 1
    assert population_keys(states[0])[1] == set()


def test_a_running_mean_alone_is_an_average() -> None:
    both = bn.merge([{"centre.running_mean": torch.tensor([value])} for value in (1.0, 3.0)], [1, 3])
    assert both["centre.running_mean"].item() == 2.5


def test_fedbn_keys() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.LayerNorm(3))
    shared, local = population_keys(model)
    assert local == {f"1.{k}" for k in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")}
    assert shared | local == set(model.state_dict())
    assert population_keys(model.state_dict()) == (shared, local)


@pytest.mark.parametrize(
    ("things", "weights", "match"),
    [
        ([], None, "nothing to merge"),
        ([nn.BatchNorm1d(2)], [0.0], "none negative"),
        ([nn.BatchNorm1d(2)] * 2, [1.0, -1.0], "none negative"),
        ([nn.BatchNorm1d(2)] * 2, [1.0, float("inf")], "none negative"),
        ([nn.BatchNorm1d(2)] * 2, [1.0], "expected 2 weights"),
        ([nn.BatchNorm1d(2), nn.Linear(2, 2)], None, "other keys"),
        ([nn.BatchNorm1d(2), nn.BatchNorm1d(3)], None, "has the shapes"),
        ([{"n": torch.tensor(1)}, {"n": torch.tensor(2)}], None, "cannot be averaged"),
    ],
)
def test_errors(things: list[nn.Module], weights: list[float] | None, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        bn.merge(things, weights)
