"""Batch norms folded into convolutions: fewer layers, the same output, and a report of what was not folded."""

import torch
from torch import nn

import batchnorm as bn


class Block(nn.Module):
    """A residual block whose norms add and activate in one pass."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm1 = bn.BatchNorm2d(channels, activation="relu")
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm2 = bn.BatchNorm2d(channels, activation="relu")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm2(self.conv2(self.norm1(self.conv1(x))), residual=x)


torch.manual_seed(0)
model = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.BatchNorm2d(16), Block(16), Block(16))
x = torch.randn(8, 3, 32, 32)
bn.calibrate(model, [x])
folded = bn.fold(model.eval(), example=x)
print(folded.report)
assert len(folded.report.into) == 4
assert folded.report.error < 1e-5
