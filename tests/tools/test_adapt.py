"""Adaptation blends as in the paper, follows a drifting domain, is guarded, and can be undone."""

import copy

import pytest
import torch
from torch import nn

import batchnorm as bn


def classifier() -> nn.Module:
    return nn.Sequential(
        nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 8), bn.BatchNorm1d(8), nn.Linear(8, 3)
    ).double()


def state(model: nn.Module) -> dict[str, torch.Tensor]:
    return copy.deepcopy(model.state_dict())


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(v, b[k]) for k, v in a.items())


@pytest.mark.parametrize("sizes", [[24], [1, 23], [5, 5, 14]])
def test_blends_by_samples_level_by_level(sizes: list[int]) -> None:
    model, x = classifier(), torch.randn(24, 4).double() * 3 + 2
    before = state(model)
    expected = copy.deepcopy(model).eval()
    h = x
    for layer in expected:
        if isinstance(layer, nn.BatchNorm1d):
            h = h.detach()
            for old, new in ((layer.running_mean, h.mean(0)), (layer.running_var, h.var(0, correction=0))):
                old.copy_(8 / 32 * old + 24 / 32 * new)
        h = layer(h)
    done = bn.adapt(model, x.split(sizes), prior=8)
    assert done.samples == 24
    for key in ("1.running_mean", "1.running_var", "4.running_mean", "4.running_var"):
        torch.testing.assert_close(model.state_dict()[key], expected.state_dict()[key])
    assert done.shift["1"] > 0.1
    assert model.training
    done.restore()
    assert same(before, state(model))


def test_one_sample_at_a_time_is_a_moving_average() -> None:
    layer = bn.BatchNorm2d(1).double().eval()
    for x in torch.randn(5, 1, 1, 4, 4).double() + 3:
        old = layer.running_mean.clone()
        bn.adapt(layer, [x], prior=9, online=True)
        torch.testing.assert_close(layer.running_mean, 0.9 * old + 0.1 * x.mean())
    together = bn.BatchNorm2d(1).double().eval()
    done = bn.adapt(together, iter(torch.full((50, 1, 1, 2, 2), 3.0).double()), prior=9, online=True)
    assert done.samples == 50
    assert abs(together.running_mean.item() - 3 * (1 - 0.9**50)) < 1e-12


def test_prior_0_takes_the_new_domain_alone() -> None:
    x, layer = torch.randn(10, 3), nn.BatchNorm1d(3)
    bn.adapt(layer, x.split(5), prior=0)
    torch.testing.assert_close(layer.running_mean, x.mean(0))


