"""Sends data through a model as in training and as in evaluation, and leaves the model as it was."""

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

from .observed_batches import Followers, Observer, Seen, spared
from .states import norms

SWITCHED = 2  # batches on which single layers are switched: one forward pass a layer and batch


@dataclass
class Measured:
    """Measurements on data: each layer, the gap at the output, and the effect of single layers on it."""

    layers: dict[str, Seen]
    always_eval: set[str]
    never_eval: set[str]
    batches: int = 0
    gap: Gap = field(default_factory=lambda: Gap())
    caused: dict[str, float] = field(default_factory=dict)  # the part of it that each layer makes
    notes: list[str] = field(default_factory=list)


@dataclass
class Gap:
    """The distance of two outputs for the same batches, in units of the spread of the expected one."""

    squares: float = 0.0
    spread: float = 0.0
    differ: int = 0
    predictions: int = 0

    def add(self, expected: Any, one: Any, other: Any) -> None:
        """Outputs of any structure, compared where they hold real tensors of the same shape."""
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
        """Root mean square of the difference over the standard deviation; 0 where the output does not vary."""
        return (self.squares / self.spread) ** 0.5 if self.spread else 0.0


def measure(model: nn.Module, batches: Any, feed: Feed, limit: int | None, progress: bool | None) -> Measured:
    """Each batch as in evaluation and as in training (only batch norms, no dropout); single layers; one step."""
    layers = norms(model)
    with undisturbed(model), Observer(layers) as observer:
        always, never = _stubborn(model, layers)
        found = Measured(observer.seen, always, never)
        learners = {name: layer for name, layer in layers.items() if name not in always and not spared(layer)}
        runner = Runner(model, feed, list(learners.values()))
        with _still(model):
            kept = _both_ways(runner, observer, found, batches, limit, progress)
            found.caused = _one_by_one(runner, [n for n in observer.order if n in learners], layers, kept, progress)
        found.notes += _step(model, feed, observer, kept[0].batch)
    return found


def _both_ways(
    runner: Runner, observer: Observer, found: Measured, batches: Any, limit: int | None, progress: bool | None
) -> list[Kept]:
    """Every batch as in evaluation and as in training; returns the first few, with their outputs."""
    kept: list[Kept] = []
    for batch in track(several(batches, limit), "diagnosing", progress):
        followers = nullcontext() if found.batches else Followers(observer.seen)
        with observer.observing("evaluation"), followers:
            expected = runner([], batch)
        with observer.observing("training"):
            trained = runner(runner.learners, batch)
        found.gap.add(expected, expected, trained)
        found.batches += 1
        if len(kept) < SWITCHED:
            kept.append(Kept(batch, expected, trained))
    if not kept:
        raise ValueError("there were no batches to diagnose with")
    return kept


def _one_by_one(
    runner: Runner, order: list[str], layers: dict[str, _BatchNorm], kept: list[Kept], progress: bool | None
) -> dict[str, float]:
    """Layers go from training to evaluation one by one, the last first: how far does each move the output?

    So each sees what it saw in training, and what it makes of it goes on as in evaluation: no batch's statistics
    after it put right, or get the blame for, what its population does wrong.
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


class Kept(NamedTuple):
    """A batch, and its outputs in evaluation and as in training."""

    batch: Any
    expected: Any
    trained: Any


@dataclass
class Runner:
    """Forward passes with chosen layers as in training, all from the same state."""

    model: nn.Module
    feed: Feed
    learners: list[_BatchNorm]

    def __call__(self, training: list[_BatchNorm], batch: Any) -> Any:
        with torch.no_grad(), undisturbed(self.model):
            self.model.eval()
            for layer in self.learners:
                layer.training = any(layer is other for other in training)
            return self.feed(self.model, batch)


def _step(model: nn.Module, feed: Feed, observer: Observer, batch: Any) -> list[str]:
    """One training step, forward and backward: how often does it move each population?"""
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
    except Exception as error:  # a model may want targets in training: what else was found still counts
        return [f"the training step failed: {(str(error).splitlines() or [type(error).__name__])[0]}"]
    for name, seen in layers.items():
        seen.steps = int(bank(seen.layer).num_batches_tracked) - before[name]
    return []


def _stubborn(model: nn.Module, layers: dict[str, _BatchNorm]) -> tuple[set[str], set[str]]:
    """Layers that stay in evaluation when the model goes to training, and the reverse; as found, or when told."""
    frozen = {name for name, layer in layers.items() if spared(layer)}
    always = {name for name, layer in layers.items() if model.training and not layer.training}
    never = {name for name, layer in layers.items() if layer.training and not model.training}
    with evaluating(model):
        never |= {name for name, layer in layers.items() if layer.training or layer.running_mean is None}
        model.train()
        always |= {name for name, layer in layers.items() if not layer.training}
    return always - frozen, never - frozen


def _still(model: nn.Module) -> Any:
    """The running statistics are not updated and our layers do not warn: no batch is a training step here."""
    return paused(model) if any(isinstance(m, BatchNorm) for m in model.modules()) else nullcontext()


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Modes, buffers, gradients and random generators come back at the end, whatever happens."""
    modes = [(module, module.training) for module in model.modules()]
    buffers = [
        (m, name, b, b.detach().clone()) for m in model.modules() for name, b in m._buffers.items() if b is not None
    ]
    gradients = [(p, p.grad) for p in model.parameters()]
    places = sorted({p.device.index for p in model.parameters() if p.device.type == "cuda"})
    python, numpy = random.getstate(), np.random.get_state()
    for parameter, _ in gradients:
        parameter.grad = None
    try:
        with torch.random.fork_rng(devices=places):
            yield
    finally:
        _put_back(modes, buffers, gradients)
        random.setstate(python)
        np.random.set_state(numpy)


def _put_back(modes: list[Any], buffers: list[Any], gradients: list[Any]) -> None:
    for module, mode in modes:
        module.training = mode
    with torch.no_grad():
        for module, name, buffer, value in buffers:
            module._buffers[name] = buffer.copy_(value)
    for parameter, gradient in gradients:
        parameter.grad = gradient


def _tensors(output: Any) -> list[Tensor]:
    return [t for t in tree_leaves(output) if isinstance(t, Tensor) and t.is_floating_point()]
