"""Parts of plotly figures that several pages share."""

from __future__ import annotations

from typing import Any

from .document import plotly

Figure = dict[str, Any]

LAYER_COLORS = ("#0b84a5", "#f0a30a", "#6f4e7c", "#7fb24c", "#ca472f", "#4fb3a9", "#9a6b4f", "#8d99ae")


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


def bars(median: list[Any], low: list[Any], high: list[Any]) -> dict[str, Any]:
    return {
        "type": "data",
        "symmetric": False,
        "array": [None if None in (h, m) else h - m for h, m in zip(high, median, strict=True)],
        "arrayminus": [None if None in (lo, m) else m - lo for lo, m in zip(low, median, strict=True)],
        "thickness": 1.5,
    }
