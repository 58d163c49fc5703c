"""Two clients: the arrays that they exchange, their merge, and the exact statistics of all their data."""

import numpy as np
import pytest
import torch
from torch import nn

import batchnorm as bn
from batchnorm.integrations.federated import aggregate, arrays, client_moments, load, set_population, shared_keys
from tests.support.material import drifting


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return bn.convert(nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 4), nn.BatchNorm1d(4)).double())


def clients() -> list[torch.Tensor]:
    torch.manual_seed(1)
    return [drifting(20, 3, dtype=torch.float64), drifting(7, 3, dtype=torch.float64, offset=40.0)]


def test_what_travels() -> None:
    model = network()
    weights = ["1.weight", "1.bias"]
    assert shared_keys(model) == weights
    assert shared_keys(model, "statistics") == ["0.weight", "0.bias", *weights, "2.weight", "2.bias"]
    assert shared_keys(model, "nothing") == list(model.state_dict())
    with pytest.raises(ValueError, match='must be "nothing", "statistics" or "all", got \'some\''):
        shared_keys(model, "some")  # type: ignore[arg-type]


def test_what_stays_is_not_touched() -> None:
    one, two = network(), network()
    two(clients()[1])
    with torch.no_grad():
        two[1].weight += 1
    kept = {key: value.clone() for key, value in one.state_dict().items() if not key.startswith("1.")}
    keys = shared_keys(one)
    sent = arrays(two, keys)
    load(one, keys, sent)
    assert torch.equal(one[1].weight, two[1].weight)
    assert all(torch.equal(one.state_dict()[key], value) for key, value in kept.items())
    sent[0] += 1
    assert torch.equal(one[1].weight, two[1].weight), "arrays are copies"
    with pytest.raises(ValueError, match="expected 2 arrays, one for each key, got 1"):
        load(one, keys, sent[:1])
    with pytest.raises(ValueError, match=r"expected an array of the shape \(4, 3\) for 1\.weight, got \(3,\)"):
        load(one, keys, [np.zeros(3), sent[1]])


def test_variances_between_clients_count() -> None:
    layers = []
    for x in clients():
        layers.append(bn.BatchNorm1d(3, momentum=1.0).double())
        layers[-1](x)
    keys = shared_keys(layers[0], "nothing")
    merged = dict(zip(keys, aggregate([(arrays(m, keys), 10) for m in layers], keys), strict=True))
    means, variances = (
        np.stack([getattr(m, name).numpy() for m in layers]) for name in ("running_mean", "running_var")
    )
    np.testing.assert_allclose(merged["running_mean"], means.mean(0), rtol=1e-12)
    np.testing.assert_allclose(merged["running_var"], variances.mean(0) + means.var(0), rtol=1e-12)
    assert merged["num_batches_tracked"] == 2
    with pytest.raises(ValueError, match="client 1 sent 1 arrays, and there are 5 keys"):
        aggregate([(arrays(layers[0], keys), 1), (arrays(layers[1], keys)[:1], 1)], keys)


@pytest.mark.parametrize("size", [20, 3])
def test_rounds_make_the_population_of_all_data(size: int) -> None:
    """However clients cut their data; the second layer is exact after the second round."""
    model, everything = network(), torch.cat(clients())
    before = model.state_dict()["0.num_batches_tracked"].clone()
    for _ in range(2):
        set_population(model, [client_moments(model, list(x.split(size))) for x in clients()])
    between = model[:2].eval()(everything)
    for layer, values in ((model[0], everything), (model[2], between)):
        torch.testing.assert_close(layer.running_mean, values.mean(0), rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(layer.running_var, values.var(0), rtol=1e-12, atol=1e-12)
    assert torch.equal(model[0].num_batches_tracked, before)


def test_a_client_without_data_and_a_frozen_layer() -> None:
    model, x = network(), clients()[0]
    model[2].freeze()
    kept = model[2].running_mean.clone()
    sent = [client_moments(model, [x]), client_moments(model, [])]
    assert [array.shape for array in sent[1]] == [(3, 3)]
    set_population(model, sent)
    torch.testing.assert_close(model[0].running_var, x.var(0), rtol=1e-12, atol=1e-12)
    assert torch.equal(model[2].running_mean, kept)


def test_errors_say_what_is_wrong_and_set_nothing() -> None:
    model = network()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    nothing = client_moments(model, [])
    with pytest.raises(ValueError, match="0 saw fewer than two values per channel in all the data"):
        set_population(model, [nothing, nothing])
    with pytest.raises(
        ValueError, match=r"client 1 sent arrays of the shapes \[\(3, 3\)\], expected \[\(3, 3\), \(3, 4\)\]"
    ):
        set_population(model, [client_moments(model, [clients()[0]]), nothing[:1]])
    with pytest.raises(ValueError, match="expected the moments of at least one client, got none"):
        set_population(model, [])
    with pytest.raises(FloatingPointError, match="0 got NaN or Inf"):
        client_moments(model, [clients()[0] / 0])
    with pytest.raises(ValueError, match="no batch norm whose running statistics are updated"):
        client_moments(nn.Linear(1, 1), [])
    assert all(torch.equal(model.state_dict()[key], value) for key, value in before.items())
