"""Calibrated statistics equal those of all data in one batch, for any split into batches and ranks."""

import copy
import io
import sys
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch import distributed as dist
from torch import multiprocessing as mp
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import batchnorm as bn
from batchnorm.tools.sweep import feed_by_default


class Branches(nn.Module):
    """Depth, branches, a residual, dropout, and statistics that a small batch gets wrong."""

    def __init__(self, norm: type[nn.Module] = nn.BatchNorm2d) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 6, 3), norm(6), nn.ReLU(), nn.Dropout(0.5))
        self.left = nn.Sequential(nn.Conv2d(6, 6, 3, padding=1), norm(6), nn.ReLU())
        self.right = nn.Sequential(nn.Conv2d(6, 6, 1), norm(6), nn.Tanh())
        self.last = norm(6)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.last(self.left(x) * self.right(x) + x)


def norms(model: nn.Module) -> list[Any]:
    return [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]


def in_one_batch(model: nn.Module, x: Tensor) -> nn.Module:
    """Statistics of a single training step on everything, without dropout."""
    model = copy.deepcopy(model).eval()
    for m in norms(model):
        m.train()
        m.momentum = 1.0
    model(x)
    return model


def same(model: nn.Module, expected: nn.Module, rtol: float = 1e-9) -> None:
    for ours, truth in zip(norms(model), norms(expected), strict=True):
        torch.testing.assert_close(ours.running_mean, truth.running_mean, rtol=rtol, atol=rtol)
        torch.testing.assert_close(ours.running_var, truth.running_var, rtol=rtol, atol=rtol)


def load(model: nn.Module, state: dict[str, Tensor]) -> nn.Module:
    model.load_state_dict(state)
    return model


def data(n: int = 12) -> Tensor:
    return torch.randn(n, 3, 6, 6).double() * torch.linspace(0.5, 2, n).reshape(-1, 1, 1, 1).double() + 3


@pytest.mark.parametrize("norm", [nn.BatchNorm2d, bn.BatchNorm2d])
@settings(max_examples=12)
@given(sizes=st.lists(st.integers(1, 5), min_size=1, max_size=5))
def test_any_split_equals_one_batch(norm: type[nn.Module], sizes: list[int]) -> None:
    x = data(sum(sizes))
    model = Branches(norm).double().train()
    expected = in_one_batch(model, x)
    result = bn.calibrate(model, x.split(sizes))
    same(model, expected)
    assert result.passes == 3  # left and right share a pass
    assert result.batches == len(sizes)


def test_float32_to_rounding() -> None:
    x = data().float()
    model = Branches()
    expected = in_one_batch(model, x)
    bn.calibrate(model, x.split(5))
    same(model, expected, rtol=2e-5)


def test_modes_parameters_and_hooks_are_as_they_were() -> None:
    model = Branches().double()
    model.left.eval()
    modes = [m.training for m in model.modules()]
    parameters = [p.clone() for p in model.parameters()]
    left = copy.deepcopy(model.left.state_dict())
    bn.calibrate(model, data().split(4))
    assert [m.training for m in model.modules()] == modes
    assert all(torch.equal(p, q) for p, q in zip(parameters, model.parameters(), strict=True))
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in model.modules())
    assert all(torch.equal(v, model.left.state_dict()[k]) for k, v in left.items())  # in evaluation: frozen


def test_frozen_layers_are_left_alone() -> None:
    model = Branches(bn.BatchNorm2d).double()
    model.stem[1].freeze()
    before = model.stem[1].running_mean.clone()
    result = bn.calibrate(model, data().split(4))
    assert torch.equal(model.stem[1].running_mean, before)
    assert "stem.1" not in result.layers


@pytest.mark.parametrize("tool", [bn.calibrate, bn.adapt])
def test_layers_without_a_population_are_left_alone(tool: Callable[..., Any]) -> None:
    model = nn.Sequential(nn.BatchNorm1d(3, track_running_stats=False), nn.BatchNorm1d(3))
    assert list(tool(model, [torch.randn(8, 3)]).layers) == ["1"]


