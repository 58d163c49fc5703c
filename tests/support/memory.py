"""A small model of ours, and the buffers of its batch norms."""

import torch
from torch import Tensor, nn

import batchnorm as bn


def model() -> nn.Sequential:
    return bn.convert(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)))


def memory(m: nn.Module) -> dict[str, Tensor]:
    """Copies of the running statistics and counters, by key."""
    return {k: v.clone() for k, v in m.named_buffers() if "running" in k or "tracked" in k}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)
