"""The callback and the plugin in Lightning's Trainer, alone and on two ranks."""

from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

pytest.importorskip("lightning", reason="the callback is for Lightning")

import lightning.pytorch as pl

import batchnorm as bn
from batchnorm.integrations.lightning import BatchNormCallback, BatchNormSync
from tests.integrations.frameworks import steps
from tests.integrations.frameworks.lightning_ranks import Module, Validated, loader, trainer

everything = torch.cat([x for x, _ in steps.data(1, 4)[0]])


def test_on_two_ranks(on_two_ranks) -> None:
    on_two_ranks("lightning_ranks", "accumulated_and_shared", "calibrated_before_validation")


def fitted(*others: Any, epochs: int = 1, count: int = 4, **options: Any) -> tuple[nn.Sequential, BatchNormCallback]:
    net, callback = bn.convert(steps.network()), BatchNormCallback(**options)
    trainer(max_epochs=epochs, callbacks=[*others, callback]).fit(Module(net), loader(steps.data(1, count)[0]))
    return net, callback


def test_windows_follow_a_schedule_of_accumulation() -> None:
    net, callback = bn.convert(steps.network()), BatchNormCallback()
    schedule = pl.callbacks.GradientAccumulationScheduler({0: 2, 1: 4})
    batches = steps.data(1, 4)[0]
    trainer(max_epochs=2, callbacks=[schedule, callback]).fit(Module(net), loader(batches))
    assert net[0].num_batches_tracked == 3
    wanted = nn.BatchNorm1d(3).double()
    for window in (batches[:2], batches[2:], batches):
        wanted(torch.cat([x for x, _ in window]))
    torch.testing.assert_close(net[0].running_var, wanted.running_var, rtol=1e-12, atol=1e-12)
    assert net[0]._window is None


def test_frozen_by_epoch() -> None:
    seen = []

    class Look(pl.Callback):
        def on_train_epoch_end(self, trainer: Any, module: Any) -> None:
            layer = module.net[0]
            seen.append((layer.frozen, int(layer.num_batches_tracked), layer.weight.requires_grad))

    fitted(Look(), epochs=4, freeze_at=1, unfreeze_at=3, affine=True)
    assert seen == [(False, 4, True), ("all", 4, False), ("all", 4, False), (False, 8, True)]


def test_all_that_is_read_goes_to_the_loggers() -> None:
    class Logger(pl.loggers.logger.DummyLogger):
        def __init__(self) -> None:
            super().__init__()
            self.rows: list[tuple[int, dict[str, float]]] = []

        def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
            self.rows.append((step, metrics))

    logger, net, callback = Logger(), bn.convert(steps.network()), BatchNormCallback(watch=2)
    trainer(logger=logger, accumulate_grad_batches=2, callbacks=[callback]).fit(
        Module(net), loader(steps.data(1, 8)[0])
    )
    watched = [(s, v) for s, v in logger.rows if any(tag.startswith("batchnorm/") for tag in v)]
    assert [s for s, _ in watched] == [0] * 4 + [2] * 4, (
        "the first micro-batch of steps 0 and 2: both layers, both ways"
    )
    assert {tag.split("/")[1] for _, values in watched for tag in values} == {"net.0", "net.2"}
    assert watched[0][1]["batchnorm/net.0/activation_std"] == pytest.approx(1, abs=1e-4)
    assert len(callback.watched.records) == 8
    assert not net[0]._forward_hooks, "no hook is left"


def test_averaged_weights_are_calibrated() -> None:
    """After the average of `WeightAveraging`, the statistics are exact for the weights that are left in the model."""
    average = getattr(pl.callbacks, "WeightAveraging", None)
    if average is None:
        pytest.skip("this Lightning has no WeightAveraging")
    net, _ = fitted(average(), calibrate=[everything], exact=True)
    mean, var = steps.exact_statistics(net, everything)
    torch.testing.assert_close((net[2].running_mean, net[2].running_var), (mean, var), rtol=1e-10, atol=1e-10)
    without, _ = fitted(average())
    assert not torch.allclose(without[2].running_var, var), "what calibration is for"
    torch.testing.assert_close(net[1].weight, without[1].weight)


def test_stochastic_weight_averaging() -> None:
    """Its own epoch for the statistics is one window; ours are exact after it."""
    swa = pl.callbacks.StochasticWeightAveraging(swa_lrs=0.01, swa_epoch_start=1)
    net, _ = fitted(swa, epochs=3, calibrate=[everything])
    mean, var = steps.exact_statistics(net, everything)
    torch.testing.assert_close((net[2].running_mean, net[2].running_var), (mean, var), rtol=1e-10, atol=1e-10)
    assert net[2].momentum == 0.1


