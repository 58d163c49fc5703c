"""One interactive figure or two for each claim, from the claim's `detail`."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from itertools import pairwise
from typing import Any

from .document import plotly

Claim = dict[str, Any]
Figure = dict[str, Any]

COLORS = {"batch norm": "#2f7de1", "plain": "#e0782f", "raw": "#9a63d8"}
NAMES = {"batch norm": "with batch norm", "plain": "without", "raw": "raw table"}
ARMS = ("batch norm", "plain")
LAYER_COLORS = ("#0b84a5", "#f0a30a", "#6f4e7c", "#7fb24c", "#ca472f", "#4fb3a9", "#9a6b4f", "#8d99ae")


def figures(claim: Claim) -> list[Figure]:
    """Plotly figures as plain values ({"data": …, "layout": …}) with colours for either theme; none if not measured."""
    if not claim["detail"]:
        return []
    return [figure.to_plotly_json() for figure in DRAW[claim["number"]](claim["detail"])]


def blank(x: str, y: str, height: int = 340, **layout: Any) -> Any:
    """A figure with axes of these titles and nothing in it, in colours for either theme."""
    figure = plotly("graph_objects").Figure()
    figure.update_layout(
        template="none",
        height=height,
        margin={"l": 62, "r": 14, "t": 44, "b": 52},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        legend={"orientation": "h", "y": 1, "yref": "container", "yanchor": "top", "x": 0},
        hovermode="closest",
        **layout,
    )
    figure.update_xaxes(title_text=x)
    figure.update_yaxes(title_text=y, automargin=True)
    return figure


def _lines(figure: Any, arms: dict[str, Any], names: dict[str, str]) -> None:
    for arm, curves in arms.items():
        for i, (steps, values) in enumerate(zip(curves["steps"], curves["curves"], strict=True)):
            figure.add_scatter(
                x=steps,
                y=values,
                mode="lines",
                name=f"{names[arm]}, rate {curves['rate']:g}",
                legendgroup=arm,
                showlegend=i == 0,
                line={"color": COLORS[arm], "width": 2},
                opacity=1 if i == 0 else 0.55,
                hovertemplate="step %{x}: %{y:.3f}<extra>" + names[arm] + "</extra>",
            )


def _race(detail: dict[str, Any]) -> list[Any]:
    figure = blank("step", f"validation {detail['score']}")
    _lines(figure, detail["arms"], NAMES | {"plain": "normalised table"} if "raw" in detail["arms"] else NAMES)
    return [figure]


def _with_spread(detail: dict[str, Any], x: list[float], title: str) -> Any:
    figure = blank(title, f"validation {detail['score']}")
    for arm, scores in detail["scores"].items():
        median = scores["median"]
        figure.add_scatter(
            x=x,
            y=median,
            mode="lines+markers",
            name=NAMES[arm],
            line={"color": COLORS[arm], "width": 2},
            marker={"size": 8},
            error_y=bars(median, scores["low"], scores["high"]),
        )
    figure.update_xaxes(type="log", tickvals=x, ticktext=[f"{value:g}" for value in x])
    return figure


def bars(median: list[Any], low: list[Any], high: list[Any]) -> dict[str, Any]:
    return {
        "type": "data",
        "symmetric": False,
        "array": [None if None in (h, m) else h - m for h, m in zip(high, median, strict=True)],
        "arrayminus": [None if None in (lo, m) else m - lo for lo, m in zip(low, median, strict=True)],
        "thickness": 1.5,
    }


def _steadier(detail: dict[str, Any]) -> list[Any]:
    figure = _with_spread(detail, detail["rates"], "learning rate")
    figure.add_scatter(
        x=[detail["rates"][0], detail["rates"][-1]],
        y=[detail["bar"]] * 2,
        mode="lines",
        name="works above",
        line={"color": "#8a8f98", "dash": "dot", "width": 1.5},
    )
    return [figure]


def _distribution(detail: dict[str, Any]) -> list[Any]:
    trace = _stacked(2, "step", "value", ["with batch norm", "without"])
    for row, arm in enumerate(ARMS, 1):
        steps, points = detail["trace"][arm]["steps"], detail["trace"][arm]["percentiles"]
        for k, (name, dash) in enumerate((("15th", "dot"), ("50th", "solid"), ("85th", "dot"))):
            trace.add_scatter(
                x=steps,
                y=[p[k] for p in points],
                mode="lines",
                name=name,
                showlegend=False,
                line={"color": COLORS[arm], "width": 2.5 if k == 1 else 1.5, "dash": dash},
                fill="tonexty" if k else None,
                row=row,
                col=1,
            )
    bars = blank("layer (module)", "drift, widths", barmode="group")
    for arm, layers in detail["drift"].items():
        _bar(bars, NAMES[arm], COLORS[arm], layers)
    return [trace, bars]


def _bar(figure: Any, name: str, color: str, groups: dict[str, list[float]]) -> None:
    median = [statistics.median(values) for values in groups.values()]
    low, high = [min(v) for v in groups.values()], [max(v) for v in groups.values()]
    figure.add_bar(
        x=list(groups), y=median, name=name, marker_color=color, error_y=bars(median, low, high) | {"color": "#8a8f98"}
    )
    figure.update_xaxes(type="category")


def _stacked(rows: int, x: str, y: str, titles: list[str], columns: int = 1, height: int = 420) -> Any:
    figure = plotly("subplots").make_subplots(
        rows, columns, subplot_titles=titles, shared_xaxes=columns == 1, vertical_spacing=0.14
    )
    figure.update_layout(blank("", "", height).layout)
    figure.update_annotations(font_size=13)
    for column in range(1, columns + 1):
        figure.update_xaxes(title_text=x, row=rows, col=column)
    figure.update_yaxes(title_text=y, col=1)
    return figure


def _mean_and_deviation(detail: dict[str, Any]) -> list[Any]:
    figure = blank("layer (module)", "distance")
    for name, key, color in (("|mean|", "mean", LAYER_COLORS[0]), ("|deviation − 1|", "std", LAYER_COLORS[1])):
        layers = detail["layers"]
        figure.add_scatter(
            x=list(layers),
            y=[layer[key] for layer in layers.values()],
            mode="markers",
            name=name,
            marker={"size": 12, "color": color},
        )
    figure.update_xaxes(type="category")
    figure.update_yaxes(type="log", exponentformat="power", dtick=1)
    return [figure]


def _shape(detail: dict[str, Any]) -> list[Any]:
    figure = _stacked(1, "value", "values", ["before", "after"], columns=2, height=320)
    for column, (key, color) in enumerate((("before", COLORS["plain"]), ("after", COLORS["batch norm"])), 1):
        edges, counts = detail[key]["edges"], detail[key]["counts"]
        middles = [(a + b) / 2 for a, b in pairwise(edges)]
        figure.add_bar(x=middles, y=counts, marker_color=color, showlegend=False, row=1, col=column)
    figure.update_layout(bargap=0.04)
    return [figure]


def _gradients(detail: dict[str, Any]) -> list[Any]:
    figure = _stacked(2, "step", "gradient, rms", ["with batch norm", "without"], height=460)
    for row, arm in enumerate(ARMS, 1):
        names = _spaced(list(detail["layers"][arm]), len(LAYER_COLORS))
        for i, name in enumerate(names):
            values = detail["layers"][arm][name]
            figure.add_scatter(
                x=detail["steps"][arm][: len(values)],
                y=values,
                mode="lines",
                name=name,
                legendgroup=str(i),
                showlegend=row == 1,
                line={"color": LAYER_COLORS[i], "width": 2},
                row=row,
                col=1,
            )
    figure.update_yaxes(type="log", exponentformat="power", dtick=1)
    return [figure]


def _spaced(names: list[str], most: int) -> list[str]:
    """At most so many, evenly taken, first and last among them."""
    if len(names) <= most:
        return names
    return [names[round(i * (len(names) - 1) / (most - 1))] for i in range(most)]


def _overfitting(detail: dict[str, Any]) -> list[Any]:
    figure = blank("", detail["score"], barmode="group")
    for arm in detail["train"]:
        _bar(
            figure, NAMES[arm], COLORS[arm], {"training": detail["train"][arm], "validation": detail["validation"][arm]}
        )
    low = min(min(values) for part in ("train", "validation") for values in detail[part].values())
    if low > 0.5:
        figure.update_yaxes(range=[2 * low - 1.05 if low > 0.6 else 0, 1.02])
    return [figure]


DRAW: dict[int, Callable[[dict[str, Any]], list[Any]]] = {
    1: _race,
    2: _steadier,
    3: _distribution,
    4: _mean_and_deviation,
    5: _shape,
    6: _race,
    7: _gradients,
    8: _overfitting,
    9: lambda detail: [_with_spread(detail, detail["sizes"], "batch size")],
}
