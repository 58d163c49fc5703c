"""Exact moments of the input of every batch norm of a model, level by level."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn.modules.batchnorm import _BatchNorm

from batchnorm.core.moments import Moments, weights_of
from batchnorm.core.sharing import pooled_over_ranks, resolve
from batchnorm.tools.dependency_levels import Use, levels
from batchnorm.tools.model_populations import bank, write
from batchnorm.tools.progress import track
from batchnorm.tools.streams import several

Feed = Callable[[nn.Module, Any], Any]
Settle = Callable[[str, Moments, int], tuple[Tensor, Tensor]]


@dataclass
class Sweep:
    """Settings of a pass through the data, and its progress."""

    model: nn.Module
    layers: dict[str, _BatchNorm]
    batches: Any
    feed: Feed
    limit: int | None = None
    tolerance: float | None = None
    process_group: Any = None
    progress: bool | None = None
    seen: int = 0  # number of batches in the longest pass, over all ranks
    passes: int = 0
    stopped: list[bool] = field(default_factory=list)  # per pass: True if it converged before the data ended

    @property
    def device(self) -> torch.device:
        """The device of the statistics."""
        return bank(next(iter(self.layers.values()))).running_mean.device

    def stream(self) -> Iterable[Any]:
        """The batches from the start, at most `limit`."""
        return several(self.batches, self.limit)

    def check_passes(self, what: str) -> None:
        """Raise an error for an iterator, which is empty in a second pass."""
        if isinstance(self.batches, Iterator):
            raise ValueError(
                f"{what} several passes over the data, and an iterator gives one: pass a list, a DataLoader or a "
                "function that returns an iterator (one pass: calibrate with exact=False, adapt with online=True)"
            )

    def one_pass(self) -> dict[str, Moments]:
        """The moments per layer, in one pass with the present modes and statistics of the model."""
        found = self._pass(dict.fromkeys(self.layers), None, "calibrating")
        pooled = self._over_ranks({(name, 0): found.get((name, 0)) for name in self.layers})
        self._finish()
        return {name: moments for (name, _), (moments, _) in pooled.items() if torch.as_tensor(moments.count).any()}

    def level_by_level(self, settle: Settle) -> dict[str, Moments]:
        """The moments per layer; the layers before it normalise by what `settle` returns for their own moments.

        `settle` takes a layer's name, moments and number of samples, and returns a mean and a variance.
        """
        self.check_passes("exact statistics need")
        plan = self._plan()
        settled: dict[Use, tuple[Tensor, Tensor]] = {}
        total: dict[str, Moments] = {}
        for number, level in enumerate(plan, 1):
            known: dict[Use, tuple[Tensor, Tensor] | None] = {use: None for later in plan for use in later}
            found = self._pass(known | settled, set(level), f"level {number} of {len(plan)}")
            for (name, call), (moments, samples) in self._over_ranks({use: found.get(use) for use in level}).items():
                settled[name, call] = settle(name, moments, samples)
                total[name] = total[name].merge(moments) if name in total else moments
        self._finish()
        return total

    def each_batch(self, before: Callable[[str, _BatchNorm, Moments, int], None]) -> None:
        """One pass that calls `before` with the moments of each layer's input, just before it is normalised."""

        def hook(name: str, layer: _BatchNorm, args: Any, kwargs: Any) -> None:
            x = args[0] if args else kwargs["input"]
            before(name, layer, measured(name, x, kwargs), x.shape[0])

        handles = [
            layer.register_forward_pre_hook(partial(hook, name), with_kwargs=True)
            for name, layer in self.layers.items()
        ]
        try:
            with torch.no_grad():
                for batch in track(self.stream(), "batches", self.progress):
                    self.feed(self.model, batch)
        finally:
            for handle in handles:
                handle.remove()

    def _plan(self) -> list[list[Use]]:
        plan: list[list[Use]] = []
        for first in islice(self.stream(), 1):
            plan = levels(self.model, self.layers, partial(self.feed, self.model, first))
        if group := resolve(self.process_group):
            plans: list[Any] = [None] * dist.get_world_size(group)
            dist.all_gather_object(plans, plan, group=group)
            plan = next((p for p in plans if p), [])
        if not plan:
            raise ValueError("no batch, or none that reaches a batch norm with running statistics: nothing was changed")
        return plan

    def _pass(self, known: dict[Any, Any], wanted: set[Use] | None, label: str) -> dict[Use, tuple[Moments, int]]:
        """One pass: calls in `known` normalise by the values given, calls in `wanted` (None: all) are measured."""
        watch = _Watch(self.layers, known, wanted)
        number, converged = 0, False
        with watch, torch.no_grad():
            for number, batch in enumerate(track(self.stream(), label, self.progress), 1):
                watch.start()
                with suppress(EnoughError):
                    self.feed(self.model, batch)
                if self.tolerance is not None and number & (number - 1) == 0:
                    converged = watch.settled_within(self.tolerance)
                    if converged:
                        break
        self.seen, self.passes = max(self.seen, number), self.passes + 1
        self.stopped.append(converged)
        return watch.found

    def _over_ranks(self, found: dict[Use, Any]) -> dict[Use, tuple[Moments, int]]:
        group = resolve(self.process_group)
        for use, own in found.items():
            if own is None:
                nothing = torch.zeros(self.layers[use[0]].num_features, dtype=torch.float64, device=self.device)
                own = Moments(nothing, nothing, nothing), 0
            if group:
                moments, samples = own
                count = torch.as_tensor(moments.count).to(moments.mean).expand_as(moments.mean)
                row = Moments(count.unsqueeze(0), moments.mean.unsqueeze(0), moments.m2.unsqueeze(0))
                number = torch.tensor([samples], device=self.device)
                dist.all_reduce(number, group=group)
                own = pooled_over_ranks(row, group, use[0]).channels(), int(number)
            found[use] = own
        return found

    def _finish(self) -> None:
        if group := resolve(self.process_group):
            number = torch.tensor([self.seen], device=self.device)
            dist.all_reduce(number, group=group)
            self.seen = int(number)


