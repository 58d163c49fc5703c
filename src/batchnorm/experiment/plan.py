"""Which runs a study makes, in which order."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from . import claims, sources, study_networks
from .data import Data, InputError, standardise
from .evidence import Evidence, Sweep
from .interruption import Interruption, interruption
from .result import Study
from .runs import Arm, Run, Setting, train
from .settings import Settings
from .study_networks import MakeNetwork

ARMS: tuple[Arm, Arm] = ("batch norm", "plain")
WINE_STEPS = 300

Progress = Callable[[int, int, str], None]


@dataclass
class _Job:
    """One run and the lists it goes into."""

    make_network: MakeNetwork
    data: Data
    setting: Setting
    into: list[list[Run]]

    @property
    def label(self) -> str:
        s = self.setting
        return f"{self.data.name}, {s.arm}, rate {s.rate:g}, batch {s.batch_size}, seed {s.seed}"


def run(
    make_network: MakeNetwork,
    raw: Data,
    settings: Settings,
    network: str = "network",
    progress: Progress = lambda done, total, what: None,
    tell: Callable[[str], None] = lambda message: None,
) -> Study:
    """The whole study on data that is still on its own scales. Ctrl-C keeps the runs that are finished.

    progress: called with the updates done, the updates planned and what is running. tell: gets a line to show.
    """
    started = time.perf_counter()
    data = standardise(raw)
    study_networks.check(make_network, data)
    main = Sweep(data, ARMS, settings.rates)
    scales, missing = _scales(raw, settings)
    jobs = list(_sweep_jobs(make_network, main, scales, settings))
    updates = [job.setting.steps for job in jobs] + [
        setting.steps for setting in _batch_settings(settings, dict.fromkeys(ARMS, 1.0))
    ]
    done = _Counter(sum(updates), progress)
    batches: list[Run] = []
    finished: list[Run] = []
    with interruption(tell) as stop:
        _work(jobs, finished, stop, done)
        if not stop.asked:
            best = {arm: main.best_rate(arm) for arm in ARMS}
            more = [_Job(make_network, data, setting, [batches]) for setting in _batch_settings(settings, best)]
            _work(more, finished, stop, done)
    measured = claims.measure(Evidence(main, scales, batches, missing))
    return Study(
        network=network,
        data=data,
        settings=settings,
        claims=measured,
        scores=main.scores(),
        runs=finished,
        planned=len(updates),
        interrupted=stop.asked,
        seconds=time.perf_counter() - started,
    )


class _Counter:
    """Adds up updates for the progress callback."""

    def __init__(self, total: int, progress: Progress) -> None:
        self.done, self.total, self.progress, self.label = 0, total, progress, ""

    def __call__(self, steps: int) -> None:
        self.done += steps
        self.progress(self.done, self.total, self.label)


def _work(jobs: list[_Job], finished: list[Run], stop: Interruption, done: _Counter) -> None:
    for job in jobs:
        if stop.asked:
            return
        done.label = job.label
        result = train(job.make_network, job.data, job.setting, done)
        finished.append(result)
        for runs in job.into:
            runs.append(result)


def _scales(raw: Data, settings: Settings) -> tuple[Sweep | None, str]:
    """The sweep over raw and normalised columns: the study's own table, or else wine. None with the reason."""
    try:
        table = raw if raw.is_table else sources.load("wine")
    except InputError as error:
        return None, f"the data is not a table, and wine is not at hand: {error}"
    return Sweep(table, ("raw", "plain"), settings.rates), ""


def _sweep_jobs(make_network: MakeNetwork, main: Sweep, scales: Sweep | None, s: Settings) -> Iterator[_Job]:
    """Seed by seed, so that an interrupted study has whole seeds."""
    own = scales is not None and main.data.is_table
    for seed in s.seeds:
        for arm in ARMS:
            for rate in s.rates:
                into = [main.runs, scales.runs] if own and scales and arm == "plain" else [main.runs]
                yield _Job(make_network, main.data, Setting(arm, rate, seed, s.batch_size, s.steps, s.optimizer), into)
        if scales is None:
            continue
        size, steps = (s.batch_size, s.steps) if own else (min(16, s.batch_size), min(WINE_STEPS, s.steps))
        normalised = standardise(scales.data)
        for rate in s.rates:
            raw, plain = (Setting(arm, rate, seed, size, steps, s.optimizer, record=False) for arm in scales.arms)
            yield _Job(make_network if own else study_networks.mlp, scales.data, raw, [scales.runs])
            if not own:
                yield _Job(study_networks.mlp, normalised, plain, [scales.runs])


def _batch_settings(s: Settings, best: dict[Arm, float]) -> list[Setting]:
    """Every batch size sees the same number of samples; the best rate is scaled with the batch."""
    settings = []
    for seed in s.seeds:
        for arm in ARMS:
            for size in s.batch_sizes:
                ratio = size / s.batch_size
                rate = best[arm] * (ratio if s.optimizer == "sgd" else math.sqrt(ratio))
                settings.append(Setting(arm, rate, seed, size, s.samples // size, s.optimizer, record=False))
    return settings
