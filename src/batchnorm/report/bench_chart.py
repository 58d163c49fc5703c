"""Ratios as rows on a logarithmic axis, in SVG: the targets for performance.md, and all ratios for the page.

The layout is for a phone, as in `svg.py`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from .bench_words import measured
from .svg import WIDTH, mark, text_width

Result = dict[str, Any]
INLINE, ROW, TALL = 14, 20, 36  # most letters of a name beside its axis; height of such a row; height of other rows
SIDE, NUMBER, TICK = 12, 50, 38  # widths: margin of an axis below its name; each number at the right; between ticks
AXIS = "torch's time over ours (log scale)"
CLASSES = {"aim reached": "good", "enough": "fair", "not enough": "bad", "no aim": "open", "not measured": "open"}
STYLE = """
.ratios text { paint-order: stroke; stroke: var(--panel, #fff); stroke-width: 3 }
.ratios .page { fill: #fff } .ratios .ink { fill: #24292f } .ratios .soft { fill: #5c6775 }
.ratios .grid { stroke: #d8dde3 } .ratios .one { stroke: #6b7480; stroke-width: 1.5 }
.ratios .good { fill: #16794d } .ratios .fair { fill: #2563c9 } .ratios .bad { fill: #b3401c }
.ratios .open { fill: #5c6775 } .ratios .aim { stroke: #24292f; stroke-width: 1.5; fill: none }
.ratios .cross { stroke: #5c6775; stroke-width: 1.5; fill: none }
@media (prefers-color-scheme: dark) {
  .ratios text { stroke: var(--panel, #161b22) }
  .ratios .page { fill: #161b22 } .ratios .ink { fill: #e6ebf1 } .ratios .soft { fill: #9aa5b1 }
  .ratios .grid { stroke: #30363d } .ratios .one { stroke: #8f9bab }
  .ratios .good { fill: #4cc38a } .ratios .fair { fill: #6aa8f7 } .ratios .bad { fill: #f0906a }
  .ratios .open { fill: #9aa5b1 } .ratios .aim { stroke: #e6ebf1 } .ratios .cross { stroke: #9aa5b1 }
}"""


@dataclass(frozen=True)
class Mark:
    """One ratio with its quartiles.

    color: a name from `chart.COLORS`, drawn in the shape of its series, or the class of a verdict, drawn as a bar.
    doubt: the reason for not trusting the ratio, which is then drawn as a cross.
    """

    ratio: float
    color: str
    words: str
    low: float | None = None
    high: float | None = None
    doubt: str | None = None
    inputs: Sequence[tuple[str, float]] = ()


@dataclass(frozen=True)
class Row:
    """A name with its marks; without marks if nothing was measured."""

    name: str
    marks: Sequence[Mark]
    at_least: float | None = None
    aim: float | None = None

    def values(self) -> list[float]:
        found = [v for m in self.marks for v in (m.ratio, m.low, m.high, *(ratio for _, ratio in m.inputs))]
        return [value for value in (*found, self.at_least, self.aim) if value is not None]


class _Scale:
    """A logarithmic axis from left to right."""

    def __init__(self, values: list[float], left: float, right: float) -> None:
        self.low, self.high = min([0.8, *values]) / 1.1, max([2.0, *values]) * 1.1
        self.left, self.right = left, right

    def __call__(self, ratio: float) -> float:
        share = math.log(ratio / self.low) / math.log(self.high / self.low)
        return self.left + share * (self.right - self.left)

    def ticks(self) -> list[float]:
        """Powers of two, including 1, with room for their numbers."""
        octave = self(2) - self(1)
        step = math.ceil(TICK / octave)
        first, last = (math.log2(end) / step for end in (self.low, self.high))
        return [2.0 ** (step * i) for i in range(math.ceil(first), math.floor(last) + 1)]


def chart(result: Result) -> str:
    """A standalone SVG of all targets that are ratios, also of those not measured, for light and dark pages."""
    title = "How many times faster than torch's layers, forward and backward"
    legend, y = _legend(24)
    body, bottom = _rows(target_rows(result["targets"]), y + 6)
    height = bottom + 12
    return f"""<svg xmlns="http://www.w3.org/2000/svg" class="ratios" width="{WIDTH * 1.3:g}" height="{height * 1.3:g}"
viewBox="-8 0 {WIDTH + 16} {height:g}" font-family="sans-serif" font-size="12" role="img">
<title>{title}</title>
<style>{STYLE}</style>
<rect class="page" x="-8" width="{WIDTH + 16}" height="{height:g}" rx="6"/>
{legend}
{body}
</svg>
"""


def draw(rows: Sequence[Row], title: str, legend: bool = False, same_axis: Sequence[Row] = ()) -> str:
    """An SVG of rows, for a page with `STYLE`. legend: explain the aims' marks. same_axis: rows that share its axis."""
    above, y = _legend(14) if legend else ("", 0.0)
    body, bottom = _rows(rows, y, same_axis)
    name = escape(title)
    return (
        f'<svg class="chart ratios" viewBox="0 0 {WIDTH} {bottom:g}" role="img" aria-label="{name}">'
        f"<title>{name}</title>{above}{body}</svg>"
    )


def target_rows(targets: Sequence[Result]) -> list[Row]:
    """A row for each target that is a ratio; the row of a mean also shows its inputs."""
    return [_target(row) for row in targets if row["unit"] == "×"]


def _target(row: Result) -> Row:
    marks = []
    if row["measured"] is not None:
        inputs = [(found["label"], found["ratio"]) for found in row["inputs"]] if row["kind"] == "mean" else []
        words = measured(row) + (" ?" if row["left_out"] else "")
        marks.append(Mark(row["measured"], CLASSES[row["verdict"]], words, row["low"], row["high"], inputs=inputs))
    return Row(row["name"], marks, row["at_least"], row["aim"])


def _rows(rows: Sequence[Row], top: float, same_axis: Sequence[Row] = ()) -> tuple[str, float]:
    """The rows as SVG, and the height at which they end."""
    tall = any(len(row.name) > INLINE for row in (*rows, *same_axis))
    height, left = (TALL, SIDE) if tall else (ROW, 8 + max((text_width(row.name) for row in rows), default=0))
    right = WIDTH - (SIDE if tall else NUMBER * max((len(row.marks) for row in rows), default=1))
    scale = _Scale([value for row in (*rows, *same_axis) for value in row.values()], left + 4, right - 4)
    start, bottom = top + 20, top + 20 + height * len(rows)
    parts = [*_axis(scale, start, bottom)]
    for i, row in enumerate(rows):
        parts += _row(row, start + height * i, height, scale, tall)
    middle = (scale.left + scale.right) / 2
    parts.append(f'<text class="soft" x="{middle:g}" y="{bottom + 32:g}" text-anchor="middle">{AXIS}</text>')
    return "\n".join(parts), bottom + 38


def _axis(scale: _Scale, top: float, bottom: float) -> Iterator[str]:
    for tick in scale.ticks():
        x, kind = scale(tick), "one" if tick == 1 else "grid"
        yield f'<line class="{kind}" x1="{x:.1f}" x2="{x:.1f}" y1="{top:g}" y2="{bottom:g}"/>'
        for y in (top - 6, bottom + 15):
            yield f'<text class="soft" x="{x:.1f}" y="{y:g}" text-anchor="middle">{tick:g}×</text>'


def _row(row: Row, top: float, height: float, scale: _Scale, tall: bool) -> Iterator[str]:
    words, y = top + (14 if tall else height / 2 + 4), top + (25 if tall else height / 2)
    x, anchor = (0.0, "start") if tall else (scale.left - 8, "end")
    yield f'<text class="ink" x="{x:g}" y="{words:g}" text-anchor="{anchor}">{escape(row.name)}</text>'
    if not row.marks:
        yield f'<text class="soft" x="{WIDTH}" y="{words:g}" text-anchor="end">not measured</text>'
    for i, found in enumerate(row.marks):
        yield from _mark(found, scale, y)
        at = WIDTH - NUMBER * (len(row.marks) - 1 - i)
        text = f'x="{at}" y="{words:g}" text-anchor="end"'
        yield f'<text {_ink(found)} {text} font-weight="600">{"?" if found.doubt else escape(found.words)}</text>'
    if row.at_least is not None:
        yield _least(scale(row.at_least), y)
    if row.aim is not None:
        yield _aim(scale(row.aim), y)


def _ink(found: Mark) -> str:
    """The class of a verdict, or the colour of a series; grey if the ratio is in doubt."""
    if found.doubt is not None or found.color in CLASSES.values():
        return f'class="{"soft" if found.doubt is not None else found.color}"'
    return f'style="fill:var(--series-{found.color})"'


def _mark(found: Mark, scale: _Scale, y: float) -> Iterator[str]:
    ink, x = _ink(found), scale(found.ratio)
    hint = f"<title>{escape(found.doubt or found.words)}</title>"
    if found.doubt is not None:
        yield f'<path class="cross" d="M{x - 4:.1f} {y - 4:g}l8 8m0 -8l-8 8">{hint}</path>'
        return
    if found.low is not None and found.high is not None:
        left, right = scale(found.low), scale(found.high)
        box = f'x="{left:.1f}" y="{y - 1:g}" width="{right - left:.1f}" height="2"'
        yield f'<rect {ink} {box} opacity="0.6"/>'
    for label, ratio in found.inputs:
        yield (
            f'<circle {ink} cx="{scale(ratio):.1f}" cy="{y:g}" r="2.5" opacity="0.35">'
            f"<title>{escape(label)}: {ratio:.2f}×</title></circle>"
        )
    if found.color in CLASSES.values():
        yield f'<rect {ink} x="{x - 2.5:.1f}" y="{y - 7:g}" width="5" height="14" rx="1.5">{hint}</rect>'
    else:
        yield mark(found.color, x, y, hint)


def _least(x: float, y: float) -> str:
    return f'<path class="aim" d="M{x:.1f} {y - 5:g}v10"/>'


def _aim(x: float, y: float) -> str:
    return f'<path class="aim" d="M{x:.1f} {y - 5:g}l5 5l-5 5l-5 -5z"/>'


def _legend(y: float) -> tuple[str, float]:
    """The legend's two lines as SVG, and the height at which they end."""
    signs = (
        (4, f'<rect class="fair" x="2" y="{y - 11}" width="5" height="14" rx="1.5"/>', "measured"),
        (84, f'<circle class="fair" cx="86" cy="{y - 4}" r="2.5" opacity="0.5"/>', "one input"),
        (162, _least(164, y - 4), "at least"),
        (236, _aim(234, y - 4), "aim"),
    )
    parts = [f'{sign}<text class="soft" x="{x + 8}" y="{y}">{words}</text>' for x, sign, words in signs]
    below = (
        (0, "good", "aim reached"),
        (88, "fair", "enough"),
        (146, "bad", "not enough"),
        (232, "soft", "?: inputs left out"),
    )
    parts += [f'<text class="{kind}" x="{x}" y="{y + 18}">{words}</text>' for x, kind, words in below]
    return "".join(parts), y + 24
