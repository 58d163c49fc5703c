"""Draws a chart as SVG, in the page's colours and without a script.

The layout is for a phone: 340 units wide, with letters of 12 units. On a wider screen the picture grows, but its
letters keep their size, because the style sheet gives them fewer units.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from html import escape
from itertools import takewhile
from textwrap import wrap

from .axes import Axis, limits, tick_text
from .chart import SHAPES, Chart, Key, Panel, Series, Value

WIDTH = 340
RIGHT, ABOVE, BESIDE = 10, 10, 14  # margins: right of a panel, above its axes, left of axes without numbers
NUMBERS, TITLE, LINE = 20, 18, 16  # heights: an axis's numbers, its title, a line of a panel's title
LETTER = 6.6  # approximate width of most letters of 12 units; of other characters, in a wide font:
WIDTHS = dict.fromkeys("0123456789", 7.6) | dict.fromkeys("⁻⁰¹²³⁴⁵⁶⁷⁸⁹", 4.8) | {"×": 10.0, "…": 12.0, ".": 4.0}
LONGEST, ANGLE = 16, 40  # most letters of a turned name below an axis, and the degrees by which it is turned
MARKS = 6  # marks on a line that does not have one at every point


def draw(chart: Chart) -> str:
    """The SVG of a whole chart; text in it is escaped."""
    legend, y = _legend(chart)
    margin = _margin(chart)
    lefts = [margin, *[BESIDE if chart.equal_y else margin] * (chart.columns - 1)]
    width = (WIDTH - sum(lefts) - RIGHT * chart.columns) / chart.columns
    lines = max(len(_title_lines(panel, width)) for panel in chart.panels)
    last = len(chart.panels) - chart.columns
    body, stack = [], y + ABOVE + LINE * lines
    for i, panel in enumerate(chart.panels):
        column = i % chart.columns
        left = sum(lefts[: column + 1]) + column * (width + RIGHT)
        top = y + ABOVE + LINE * lines
        numbers = not chart.shares_x or i >= last
        box = (left, top, left + width, top + chart.height)
        body.append(_panel(chart, panel, box, lines, numbers, column == 0))
        if column == 0 and not chart.shares_x:
            body.append(_y_title(chart, panel, top, top + chart.height))
        if column == chart.columns - 1 or i == len(chart.panels) - 1:
            y = top + chart.height + (max(_below(panel, width) for panel in chart.panels) if numbers else 6)
        if chart.shares_x and i == last:
            body.append(_y_title(chart, panel, stack, top + chart.height))
    name = escape(chart.title)
    return (
        f'<svg class="chart" viewBox="0 0 {WIDTH} {y:g}" role="img" aria-label="{name}"><title>{name}</title>'
        f"{legend}{''.join(body)}</svg>"
    )


def _legend(chart: Chart) -> tuple[str, float]:
    """The legend as SVG, over as many lines as it needs, and the height at which the panels begin."""
    x, y, drawn = 4.0, 10.0, []
    for key in chart.entries():
        wide = 26 + text_width(key.label) + 12
        if x > 4 and x + wide > WIDTH:
            x, y = 4.0, y + 18
        drawn.append(_swatch(key, x, y))
        drawn.append(f'<text class="key" x="{x + 24:g}" y="{y + 4:g}">{escape(key.label)}</text>')
        x += wide
    return "".join(drawn), (y + 8 if drawn else 0)


def _swatch(key: Key, x: float, y: float) -> str:
    if key.kind == "bars":
        box = f'<path d="M{x + 3:g} {y - 6:g}h12v12h-12z" {_fill(key.color)}/>'
        return box + mark(key.color, x + 9, y, paint='fill="var(--panel)"')
    dash = ' stroke-dasharray="4 3"' if key.dashed else ""
    line = f'<line x1="{x:g}" x2="{x + 18:g}" y1="{y:g}" y2="{y:g}" stroke-width="2"{dash} {_stroke(key.color)}/>'
    shape = "" if key.dashed or (key.kind == "line" and key.color not in SHAPES) else mark(key.color, x + 9, y)
    return shape if key.kind == "points" else line + shape


def _panel(
    chart: Chart, panel: Panel, box: tuple[float, float, float, float], lines: int, numbers: bool, first: bool
) -> str:
    left, top, right, bottom = box
    y = Axis(*_range(chart, panel), bottom, top, panel.log_y)
    if panel.names is not None:
        x = Axis(-0.5, len(panel.names) - 0.5, left, right)
    else:
        places = [
            v for p in (chart.panels if chart.equal_x else [panel]) for s in p.series for v in s.x
            if not isinstance(v, str)
        ]  # fmt: skip
        x = Axis(*limits(places, panel.log_x), left, right, panel.log_x)
    parts = [_grid(panel, x, y, numbers, first or not chart.equal_y), *_draw_series(panel, x, y)]
    for i, line in enumerate(_title_lines(panel, right - left)):
        parts.append(f'<text class="title" x="{left:g}" y="{top - 8 - LINE * (lines - 1 - i):g}">{escape(line)}</text>')
    if panel.x_title and numbers:
        at = bottom + _below(panel, right - left) - 6
        parts.append(_text("axis", (left + right) / 2, at, escape(panel.x_title)))
    return "".join(parts)


def _y_title(chart: Chart, panel: Panel, top: float, bottom: float) -> str:
    middle = (top + bottom) / 2
    return "".join(
        f'<text class="axis" x="{x}" y="{middle:g}" text-anchor="middle" transform="rotate(-90 {x} {middle:g})">'
        f"{escape(line)}</text>"
        for x, line in zip(range(11, WIDTH, LINE), _y_lines(chart, panel), strict=False)
    )


def _range(chart: Chart, panel: Panel) -> tuple[float, float]:
    shared = chart.panels if chart.equal_y else [panel]
    return limits((v for p in shared for v in _y_values(p)), panel.log_y, any(p.has_bars for p in shared))


def _y_values(panel: Panel) -> Iterator[Value]:
    for series in panel.series:
        yield from series.y
        yield from series.low or ()
        yield from series.high or ()


def _margin(chart: Chart) -> float:
    """The width of the longest number beside the axes, and of the axes' title."""
    axes = [(panel, Axis(*_range(chart, panel), 0, 1, panel.log_y)) for panel in chart.panels]
    numbers = max((text_width(tick_text(tick)) for _, axis in axes for tick in axis.ticks(5)), default=0)
    return 8 + numbers + LINE * max(len(_y_lines(chart, panel)) for panel in chart.panels)


