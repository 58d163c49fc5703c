"""The settings of a study, and their defaults."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from .arms import named_arms
from .data import Data, InputError
from .runs import Arm
from .workers import cores

STEPS = 360  # updates of a run if no number of epochs is given
QUICK_STEPS = 120
RATES = (0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)
QUICK_RATES = (0.1, 1.0, 10.0)
ADAM = 0.01  # Adam's rates are about a hundredth of SGD's
BATCH_SIZES = (2,)  # in addition to the sweep's own
SAMPLES, QUICK_SAMPLES = 5000, 2000  # used by each run of the batch size claim
FEW = 100  # samples of the setting that overfits, or a third of the training part if that is less


@dataclass(frozen=True)
class Settings:
    """The size of a study: rates, seeds, steps and batches.

    arms: the two arms that are compared come first. rates: learning rates of the sweep, which may add more if `grows`.
    steps: updates per run. samples: number used by each run over batch sizes. few: number of training samples in the
    setting that overfits.
    """

    arms: tuple[Arm, ...]
    rates: tuple[float, ...]
    grows: bool
    seeds: tuple[int, ...]
    batch_size: int
    epochs: int
    steps: int
    optimizer: str
    batch_sizes: tuple[int, ...]
    samples: int
    few: int
    workers: int
    threads: int

    def to_dict(self) -> dict[str, Any]:
        """The settings that change the results; the numbers of processes and threads are left out."""
        return {name: value for name, value in asdict(self).items() if name not in ("workers", "threads")}


def choose(
    data: Data,
    *,
    rates: Sequence[float] | None = None,
    seeds: int | None = None,
    seed: int = 0,
    epochs: int | None = None,
    batch_size: int | None = None,
    batch_sizes: Sequence[int] | None = None,
    optimizer: str = "sgd",
    norms: str = "batch,none",
    workers: int | None = None,
    threads: int = 1,
    quick: bool = False,
) -> Settings:
    """Fills in the settings that are None, by the size of the data; raises InputError for what cannot be run."""
    if optimizer not in ("sgd", "adam"):
        raise InputError(f"optimizer {optimizer!r}: expected sgd or adam")
    grows = rates is None
    if rates is None:
        rates = [r * (ADAM if optimizer == "adam" else 1) for r in (QUICK_RATES if quick else RATES)]
    if not rates or not all(math.isfinite(r) and r > 0 for r in rates):
        raise InputError(f"learning rates {list(rates)}: expected numbers above 0")
    seeds = (2 if quick else 3) if seeds is None else seeds
    for name, value in (("seeds", seeds), ("epochs", epochs), ("batch size", batch_size), ("workers", workers)):
        if value is not None and value < 1:
            raise InputError(f"{name} {value}: expected at least 1")
    samples = len(data.train)
    if batch_size is None:
        batch_size = min(60, samples // 6)
    if not 2 <= batch_size <= samples:
        raise InputError(f"batch size {batch_size}: expected 2 to {samples}, the number of training samples")
    per_epoch = samples // batch_size
    if epochs is None:
        epochs = max(1, round((QUICK_STEPS if quick else STEPS) / per_epoch))
    sizes = BATCH_SIZES if batch_sizes is None else batch_sizes
    if not sizes or min(sizes) < 2 or max(sizes) > samples:
        raise InputError(f"batch sizes {list(sizes)}: expected one or more, from 2 to {samples}")
    return Settings(
        arms=named_arms(norms),
        rates=tuple(sorted(set(map(float, rates)))),
        grows=grows,
        seeds=tuple(range(seed, seed + seeds)),
        batch_size=batch_size,
        epochs=epochs,
        steps=epochs * per_epoch,
        optimizer=optimizer,
        batch_sizes=tuple(sorted(set(sizes))),
        samples=max(QUICK_SAMPLES if quick else SAMPLES, max(sizes)),
        few=min(FEW, samples // 3),
        workers=workers or cores(),
        threads=threads,
    )
