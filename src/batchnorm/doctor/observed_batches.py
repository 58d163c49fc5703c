"""Observes every batch norm of a model through hooks, while data go through the model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor
from torch import distributed as dist
from torch.nn.modules.batchnorm import _BatchNorm

from batchnorm.core.moments import Moments, values_per_channel, weights_of
from batchnorm.core.sharing import resolve
from batchnorm.core.torch_internals import TorchDispatchMode, recomputing

Phase = Literal["evaluation", "training", "step"]

aten = torch.ops.aten
RECTIFIERS = {aten.relu, aten.relu_, aten.hardtanh, aten.hardtanh_, aten.threshold, aten.threshold_, aten.clamp_min}


@dataclass
class Seen:
    """The observations of one batch norm: moments of its inputs, maxima of its outputs, and counts of its calls."""

    layer: _BatchNorm
    halves: list[tuple[Moments, Moments]] = field(default_factory=list)  # per batch in training: even and odd samples
    sharing: float = 1.0  # size of the set that shares statistics, in batches: below 1 for virtual batches
    calls: int = 0  # the most in one forward pass
    passes: int = 0  # forward passes that reached it
    step_updates: int = 0  # updates of its counter in one training step
    step_calls: int = 0  # calls in that step
    single: int = 0  # batches with one value per channel
    nonfinite: int = 0  # forward passes with NaN or Inf in its input
    padded: list[float] = field(default_factory=list)  # per batch, the share of positions that look like padding
    peak: Tensor | None = None  # (C,), the largest output in evaluation
    rectified: bool = False  # a ReLU gets the unchanged output
    flipped: set[Phase] = field(default_factory=set)  # phases in which the forward pass changed the layer's mode

    @property
    def moments(self) -> list[Moments]:
        """The moments of each batch in training."""
        return [even.merge(odd) for even, odd in self.halves]


class Observer:
    """Hooks on batch norms within a `with`; `phase` is the purpose of the forward pass, None if it is not observed."""

    def __init__(self, layers: dict[str, _BatchNorm]) -> None:
        self.seen = {name: Seen(layer) for name, layer in layers.items()}
        self.phase: Phase | None = None
        self.calls: dict[str, int] = {}
        self.order: list[str] = []  # of the first calls

    def __enter__(self) -> Observer:
        self.handles = []
        for name, seen in self.seen.items():
            before, after = partial(self._before, name), partial(self._after, name)
            self.handles.append(seen.layer.register_forward_pre_hook(before, with_kwargs=True))
            self.handles.append(seen.layer.register_forward_hook(after))
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self.handles:
            handle.remove()

    @contextmanager
    def observing(self, phase: Phase) -> Iterator[None]:
        """Observes one forward pass (and, in a step, its backward pass)."""
        self.phase, self.calls = phase, dict.fromkeys(self.seen, 0)
        try:
            yield
        finally:
            self.phase = None
        for name, calls in self.calls.items():
            seen = self.seen[name]
            seen.calls, seen.passes = max(seen.calls, calls), seen.passes + (calls > 0)

    def _before(self, name: str, layer: _BatchNorm, args: Any, kwargs: Any) -> None:
        if self.phase is None or recomputing():
            return
        self.calls[name] += 1
        if name not in self.order:
            self.order.append(name)
        seen, x = self.seen[name], (args[0] if args else kwargs["input"]).detach()
        if self.phase == "step":
            seen.step_calls += 1
        elif not x.isfinite().all():
            seen.nonfinite += 1
        elif self.phase == "evaluation":
            masked = kwargs.get("mask") is not None or kwargs.get("lengths") is not None
            seen.padded.append(0.0 if masked or x.dim() != 3 else constant_ends(x))
        else:
            self._measure(name, x, weights_of(x, kwargs.get("mask"), kwargs.get("lengths")))
        if layer.training != (self.phase in ("training", "step")) and not is_frozen(layer):
            seen.flipped.add(self.phase)
        if self.phase != "evaluation" and values_per_channel(x) == 1:
            seen.single += self.phase == "training"
            layer.training = False  # torch's layer would raise, and later layers would not be observed

    def _measure(self, name: str, x: Tensor, weights: Tensor | None) -> None:
        seen = self.seen[name]
        even, odd = halves(x, weights)
        if self.calls[name] > 1 and seen.halves:  # the calls of one forward pass count as one batch
            first = seen.halves.pop()
            even, odd = first[0].merge(even), first[1].merge(odd)
        seen.halves.append((even, odd))
        seen.sharing = _sharing(seen.layer, x.shape[0])

    def _after(self, name: str, layer: _BatchNorm, args: Any, output: Tensor) -> None:
        if self.phase == "evaluation":
            seen, peak = self.seen[name], output.detach().movedim(1, 0).flatten(1).amax(1)
            seen.peak = peak if seen.peak is None else torch.maximum(seen.peak, peak)


class ReluFinder(TorchDispatchMode):
    """While active, marks the batch norms whose output goes unchanged into a ReLU (a module or a function)."""

    def __init__(self, seen: dict[str, Seen]) -> None:
        super().__init__()
        self.seen = seen
        self.outputs: dict[int, tuple[Seen, Tensor, int]] = {}  # kept alive, so that no address is used twice

    def __enter__(self) -> Any:
        def note(seen: Seen, _: Any, __: Any, output: Tensor) -> None:
            seen.rectified |= getattr(seen.layer, "activation", None) in ("relu", "relu6")
            self.outputs[output.untyped_storage()._cdata] = seen, output, output._version

        self.handles = [seen.layer.register_forward_hook(partial(note, seen)) for seen in self.seen.values()]
        return super().__enter__()

    def __exit__(self, *exception: Any) -> None:
        for handle in self.handles:
            handle.remove()
        super().__exit__(*exception)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket in RECTIFIERS and (len(args) < 2 or args[1] == 0):
            seen, output, version = self.outputs.get(args[0].untyped_storage()._cdata, (None, None, None))
            if seen is not None and output is not None and output._version == version:
                seen.rectified = True
        return func(*args, **(kwargs or {}))


def halves(x: Tensor, weights: Tensor | None) -> tuple[Moments, Moments]:
    """The moments of the even and of the odd samples; their difference shows the noise of a batch."""
    parts = []
    for i in (0, 1):
        mask = weights if weights is None or weights.shape[0] == 1 else weights[i::2]
        nothing = torch.zeros(x.shape[1], dtype=torch.float64, device=x.device)
        parts.append(Moments.of(x[i::2], mask) if x[i::2].numel() else Moments(0, nothing, nothing))
    return parts[0], parts[1]


def constant_ends(x: Tensor) -> float:
    """The share of positions of `x: (N, C, L)` that repeat the last (or the first) position of their sequence."""

    def share(x: Tensor) -> float:
        repeats = (x == x[..., :1]).all(1).cummin(1).values.sum(1)
        return float(repeats.where(repeats > 1, 0).sum() / max(x.shape[0] * x.shape[2], 1))

    return max(share(x), share(x.flip(2)))


def is_frozen(layer: _BatchNorm) -> bool:
    """True if the layer was frozen with `bn.freeze`."""
    return bool(getattr(layer, "frozen", False))


def _sharing(layer: _BatchNorm, samples: int) -> float:
    virtual, group = getattr(layer, "virtual_batch_size", None), resolve(getattr(layer, "process_group", None))
    return min(1.0, virtual / samples) if virtual else float(dist.get_world_size(group) if group else 1)