def _y_lines(chart: Chart, panel: Panel) -> list[str]:
    """The title of the y axis, over as many lines as the height of the axis requires."""
    height = chart.height * (len(chart.panels) if chart.shares_x else 1) + 2 * ABOVE
    title = panel.y_title
    if text_width(title) > height:  # text in brackets gets a separate line
        title = title.replace(" (", "\n(")
    return [line for part in title.splitlines() for line in wrap(part, int(height / LETTER))]


def _title_lines(panel: Panel, width: float) -> list[str]:
    return wrap(panel.title, max(int(width / 1.2 / LETTER), 1))


def _below(panel: Panel, width: float) -> float:
    """The height of the numbers or names and the title below the axes."""
    below: float = NUMBERS + (TITLE if panel.x_title else 0)
    if panel.names and _must_turn(panel.names, width):
        longest = min(max(map(len, without_prefix(panel.names))), LONGEST)
        below += LETTER * longest * math.sin(math.radians(ANGLE)) - 4
    return below


def text_width(text: str) -> float:
    """The approximate width of a text with letters of 12 units."""
    return sum(WIDTHS.get(letter, LETTER) for letter in text)


def without_prefix(names: Sequence[str]) -> list[str]:
    """The names of layers, with … in place of the modules that contain them all."""
    modules = zip(*(name.split(".")[:-1] for name in names), strict=False)
    shared = [found[0] for found in takewhile(lambda found: len(set(found)) == 1, modules)] if len(names) > 1 else []
    prefix = len(".".join(shared))
    return [f"…{name[prefix + 1 :]}" if prefix > 1 else name for name in names]


def _must_turn(names: Sequence[str], width: float) -> bool:
    longest = max(without_prefix(names), key=len, default="")
    return len(longest) > 5 and text_width(longest) > width / max(len(names), 1)


def _grid(panel: Panel, x: Axis, y: Axis, numbers: bool, heights: bool) -> str:
    parts = []
    for tick in y.ticks(5):
        at = y(tick)
        parts.append(f'<line class="grid" x1="{x.start:.1f}" x2="{x.end:.1f}" y1="{at:.1f}" y2="{at:.1f}"/>')
        if heights:
            parts.append(_text("tick", x.start - 5, at + 4, tick_text(tick), "end"))
    parts.append(f'<line class="base" x1="{x.start:.1f}" x2="{x.end:.1f}" y1="{y.start:.1f}" y2="{y.start:.1f}"/>')
    if numbers:
        parts += _names(panel.names, x, y) if panel.names is not None else _numbers(panel, x, y)
    return "".join(parts)


def _numbers(panel: Panel, x: Axis, y: Axis) -> Iterator[str]:
    """Numbers below the axis; a number that would touch another one is left out."""
    end = -math.inf
    for tick in panel.x_ticks or x.ticks(max(int((x.end - x.start) / 34), 2)):
        text = tick_text(tick)
        half = text_width(text) / 2
        at = min(x(tick), WIDTH - half)
        if at - half > end + 4:
            yield _text("tick", at, y.start + 16, text)
            end = at + half


