"""One or two charts for each claim, from the claim's `detail`."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

from .chart import Chart, Key, Kind, Panel, Series
from .svg import without_prefix

Claim = dict[str, Any]

ARM_COLORS = {"batch norm": "batch", "plain": "plain", "raw": "raw", "layer norm": "layer", "group norm": "group"}
NAMES = {"batch norm": "batch norm", "plain": "without", "raw": "raw table", "layer norm": "layer norm",
         "group norm": "group norm"}  # fmt: skip
LAYERS = 8  # the most layers drawn as lines of one figure


def figures(claim: Claim) -> list[Chart]:
    """The charts of a claim; none if it was not measured."""
    return DRAW[claim["number"]](claim["detail"]) if claim["detail"] else []


def _lines(arms: dict[str, Any], names: dict[str, str]) -> list[Series]:
    return [
        Series("line", steps, values, ARM_COLORS[arm], f"{names[arm]}, rate {curves['rate']:g}", faint=i > 0)
        for arm, curves in sorted(arms.items(), key=lambda found: list(ARM_COLORS).index(found[0]))
        for i, (steps, values) in enumerate(zip(curves["steps"], curves["curves"], strict=True))
    ]


def _race(detail: dict[str, Any]) -> list[Chart]:
    names = NAMES | {"plain": "normalised table"} if "raw" in detail["arms"] else NAMES
    series = _lines(detail["arms"], names)
    charts = [Chart([Panel(series, "step", f"validation {detail['score']}")], "Validation score through training")]
    if losses := detail.get("losses"):
        panel = Panel(_lines(losses, names), "step", "training loss (log scale)", log_y=True)
        charts.append(Chart([panel], "Training loss through training"))
    return charts


def _with_spread(detail: dict[str, Any], x: list[float], title: str, *more: Series) -> Chart:
    series = [
        Series("line", x, found["median"], ARM_COLORS[arm], NAMES[arm], found["low"], found["high"], marked=True)
        for arm, found in detail["scores"].items()
    ]
    # a sweep may have many rates, half a decade or a decade apart: at most nine get a tick
    panel = Panel([*series, *more], title, f"validation {detail['score']}", log_x=True, x_ticks=spaced(x, 9))
    return Chart([panel], f"Validation score by {title}")


def _steadier(detail: dict[str, Any]) -> list[Chart]:
    ends = [detail["rates"][0], detail["rates"][-1]]
    lines = [Series("line", ends, [detail["bar"]] * 2, "soft", "works above", dashed=True)]
    if detail.get("chance") is not None:
        lines.append(Series("line", ends, [detail["chance"]] * 2, "soft", "chance"))
    return [_with_spread(detail, detail["rates"], "learning rate (log scale)", *lines)]


def _distribution(detail: dict[str, Any]) -> list[Chart]:
    panels = []
    for arm, trace in detail["trace"].items():
        series = [
            Series("line", trace["steps"], [point[k] for point in trace["percentiles"]], ARM_COLORS[arm], dashed=k != 1)
            for k in range(3)
        ]
        panels.append(Panel(series, "step", "value", f"{NAMES[arm]}, {trace['layer']}"))
    layers = list(detail["drift"]["batch norm"])
    drift = [_over_seeds("line", arm, found, layers) for arm, found in detail["drift"].items()]
    keys = (Key("50th percentile", "soft"), Key("15th and 85th", "soft", dashed=True))
    return [
        Chart(panels, "Percentiles of a typical input through training", height=90, legend=keys),
        Chart(
            [Panel(drift, "layer", "drift, in widths (log scale)", names=layers, log_y=True)], "Drift of every layer"
        ),
    ]


def _over_seeds(kind: Kind, arm: str, groups: dict[str, list[float]], names: Sequence[str]) -> Series:
    """A series of each group's median over seeds; error bars show the least and the largest. Lines have a log axis."""
    found = [groups[name] for name in names]
    ends = [[function(values) for values in found] for function in (statistics.median, min, max)]
    median, low, high = map(_positive, ends) if kind == "line" else ends
    return Series(kind, names, median, ARM_COLORS[arm], NAMES[arm], low, high, marked=kind == "line")


