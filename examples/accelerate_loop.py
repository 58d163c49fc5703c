"""Hugging Face Accelerate: `accumulate` replaces `accelerator.accumulate`; then the prepared model is calibrated."""

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import batchnorm as bn

try:
    from accelerate import Accelerator
except ImportError as error:
    print(f"skipped: {error}")
    raise SystemExit from None
from batchnorm.integrations.accelerate import accumulate, calibrate

torch.manual_seed(0)
x = torch.randn(160, 4) * 3 + 5
accelerator = Accelerator(cpu=True, gradient_accumulation_steps=4)
network = bn.convert(nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 1)))
model, optimizer, loader = accelerator.prepare(
    network, torch.optim.SGD(network.parameters(), 1e-2), DataLoader(TensorDataset(x), batch_size=16)
)
for (batch,) in loader:
    with accumulate(accelerator, model):
        accelerator.backward((model(batch).squeeze() - batch.sum(1)).square().mean())
        optimizer.step()
        optimizer.zero_grad()
print(f"10 micro-batches are steps of 4, 4 and 2: {network[0].num_batches_tracked} updates of the running statistics")
print(calibrate(accelerator, model, loader))
assert network[0].num_batches_tracked == 3
assert torch.allclose(network[0].running_var, x.var(0))
