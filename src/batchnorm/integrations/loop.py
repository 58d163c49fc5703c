"""The code that callbacks for all training loops share: windows, freezing, calibration and records."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from batchnorm.doctor import Report, diagnose
from batchnorm.doctor.findings import report
from batchnorm.doctor.states import norms
from batchnorm.doctor.watch import Watch
from batchnorm.tools.calibrate import Calibration, calibrate
from batchnorm.tools.model_populations import bank
from batchnorm.tools.streams import several
from batchnorm.tools.sweep import Feed, feed_by_default
from batchnorm.training.accumulate import close_windows, have_windows, open_windows
from batchnorm.training.freeze import freeze, unfreeze
from batchnorm.training.own_layers import own_layers, require_own_layers
from batchnorm.training.paused import paused


@dataclass
class Settings:
    """The options of a callback.

    Args:
        accumulate: True to update the running statistics once for each step of the optimizer.
        freeze_at: the epoch (from 0) at whose start the batch norms are frozen, or None.
        unfreeze_at: the epoch at whose start they are unfrozen, or None.
        affine: True to freeze γ and β as well.
        calibrate: batches for `bn.calibrate` before each evaluation and at the end: a list, a DataLoader or a function
            that returns an iterator; each rank has its own. None for no calibration.
        exact: True to calibrate level by level, False in one pass.
        limit: the number of batches to calibrate on, from the first; None for all.
        feed: called as feed(model, batch) while calibrating.
        diagnose: True to apply the rules of `bn.diagnose` at the end.
        watch: record the batch norms at one of every `watch` steps of the optimizer, or None.

    Raises:
        ValueError: epochs below 0, unfreezing that comes no later than freezing, or `watch` below 1.
    """

    accumulate: bool = True
    freeze_at: int | None = None
    unfreeze_at: int | None = None
    affine: bool = False
    calibrate: Any = None
    exact: bool = True
    limit: int | None = None
    feed: Feed = feed_by_default
    diagnose: bool = True
    watch: int | None = None

    def __post_init__(self) -> None:
        first, last = self.freeze_at, self.unfreeze_at
        for name, least in (("freeze_at", 0), ("unfreeze_at", 0), ("watch", 1)):
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < least):
                raise ValueError(f"{name} must be a whole number ≥ {least}, or None; got {value!r}")
        if first is not None and last is not None and last <= first:
            raise ValueError(f"unfreeze_at={last} must come after freeze_at={first}")

    def frozen_in(self, epoch: int) -> bool | None:
        """True if the layers are frozen in this epoch, False if not, None if the settings leave them as they are."""
        if self.unfreeze_at is not None and epoch >= self.unfreeze_at:
            return False
        return True if self.freeze_at is not None and epoch >= self.freeze_at else None


@dataclass
class Companion:
    """The actions of a callback on a model, one for each event of the loop."""

    settings: Settings
    calibrations: list[Calibration] = field(default_factory=list)
    report: Report | None = None
    watch: Watch | None = None
    running: bool = False

    def begin(self, model: nn.Module, writer: Any = None) -> None:
        """Training begins.

        Raises:
            ValueError: no batch norm of ours in the model, or a window of `bn.accumulate` that is open.
        """
        if self.running:  # the last training was interrupted, and its loop has no event for that
            self.release(model)
        require_own_layers(model)
        if have_windows(model):
            raise ValueError(
                "a window of bn.accumulate is open, and the callback opens one for each step of the optimizer: leave "
                "the `with` before training"
            )
        self.calibrations, self.report, self.watch, self.running = [], None, None, True
        if self.settings.watch is not None:
            self.watch = Watch(model, norms(model), writer, self.settings.watch, "warn", by_forward=False).__enter__()

    def epoch_begins(self, model: nn.Module, epoch: int) -> None:
        """Freeze or unfreeze, as the settings want it in this epoch, also if a run resumes in a later one."""
        wanted = self.settings.frozen_in(epoch)
        if wanted and not all(layer.frozen for layer in own_layers(model)):
            freeze(model, affine=self.settings.affine)
        elif wanted is False and any(layer.frozen for layer in own_layers(model)):
            unfreeze(model)

    def micro_batch_begins(self, model: nn.Module, micro_batches: int) -> None:
        """Before a forward pass in training; the first of a step opens the window."""
        first = not have_windows(model)
        if first and self.settings.accumulate and micro_batches > 1:
            open_windows(model)
        if self.watch is not None:
            if first:
                self.watch.next_pass()
            else:
                self.watch.stop_recording()

    def micro_batch_ends(self) -> None:
        """After a backward pass: nothing is recorded until the next `micro_batch_begins`."""
        if self.watch is not None:
            self.watch.stop_recording()

    def step_ends(self, model: nn.Module) -> None:
        """After the last micro-batch of a step."""
        close_windows(model)
        self.micro_batch_ends()

    def calibrate(self, model: nn.Module, batches: Any) -> None:
        """Calibrate on `batches`, unless they are None or all batch norms are frozen."""
        if batches is not None and not all(layer.frozen for layer in own_layers(model)):
            self.calibrations.append(calibrated(model, batches, self.settings))

    def end(self, model: nn.Module, batches: Any) -> None:
        """Training ends without an error: calibrate and diagnose."""
        close_windows(model)
        self.release(model)
        self.calibrate(model, batches)
        if self.settings.diagnose:
            found = diagnose(bare(model), process_group=True)
            seen = [] if self.watch is None else self.watch.findings
            self.report = report([*seen, *found.findings], found.layers, notes=found.notes)

    def release(self, model: nn.Module) -> None:
        """Remove windows and hooks, also if training failed."""
        self.running = False
        for layer in own_layers(model):
            layer._window = None
        if self.watch is not None:
            self.watch.__exit__()


class Outcome:
    """The results of a training as attributes of a callback."""

    _companion: Companion

    @property
    def report(self) -> Report | None:
        """The findings at the end of training."""
        return self._companion.report

    @property
    def watched(self) -> Watch | None:
        """The records and findings of `bn.watch`."""
        return self._companion.watch

    @property
    def calibrations(self) -> list[Calibration]:
        """Every calibration of this training, in order."""
        return self._companion.calibrations


def bare(model: nn.Module) -> nn.Module:
    """The model inside DistributedDataParallel, whose own forward pass would exchange buffers between ranks."""
    return model.module if isinstance(model, DistributedDataParallel) else model


def calibrated(model: nn.Module, batches: Any, settings: Settings) -> Calibration:
    """`bn.calibrate` in the middle of training, over all ranks.

    The counters of batches, open windows, and the random generators from which a loader draws its order are the same
    afterwards as before.
    """
    model = bare(model)
    counters = [counter for layer in own_layers(model) if (counter := bank(layer).num_batches_tracked) is not None]
    counted = [counter.clone() for counter in counters]
    generator = getattr(batches, "generator", None)
    drawn = None if generator is None else generator.get_state()
    with paused(model), torch.random.fork_rng(devices=[]):
        try:
            found = calibrate(
                model, _held(batches, settings.limit), exact=settings.exact, feed=settings.feed, process_group=True,
                progress=False,
            )  # fmt: skip
        finally:
            if generator is not None:
                generator.set_state(drawn)
    for counter, value in zip(counters, counted, strict=True):
        counter.copy_(value)
    return found


def _held(batches: Any, limit: int | None) -> Any:
    """A list of the first `limit` batches: a loader that shuffles would give other batches in the next pass."""
    return batches if limit is None else list(several(batches, limit))
