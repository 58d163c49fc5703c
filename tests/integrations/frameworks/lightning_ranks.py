"""Cases that `test_lightning.py` runs on two ranks."""

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

import batchnorm as bn
from batchnorm.integrations.lightning import BatchNormCallback, BatchNormSync
from tests.integrations.frameworks import steps


class Module(pl.LightningModule):
    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: steps.Batch, index: int) -> Tensor:
        return steps.loss(self.net, batch)  # forward of this module is not called

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), steps.LR)


class Validated(Module):
    def validation_step(self, batch: steps.Batch, index: int) -> None:
        pass


QUIET = {
    "accelerator": "cpu", "logger": False, "enable_checkpointing": False, "enable_progress_bar": False,
    "enable_model_summary": False, "num_sanity_val_steps": 0, "log_every_n_steps": 1,
}  # fmt: skip


def loader(batches: list[steps.Batch]) -> DataLoader:
    """The batches as they are; Lightning takes a list for a list of loaders."""
    return DataLoader(batches, batch_size=None)


def trainer(**options: Any) -> pl.Trainer:
    return pl.Trainer(**QUIET | {"max_epochs": 1} | options)


def accumulated_and_shared(rank: int, ranks: int, folder: Path) -> None:
    """Steps of 2, 2 and 1 micro-batches; sharing by the plugin, which gives torch's layers back at the end."""
    net = steps.network()
    callback = BatchNormCallback()
    options = {"devices": ranks, "strategy": "ddp", "accumulate_grad_batches": 2, "use_distributed_sampler": False}
    for sync_batchnorm in (False, True):
        net = steps.network()
        fit = trainer(**options, callbacks=[callback], plugins=[BatchNormSync()], sync_batchnorm=sync_batchnorm)
        fit.fit(Module(net), loader(steps.data(ranks, 5)[rank]))
        steps.compare(net, steps.one_process(ranks, (2, 2, 1), 2))
        assert type(net[0]) is nn.BatchNorm1d


def calibrated_before_validation(rank: int, ranks: int, folder: Path) -> None:
    """Each rank has its own data; the statistics are those of all data as one batch, on every rank."""
    net = bn.convert(steps.network())
    mine = steps.data(ranks, 4)[rank]
    callback = BatchNormCallback(calibrate=True)
    during = []

    class Look(pl.Callback):
        def on_validation_batch_start(self, *_: Any) -> None:
            during.append((net[2].running_mean.clone(), net[2].running_var.clone(), int(net[2].num_batches_tracked)))

    fit = trainer(
        devices=ranks, strategy="ddp", use_distributed_sampler=False, val_check_interval=2, callbacks=[callback, Look()]
    )
    fit.fit(Validated(net), loader(mine), loader(mine[:1]))
    assert [counted for _, _, counted in during] == [2, 4], "the counters go on"
    everything = torch.cat([x for part in steps.data(ranks, 4) for x, _ in part])
    mean, var = steps.exact_statistics(net, everything)
    for found in (during[1][:2], (net[2].running_mean, net[2].running_var)):
        torch.testing.assert_close(found, (mean, var), rtol=1e-10, atol=1e-10)
    assert len(callback.calibrations) == 3
    assert "ranks-disagree" not in {f.rule for f in callback.report.findings}
