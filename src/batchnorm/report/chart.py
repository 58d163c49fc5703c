"""Figures as plain values: panels of series. `svg.py` turns them into SVG, `interactive.py` into plotly figures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

Value = float | None
Kind = Literal["line", "points", "bars"]


@dataclass(frozen=True)
class Series:
    """Values y over x, which holds numbers or names. A None in y is a gap.

    color: a name from `COLORS`. low, high: the ends of an error bar at each value. label: the text in the legend, which
    shows equal labels once.
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
    marked: bool = False  # for a line: also draw its points


@dataclass(frozen=True)
class Panel:
    """One pair of axes with its series. names: the categories of the x axis, in order. Bars start at 0."""

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
    """Panels above one another or side by side. equal_x, equal_y: all panels have the same range on this axis.

    Panels above one another with equal x axes share the numbers of the lowest panel, and have one title per axis.
    """

    panels: Sequence[Panel]
    title: str
    columns: int = 1
    height: int = 150  # of a panel's axes
    equal_x: bool = True
    equal_y: bool = True
    legend: Sequence[Key] = field(default=())  # if empty, made from the labels of the series

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


# Different marks distinguish the series for readers who cannot tell the colours apart.
SHAPES = {
    "batch": "circle",
    "plain": "square",
    "raw": "diamond",
    "layer": "triangle",
    "group": "diamond",
    "c1": "square",
}

# Colours on light and on dark pages; in the page's style sheet they are called --series-NAME.
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
