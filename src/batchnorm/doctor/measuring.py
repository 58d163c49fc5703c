"""Sends data through a model in training and in evaluation, and restores the model afterwards."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from batchnorm.core.torch_internals import tree_leaves
from batchnorm.layers import BatchNorm
from batchnorm.tools.model_populations import bank, evaluating
from batchnorm.tools.progress import track
from batchnorm.tools.streams import several
from batchnorm.tools.sweep import Feed
from batchnorm.training.paused import paused

from .observed_batches import Observer, ReluFinder, Seen, is_frozen
from .states import norms

SWITCH_BATCHES = 2  # batches on which layers are switched one by one; each costs one forward pass per layer


@dataclass
class Measured:
    """Measurements on data: of each layer, of the gap at the output, and of each layer's part of the gap."""

    layers: dict[str, Seen]
    always_eval: set[str]
    never_eval: set[str]
    batches: int = 0
    gap: Gap = field(default_factory=lambda: Gap())
    caused: dict[str, float] = field(default_factory=dict)  # each layer's part of the gap
    notes: list[str] = field(default_factory=list)


@dataclass
class Gap:
    """The difference of two outputs for the same batches, in standard deviations of the expected output."""

    squares: float = 0.0
    spread: float = 0.0
    differ: int = 0
    predictions: int = 0

    def add(self, expected: Any, one: Any, other: Any) -> None:
        """Adds the difference of `one` and `other`; of nested outputs, real tensors of equal shapes are compared."""
        for scale, a, b in zip(*map(_tensors, (expected, one, other)), strict=False):
            if not scale.shape == a.shape == b.shape or not a.numel():
                continue
            scale, a, b = (t.detach().double() for t in (scale, a, b))
            self.squares += float((a - b).square().sum())
            self.spread += float((scale - scale.mean()).square().sum())
            if a.dim() == 2 and a.shape[1] > 1:
                self.differ += int((a.argmax(1) != b.argmax(1)).sum())
                self.predictions += len(a)

    @property
    def relative(self) -> float:
        """Root mean square of the difference over the standard deviation; 0 if the output does not vary."""
        return (self.squares / self.spread) ** 0.5 if self.spread else 0.0


def measure(model: nn.Module, batches: Any, feed: Feed, limit: int | None, progress: bool | None) -> Measured:
    """Measures each batch in both modes (dropout stays off), each layer's part of the gap, and a training step."""
    layers = norms(model)
    with restoring(model), Observer(layers) as observer:
        always, never = _fixed_modes(model, layers)
        found = Measured(observer.seen, always, never)
        switchable = {name: layer for name, layer in layers.items() if name not in always and not is_frozen(layer)}
        runner = Runner(model, feed, list(switchable.values()))
        with _no_updates(model):
            kept = _compare_modes(runner, observer, found, batches, limit, progress)
            found.caused = _gap_by_layer(runner, [n for n in observer.order if n in switchable], layers, kept, progress)
        found.notes += _training_step(model, feed, observer, kept[0].batch)
    return found


def _compare_modes(
    runner: Runner, observer: Observer, found: Measured, batches: Any, limit: int | None, progress: bool | None
) -> list[BatchOutputs]:
    """Runs every batch in evaluation and in training; returns the first `SWITCH_BATCHES` batches and their outputs."""
    kept: list[BatchOutputs] = []
    for batch in track(several(batches, limit), "diagnosing", progress):
        relus = nullcontext() if found.batches else ReluFinder(observer.seen)
        with observer.observing("evaluation"), relus:
            expected = runner([], batch)
        with observer.observing("training"):
            trained = runner(runner.switchable, batch)
        found.gap.add(expected, expected, trained)
        found.batches += 1
        if len(kept) < SWITCH_BATCHES:
            kept.append(BatchOutputs(batch, expected, trained))
    if not kept:
        raise ValueError("there were no batches to diagnose with")
    return kept


def _gap_by_layer(
    runner: Runner, order: list[str], layers: dict[str, _BatchNorm], kept: list[BatchOutputs], progress: bool | None
) -> dict[str, float]:
    """The change of the output as each layer goes from training to evaluation, one by one, the last layer first.

    A layer that is switched still gets its inputs of training, and all later layers already use running statistics.
    So the batch statistics of later layers cannot hide or exaggerate this layer's error.
    """
    caused = {}
    training, outputs = [layers[name] for name in order], [k.trained for k in kept]
    for name in track(order[::-1], "which layer", progress):
        training.pop()
        gap, before = Gap(), outputs
        outputs = [runner(training, k.batch) for k in kept]
        for k, one, other in zip(kept, before, outputs, strict=True):
            gap.add(k.expected, one, other)
        caused[name] = gap.relative
    return caused


