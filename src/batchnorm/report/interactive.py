"""A chart as an interactive figure of plotly, for a page that is asked to carry plotly.js."""

from __future__ import annotations

from html import escape
from typing import Any

from .axes import limits
from .chart import COLORS, SHAPES, Chart, Panel, Series
from .document import plotly


def interactive(chart: Chart) -> dict[str, Any]:
    """{"data": …, "layout": …} with the same panels, axes and colours. Names are escaped: plotly takes some tags."""
    rows = -(-len(chart.panels) // chart.columns)
    figure = plotly("subplots").make_subplots(
        rows, chart.columns, subplot_titles=[escape(panel.title) for panel in chart.panels], vertical_spacing=0.2 / rows
    )
    figure.update_layout(
        template="none",
        height=(chart.height + 90) * rows + 90,
        margin={"l": 62, "r": 14, "t": 64, "b": 52},
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
        _axes(figure, chart, panel, place)
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


def _axes(figure: Any, chart: Chart, panel: Panel, place: dict[str, int]) -> None:
    """Equal axes where the chart has them; bars begin at 0 by themselves."""
    x: dict[str, Any] = {"title_text": escape(panel.x_title), "type": "log" if panel.log_x else None}
    if panel.names is not None:
        x |= {"type": "category", "categoryarray": [escape(name) for name in panel.names]}
    elif panel.x_ticks:
        x |= {"tickvals": list(panel.x_ticks), "ticktext": [f"{tick:g}" for tick in panel.x_ticks]}
    y: dict[str, Any] = {"title_text": escape(panel.y_title), "automargin": True}
    if panel.log_y:
        y |= {"type": "log", "exponentformat": "power"}
    elif chart.equal_y and len(chart.panels) > 1:
        values = [v for p in chart.panels for s in p.series for v in (*s.y, *(s.low or ()), *(s.high or ()))]
        y["range"] = list(limits(values, False, any(p.has_bars for p in chart.panels)))
    figure.update_xaxes(**x, **place)
    figure.update_yaxes(**y, **place)
