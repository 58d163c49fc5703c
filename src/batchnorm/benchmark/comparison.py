"""The whole comparison as plain numbers: cases, totals, whole networks, memory and targets."""

import contextlib
import datetime
import os
import platform
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from batchnorm.backends import native
from batchnorm.benchmark import load, steps, targets
from batchnorm.benchmark.agreement import check, with_affine
from batchnorm.benchmark.build_time import CannotBuild, seconds_to_build
from batchnorm.benchmark.cases import LAYOUTS, Case, cases
from batchnorm.benchmark.timing import Subjects, Times, alternate
from batchnorm.benchmark.totals import totals
from batchnorm.benchmark.whole_networks import EVERY, NETWORKS

Result = dict[str, Any]
Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class Settings:
    """The inputs of a comparison, and the seconds spent on each."""

    pairs: tuple[tuple[str, str], ...] = (("float32", "plain"),)  # dtype and block
    layouts: tuple[str, ...] = LAYOUTS
    seconds: float = 2.0
    quick: bool = False
    networks: bool = True
    compile: bool = True
    targets: bool = False  # also time the build, and train networks in float32 only

    @property
    def network_dtypes(self) -> list[str]:
        return ["float32"] if self.targets else list(dict.fromkeys(dtype for dtype, _ in self.pairs))


class _Run:
    """A running comparison, with the results so far."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.cases: list[Result] = []
        self.networks: list[Result] = []
        self.memory: list[Result] = []
        self.build: float | None = None
        self.notes = ["small inputs, to see that it works: no times to quote"] if settings.quick else []
        self.compile = settings.compile
        self.before, self.others = load.average(), load.Others()

    def jobs(self) -> Iterator[tuple[str, Callable[[], None]]]:
        """The jobs in order, each with a name."""
        s = self.settings
        for case in cases(s.pairs, s.layouts, s.quick):
            yield str(case), partial(self.case, case)
        if s.networks:
            yield from self.network_jobs()
        if s.targets and not s.quick:
            yield "build of the native kernels", self.time_build

    def network_jobs(self) -> Iterator[tuple[str, Callable[[], None]]]:
        s = self.settings
        for dtype in s.network_dtypes:
            if dtype not in ("float32", "bfloat16"):
                self.notes.append(f"networks are trained in float32 and bfloat16, so not in {dtype}")
                continue
            for layout in s.layouts:
                for name in EVERY if layout == "contiguous" else NETWORKS:
                    yield f"{name} {layout} {dtype}", partial(self.network, name, layout, dtype)
        for name in NETWORKS:
            for activation in ("relu", "silu", "gelu"):
                yield f"{name} {activation}, memory", partial(self.kept, name, activation)

    def case(self, case: Case) -> None:
        torchs, ours = (with_affine(layer, case) for layer in (case.torchs(), case.ours()))
        check(case, ours, torchs)
        x = case.inputs()[0]
        warm = x.clone()
        subjects: Subjects = {
            "torch": steps.both_ways(torchs, case),
            "ours": steps.both_ways(ours, case),
            "forward": steps.forward(ours, case),
            "copy": partial(warm.copy_, x),
        }
        if compiled := self._compiled(case):
            subjects["compiled"] = compiled
        times = self._alternate(subjects)
        rivals = [name for name in ("torch", "compiled") if name in subjects]
        self.cases.append(
            {
                **case.facts,
                "milliseconds": {name: 1e3 * times.seconds(name).median for name in subjects},
                "ratios": {name: asdict(times.ratio(name, "ours")) for name in rivals},
                "copies": {
                    "forward": asdict(times.ratio("forward", "copy")),
                    "both": asdict(times.ratio("ours", "copy")),
                },
                "turns": len(times.turns["ours"]),
            }
        )

    def _alternate(self, subjects: Subjects) -> Times:
        with self.others:
            return alternate(subjects, self.settings.seconds)

    def _compiled(self, case: Case) -> Callable[[], object] | None:
        """torch's block under torch.compile; None, with one note, if torch.compile does not work here."""
        if not self.compile:
            return None
        torch.compiler.reset()
        layer = with_affine(case.torchs(), case)
        layer.compile(dynamic=False)
        step = steps.both_ways(layer, case)
        try:
            step()
        except Exception as error:  # a compiler may raise anything
            self.compile = False
            self.notes.append(f"torch.compile does not work here: {' '.join(str(error).split())[:200]}")
            return None
        return step

    def network(self, name: str, layout: str, dtype: str) -> None:
        quick = self.settings.quick
        if name == "MLP":
            batch, pixels = 256, None
            data = few = steps.rows(batch)
        else:
            batch, pixels = (4, 64) if quick else (16, 224)
            data, few = steps.images(batch, pixels, layout), steps.images(4, 64, layout)
        models = steps.variants(name, layout)
        steps.check_networks(f"{name} {layout}", models, few[0], dtype)
        times = self._alternate({kind: steps.training(model, *data, dtype) for kind, model in models.items()})
        self.networks.append(
            {
                "name": name,
                "layout": layout,
                "dtype": dtype,
                "batch": batch,
                "pixels": pixels,
                "milliseconds": {kind: 1e3 * times.seconds(kind).median for kind in models},
                "ratios": {kind: asdict(times.ratio("torch", kind)) for kind in models if kind != "torch"},
                "turns": len(times.turns["torch"]),
            }
        )

    def kept(self, name: str, activation: str) -> None:
        batch, pixels = (2, 64) if self.settings.quick else (2, 224)
        found = steps.kept_by(name, activation, steps.images(batch, pixels, "contiguous")[0])
        per_image = {kind: size / batch / 2**20 for kind, size in found.items()}
        self.memory.append({"name": name, "activation": activation, "pixels": pixels, "mebibytes": per_image})

    def time_build(self) -> None:
        try:
            self.build = seconds_to_build()
        except CannotBuild as reason:
            self.notes.append(f"the native kernels do not compile here: {reason}")

    def result(self, interrupted: bool) -> Result:
        others = self.others.cores
        if self.cases and not native.available():
            self.notes.append("the native kernels are not available: torch's operator and the reference were measured")
        result = {
            "settings": asdict(self.settings),
            "interrupted": interrupted,
            "cases": self.cases,
            "totals": totals(self.cases),
            "networks": self.networks,
            "memory": self.memory,
            "build": self.build,
            "notes": [*self.notes, *load.warnings(self.before, others)],
            "load": {"before": self.before, "after": load.average(), "others": others},
            "environment": environment(),
        }
        return result | {"targets": targets.rows(result)}


def environment() -> Result:
    """The machine and the software of a run."""
    return {
        "date": datetime.date.today().isoformat(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "processor": processor(),
    }


def processor(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """The processor's name, if the system reports it, and the vector instructions that torch uses."""
    capability: str = torch.backends.cpu.get_cpu_capability()
    with contextlib.suppress(OSError):
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return f"{line.partition(':')[2].strip()}, {capability}"
    return capability


def compare(settings: Settings, progress: Progress = lambda done, total, what: None) -> Result:
    """Run all measurements of `settings` in order. Ctrl-C ends the run; the result is what was measured until then.

    Raises:
        DisagreementError: a result of ours is wrong.
    """
    run, interrupted = _Run(settings), False
    with contextlib.suppress(KeyboardInterrupt):
        interrupted = True
        jobs = list(run.jobs())
        for done, (what, job) in enumerate(jobs):
            progress(done, len(jobs), what)
            job()
        progress(len(jobs), len(jobs), "")
        interrupted = False
    return run.result(interrupted)