class Interrupts(nn.Module):
    def __init__(self, after: int, error: type[BaseException]) -> None:
        super().__init__()
        self.left, self.error = after, error

    def forward(self, x: Tensor) -> Tensor:
        self.left -= 1
        if self.left < 0:
            raise self.error
        return x


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("after", [0, 1, 3])
@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_interrupted_leaves_everything_as_it_was(exact: bool, after: int, error: type[BaseException]) -> None:
    model = nn.Sequential(nn.BatchNorm2d(3), nn.BatchNorm2d(3), Interrupts(after, error), nn.BatchNorm2d(3)).double()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(error):
        bn.calibrate(model, data(12).split(1 if not exact else 4), exact=exact)
    assert all(torch.equal(v, model.state_dict()[k]) for k, v in before.items())
    assert all(m.training for m in model.modules())
    assert not any(m._forward_pre_hooks for m in model.modules())


def test_restore_and_apply() -> None:
    model = Branches().double()
    before = copy.deepcopy(model.state_dict())
    result = bn.calibrate(model, data().split(4))
    after = copy.deepcopy(model.state_dict())
    result.restore()
    assert all(torch.equal(v, model.state_dict()[k]) for k, v in before.items())
    result.apply()
    assert all(torch.equal(v, model.state_dict()[k]) for k, v in after.items())
    assert "4 batch norms, 3 batches, 3 passes" in str(result)
    assert result.shift["stem.1"] > 0.5


def test_one_pass_is_exact_for_the_first_level_only_and_takes_iterators() -> None:
    x = data()
    model = Branches().double()
    expected = in_one_batch(model, x)
    result = bn.calibrate(model, iter(x.split([2, 10])), exact=False)
    assert result.passes == 1
    same(model.stem, expected.stem)
    assert (model.last.running_var - expected.last.running_var).abs().max() > 1e-3
    with pytest.raises(ValueError, match="several passes"):
        bn.calibrate(model, iter(x.split(4)))
    inputs: list[Tensor] = []
    for layer in norms(model.eval()):
        layer.train()
    model.last.register_forward_pre_hook(lambda _, args: inputs.append(args[0]))
    for batch in x.split([2, 10]):
        model(batch)
    bn.calibrate(model, x.split([2, 10]), exact=False)  # later levels: what is left of each batch by its own moments
    seen = torch.cat(inputs[:2]).detach()
    torch.testing.assert_close(model.last.running_mean, seen.mean((0, 2, 3)), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(model.last.running_var, seen.var((0, 2, 3)), rtol=1e-9, atol=1e-9)


def test_the_shift_is_counted_in_standard_deviations() -> None:
    layer = nn.BatchNorm1d(2)
    result = bn.calibrate(layer, [torch.tensor([[1.0, 0.0], [2.0, 1.0]]), torch.tensor([[6.0, 2.0]])])
    assert abs(result.shift["(the model itself)"] - 3 / 7**0.5) < 1e-6
    assert "in (the model itself), by 1.1 σ" in str(result)


def test_layers_that_saw_nothing_are_as_they_were_and_named() -> None:
    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = (bn.BatchNorm1d(3) for _ in range(3))

        def forward(self, x: Tensor) -> Tensor:
            return self.b(self.a(x), lengths=torch.zeros(len(x), dtype=torch.long))

    model = Masked()
    before = copy.deepcopy(model.state_dict())
    result = bn.calibrate(model, [torch.randn(4, 3, 5)] * 2, exact=False)
    assert result.unused == ("b", "c")
    assert "no batch reached b, c" in str(result)
    assert model.a.num_batches_tracked == 2
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items() if not k.startswith("a."))


def test_a_layer_used_twice_pools_its_calls() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm2d(3, momentum=None)

        def forward(self, x: Tensor) -> Tensor:
            return self.norm(self.norm(x) * 2 + x)

    x, model = data(), Twice().double()
    bn.calibrate(model, x.split(5))
    first = nn.BatchNorm2d(3).double()
    both = torch.cat([x, first(x) * 2 + x])
    torch.testing.assert_close(model.norm.running_mean, both.mean((0, 2, 3)))
    torch.testing.assert_close(model.norm.running_var, both.var((0, 2, 3)))


