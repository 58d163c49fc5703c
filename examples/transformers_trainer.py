"""transformers' Trainer: running statistics are updated once a step, and calibrated before each evaluation."""

import tempfile
import warnings

import torch
from torch import nn

import batchnorm as bn

try:
    from transformers import Trainer, TrainingArguments
except ImportError as error:
    print(f"skipped: {error}")
    raise SystemExit from None
from batchnorm.integrations.transformers import BatchNormCallback

warnings.filterwarnings("ignore", ".*pin_memory.*")
torch.manual_seed(0)
x = torch.randn(128, 4) * 3 + 5
rows = [{"x": row, "labels": row.sum()} for row in x]


class Regression(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = bn.convert(nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 1)))

    def forward(self, x: torch.Tensor, labels: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
        y = self.net(x).squeeze(1)
        return {"logits": y} if labels is None else {"loss": (y - labels).square().mean(), "logits": y}


model, callback = Regression(), BatchNormCallback(calibrate=[{"x": part} for part in x.split(32)])
with tempfile.TemporaryDirectory() as folder:
    arguments = TrainingArguments(
        folder, use_cpu=True, num_train_epochs=2, per_device_train_batch_size=8, gradient_accumulation_steps=4,
        eval_strategy="epoch", save_strategy="no", report_to="none", disable_tqdm=True, logging_strategy="no",
    )  # fmt: skip
    trainer = Trainer(model, arguments, train_dataset=rows, eval_dataset=rows, callbacks=[callback])
    trainer.train()
steps = trainer.state.global_step
print(f"32 micro-batches, {steps} steps: {model.net[0].num_batches_tracked} updates of the running statistics")
print(f"{len(callback.calibrations)} calibrations; the last: {callback.calibrations[-1]}")
assert model.net[0].num_batches_tracked == steps == 8
assert torch.allclose(model.net[0].running_var, x.var(0))
