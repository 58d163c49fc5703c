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
class Key:
    """An entry of a legend."""

    label: str
    color: str
    dashed: bool = False
    kind: Kind = "line"


@dataclass(frozen=True)
class Chart:
    """Panels above one another or side by side. What is compared has equal axes: `equal_x`, `equal_y` over panels.

    Panels above one another with equal x axes share the lowest one's numbers, and one title an axis.
    """

    panels: Sequence[Panel]
    title: str
    columns: int = 1
    height: int = 150  # of a panel's axes
    equal_x: bool = True
    equal_y: bool = True
    legend: Sequence[Key] = field(default=())  # else from the series

    def entries(self) -> list[Key]:
        """The legend's entries, each label once."""
        if self.legend:
            return list(self.legend)
        found = {s.label: Key(s.label, s.color, s.dashed, s.kind) for p in self.panels for s in p.series if s.label}
        return list(found.values())

    @property
    def shares_x(self) -> bool:
        titles = {(p.x_title, p.y_title, p.log_x) for p in self.panels}
        numbers = all(p.names is None for p in self.panels)
        return self.columns == 1 and self.equal_x and numbers and len(titles) == 1


# The mark of a series tells it apart where colours do not.
SHAPES = {
    "batch": "circle",
    "plain": "square",
    "raw": "diamond",
    "layer": "triangle",
    "group": "diamond",
    "c1": "square",
}

# Light and dark; the page's style sheet has the same under --series-NAME.
COLORS = {
    "batch": ("#2563c9", "#6aa8f7"),
    "plain": ("#b9500a", "#f0956a"),
    "raw": ("#7d45b8", "#b98ae6"),
    "layer": ("#0f7b6c", "#4fc3b0"),
    "group": ("#a3286b", "#e57fb5"),
    "soft": ("#6b7480", "#9aa5b1"),
    "c0": ("#0b6e8c", "#4fb6d3"),
    "c1": ("#b06d00", "#f0b545"),
    # layers from the first to the last: dark to light, so that their order shows without colour too
    "l0": ("#440154", "#2a788e"),
    "l1": ("#472374", "#21918c"),
    "l2": ("#414487", "#22a884"),
    "l3": ("#375a8c", "#44bf70"),
    "l4": ("#2c718e", "#7ad151"),
    "l5": ("#25848e", "#a8db34"),
    "l6": ("#1f958b", "#d2e21b"),
    "l7": ("#2a9d70", "#fde725"),
}


def color_variables(dark: bool) -> str:
    """The colours as CSS variables."""
    return " ".join(f"--series-{name}:{pair[dark]};" for name, pair in COLORS.items())
