"""The runs of a study, in order."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from . import arms, claims, sources, study_networks, workers
from .data import Data, InputError, standardise
from .evidence import Evidence
from .headline import notes
from .interruption import Interruption, interruption
from .result import Study
from .runs import Arm, Run, Setting
from .settings import Settings
from .study_networks import MakeNetwork
from .sweep import Sweep
from .workers import Job

WINE_STEPS = 300

Progress = Callable[[int, int, str], None]


def run(
    make_network: MakeNetwork,
    raw: Data,
    settings: Settings,
    network: str = "network",
    progress: Progress = lambda done, total, what: None,
    tell: Callable[[str], None] = lambda message: None,
) -> Study:
    """Runs the whole study on data that is not yet standardised. After Ctrl-C the finished runs are kept.

    progress: called with (updates done, updates planned, text about the current run). tell: called with a line to show.
    """
    started = time.perf_counter()
    data = standardise(raw)
    arms.check(make_network, data)
    main = Sweep(data, settings.arms, settings.rates)
    scales, missing = _scales(raw, settings)
    evidence = Evidence(main, scales, scales_missing=missing)
    with interruption(tell) as stop:
        work = _Work(settings, progress, stop)
        _sweeps(make_network, main, scales, settings, work)
        if not stop.asked:
            best = {arm: main.best_rate(arm) for arm in main.arms}
            work(_few(make_network, data, settings, best, evidence.few))
        if not stop.asked:
            work(_batches(make_network, data, settings, best, evidence.batches))
    measured = claims.measure(evidence)
    return Study(
        network=network,
        data=data,
        settings=settings,
        claims=measured,
        scores=main.scores(),
        notes=notes(main, scales),
        runs=work.finished,
        planned=work.planned,
        interrupted=stop.asked,
        seconds=time.perf_counter() - started,
    )


@dataclass
class _Work:
    """Trains the runs and counts their updates for the progress callback."""

    settings: Settings
    progress: Progress
    stop: Interruption
    finished: list[Run] = field(default_factory=list)
    planned: int = 0
    done: int = 0
    total: int = 0

    def __post_init__(self) -> None:
        """Counts the runs that follow the sweep, so that they are planned from the start."""
        later = [*_few_settings(self.settings, {}), *_batch_settings(self.settings, {})]
        self.planned, self.total = len(later), sum(setting.steps for setting in later)

    def plan(self, jobs: list[Job]) -> list[Job]:
        self.planned += len(jobs)
        self.total += sum(job.setting.steps for job in jobs)
        return jobs

    def __call__(self, jobs: Iterable[Job]) -> None:
        s = self.settings
        workers.work(list(jobs), s.workers, s.threads, self.stop, self._tick, self.finished)

    def _tick(self, steps: int, label: str) -> None:
        self.done += steps
        self.progress(self.done, self.total, label)


def _scales(raw: Data, settings: Settings) -> tuple[Sweep | None, str]:
    """The sweep over raw and normalised columns, of the study's table or else of wine; or None and the reason."""
    try:
        table = raw if raw.is_table else sources.load("wine")
    except InputError as error:
        return None, f"the data is not a table, and wine is not at hand: {error}"
    return Sweep(table, ("raw", "plain"), settings.rates), ""


def _sweeps(make_network: MakeNetwork, main: Sweep, scales: Sweep | None, s: Settings, work: _Work) -> None:
    """Runs both sweeps. While an arm's best rate is at an edge, rates beyond the edge are added, up to a bound."""
    work(work.plan(list(_sweep_jobs(make_network, main, scales, s, main.rates, scales.rates if scales else ()))))
    while s.grows and not work.stop.asked:
        beyond = main.beyond()
        own = main.data.is_table
        further = scales.beyond() if scales is not None else ()
        if not beyond and not further:
            return
        if own:  # the network without batch norm is the same run in both sweeps
            beyond = further = tuple(sorted({*beyond, *further}))
        main.grow(beyond)
        if scales is not None:
            scales.grow(further)
        work(work.plan(list(_sweep_jobs(make_network, main, scales, s, beyond, further))))


def _sweep_jobs(
    make_network: MakeNetwork,
    main: Sweep,
    scales: Sweep | None,
    s: Settings,
    rates: tuple[float, ...],
    scales_rates: tuple[float, ...],
) -> Iterator[Job]:
    """The runs of both sweeps, seed by seed, so that an interrupted study has complete seeds."""
    own = scales is not None and main.data.is_table
    for seed in s.seeds:
        for arm in main.arms:
            for rate in rates:
                into = (main.runs, scales.runs) if own and scales and arm == "plain" else (main.runs,)
                yield Job(make_network, main.data, Setting(arm, rate, seed, s.batch_size, s.steps, s.optimizer), into)
        if scales is None:
            continue
        size, steps = (s.batch_size, s.steps) if own else (min(16, s.batch_size), min(WINE_STEPS, s.steps))
        normalised = standardise(scales.data)
        for rate in scales_rates:
            raw, plain = (Setting(arm, rate, seed, size, steps, s.optimizer, record=False) for arm in scales.arms)
            yield Job(make_network if own else study_networks.mlp, scales.data, raw, (scales.runs,))
            if not own:
                yield Job(study_networks.mlp, normalised, plain, (scales.runs,))


def _few(make_network: MakeNetwork, data: Data, s: Settings, best: dict[Arm, float], into: list[Run]) -> Iterator[Job]:
    for setting in _few_settings(s, best):
        yield Job(make_network, data, setting, (into,))


def _few_settings(s: Settings, best: dict[Arm, float]) -> Iterator[Setting]:
    """The settings that overfit: the same network, as many steps, but a small part of the training samples."""
    for seed in s.seeds:
        for arm in s.arms if s.few else ():
            size = min(s.batch_size, max(2, s.few // 3))
            yield Setting(arm, best.get(arm, 1.0), seed, size, s.steps, s.optimizer, record=False, samples=s.few)


def _batches(
    make_network: MakeNetwork, data: Data, s: Settings, best: dict[Arm, float], into: list[Run]
) -> Iterator[Job]:
    """The runs over batch sizes, longest first, so that no long run is alone at the end."""
    for setting in sorted(_batch_settings(s, best), key=lambda setting: -setting.steps):
        yield Job(make_network, data, setting, (into,))


def _batch_settings(s: Settings, best: dict[Arm, float]) -> Iterator[Setting]:
    """The settings over batch sizes: equal numbers of samples, the best rate times the square root of the size's ratio.

    This keeps the variance of an update (Krizhevsky 2014, One weird trick, section 5). With rates in proportion to the
    batch size, small batches would learn no more from a sample than large ones, and these runs would need as many
    samples as those of the sweep.
    """
    for seed in s.seeds:
        for arm in s.arms:
            for size in s.batch_sizes:
                rate = best.get(arm, 1.0) * math.sqrt(size / s.batch_size)
                yield Setting(arm, rate, seed, size, s.samples // size, s.optimizer, record=False)
