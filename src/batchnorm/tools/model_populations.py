"""The running statistics of a model: find, copy, write and restore them."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


def populations(model: nn.Module) -> dict[str, _BatchNorm]:
    """Every batch norm of `model` with running statistics that are not frozen, by name.

    A layer is frozen after `bn.freeze`, or if it is in evaluation mode while the model is in training mode. (If only
    the outermost module is in training mode, as in an `AveragedModel` of a model in evaluation mode, the model is not.)
    """
    training = model.training and any(module.training for module in model.modules() if module is not model)
    return {
        name or "(the model itself)": layer
        for name, layer in model.named_modules()
        if isinstance(layer, _BatchNorm)
        and layer.running_mean is not None
        and not getattr(layer, "frozen", False)
        and not (training and not layer.training)
    }


def bank(layer: _BatchNorm) -> Any:
    """The module that holds the running statistics in use: `layer` itself, or the bank of its `bn.domain`."""
    domain = getattr(layer, "_domain", None)
    return layer if domain is None else layer.get_submodule("banks")[domain]  # type: ignore[index]


@dataclass(frozen=True)
class Populations:
    """A copy of the running statistics of several layers, to read and to restore."""

    values: dict[str, tuple[Tensor, Tensor, Tensor | None]]  # running_mean, running_var, num_batches_tracked

    @classmethod
    def of(cls, layers: dict[str, _BatchNorm]) -> "Populations":
        """Copy the running statistics of `layers`."""
        return cls({name: tuple(_copy(t) for t in _buffers(layer)) for name, layer in layers.items()})  # type: ignore[misc]

    def restore(self, layers: dict[str, _BatchNorm]) -> None:
        """Write the copies back, bit for bit."""
        with torch.no_grad():
            for name, layer in layers.items():
                for buffer, value in zip(_buffers(layer), self.values[name], strict=True):
                    if buffer is not None and value is not None:
                        buffer.copy_(value)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put the whole model in evaluation mode within a `with`; the mode of each module is restored at the end."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


@contextmanager
def unless_finished(layers: dict[str, _BatchNorm]) -> Iterator[Populations]:
    """Yield a copy of the running statistics, and restore them if the block fails or is interrupted."""
    before = Populations.of(layers)
    try:
        yield before
    except BaseException:
        before.restore(layers)
        raise


def write(layer: _BatchNorm, mean: Tensor, var: Tensor) -> None:
    """Set the running statistics that `layer` normalises by."""
    with torch.no_grad():
        bank(layer).running_mean.copy_(mean)
        bank(layer).running_var.copy_(var)


def _buffers(layer: _BatchNorm) -> tuple[Tensor, Tensor, Tensor | None]:
    at = bank(layer)
    return at.running_mean, at.running_var, at.num_batches_tracked


def _copy(t: Tensor | None) -> Tensor | None:
    return None if t is None else t.detach().clone()