def test_training_is_the_same_with_calibration_and_without() -> None:
    """Validation in the middle of an epoch calibrates on the shuffled training data."""
    weights = {}
    for own in (False, True):
        for calibrate in (None, True):
            torch.manual_seed(3)
            net, callback = bn.convert(steps.network()), BatchNormCallback(calibrate=calibrate)
            x, y = (torch.cat(parts) for parts in zip(*steps.data(1, 8)[0], strict=True))
            generator = torch.Generator().manual_seed(5) if own else None
            shuffled = DataLoader(TensorDataset(x, y), batch_size=6, shuffle=True, generator=generator)
            options = {"max_epochs": 2, "val_check_interval": 2, "accumulate_grad_batches": 4}
            torch.manual_seed(4)
            trainer(**options, callbacks=[callback]).fit(Validated(net), shuffled, loader(steps.data(1, 1)[0]))
            weights[own, calibrate] = net[1].weight.detach().clone(), net[0].num_batches_tracked.clone()
            assert len(callback.calibrations) == (9 if calibrate else 0)
        assert all(torch.equal(a, b) for a, b in zip(weights[own, None], weights[own, True], strict=True))


def test_findings_at_the_end() -> None:
    net = bn.convert(steps.network())
    net.append(bn.BatchNorm1d(1).double())  # a layer that no batch reaches
    module, callback = Module(net), BatchNormCallback()
    net.forward = lambda x: nn.Sequential.forward(net[:5], x)  # type: ignore[method-assign]
    trainer(callbacks=[callback]).fit(module, loader(steps.data(1, 4)[0]))
    assert ("never-updated", ("net.5",)) in {(f.rule, f.layers) for f in callback.report.findings}
    assert fitted(diagnose=False)[1].report is None


def test_interrupted_training_leaves_nothing_behind() -> None:
    class Stop(pl.Callback):
        def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, index: int) -> None:
            if index == 2:
                raise RuntimeError("enough")

    net, callback = bn.convert(steps.network()), BatchNormCallback(watch=1)
    with pytest.raises(RuntimeError, match="enough"):
        trainer(accumulate_grad_batches=2, callbacks=[callback, Stop()]).fit(Module(net), loader(steps.data(1, 4)[0]))
    assert (net[0]._window, len(net[0]._forward_hooks), int(net[0].num_batches_tracked)) == (None, 0, 1)


def test_errors_say_what_to_do() -> None:
    with pytest.raises(ValueError, match=r"no batch norm of ours: bn\.convert\(model\) first"):
        trainer(callbacks=[BatchNormCallback()]).fit(Module(steps.network()), loader(steps.data(1, 1)[0]))
    swa = pl.callbacks.StochasticWeightAveraging(swa_lrs=0.01)
    net = bn.convert(steps.network())
    with pytest.raises(
        ValueError, match=r"comes before StochasticWeightAveraging.*Put it after: callbacks=\[\.\.\., S"
    ):
        trainer(callbacks=[BatchNormCallback(calibrate=True), swa]).fit(Module(net), loader(steps.data(1, 1)[0]))
    persistent = DataLoader(steps.data(1, 4)[0], batch_size=None, num_workers=1, persistent_workers=True)
    callback = BatchNormCallback(calibrate=True)
    with pytest.raises(ValueError, match="restart the persistent workers of the training DataLoader"):
        callback._batches(type("Trainer", (), {"train_dataloader": persistent}))
    with pytest.raises(ValueError, match=r"a window of bn\.accumulate is open"), bn.accumulate(net, 2):
        trainer(callbacks=[BatchNormCallback()]).fit(Module(net), loader(steps.data(1, 1)[0]))
    with pytest.raises(TypeError, match="frieze_at"):
        BatchNormCallback(frieze_at=1)


def test_the_plugin_keeps_what_layers_do() -> None:
    net = nn.Sequential(
        bn.BatchNorm1d(3, activation="relu"), nn.BatchNorm1d(3, momentum=0.3), bn.SyncBatchNorm(3), nn.BatchNorm1d(3)
    )
    plugin = BatchNormSync()
    assert plugin.apply(net) is net
    assert [layer.process_group for layer in net] == [True] * 4
    assert [type(layer) for layer in net] == [bn.BatchNorm1d, bn.BatchNorm1d, bn.SyncBatchNorm, bn.BatchNorm1d]
    net[3].freeze()
    plugin.revert(net)
    assert [type(layer) for layer in net] == [bn.BatchNorm1d, nn.BatchNorm1d, bn.SyncBatchNorm, bn.BatchNorm1d]
    assert (net[0].activation, net[0].process_group, net[1].momentum, net[2].process_group) == ("relu", None, 0.3, None)
    assert (net[3].frozen, net[3].process_group) == ("statistics", None)
    with pytest.raises(ValueError, match="virtual_batch_size=2, which process_group excludes"):
        plugin.apply(nn.Sequential(bn.BatchNorm1d(3, virtual_batch_size=2)))


def test_lightnings_own_plugin_gives_our_layers_back() -> None:
    """`Trainer(sync_batchnorm=True)` without ours: its way back made plain layers that had lost their activation."""
    theirs = pl.plugins.layer_sync.TorchSyncBatchNorm()
    net = nn.Sequential(bn.BatchNorm1d(3, activation="relu"), nn.BatchNorm1d(3))
    shared = theirs.apply(net)
    assert [type(layer) for layer in shared] == [bn.SyncBatchNorm, nn.SyncBatchNorm]
    back = theirs.revert(shared)
    assert (type(back[0]), back[0].activation, back[0].process_group) == (bn.BatchNorm1d, "relu", None)
    assert type(back[1]).__name__ == "_BatchNormXd", "torch's own as before"
