"""The one registry of cases: what is timed, grouped as the tables show it."""

from collections.abc import Callable
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor, nn

import batchnorm as bn

# The distinct batch-norm shapes of ResNet-50 at batch 32 and 224 px; then rows of features, and a volume.
RESNET50 = [
    (32, 64, 112, 112),
    (32, 64, 56, 56),
    (32, 256, 56, 56),
    (32, 128, 56, 56),
    (32, 128, 28, 28),
    (32, 512, 28, 28),
    (32, 256, 28, 28),
    (32, 256, 14, 14),
    (32, 1024, 14, 14),
    (32, 512, 14, 14),
    (32, 512, 7, 7),
    (32, 2048, 7, 7),
]
OTHERS = [(256, 1024), (4096, 1024), (4, 64, 16, 28, 28)]
SMALL = [(2, 16, 8, 8), (64, 32), (16, 128), (4, 32, 7, 7), (2, 8, 100)]
QUICK = [(8, 16, 14, 14), (64, 128)]


@dataclass(frozen=True)
class Case:
    """One layer on one input: forward and backward, or forward alone."""

    shape: tuple[int, ...]
    dtype: torch.dtype = torch.float32
    channels_last: bool = False
    activation: str | None = None
    residual: bool = False

    @property
    def bytes(self) -> int:
        return prod(self.shape) * self.dtype.itemsize

    def tensor(self, seed: int) -> Tensor:
        x = torch.randn(self.shape, generator=torch.Generator().manual_seed(seed)) * 2 + 1
        x = x.to(self.dtype)
        if self.channels_last and len(self.shape) > 3:
            x = x.contiguous(memory_format=torch.channels_last if len(self.shape) == 4 else torch.channels_last_3d)
        return x


GROUPS: dict[str, dict[str, object]] = {
    "float32, contiguous": {},
    "float32, channels_last": {"channels_last": True},
    "bfloat16, contiguous": {"dtype": torch.bfloat16},
    "bfloat16, channels_last": {"dtype": torch.bfloat16, "channels_last": True},
    "float32, ReLU": {"activation": "relu"},
    "float32, residual + ReLU": {"activation": "relu", "residual": True},
}


def group(name: str, shapes: list[tuple[int, ...]]) -> list[Case]:
    """The cases of one row of the table; shapes that have no channels_last form drop out of its groups."""
    options = GROUPS[name]
    return [Case(shape, **options) for shape in shapes if len(shape) > 3 or not options.get("channels_last")]  # type: ignore[arg-type]


class Theirs(nn.Module):
    """torch's layer with residual and activation as separate operations."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        ranks = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}
        self.norm = ranks[len(case.shape)](case.shape[1])
        self.activation = getattr(nn.functional, case.activation) if case.activation else None

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        y = self.norm(x)
        y = y if residual is None else y + residual
        return y if self.activation is None else self.activation(y)


def theirs(case: Case) -> nn.Module:
    """torch's layer, bare where the case is."""
    layer = Theirs(case)
    return layer if case.activation or case.residual else layer.norm


def ours(case: Case) -> nn.Module:
    return bn.BatchNorm(case.shape[1], activation=case.activation)


def step(layer: nn.Module, case: Case) -> Callable[[], tuple[Tensor, ...]]:
    """Forward and backward of `layer` on the case's input: returns the output and every gradient."""
    inputs = [case.tensor(seed).requires_grad_() for seed in range(1 + case.residual)]
    grad, wanted = case.tensor(9), [*inputs, *layer.parameters()]

    def run() -> tuple[Tensor, ...]:
        y = layer(*inputs)
        return y.detach(), *torch.autograd.grad(y, wanted, grad)

    return run
