"""The speeds that the layers aim at, and the verdicts on a run."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from batchnorm.benchmark.cases import DTYPES, LAYOUTS, ROWS, cases

Result = dict[str, Any]

SET = "2026-11-24"  # the day on which the aims were set, for two threads

# `batchnorm bench --targets` measures the plain layer in every dtype, and blocks in the two dtypes that networks use.
PAIRS = [(dtype, "plain") for dtype in DTYPES]
PAIRS += [(dtype, block) for dtype in ("float32", "bfloat16") for block in ("relu", "add-relu")]


@dataclass(frozen=True)
class Target:
    """A row of the table, with the least acceptable value and the aim.

    `kind` is the geometric mean over cases, the least of them, one network, or a time in seconds. Ratios should be
    large, times short. `where` selects cases or a network: each field must have one of the values.
    """

    name: str
    kind: Literal["mean", "least", "network", "build", "tests"]
    at_least: float | None
    aim: float | None
    where: Mapping[str, tuple[Any, ...]]
    variant: str = "torch"  # for a network: "converted" or "fused"

    @property
    def unit(self) -> str:
        return "s" if self.kind in ("build", "tests") else "×"

    def selects(self, found: Mapping[str, Any]) -> bool:
        return all(found[field] in values for field, values in self.where.items())


def _mean(name: str, at_least: float | None, aim: float | None, **where: tuple[Any, ...]) -> Target:
    return Target(name, "mean", at_least, aim, {"dtype": ("float32",), "block": ("plain",), **where})


def _step(network: str, layout: str, variant: str, at_least: float | None, aim: float | None) -> Target:
    name = f"step: {network} {variant}" + ("" if network == "MLP" else f", {layout}")
    where = {"name": (network,), "layout": (layout,), "dtype": ("float32",)}
    return Target(name, "network", at_least, aim, where, variant)


_LARGE, _SMALL, _PLANES = ("large",), ("small",), ("contiguous",)
_ROWS = tuple(list(shape) for shape in ROWS)

TARGETS = [
    _mean("float32, contiguous", 3.5, 4.5, group=_LARGE, layout=_PLANES),
    _mean("float32, channels_last", 2.3, 3.0, group=_LARGE, layout=("channels_last",)),
    _mean("bfloat16, both layouts", 2.5, 4.0, group=_LARGE, dtype=("bfloat16",)),
    _mean("with ReLU, contiguous", 5.0, 7.0, group=_LARGE, layout=_PLANES, block=("relu",)),
    _mean("with residual and ReLU, contiguous", 5.0, 7.0, group=_LARGE, layout=_PLANES, block=("add-relu",)),
    _mean("fewer than 8,192 values", 1.1, 1.4, group=_SMALL),
    _mean("fewer than 8,192 values, with ReLU", 1.3, 1.6, group=_SMALL, block=("relu",)),
    _mean("rows of an MLP", None, None, shape=_ROWS, layout=_PLANES),
    _mean("rows of an MLP, with ReLU", None, None, shape=_ROWS, layout=_PLANES, block=("relu",)),
    Target("least of any case", "least", 1.0, 1.2, {}),
    _step("MLP", "contiguous", "converted", 1.08, 1.2),
    _step("MLP", "contiguous", "fused", None, None),
    *(_step("ResNet-50", layout, "fused", 1.3, 1.4) for layout in LAYOUTS),
    *(_step("MobileNetV2", layout, "fused", 1.5, 1.8) for layout in LAYOUTS),
    Target("build of the native kernels, one core", "build", 90, 40, {}),
    Target("make test on a fresh machine", "tests", 420, 300, {}),
]


def rows(result: Result) -> list[Result]:
    """Every target with the results of a run, as plain values.

    `measured` is None if the run lacks some of the target's inputs, or if at least half of them cannot be trusted.
    """
    return [_row(target, result) for target in TARGETS]


def _row(target: Target, result: Result) -> Result:
    row: Result = {"name": target.name, "kind": target.kind, "unit": target.unit}
    row |= {"at_least": target.at_least, "aim": target.aim, "measured": None, "low": None, "high": None}
    row |= {"inputs": [], "left_out": [], "which": None, "how": None}
    if target.kind == "build":
        row["measured"] = result["build"]
    elif target.kind == "tests":
        row["how"] = "time make test"
    elif not result["settings"]["quick"]:  # targets do not apply to the small inputs of a quick run
        _fill(row, *_ratios(target, result))
    return row | {"verdict": verdict(row)}


def _ratios(target: Target, result: Result) -> tuple[list[tuple[str, Result]], int]:
    """The ratios of the cases or the network that a target selects, and the number of ratios that it needs."""
    if target.kind == "network":
        steps = [found for found in result["networks"] if target.selects(found)]
        return [(found["name"], found["ratios"][target.variant]) for found in steps], 1
    expected = sum(target.selects(case.facts) for case in cases(PAIRS, LAYOUTS))
    layers = [case for case in result["cases"] if target.selects(case)]
    return [(label(case), case["ratios"]["torch"]) for case in layers], expected


def label(case: Result) -> str:
    """The case as text."""
    shape = "×".join(map(str, case["shape"]))
    return f"{shape} {case['dtype']} {case['layout']}" + ("" if case["block"] == "plain" else f" {case['block']}")


def _fill(row: Result, ratios: list[tuple[str, Result]], expected: int) -> None:
    trusted = [(name, ratio) for name, ratio in ratios if ratio["doubt"] is None]
    row["inputs"] = [{"label": name, "ratio": ratio["median"]} for name, ratio in trusted]
    row["left_out"] = [name for name, ratio in ratios if ratio["doubt"] is not None]
    if len(ratios) < expected or 2 * len(trusted) <= expected:
        return
    if row["kind"] == "mean":
        row["measured"] = geometric_mean([ratio["median"] for _, ratio in trusted])
    else:  # one ratio, with its quartiles
        row["which"], one = min(trusted, key=lambda item: item[1]["median"])
        row |= {"measured": one["median"], "low": one["low"], "high": one["high"]}


def geometric_mean(values: list[float]) -> float:
    return math.exp(sum(map(math.log, values)) / len(values))


def verdict(row: Result) -> str:
    """The verdict on a row: "aim reached", "enough", "not enough", "no aim" or "not measured"."""
    measured, at_least, aim = row["measured"], row["at_least"], row["aim"]
    if measured is None:
        return "not measured"
    if at_least is None:
        return "no aim"
    sign = -1 if row["unit"] == "s" else 1
    if sign * measured >= sign * aim:
        return "aim reached"
    return "enough" if sign * measured >= sign * at_least else "not enough"
