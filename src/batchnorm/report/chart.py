"""A figure as plain values: panels of series. `svg.py` draws it at once, `interactive.py` makes plotly's of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

Value = float | None
Kind = Literal["line", "points", "bars"]


@dataclass(frozen=True)
class Series:
    """Values over x, a number or a name each. None is a gap.

    color: a name from `COLORS`. low, high: the ends of an error bar at each value. label: shown in the legend, once for
    each name.
    """

    kind: Kind
    x: Sequence[float | str]
    y: Sequence[Value]
    color: str
    label: str = ""
    low: Sequence[Value] | None = None
    high: Sequence[Value] | None = None
    dashed: bool = False
    faint: bool = False
    marked: bool = False  # a line with its points


@dataclass(frozen=True)
class Panel:
    """One pair of axes. names: the places of a category axis, in order; bars start at 0."""

    series: Sequence[Series]
    x_title: str = ""
    y_title: str = ""
    title: str = ""
    names: Sequence[str] | None = None
    log_x: bool = False
    log_y: bool = False
    x_ticks: Sequence[float] | None = None

    @property
    def has_bars(self) -> bool:
        return any(series.kind == "bars" for series in self.series)


@dataclass(frozen=True)
class Chart:
    """Panels above one another or side by side. What is compared has equal axes: `equal_x`, `equal_y` over panels."""

    panels: Sequence[Panel]
    title: str
    columns: int = 1
    height: int = 250  # of a panel
    equal_x: bool = True
    equal_y: bool = True
    legend: Sequence[tuple[str, str, bool]] = field(default=())  # (label, color, dashed), else from the series

    def entries(self) -> list[tuple[str, str, bool]]:
        """What the legend shows."""
        if self.legend:
            return list(self.legend)
        found = {s.label: (s.label, s.color, s.dashed) for panel in self.panels for s in panel.series if s.label}
        return list(found.values())


# Light and dark; the page's style sheet has the same under --series-NAME.
COLORS = {
    "batch": ("#2563c9", "#6aa8f7"),
    "plain": ("#c2571a", "#f0956a"),
    "raw": ("#7d45b8", "#b98ae6"),
    "layer": ("#0f7b6c", "#4fc3b0"),
    "group": ("#a3286b", "#e57fb5"),
    "soft": ("#6b7480", "#9aa5b1"),
    "c0": ("#0b6e8c", "#4fb6d3"),
    "c1": ("#b06d00", "#f0b545"),
    "c2": ("#6f4e7c", "#b795c6"),
    "c3": ("#4d7a1d", "#9ccb66"),
    "c4": ("#b0351d", "#f08a76"),
    "c5": ("#24786f", "#6fcdc3"),
    "c6": ("#7d5238", "#c79c80"),
    "c7": ("#5a6678", "#a9b4c4"),
}


def color_variables(dark: bool) -> str:
    """The colours as CSS variables."""
    return " ".join(f"--series-{name}:{pair[dark]};" for name, pair in COLORS.items())