class BatchOutputs(NamedTuple):
    """A batch with the model's outputs for it: `expected` in evaluation, `trained` in training."""

    batch: Any
    expected: Any
    trained: Any


@dataclass
class Runner:
    """Runs forward passes with chosen layers in training mode, each from the same state of the model."""

    model: nn.Module
    feed: Feed
    switchable: list[_BatchNorm]

    def __call__(self, training: list[_BatchNorm], batch: Any) -> Any:
        with torch.no_grad(), restoring(self.model):
            self.model.eval()
            for layer in self.switchable:
                layer.training = any(layer is other for other in training)
            return self.feed(self.model, batch)


def _training_step(model: nn.Module, feed: Feed, observer: Observer, batch: Any) -> list[str]:
    """Counts the updates of each layer's running statistics in one training step; returns a note if that failed."""
    layers = {name: seen for name, seen in observer.seen.items() if bank(seen.layer).num_batches_tracked is not None}
    if any(seen.nonfinite or seen.single for seen in layers.values()):
        return ["no training step was run: the data contain NaN or Inf, or a batch has one value per channel"]
    model.train()
    before = {name: int(bank(seen.layer).num_batches_tracked) for name, seen in layers.items()}
    try:
        with observer.observing("step"), torch.enable_grad():
            outputs = [t for t in _tensors(feed(model, batch)) if t.requires_grad]
            if outputs:
                torch.stack([t.float().square().mean() for t in outputs]).sum().backward()
    except Exception as error:  # a model may need targets in training; the other measurements remain valid
        return [f"the training step failed: {(str(error).splitlines() or [type(error).__name__])[0]}"]
    for name, seen in layers.items():
        seen.step_updates = int(bank(seen.layer).num_batches_tracked) - before[name]
    return []


def _fixed_modes(model: nn.Module, layers: dict[str, _BatchNorm]) -> tuple[set[str], set[str]]:
    """Layers that stay in evaluation while the model trains, and layers that stay in training while it evaluates.

    The modes are read as they were found, and after `model.eval()` and `model.train()`. Frozen layers are left out.
    """
    frozen = {name for name, layer in layers.items() if is_frozen(layer)}
    always = {name for name, layer in layers.items() if model.training and not layer.training}
    never = {name for name, layer in layers.items() if layer.training and not model.training}
    with evaluating(model):
        never |= {name for name, layer in layers.items() if layer.training or layer.running_mean is None}
        model.train()
        always |= {name for name, layer in layers.items() if not layer.training}
    return always - frozen, never - frozen


def _no_updates(model: nn.Module) -> Any:
    """A context in which our layers neither update their running statistics nor warn of skipped batches."""
    return paused(model) if any(isinstance(m, BatchNorm) for m in model.modules()) else nullcontext()


@contextmanager
def restoring(model: nn.Module) -> Iterator[None]:
    """Restores modes, buffers, gradients and random generators at the end, also after an exception."""
    modes = [(module, module.training) for module in model.modules()]
    buffers = [
        (m, name, b, b.detach().clone()) for m in model.modules() for name, b in m._buffers.items() if b is not None
    ]
    gradients = [(p, p.grad) for p in model.parameters()]
    devices = sorted({p.device.index for p in model.parameters() if p.device.type == "cuda"})
    python, numpy = random.getstate(), np.random.get_state()
    for parameter, _ in gradients:
        parameter.grad = None
    try:
        with torch.random.fork_rng(devices=devices):
            yield
    finally:
        _restore(modes, buffers, gradients)
        random.setstate(python)
        np.random.set_state(numpy)


def _restore(modes: list[Any], buffers: list[Any], gradients: list[Any]) -> None:
    for module, mode in modes:
        module.training = mode
    with torch.no_grad():
        for module, name, buffer, value in buffers:
            module._buffers[name] = buffer.copy_(value)
    for parameter, gradient in gradients:
        parameter.grad = gradient


def _tensors(output: Any) -> list[Tensor]:
    return [t for t in tree_leaves(output) if isinstance(t, Tensor) and t.is_floating_point()]