class EnoughError(BaseException):
    """Ends a forward pass early. It is no Exception, so that no `except Exception` of the model catches it."""


class _Watch:
    """Hooks that measure the inputs of some batch norms and set the statistics by which the others normalise."""

    def __init__(self, layers: dict[str, _BatchNorm], known: dict[Any, Any], wanted: set[Use] | None) -> None:
        self.layers, self.known, self.wanted = layers, known, wanted
        self.found: dict[Use, tuple[Moments, int]] = {}
        self.earlier: dict[Use, Moments] = {}

    def __enter__(self) -> None:
        self.handles = [
            layer.register_forward_pre_hook(lambda *a, name=name: self.before(name, *a), with_kwargs=True)
            for name, layer in self.layers.items()
        ]

    def __exit__(self, *_: object) -> None:
        for handle in self.handles:
            handle.remove()

    def start(self) -> None:
        """Start a new batch."""
        self.calls = dict.fromkeys(self.layers, 0)
        self.missing = None if self.wanted is None else len(self.wanted)

    def before(self, name: str, layer: _BatchNorm, args: Any, kwargs: Any) -> None:
        if self.wanted is None:
            self.measure((name, 0), layer, args, kwargs)
            return
        use = name, self.calls[name]
        self.calls[name] += 1
        if use not in self.known:
            raise RuntimeError(
                f"{name} was called {use[1] + 1} times by one batch, and not by the first one: exact statistics need "
                "every batch to call the same layers. Pass exact=False"
            )
        if use in self.wanted:
            self.measure(use, layer, args, kwargs)
            self.missing -= 1  # type: ignore[operator]
            if not self.missing:
                raise EnoughError
        elif (statistics := self.known[use]) is not None:
            write(layer, *statistics)

    def measure(self, use: Use, layer: _BatchNorm, args: Any, kwargs: Any) -> None:
        x = args[0] if args else kwargs["input"]
        moments = measured(use[0], x, kwargs)
        old, samples = self.found.get(use, (None, 0))
        self.found[use] = moments if old is None else old.merge(moments), samples + x.shape[0]

    def settled_within(self, tolerance: float) -> bool:
        """True if since the last call no mean changed by more than `tolerance`·σ, and no variance by that share."""
        earlier, self.earlier = self.earlier, {use: moments for use, (moments, _) in self.found.items()}
        return bool(earlier) and all(
            use in earlier and _change(earlier[use], moments) <= tolerance for use, moments in self.earlier.items()
        )


def _change(old: Moments, new: Moments) -> float:
    sigma = new.variance.sqrt().clamp(min=torch.finfo(torch.float32).tiny)
    moved = (new.mean - old.mean).abs() / sigma
    spread = (old.variance - new.variance).abs() / sigma.square()
    return max(moved.max().item(), spread.max().item())


def measured(name: str, x: Tensor, kwargs: dict[str, Any]) -> Moments:
    """The moments of the input of a layer, without the values that its mask or lengths leave out."""
    moments = Moments.of(x.detach(), mask=weights_of(x, kwargs.get("mask"), kwargs.get("lengths")))
    if not (moments.mean.isfinite() & moments.m2.isfinite()).all():
        raise FloatingPointError(f"{name} got NaN or Inf: no statistics were changed")
    return moments


def feed_by_default(model: nn.Module, batch: Any) -> Any:
    """model(batch) on the model's device, with the first element of a tuple or list, or a dict's items as keywords."""
    place = next(iter([*model.parameters(), *model.buffers()]), None)

    def there(value: Any) -> Any:
        return value.to(place.device) if isinstance(value, Tensor) and place is not None else value

    if isinstance(batch, dict):
        return model(**{name: there(value) for name, value in batch.items()})
    return model(there(batch[0] if isinstance(batch, tuple | list) else batch))
