"""The whole comparison, as plain numbers: every case, the totals, whole networks, what is kept for the backward."""

import contextlib
import math
import os
import platform
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from itertools import groupby
from typing import Any

import torch

from batchnorm.benchmark import steps
from batchnorm.benchmark.agreement import check, with_affine
from batchnorm.benchmark.cases import DTYPES, LAYOUTS, Case, cases
from batchnorm.benchmark.timing import alternate
from batchnorm.benchmark.whole_networks import NETWORKS

Result = dict[str, Any]
Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class Settings:
    """What is compared, and for how long."""

    dtype: str = "float32"
    layouts: tuple[str, ...] = LAYOUTS
    blocks: tuple[str, ...] = ("plain",)
    seconds: float = 2.0
    quick: bool = False
    networks: bool = True
    compile: bool = True


class _Run:
    """A comparison under way: what has been found so far."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.cases: list[Result] = []
        self.networks: list[Result] = []
        self.memory: list[Result] = []
        self.notes = ["small inputs, to see that it works: no times to quote"] if settings.quick else []
        self.compile = settings.compile

    def jobs(self) -> Iterator[tuple[str, Callable[[], None]]]:
        """What there is to do, with a name for each."""
        s = self.settings
        for case in cases(DTYPES[s.dtype], list(s.layouts), list(s.blocks), s.quick):
            yield str(case), partial(self.case, case)
        if not s.networks:
            return
        if s.dtype not in ("float32", "bfloat16"):
            self.notes.append(f"networks are trained in float32 and bfloat16, so not in {s.dtype}")
            return
        for layout in s.layouts:
            for name in NETWORKS:
                yield f"{name} {layout}", partial(self.network, name, layout)
        for name in NETWORKS:
            for activation in ("relu", "silu", "gelu"):
                yield f"{name} {activation}, memory", partial(self.kept, name, activation)

    def case(self, case: Case) -> None:
        torchs, ours = (with_affine(layer, case) for layer in (case.torchs(), case.ours()))
        check(case, ours, torchs)
        x = case.inputs()[0]
        warm = x.clone()
        subjects: dict[str, Callable[[], object]] = {
            "torch": steps.both_ways(torchs, case),
            "ours": steps.both_ways(ours, case),
            "forward": steps.forward(ours, case),
            "copy": partial(warm.copy_, x),
        }
        if compiled := self._compiled(case):
            subjects["compiled"] = compiled
        times = alternate(subjects, self.settings.seconds)
        rivals = [name for name in ("torch", "compiled") if name in subjects]
        self.cases.append(
            {
                "shape": list(case.shape),
                "layout": case.layout,
                "block": case.block,
                "group": case.group,
                "milliseconds": {name: 1e3 * times.seconds(name) for name in subjects},
                "times": {name: times.ratio(name, "ours") for name in rivals},
                "copies": {"forward": times.ratio("forward", "copy"), "both": times.ratio("ours", "copy")},
                "turns": len(times.turns["ours"]),
            }
        )

    def _compiled(self, case: Case) -> Callable[[], object] | None:
        """torch's block under torch.compile, or None where that does not work, which is then noted once."""
        if not self.compile:
            return None
        torch.compiler.reset()
        layer = with_affine(case.torchs(), case)
        layer.compile(dynamic=False)
        step = steps.both_ways(layer, case)
        try:
            step()
        except Exception as error:  # whatever a compiler raises
            self.compile = False
            self.notes.append(f"torch.compile does not work here: {' '.join(str(error).split())[:200]}")
            return None
        return step

    def network(self, name: str, layout: str) -> None:
        s = self.settings
        batch, pixels = (4, 64) if s.quick else (16, 224)
        data = steps.images(batch, pixels, layout)
        models = steps.variants(name, layout)
        steps.check_networks(f"{name} {layout}", models, steps.images(4, 64, layout)[0], s.dtype)
        subjects = {kind: steps.training(model, *data, s.dtype) for kind, model in models.items()}
        times = alternate(subjects, s.seconds, least=3)
        self.networks.append(
            {
                "name": name,
                "layout": layout,
                "batch": batch,
                "pixels": pixels,
                "milliseconds": {kind: 1e3 * times.seconds(kind) for kind in subjects},
                "times": {kind: times.ratio("torch", kind) for kind in subjects if kind != "torch"},
                "turns": len(times.turns["torch"]),
            }
        )

    def kept(self, name: str, activation: str) -> None:
        batch, pixels = (2, 64) if self.settings.quick else (2, 224)
        found = steps.kept_by(name, activation, steps.images(batch, pixels, "contiguous")[0])
        per_image = {kind: size / batch / 2**20 for kind, size in found.items()}
        self.memory.append({"name": name, "activation": activation, "pixels": pixels, "mebibytes": per_image})

    def result(self, interrupted: bool) -> Result:
        return {
            "settings": asdict(self.settings),
            "interrupted": interrupted,
            "cases": self.cases,
            "totals": totals(self.cases),
            "networks": self.networks,
            "memory": self.memory,
            "notes": self.notes,
            "environment": {
                "python": platform.python_version(),
                "torch": torch.__version__,
                "threads": torch.get_num_threads(),
                "cores": os.cpu_count(),
                "processor": torch.backends.cpu.get_cpu_capability(),
            },
        }


def compare(settings: Settings, progress: Progress = lambda done, total, what: None) -> Result:
    """Everything asked for, in order. Ctrl-C ends it, and what was measured until then is the result.

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


def totals(cases: list[Result]) -> list[Result]:
    """Per block, layout and size of input: the geometric mean and the least of how many times faster ours is."""
    kinds = ("block", "layout", "group")
    found = []
    for kind, members in groupby(cases, key=lambda case: tuple(case[k] for k in kinds)):
        inside = list(members)
        rivals = {
            name: [case["times"][name] for case in inside if name in case["times"]] for name in inside[0]["times"]
        }
        found.append(
            {
                **dict(zip(kinds, kind, strict=True)),
                "cases": len(inside),
                "mean": {name: math.exp(sum(map(math.log, v)) / len(v)) for name, v in rivals.items()},
                "least": {name: min(v) for name, v in rivals.items()},
                "slower": {name: sum(ratio < 1 for ratio in v) for name, v in rivals.items()},
            }
        )
    return found