def test_a_layer_used_twice_blends_with_all_its_calls() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm1d(3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.norm(self.norm(x) * 2 + 5)

    model, x = Twice().double(), torch.randn(8, 3).double()
    bn.adapt(model, x.split(3), prior=4)

    def blend(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:  # 8 samples, however often they come
        return 2 / 3 * x.mean(0), (1 + 2 * x.var(0, correction=0)) / 3

    mean, var = blend(x)
    mean, var = blend(torch.cat([x, (x - mean) / (var + model.norm.eps).sqrt() * 2 + 5]))
    torch.testing.assert_close(model.norm.running_mean, mean)
    torch.testing.assert_close(model.norm.running_var, var)


def test_layers_that_no_batch_reached_stay_as_they_were() -> None:
    model = classifier()
    model.aside = nn.BatchNorm1d(8).double()
    model.forward = lambda x: nn.Sequential.forward(model[:6], x)
    before = state(model.aside)
    done = bn.adapt(model, [torch.randn(5, 4).double()])
    assert done.samples == 5
    assert same(before, state(model.aside))


@pytest.mark.parametrize("options", [{}, {"online": True, "prior": 5}])
def test_a_domain_adapts_its_own_population(options: dict[str, float]) -> None:
    layer = bn.BatchNorm(3)
    with bn.domain(layer, "night", affine=True):
        layer(torch.randn(8, 3))
    before, x = state(layer), torch.randn(20, 3) + 4
    with bn.domain(layer, "night", affine=True):
        done = bn.adapt(layer, [x], entropy=True, lr=0.1, **options)
    moved = {k for k, v in state(layer).items() if not torch.equal(v, before[k])}
    assert moved == {f"banks.night.{k}" for k in ("running_mean", "running_var", "weight", "bias")}
    assert len(done.entropy) == 1


def test_entropy_falls_and_only_affine_parameters_move() -> None:
    model, x = classifier(), torch.randn(64, 4).double()
    model[0].weight.grad = torch.ones(8, 4).double()
    flags = [p.requires_grad for p in model.parameters()]
    before = state(model)
    bn.adapt(start := copy.deepcopy(model), [x], prior=0)

    def feed(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
        wanted = {name for name, p in model.named_parameters() if p.requires_grad}
        assert not torch.is_grad_enabled() or wanted == {"1.weight", "1.bias", "4.weight", "4.bias"}
        return model(x)

    done = bn.adapt(model, [x] * 30, prior=0, entropy=True, lr=0.02, max_drift=10.0, feed=feed)
    first = torch.distributions.Categorical(logits=start.eval()(x)).entropy().mean().item()
    assert abs(done.entropy[0] - first) < 1e-6
    assert done.entropy[-1] < 0.95 * done.entropy[0]
    after = state(model)
    old, new = (torch.cat([s[f"{i}.{k}"] for i in (1, 4) for k in ("weight", "bias")]) for s in (before, after))
    assert abs(done.drift / ((new - old).norm() / old.norm()) - 1) < 1e-9
    assert {k for k in before if not torch.equal(before[k], after[k])} <= {k for k in before if k[0] in "14"}
    assert not torch.equal(before["4.weight"], after["4.weight"])
    assert [p.requires_grad for p in model.parameters()] == flags
    assert [p.grad is not None for p in model.parameters()].count(True) == 1
    done.restore()
    assert same(before, state(model))


def test_the_guard_puts_parameters_back() -> None:
    model, x = classifier(), torch.randn(64, 4).double()
    before = state(model)
    done = bn.adapt(model, [x] * 5, entropy=True, lr=50.0, max_drift=0.01)
    assert done.resets == 5
    assert torch.equal(model[4].weight, before["4.weight"])
    assert done.drift == 0


def test_the_guard_also_minds_what_is_not_a_number() -> None:
    model, x = classifier(), torch.randn(8, 4).double()
    before, calls = state(model), []

    def feed(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
        calls.append(torch.is_grad_enabled())
        return model(x) * (torch.nan if calls.count(True) == 2 else 1)

    done = bn.adapt(model, [x] * 2, entropy=True, feed=feed)
    assert done.resets == 1
    assert torch.equal(model[4].weight, before["4.weight"])


def test_no_more_than_the_limit() -> None:
    layer, x = nn.BatchNorm1d(3), torch.randn(10, 3)
    assert bn.adapt(layer, x.split(2), prior=0, limit=2).samples == 4
    torch.testing.assert_close(layer.running_mean, x[:4].mean(0))


def test_after_a_reset_the_descent_starts_from_rest() -> None:
    model, x = classifier(), torch.randn(64, 4).double()
    first = bn.adapt(model, [x], prior=0, entropy=True, lr=1e-4, max_drift=1.0)
    first.restore()
    done = bn.adapt(model, [x] * 4, prior=0, entropy=True, lr=1e-4, max_drift=1.5 * first.drift)
    assert done.resets == 2  # one step is allowed, two are too far


@pytest.mark.parametrize(
    ("options", "calls"),
    # one call shows the levels, then two passes of 4 batches; the descent's second step is call 11
    [({}, 1), ({}, 7), ({"online": True}, 3), ({"entropy": True}, 11)],
)
@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_interrupted_leaves_everything_as_it_was(
    options: dict[str, bool], calls: int, error: type[BaseException]
) -> None:
    model, seen = classifier(), []

    def feed(model: nn.Module, batch: torch.Tensor) -> torch.Tensor:
        seen.append(state(model))
        if len(seen) == calls:
            raise error
        return model(batch)

    before = state(model)
    with pytest.raises(error):
        bn.adapt(model, list(torch.randn(12, 4).double().split(3)), feed=feed, **options)
    assert same(before, seen[-1]) == (calls == 1)
    assert torch.equal(before["4.weight"], seen[-1]["4.weight"]) == ("entropy" not in options)
    assert same(before, state(model))
    assert all(p.requires_grad for p in model.parameters())
    assert all(m.training for m in model.modules())
    assert not any(m._forward_pre_hooks for m in model.modules())


def test_errors() -> None:
    model = classifier()
    for match, call in (
        ("at least 0", lambda: bn.adapt(model, [], prior=-1)),
        ("no batch", lambda: bn.adapt(model, [])),
        ("no batches", lambda: bn.adapt(model, [], online=True)),
        ("the model has no batch norm", lambda: bn.adapt(nn.Linear(1, 1), [])),
        ("entropy=True needs several", lambda: bn.adapt(model, iter([]), online=True, entropy=True)),
        ("do not work with process_group", lambda: bn.adapt(model, [], online=True, process_group=True)),
        ("logits", lambda: bn.adapt(model, [torch.randn(4, 4).double()], entropy=True, feed=lambda m, x: [m(x)])),
    ):
        with pytest.raises(ValueError, match=match):
            call()