def test_detached_branches_in_place_writes_and_reads_by_python_are_followed() -> None:
    class Devious(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c, self.d = (nn.BatchNorm2d(3) for _ in range(4))

        def forward(self, x: Tensor) -> Tensor:
            y = self.a(x).detach() ** 2
            buffer = torch.zeros_like(x)
            buffer[:, 1:] = self.b(y)[:, 1:]
            z = self.c(buffer + x)
            return self.d(x * torch.full_like(x, z.amax().item()))

    x, model = data(), Devious().double()
    expected = in_one_batch(model, x)
    result = bn.calibrate(model, x.split(5))
    assert result.passes == 4
    same(nn.ModuleList([model.a, model.b, model.c]), nn.ModuleList([expected.a, expected.b, expected.c]))


def test_a_domain_gets_its_own_population() -> None:
    layer, x = bn.BatchNorm2d(3).double(), data()
    with bn.domain(layer, "night"):
        layer(data())
        result = bn.calibrate(layer, x.split(5))
        torch.testing.assert_close(layer.banks["night"].running_mean, x.mean((0, 2, 3)))
        assert layer.banks["night"].num_batches_tracked == 3
        result.restore()
    assert not layer.running_mean.any()
    assert layer.banks["night"].num_batches_tracked == 1


class Way(nn.Module):
    def __init__(self, forward: Callable[["Way", Tensor], Tensor]) -> None:
        super().__init__()
        self.a, self.b, self.c, self.d = (nn.BatchNorm2d(3) for _ in range(4))
        self.register_buffer("gain", torch.full((1, 3, 1, 1), 0.5))
        self.way = forward

    def forward(self, x: Tensor) -> Tensor:
        return self.way(self, x)


def by_numpy(m: Way, x: Tensor) -> Tensor:
    """What no operator made may come of anything before it: of the deepest, not of the last."""
    deep = m.b(m.a(x).tanh())
    m.c(x)
    return m.d(torch.from_numpy(np.tanh(deep.detach().numpy())))


def by_writing(m: Way, x: Tensor) -> Tensor:
    """An operator that writes and returns nothing."""
    buffer = torch.zeros_like(x)
    torch._foreach_add_([buffer], [m.a(x)])
    return m.d(buffer.tanh())


def by_buffer(m: Way, x: Tensor) -> Tensor:
    """A buffer is there from the start."""
    m.a(x)
    return m.d(x * m.gain)


@pytest.mark.parametrize(
    ("way", "passes"),
    [(by_numpy, 3), (by_writing, 2), (by_buffer, 1), (lambda m, x: m.d(input=m.a(x).tanh()), 2)],
    ids=["numpy", "writing", "buffer", "keyword"],
)
def test_every_way_from_norm_to_norm_is_followed(way: Callable[[Way, Tensor], Tensor], passes: int) -> None:
    x, model = data(), Way(way).double()
    expected = in_one_batch(model, x)
    assert bn.calibrate(model, x.split(5)).passes == passes
    same(model, expected)


def test_an_operator_s_keywords_are_followed() -> None:
    def by_weight(m: Way, x: Tensor) -> Tensor:
        weight = m.a(x).abs().flatten()
        return m.d(x * torch.histogram(x.flatten(), 3, weight=weight).hist.reshape(1, 3, 1, 1))

    assert bn.calibrate(Way(by_weight).double(), data().split(5)).passes == 2


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("average_fn", [None, get_ema_multi_avg_fn(0.9)], ids=["equal", "exponential"])
def test_averaged_models_dropout_and_unequal_batches(training: bool, average_fn: Any) -> None:
    x = data()
    average = AveragedModel(Branches().double(), multi_avg_fn=average_fn)
    average.update_parameters(Branches().double())
    average.module.train(training)  # whatever the mode of the model that is averaged
    expected = in_one_batch(average, x)
    bn.calibrate(average, [{"x": part} for part in x.split([1, 11])])
    same(average, expected)
    assert average.training
    assert average.module.last.training == training
    torch.optim.swa_utils.update_bn(x.split([1, 11]), average)
    assert (average.module.stem[1].running_mean - expected.module.stem[1].running_mean).abs().max() > 0.01


def test_feed_limit_and_functions_that_return_iterators() -> None:
    x, model = data(), Branches().double()
    expected = in_one_batch(model, x[:8])
    result = bn.calibrate(model, lambda: ((i, p) for i, p in enumerate(x.split(4))), feed=lambda m, b: m(b[1]), limit=2)
    same(model, expected)
    assert result.batches == 2


def test_stops_early_when_converged_and_says_so() -> None:
    model = nn.Sequential(nn.BatchNorm2d(3), nn.BatchNorm2d(3)).double()
    parts = [torch.randn(64, 3, 6, 6).double() for _ in range(32)]
    result = bn.calibrate(model, parts, tolerance=0.05)
    assert result.converged
    assert result.batches < 32
    assert "stopped early" in str(result)
    assert bn.calibrate(model, parts[:2], tolerance=1e-9).converged is False


def test_batches_are_fed_as_loaders_give_them() -> None:
    x, layer = torch.randn(6, 3), nn.BatchNorm1d(3)
    for batch in (x, [x, torch.zeros(6)], (x, torch.zeros(6)), {"input": x}):
        bn.calibrate(layer, [batch])
        torch.testing.assert_close(layer.running_mean, x.mean(0))
        layer.reset_running_stats()
    elsewhere = nn.Linear(3, 2, device="meta")
    assert all(feed_by_default(elsewhere, batch).is_meta for batch in (x, [x], {"input": x}))


def test_batches_that_take_different_ways_cannot_be_exact() -> None:
    class Sometimes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.last = nn.BatchNorm1d(3), nn.BatchNorm1d(3)

        def forward(self, x: Tensor) -> Tensor:
            x = self.norm(x)
            return self.last(self.norm(x) if len(x) > 4 else x)

    model, batches = Sometimes(), [torch.randn(4, 3), torch.randn(5, 3)]
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(RuntimeError, match="norm was called 2 times by one batch, and not by the first"):
        bn.calibrate(model, batches)
    assert all(torch.equal(v, model.state_dict()[k]) for k, v in before.items())
    assert bn.calibrate(model, batches, exact=False).batches == 2


@pytest.mark.parametrize(("scale", "shift", "converged"), [(1, 0, True), (1, 0.4, False), (1.5, 0, False)])
def test_a_mean_or_a_variance_that_moves_has_not_converged(scale: float, shift: float, converged: bool) -> None:
    x = torch.tensor([[-1.0], [1.0]])
    assert bn.calibrate(nn.BatchNorm1d(1), [x, x * scale + shift], tolerance=0.1).converged == converged


def test_a_pass_goes_no_further_than_its_level() -> None:
    calls: list[int] = []

    class Marks(nn.Module):
        def __init__(self, number: int) -> None:
            super().__init__()
            self.number = number

        def forward(self, x: Tensor) -> Tensor:
            calls.append(self.number)
            assert not torch.is_grad_enabled()
            return x

    bn.calibrate(nn.Sequential(nn.BatchNorm1d(2), Marks(1), nn.BatchNorm1d(2), Marks(2)), torch.randn(9, 2).split(3))
    assert calls == [1, 2, 1, 1, 1]  # the first batch shows the way; then three to level 1, and three to level 2


@pytest.mark.parametrize("drifting", [0, 1])
def test_it_has_converged_when_every_level_has(drifting: int) -> None:
    class Fed(nn.Module):
        """Two levels, each with data of its own."""

        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.BatchNorm1d(3), nn.BatchNorm1d(3)

        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return self.b(self.a(x) * 0 + y)

    still, moving = torch.randn(2048, 3).split(128), torch.linspace(0, 50, 2048 * 3).reshape(-1, 3).split(128)
    pairs = list(zip(still, moving, strict=True) if drifting else zip(moving, still, strict=True))
    result = bn.calibrate(Fed(), pairs, tolerance=0.2, feed=lambda m, b: m(*b))
    assert result.converged is False
    assert result.batches == 16  # of the longest pass


def test_a_bar_only_where_somebody_watches(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    def shown(stream: io.StringIO, wanted: bool | None) -> str:
        monkeypatch.setattr(sys, "stderr", stream)
        bn.calibrate(nn.BatchNorm1d(2), torch.randn(6, 2).split(2), progress=wanted)
        return stream.getvalue()

    pytest.importorskip("rich", reason="draws the bar")
    monkeypatch.setenv("TERM", "xterm")
    assert "level 1 of 1" in shown(Terminal(), None)
    assert shown(io.StringIO(), None) == shown(Terminal(), False) == ""
    monkeypatch.setitem(sys.modules, "rich.progress", None)
    assert shown(Terminal(), True) == ""


def test_masked_positions_do_not_count() -> None:
    layer, x = bn.BatchNorm1d(3).double(), torch.randn(6, 3, 5).double()
    lengths = torch.tensor([1, 2, 3, 4, 5, 5])
    parts = [{"input": a, "lengths": b} for a, b in zip(x.split(2), lengths.split(2), strict=True)]
    bn.calibrate(layer, parts)
    kept = torch.cat([row[:, :n] for row, n in zip(x, lengths, strict=True)], 1)
    torch.testing.assert_close(layer.running_mean, kept.mean(1))
    torch.testing.assert_close(layer.running_var, kept.var(1))


def test_errors_say_what_is_wrong_and_change_nothing() -> None:
    model = Branches().double()
    before = copy.deepcopy(model.state_dict())
    bad = data()
    bad[7, 0] = torch.nan
    for error, match, batches in (
        (FloatingPointError, "stem.1 got NaN", bad.split(4)),
        (ValueError, "no batch", []),
    ):
        for exact in (True, False):
            with pytest.raises(error, match=match):
                bn.calibrate(model, batches, exact=exact)
    one_channel = torch.tensor([[1.0, 2.0], [3.0, torch.inf]])
    with pytest.raises(FloatingPointError, match="NaN or Inf"):
        bn.calibrate(nn.BatchNorm1d(2), [one_channel])
    with pytest.raises(ValueError, match="the model has no batch norm"):
        bn.calibrate(nn.Linear(2, 2), [])
    with pytest.raises(ValueError, match="one value has no variance"):
        bn.calibrate(nn.BatchNorm1d(3), [torch.randn(1, 3)])
    assert all(torch.equal(v, model.state_dict()[k]) for k, v in before.items())


def _rank(rank: int, folder: Path, jobs: list[tuple[nn.Module, list[list[Tensor]]]]) -> None:
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2, timeout=timedelta(seconds=60)
    )
    try:
        for number, (shared, shards) in enumerate(jobs):
            model = copy.deepcopy(shared)  # what is sent to a process is one memory for both
            result = bn.calibrate(model, shards[rank], process_group=True)
            layer = bn.Standardize(3).fit(shards[rank], process_group=True)
            found = {"model": copy.deepcopy(model.state_dict()), "batches": result.batches, "mean": layer.mean}
            result.restore()
            found["samples"] = bn.adapt(model, shards[rank], prior=6, process_group=True).samples
            found["adapted"] = model.state_dict()
            torch.save(found, folder / f"{number}-{rank}")
    finally:
        dist.destroy_process_group()


def test_over_ranks_also_one_without_data(tmp_path: Path) -> None:
    torch.use_deterministic_algorithms(False)  # the store's memory is not torch's to poison
    x = data(14)
    model = Branches(bn.BatchNorm2d).double()
    jobs = [(model, [[x[:3], x[3:10]], [x[10:]]]), (copy.deepcopy(model), [[], list(x.split(7))])]
    expected, adapted = in_one_batch(model, x), copy.deepcopy(model)
    bn.adapt(adapted, [x], prior=6)
    mp.spawn(_rank, (tmp_path, jobs), nprocs=2)
    for number, batches in ((0, 3), (1, 2)):
        results = [torch.load(tmp_path / f"{number}-{rank}", weights_only=True) for rank in range(2)]
        assert all(torch.equal(v, results[1]["model"][k]) for k, v in results[0]["model"].items())
        same(load(model, results[0]["model"]), expected)
        assert results[0]["batches"] == results[1]["batches"] == batches
        torch.testing.assert_close(results[1]["mean"], x.mean((0, 2, 3)))
        for result in results:
            assert result["samples"] == len(x)
            same(load(model, result["adapted"]), adapted)
