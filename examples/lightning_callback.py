"""Lightning: running statistics are updated once for every step of four micro-batches, and calibrated at the end."""

import logging
import warnings

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import batchnorm as bn

try:
    import lightning.pytorch as pl
except ImportError as error:
    print(f"skipped: {error}")
    raise SystemExit from None
from batchnorm.integrations.lightning import BatchNormCallback

logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
warnings.filterwarnings("ignore", ".*does not have many workers.*")
torch.manual_seed(0)
x = torch.randn(256, 4) * 3 + 5


class Regression(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = bn.convert(nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 1)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(x)

    def training_step(self, batch: list[torch.Tensor], index: int) -> torch.Tensor:
        return (self(batch[0]).squeeze() - batch[0].sum(1)).square().mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 1e-2)


def train(**options: bool) -> tuple[nn.Sequential, BatchNormCallback]:
    torch.manual_seed(0)
    model, callback = Regression(), BatchNormCallback(**options)
    trainer = pl.Trainer(
        accelerator="cpu", max_epochs=1, accumulate_grad_batches=4, callbacks=[callback], logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(model, DataLoader(TensorDataset(x), batch_size=16))
    return model.net, callback


without, _ = train(accumulate=False, diagnose=False)
net, callback = train(calibrate=True)
print(
    f"16 micro-batches, 4 steps: torch's way counts {without[0].num_batches_tracked}, ours {net[0].num_batches_tracked}"
)
print(f"at the end: {callback.calibrations[-1]}")
print(f"diagnosis: {callback.report}")
assert (without[0].num_batches_tracked, net[0].num_batches_tracked) == (16, 4)
assert torch.allclose(net[0].running_var, x.var(0))