def _names(names: Sequence[str], x: Axis, y: Axis) -> Iterator[str]:
    """Names below the axis; if there is little room, they are turned and shortened, and some are left out."""
    names, width, below = without_prefix(names), x.end - x.start, y.start + 16
    turned = _must_turn(names, width)
    need = 15 if turned else max(map(text_width, names)) + 6
    every, last = max(math.ceil(need * len(names) / width), 1), len(names) - 1
    for i, name in enumerate(names):
        if i != last and (i % every or last - i < every):
            continue
        at = x(i)
        if turned:
            room = int((at - 4) / LETTER / math.cos(math.radians(ANGLE)))
            most = max(min(LONGEST, room), 5)
            short = name if len(name) <= most else f"{name[: most // 2]}…{name[most // 2 + 1 - most :]}"
            yield (
                f'<text class="tick" x="{at:.1f}" y="{below - 4:.1f}" text-anchor="end" '
                f'transform="rotate(-{ANGLE} {at:.1f} {below - 4:.1f})">{escape(short)}</text>'
            )
        else:
            yield _text("tick", min(at, WIDTH - text_width(name) / 2), below, escape(name))


def _draw_series(panel: Panel, x: Axis, y: Axis) -> Iterator[str]:
    bars = [series for series in panel.series if series.kind == "bars"]
    count = len(panel.names or ()) or max((len(s.x) for s in bars), default=1)
    slot = abs(x.end - x.start) / max(count, 1)
    if panel.names is None and count > 1:  # a histogram: its bars touch
        slot = 1.25 * abs(_place(panel, x, bars[0].x[1]) - _place(panel, x, bars[0].x[0])) if bars else slot
    for turn, series in enumerate(panel.series):
        offset = (bars.index(series) - (len(bars) - 1) / 2) * 0.8 * slot / len(bars) if series.kind == "bars" else 0.0
        wide = 0.8 * slot / len(bars) if bars else 0.0
        points = [(_place(panel, x, at) + offset, v) for at, v in zip(series.x, series.y, strict=True)]
        if series.kind == "bars":
            yield from _bars(series, points, y, 0.92 * wide, len(bars) > 1)
        if series.kind == "line":
            yield _line(series, [(at, None if v is None else y(v)) for at, v in points])
        yield from _errors(series, [at for at, _ in points], y)
        if series.kind == "points" or series.marked:
            yield from (mark(series.color, at, y(v), _hint(series, v)) for at, v in points if v is not None)
        elif series.kind == "line" and series.color in SHAPES and not (series.dashed or series.faint):
            every = max(len(points) // MARKS, 1)
            some = points[(turn * every // len(panel.series)) % every :: every]
            yield from (mark(series.color, at, y(v)) for at, v in some if v is not None)


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
    style = f'fill="none" stroke-width="1.5"{dash}{faint} {_stroke(series.color)}'
    return f'<path d="{"".join(path)}" {style}>{_hint(series)}</path>'


def _bars(series: Series, points: list[tuple[float, Value]], y: Axis, wide: float, marked: bool) -> Iterator[str]:
    """The bars of a series. marked: with the mark of the series at the foot of each bar that has room for it."""
    base = y(0.0) if not y.log else y.start
    for at, value in points:
        if value is not None:
            top, bottom = sorted((y(value), base))
            yield (
                f'<rect x="{at - wide / 2:.1f}" y="{top:.1f}" width="{max(wide, 0.5):.1f}" height="{bottom - top:.1f}" '
                f"{_fill(series.color)}>{_hint(series, value)}</rect>"
            )
            if marked and wide > 9 and bottom - top > 14:
                yield mark(series.color, at, base - 7, paint='fill="var(--panel)"')


def _errors(series: Series, places: list[float], y: Axis) -> Iterator[str]:
    """Error bars in the colour of the series; on bars, which have this colour themselves, in that of text."""
    color = "" if series.kind == "bars" else f" {_stroke(series.color)}"
    kind = "error ink" if series.kind == "bars" else "error"
    for at, low, high in zip(places, series.low or (), series.high or (), strict=False):
        if low is not None and high is not None:
            yield f'<path class="{kind}" d="M{at:.1f} {y(low):.1f}V{y(high):.1f}"{color}/>'


def mark(color: str, x: float, y: float, hint: str = "", paint: str = "") -> str:
    """The mark for a name of `COLORS`, in this colour or in another paint."""
    shape, paint = SHAPES.get(color, "circle"), paint or _fill(color)
    if shape == "circle":
        return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" {paint}>{hint}</circle>'
    paths = {"square": "m-3 -3h6v6h-6z", "diamond": "m0 -4l4 4l-4 4l-4 -4z", "triangle": "m0 -4l4 7h-8z"}
    return f'<path d="M{x:.1f} {y:.1f}{paths[shape]}" {paint}>{hint}</path>'


def _hint(series: Series, value: Value = None) -> str:
    """The text that appears when the pointer rests on a mark."""
    text = series.label + ("" if value is None else f": {value:.4g}")
    return f"<title>{escape(text.strip(': '))}</title>" if text.strip(": ") else ""


def _text(kind: str, x: float, y: float, text: str, anchor: str = "middle") -> str:
    """A text element; the text is already escaped."""
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{text}</text>'


def _stroke(color: str) -> str:
    return f'stroke="var(--series-{color})"'


def _fill(color: str) -> str:
    return f'fill="var(--series-{color})"'
