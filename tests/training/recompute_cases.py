"""Networks and measurements for the tests of `recompute`."""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef

import batchnorm as bn
from batchnorm.core.recipes import of_thread
from batchnorm.core.torch_internals import function_mode_on_top, saved_tensors_hooks_on_top


class Residual(nn.Module):
    """norm(conv(norm(conv(x))), residual=shortcut(x))."""

    def __init__(self, inputs: int, channels: int, activation: str | None = "relu", **options: Any) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, channels, 3, padding=1, bias=False)
        self.norm1 = bn.BatchNorm2d(channels, activation=activation, **options)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm2 = bn.BatchNorm2d(channels, activation=activation, **options)
        self.shortcut: nn.Module = nn.Identity()
        if inputs != channels:
            norm = bn.BatchNorm2d(channels, **options)
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, channels, 1, bias=False), norm)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm2(self.conv2(self.norm1(self.conv1(x))), residual=self.shortcut(x))


class Dense(nn.Module):
    """Each layer sees all features before it, as in DenseNet."""

    def __init__(self, inputs: int, growth: int, layers: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.Sequential(
                bn.BatchNorm2d(inputs + i * growth, activation="relu"), nn.Conv2d(inputs + i * growth, growth, 3, 1, 1)
            )
            for i in range(layers)
        )

    def forward(self, x: Tensor) -> Tensor:
        features = [x]
        for layer in self.layers:
            features.append(layer(torch.cat(features, 1)))
        return torch.cat(features, 1)


def plain(activation: str | None = "relu", **options: Any) -> nn.Sequential:
    """Convolution, norm, convolution, norm, flatten, linear."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, bias=False), bn.BatchNorm2d(8, activation=activation, **options),
        nn.Conv2d(8, 8, 3, bias=False), bn.BatchNorm2d(8, activation=activation, **options),
        nn.Flatten(), nn.Linear(8 * 4 * 4, 5),
    )  # fmt: skip


def residual(activation: str | None = "relu", blocks: int = 4, **options: Any) -> nn.Sequential:
    stem = [nn.Conv2d(3, 6, 3, bias=False), bn.BatchNorm2d(6, activation=activation, **options)]
    rest = [Residual(6 if i == 0 else 8, 8, activation, **options) for i in range(blocks)]
    return nn.Sequential(*stem, *rest, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5))


def images(dtype: torch.dtype = torch.float32) -> Tensor:
    return (torch.randn(4, 3, 8, 8) * 2 + 1).to(dtype)


def gradients(model: nn.Module, x: Tensor, forward: Callable[..., Tensor] | None = None) -> list[Tensor | None]:
    """Of the input and every parameter, after one step; buffers at the end."""
    x = x.detach().requires_grad_()
    (forward or model)(x).square().mean().backward()
    return [x.grad, *(p.grad for p in model.parameters()), *(b.clone() for b in model.buffers())]


def both(model: nn.Module, x: Tensor, chain: bool = False) -> tuple[list[Any], list[Any]]:
    """The results of `gradients` without `recompute` and with it, each on a copy of the model."""
    with_, without = copy.deepcopy(model), copy.deepcopy(model)
    with bn.recompute(with_, chain=chain):
        got = gradients(with_, x)
    return gradients(without, x), got


def same(a: list[Any], b: list[Any]) -> bool:
    """Whether the results are equal, bit for bit."""
    return len(a) == len(b) and all(
        x is y if x is None or y is None else torch.equal(x, y) for x, y in zip(a, b, strict=True)
    )


@contextmanager
def counted() -> Iterator[dict[int, int]]:
    """The bytes of each distinct storage that autograd keeps, by its address; filled as the block goes on."""
    storages: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor.detach()

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        yield storages


def kept(model: nn.Module, x: Tensor, forward: Callable[..., Tensor] | None = None) -> int:
    """Bytes kept for the backward pass, without parameters."""
    with counted() as storages:
        y = (forward or model)(x)
    for p in model.parameters():
        storages.pop(p.untyped_storage().data_ptr(), None)
    del y
    return sum(storages.values())


class Changed(nn.Module):
    """Convolution, norm, a change in place, convolution."""

    def __init__(self, change) -> None:
        super().__init__()
        self.conv1, self.norm, self.conv2 = nn.Conv2d(3, 4, 3), bn.BatchNorm2d(4), nn.Conv2d(4, 2, 3)
        self.change = change

    def forward(self, x):
        y = self.norm(self.conv1(x))
        self.change(y)
        return self.conv2(y)


def storage_of(y: torch.Tensor) -> StorageWeakRef:
    return StorageWeakRef(y.untyped_storage())


def open_now() -> bool:
    """Whether anything of a forward pass is left in this thread."""
    return any(
        found is not None for found in (of_thread.listener, saved_tensors_hooks_on_top(), function_mode_on_top())
    )