def _mean_and_deviation(detail: dict[str, Any]) -> list[Chart]:
    layers = list(detail["layers"])
    series = [
        Series("points", layers, [max(detail["layers"][n][key], 1e-9) for n in layers], color, label)
        for label, key, color in (("|mean|", "mean", "c0"), ("|deviation − 1|", "std", "c1"))
    ]
    tolerance = Series("line", layers, [0.01] * len(layers), "soft", "tolerance", dashed=True)
    panel = Panel([*series, tolerance], "layer", "distance (log scale)", names=layers, log_y=True)
    return [Chart([panel], "Distance by layer")]


def _shape(detail: dict[str, Any]) -> list[Chart]:
    panels = []
    for key, color in (("before", "plain"), ("after", "batch")):
        edges, counts = detail[key]["edges"], detail[key]["counts"]
        middles = [(a + b) / 2 for a, b in pairwise(edges)]
        panels.append(Panel([Series("bars", middles, counts, color)], "value", "values in a bar", f"{key} batch norm"))
    return [
        Chart(panels, "A channel before and after, each on its own axis", columns=2, equal_x=False),
        Chart(panels, "The same on one axis", columns=1, height=90),
    ]


def _gradients(detail: dict[str, Any]) -> list[Chart]:
    panels, legend = [], []
    for arm, layers in detail["layers"].items():
        names = spaced(list(layers), LAYERS)
        keys = [Key(name, ramp(i, len(names))) for i, name in enumerate(without_prefix(names))]
        series = [
            Series("line", detail["steps"][arm][: len(layers[n])], _positive(layers[n]), key.color, key.label)
            for n, key in zip(names, keys, strict=True)
        ]
        panels.append(Panel(series, "step", "gradient (log scale)", NAMES[arm], log_y=True))
        legend += keys
    through = Chart(panels, "Gradient of each layer through training", height=90, legend=tuple(dict.fromkeys(legend)))
    return [through, _start(detail["start"])]


def _start(start: dict[str, Any]) -> Chart:
    """A chart of signal and gradient by layer before the first step, which shows vanishing and exploding."""
    panels = []
    for key, title in (("signal", "size of the signal, forward"), ("gradient", "size of the gradient, backward")):
        names = list(next(iter(start[key].values())))
        series = [
            Series("line", [n for n in names if n in found], _positive([found[n] for n in names if n in found]),
                   ARM_COLORS[arm], NAMES[arm], marked=True)
            for arm, found in start[key].items()
        ]  # fmt: skip
        panels.append(Panel(series, "layer", "size (log scale)", title, names=names, log_y=True))
    return Chart(panels, "Signal and gradient by layer before the first step", height=120, equal_y=False)


def ramp(place: int, count: int) -> str:
    """The colour of layer `place` of `count` layers in order; `count` is at most `LAYERS`."""
    return f"l{round(place * (LAYERS - 1) / max(count - 1, 1))}"


def _positive(values: Sequence[float]) -> list[float | None]:
    """The values for a logarithmic axis, with None for those that are not above 0."""
    return [value if value is not None and value > 0 else None for value in values]


def spaced(names: list[Any], most: int) -> list[Any]:
    """At most `most` of the names, evenly spaced, including the first and the last."""
    if len(names) <= most:
        return names
    return [names[round(i * (len(names) - 1) / (most - 1))] for i in range(most)]


def _overfitting(detail: dict[str, Any]) -> list[Chart]:
    panels = []
    for title, parts in detail["groups"].items():
        series = [
            _over_seeds("bars", arm, {part: parts[part][arm] for part in parts}, list(parts))
            for arm in parts["training"]
        ]
        panels.append(Panel(series, "", detail["score"], title, names=list(parts)))
    return [Chart(panels, "Score on the training and the validation part", columns=len(panels))]


DRAW: dict[int, Callable[[dict[str, Any]], list[Chart]]] = {
    1: _race,
    2: _steadier,
    3: _distribution,
    4: _mean_and_deviation,
    5: _shape,
    6: _race,
    7: _gradients,
    8: _overfitting,
    9: lambda detail: [_with_spread(detail, detail["sizes"], "batch size (log scale)")],
}
