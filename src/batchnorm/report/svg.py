"""A chart drawn as SVG, in the page's own colours: no script is needed to see it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape

from .axes import Axis, limits, shown
from .chart import Chart, Panel, Series, Value

WIDTH = 430  # not more: on a phone the letters shrink with the picture
TOP, RIGHT, BOTTOM, LEFT = 30, 10, 50, 58  # margins of a panel, in pixels
LETTER = 6.6  # width of a letter at 12 pixels, about
TURNED = 46  # more room below for names that are written aslant


def draw(chart: Chart) -> str:
    """The whole chart. Text in it is escaped."""
    legend, top = _legend(chart)
    width = WIDTH / chart.columns
    aslant = any(panel.names and _crowded(panel.names, width) for panel in chart.panels)
    height = chart.height + (TURNED if aslant else 0)
    rows = -(-len(chart.panels) // chart.columns)
    body = "".join(
        _panel(chart, panel, (i % chart.columns) * width, top + (i // chart.columns) * height, width, height, aslant)
        for i, panel in enumerate(chart.panels)
    )
    total = top + rows * height
    return (
        f'<svg class="chart" viewBox="0 0 {WIDTH} {total:g}" role="img" aria-label="{escape(chart.title)}">'
        f"{legend}{body}</svg>"
    )


def _legend(chart: Chart) -> tuple[str, float]:
    """Swatches with labels, over as many lines as they need; and where the panels begin."""
    x, y, drawn = 4.0, 12.0, []
    for label, color, dashed in chart.entries():
        wide = 26 + LETTER * len(label) + 14
        if x > 4 and x + wide > WIDTH:
            x, y = 4.0, y + 18
        dash = ' stroke-dasharray="4 3"' if dashed else ""
        drawn.append(
            f'<line x1="{x:g}" x2="{x + 18:g}" y1="{y:g}" y2="{y:g}" stroke-width="3"{dash} {_stroke(color)}/>'
            f'<text class="key" x="{x + 24:g}" y="{y + 4:g}">{escape(label)}</text>'
        )
        x += wide
    return "".join(drawn), (y + 10 if drawn else 0)


def _panel(chart: Chart, panel: Panel, x0: float, y0: float, width: float, height: float, aslant: bool) -> str:
    left, right = x0 + LEFT, x0 + width - RIGHT
    top, bottom = y0 + TOP, y0 + height - BOTTOM - (TURNED if aslant else 0)
    shared = chart.panels if chart.equal_y else [panel]
    low, high = limits((v for p in shared for v in _heights(p)), panel.log_y, any(p.has_bars for p in shared))
    y = Axis(low, high, bottom, top, panel.log_y)
    if panel.names is not None:
        x = Axis(-0.5, len(panel.names) - 0.5, left, right)
    else:
        places = [
            v for p in (chart.panels if chart.equal_x else [panel]) for s in p.series for v in s.x
            if not isinstance(v, str)
        ]  # fmt: skip
        x = Axis(*limits(places, panel.log_x), left, right, panel.log_x)
    parts = [_grid(panel, x, y, aslant), *_draw_series(panel, x, y)]
    if panel.title:
        parts.append(f'<text class="title" x="{left:g}" y="{y0 + 18:g}">{escape(panel.title)}</text>')
    if panel.x_title:
        at = bottom + 38 + (TURNED if aslant else 0)
        parts.append(_text("axis", (left + right) / 2, at, escape(panel.x_title)))
    if panel.y_title and x0 == 0:
        middle = (top + bottom) / 2
        parts.append(
            f'<text class="axis" x="12" y="{middle:g}" text-anchor="middle" transform="rotate(-90 12 {middle:g})">'
            f"{escape(panel.y_title)}</text>"
        )
    return "".join(parts)


def _heights(panel: Panel) -> Iterator[Value]:
    for series in panel.series:
        yield from series.y
        yield from series.low or ()
        yield from series.high or ()


def _crowded(names: Sequence[str], width: float) -> bool:
    return max(map(len, names), default=0) * LETTER > (width - LEFT - RIGHT) / max(len(names), 1)


def _grid(panel: Panel, x: Axis, y: Axis, aslant: bool) -> str:
    parts = []
    for tick in y.ticks(5):
        at = y(tick)
        parts.append(f'<line class="grid" x1="{x.start:.1f}" x2="{x.end:.1f}" y1="{at:.1f}" y2="{at:.1f}"/>')
        parts.append(_text("tick", x.start - 6, at + 4, shown(tick), "end"))
    parts.append(f'<line class="base" x1="{x.start:.1f}" x2="{x.end:.1f}" y1="{y.start:.1f}" y2="{y.start:.1f}"/>')
    if panel.names is not None:
        parts += _names(panel.names, x, y, aslant)
    else:
        for tick in panel.x_ticks or x.ticks(6):
            parts.append(_text("tick", x(tick), y.start + 17, shown(tick)))
    return "".join(parts)


def _names(names: Sequence[str], x: Axis, y: Axis, aslant: bool) -> Iterator[str]:
    """Names below their places; aslant, shortened and not all of them where there is little room."""
    every = -(-len(names) // 12)
    for i, name in enumerate(names):
        if i % every and i != len(names) - 1:
            continue
        at, below = x(i), y.start + 17
        short = name if len(name) <= 16 else name[:7] + "…" + name[-8:]
        if aslant:
            yield (
                f'<text class="tick" x="{at:.1f}" y="{below - 4:.1f}" text-anchor="end" '
                f'transform="rotate(-40 {at:.1f} {below - 4:.1f})">{escape(short)}</text>'
            )
        else:
            yield _text("tick", at, below, escape(name))


def _draw_series(panel: Panel, x: Axis, y: Axis) -> Iterator[str]:
    bars = [series for series in panel.series if series.kind == "bars"]
    count = len(panel.names or ()) or max((len(s.x) for s in bars), default=1)
    slot = abs(x.end - x.start) / max(count, 1)
    if panel.names is None and count > 1:  # a histogram: its bars touch
        slot = 1.25 * abs(_place(panel, x, bars[0].x[1]) - _place(panel, x, bars[0].x[0])) if bars else slot
    for series in panel.series:
        offset = (bars.index(series) - (len(bars) - 1) / 2) * 0.8 * slot / len(bars) if series.kind == "bars" else 0.0
        wide = 0.8 * slot / len(bars) if bars else 0.0
        points = [(_place(panel, x, at) + offset, v) for at, v in zip(series.x, series.y, strict=True)]
        if series.kind == "bars":
            yield from _bars(series, points, y, 0.92 * wide)
        if series.kind == "line":
            yield _line(series, [(at, None if v is None else y(v)) for at, v in points])
        if series.kind == "points" or series.marked:
            yield from (
                f'<circle cx="{at:.1f}" cy="{y(v):.1f}" r="4" {_fill(series.color)}>{_hint(series, v)}</circle>'
                for at, v in points if v is not None
            )  # fmt: skip
        yield from _errors(series, [at for at, _ in points], y)


def _place(panel: Panel, x: Axis, at: float | str) -> float:
    if panel.names is not None and isinstance(at, str):
        return x(list(panel.names).index(at))
    return x(float(at))


def _line(series: Series, points: list[tuple[float, float | None]]) -> str:
    path, pen = [], "M"
    for at, height in points:
        if height is None:
            pen = "M"
            continue
        path.append(f"{pen}{at:.1f} {height:.1f}")
        pen = "L"
    dash = ' stroke-dasharray="4 3"' if series.dashed else ""
    faint = ' opacity=".5"' if series.faint else ""
    style = f'fill="none" stroke-width="2"{dash}{faint} {_stroke(series.color)}'
    return f'<path d="{"".join(path)}" {style}>{_hint(series)}</path>'


def _bars(series: Series, points: list[tuple[float, Value]], y: Axis, wide: float) -> Iterator[str]:
    base = y(0.0) if not y.log else y.start
    for at, value in points:
        if value is not None:
            top, bottom = sorted((y(value), base))
            yield (
                f'<rect x="{at - wide / 2:.1f}" y="{top:.1f}" width="{max(wide, 0.5):.1f}" height="{bottom - top:.1f}" '
                f"{_fill(series.color)}>{_hint(series, value)}</rect>"
            )


def _errors(series: Series, places: list[float], y: Axis) -> Iterator[str]:
    for at, low, high in zip(places, series.low or (), series.high or (), strict=False):
        if low is not None and high is not None:
            yield f'<path class="error" d="M{at:.1f} {y(low):.1f}V{y(high):.1f}"/>'


def _hint(series: Series, value: Value = None) -> str:
    """Shown where the pointer rests."""
    text = series.label + ("" if value is None else f": {value:.4g}")
    return f"<title>{escape(text.strip(': '))}</title>" if text.strip(": ") else ""


def _text(kind: str, x: float, y: float, text: str, anchor: str = "middle") -> str:
    """Text that is escaped already."""
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{text}</text>'


def _stroke(color: str) -> str:
    return f'stroke="var(--series-{color})"'


def _fill(color: str) -> str:
    return f'fill="var(--series-{color})"'
