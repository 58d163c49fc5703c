"""A chart as an interactive figure of plotly, for a page that contains plotly.js."""

from __future__ import annotations

import math
from collections.abc import Iterable
from html import escape
from typing import Any

from .axes import limits
from .chart import COLORS, SHAPES, Chart, Series, Value
from .document import plotly

ABOVE, BELOW = 64, 52  # margins in pixels
SCALE = 1.6  # pixels for a unit of a chart's height, with room for a legend of several lines on a phone


def interactive(chart: Chart) -> dict[str, Any]:
    """A dict for plotly, {"data": …, "layout": …}. Names are escaped, because plotly interprets some tags."""
    rows = -(-len(chart.panels) // chart.columns)
    titled = any(panel.title for panel in chart.panels)
    between = (30 if titled else 12) + (0 if chart.shares_x else 50)  # pixels: title, numbers and title of the axis
    whole = round(SCALE * chart.height) * rows + between * (rows - 1)
    figure = plotly("subplots").make_subplots(
        rows,
        chart.columns,
        subplot_titles=[escape(panel.title) for panel in chart.panels],
        vertical_spacing=between / whole if rows > 1 else None,
    )
    figure.update_layout(
        template="none",
        height=whole + ABOVE + BELOW,
        margin={"l": 62, "r": 14, "t": ABOVE, "b": BELOW},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        legend={"orientation": "h", "y": 1, "yref": "container", "yanchor": "top", "x": 0},
        hovermode="closest",
        barmode="group",
    )
    figure.update_annotations(font_size=13)
    seen: set[str] = set()
    for i, panel in enumerate(chart.panels):
        place = {"row": i // chart.columns + 1, "col": i % chart.columns + 1}
        for series in panel.series:
            figure.add_trace(_trace(series, series.label not in seen), **place)
            seen.add(series.label)
        _axes(figure, chart, i, place)
    for key in chart.legend:  # entries that are no series' label
        if key.label not in seen:
            style = {"color": COLORS[key.color][0], "dash": "dot" if key.dashed else "solid"}
            figure.add_scatter(x=[None], y=[None], mode="lines", line=style, name=escape(key.label))
    found: dict[str, Any] = figure.to_plotly_json()
    return found


def _trace(series: Series, first: bool) -> dict[str, Any]:
    color, label = COLORS[series.color][0], escape(series.label)
    trace: dict[str, Any] = {
        "x": [escape(v) if isinstance(v, str) else v for v in series.x], "y": list(series.y), "name": label,
        "legendgroup": label, "showlegend": bool(label) and first, "opacity": 0.5 if series.faint else 1,
    }  # fmt: skip
    if series.low is not None and series.high is not None:
        trace["error_y"] = {
            "type": "data", "symmetric": False, "thickness": 1.5,
            "array": _distances(series.high, series.y), "arrayminus": _distances(series.y, series.low),
        }  # fmt: skip
    if series.kind == "bars":
        return trace | {"type": "bar", "marker": {"color": color}}
    mode = "markers" if series.kind == "points" else "lines+markers" if series.marked else "lines"
    symbol = SHAPES.get(series.color, "circle").replace("triangle", "triangle-up")
    line = {"color": color, "width": 2, "dash": "dot" if series.dashed else "solid"}
    return trace | {
        "type": "scatter",
        "mode": mode,
        "line": line,
        "marker": {"color": color, "size": 8, "symbol": symbol},
    }


def _distances(upper: Any, lower: Any) -> list[float | None]:
    return [None if None in (u, v) else u - v for u, v in zip(upper, lower, strict=True)]


def _axes(figure: Any, chart: Chart, i: int, place: dict[str, int]) -> None:
    """Sets the titles, ranges and ticks of a panel's axes; plotly itself starts bars at 0."""
    panel, panels = chart.panels[i], chart.panels
    x: dict[str, Any] = {"type": "log" if panel.log_x else None}
    if not chart.shares_x or i == len(panels) - 1:
        x["title_text"] = escape(panel.x_title)
    else:
        x["showticklabels"] = False
    if panel.names is None and chart.equal_x and len(panels) > 1:
        places = [v for p in panels for s in p.series for v in s.x if not isinstance(v, str)]
        x["range"] = _range(places, panel.log_x)
    if panel.names is not None:
        x |= {"type": "category", "categoryarray": [escape(name) for name in panel.names]}
    elif panel.x_ticks:
        x |= {"tickvals": list(panel.x_ticks), "ticktext": [f"{tick:g}" for tick in panel.x_ticks]}
    y: dict[str, Any] = {"automargin": True}
    if i == len(panels) // 2 if chart.shares_x else i % chart.columns == 0:
        y["title_text"] = escape(panel.y_title)
    shared = panels if chart.equal_y else [panel]
    values = [v for p in shared for s in p.series for v in (*s.y, *(s.low or ()), *(s.high or ()))]
    low, high = _range(values, panel.log_y, any(p.has_bars for p in shared))
    if len(shared) > 1:
        y["range"] = [low, high]
    if panel.log_y:  # powers of ten; if these are few, also other digits, which plotly makes 3/4 as large
        y |= {"type": "log", "exponentformat": "power", **({"dtick": 1} if high - low > 2 else {"tickfont_size": 15})}
    figure.update_xaxes(**x, **place)
    figure.update_yaxes(**y, **place)


def _range(values: Iterable[Value], log: bool, zero: bool = False) -> list[float]:
    """The ends of an axis; for a logarithmic axis their exponents, as plotly expects."""
    return [math.log10(end) if log else end for end in limits(values, log, zero)]
