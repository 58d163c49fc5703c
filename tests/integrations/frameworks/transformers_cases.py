"""A model and a Trainer for `test_transformers.py`, and its cases on two ranks."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import SequentialSampler
from transformers import Trainer, TrainingArguments

import batchnorm as bn
from batchnorm.integrations.transformers import BatchNormCallback
from tests.integrations.frameworks import steps


class Regression(nn.Module):
    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        if labels is None:
            return {"logits": self.net(x)}
        return {"loss": steps.loss(self.net, (x, labels)), "logits": labels}


class InOrder(Trainer):
    def _get_train_sampler(self, *_: Any) -> SequentialSampler:
        return SequentialSampler(self.train_dataset)


def rows(ranks: int, count: int) -> list[dict[str, Tensor]]:
    """Samples in the order in which Accelerate deals them: a micro-batch to each rank in turn."""
    dealt = [batch for parts in zip(*steps.data(ranks, count), strict=True) for batch in parts]
    return [{"x": x, "labels": y} for xs, ys in dealt for x, y in zip(xs, ys, strict=True)]


def trainer(
    net: nn.Module, callback: BatchNormCallback, folder: Path, data: list[dict[str, Tensor]], **options: Any
) -> Trainer:
    defaults: dict[str, Any] = {
        "use_cpu": True, "num_train_epochs": 1, "per_device_train_batch_size": steps.EACH, "save_strategy": "no",
        "report_to": "none", "disable_tqdm": True, "logging_strategy": "no", "max_grad_norm": 0.0,
        "dataloader_pin_memory": False,
    }  # fmt: skip
    optimizer = torch.optim.SGD(net.parameters(), steps.LR)
    constant = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: 1.0)
    return InOrder(
        Regression(net), TrainingArguments(str(folder), **defaults | options), train_dataset=data,
        eval_dataset=data[:6], optimizers=(optimizer, constant), callbacks=[callback],
    )  # fmt: skip


def accumulated_and_shared(rank: int, ranks: int, folder: Path) -> None:
    """Steps of 2 and 2 micro-batches over both ranks."""
    net = bn.convert(steps.network(), sync=True)
    callback = BatchNormCallback()
    trainer(net, callback, folder, rows(ranks, 4), gradient_accumulation_steps=2, ddp_backend="gloo").train()
    steps.compare(net, steps.one_process(ranks, (2, 2), 2))


def calibrated(rank: int, ranks: int, folder: Path) -> None:
    """Each rank has its own batches; the statistics are those of all of them."""
    net = bn.convert(steps.network())
    mine = [{"x": x} for x, _ in steps.data(ranks, 4)[rank]]
    trainer(net, BatchNormCallback(calibrate=mine), folder, rows(ranks, 4), ddp_backend="gloo").train()
    everything = torch.cat([x for part in steps.data(ranks, 4) for x, _ in part])
    wanted = steps.exact_statistics(net, everything)
    torch.testing.assert_close((net[2].running_mean, net[2].running_var), wanted, rtol=1e-10, atol=1e-10)
    assert net[2].num_batches_tracked == 4
