"""The targets of a comparison with torch as one SVG: every input, the total, the least that will do, and the aim."""

from __future__ import annotations

import math
from collections.abc import Iterator
from html import escape
from typing import Any

from .bench_words import measured

Result = dict[str, Any]
WIDTH, LEFT, RIGHT, ROW, TOP = 780, 290, 90, 26, 58  # pixels: the picture, its margins, a row
TICKS = (0.25, 0.5, 1, 2, 4, 8, 16, 32, 64)
CLASSES = {"aim reached": "good", "enough": "fair", "not enough": "bad", "no aim": "open", "not measured": "open"}
STYLE = """
.page { fill: #fff } .ink { fill: #24292f } .soft { fill: #6b7480 } .line { stroke: #d8dde3 } .one { stroke: #8a8f98 }
.good { fill: #16794d } .fair { fill: #2563c9 } .bad { fill: #b3401c } .open { fill: #6b7480 }
.mark { stroke: #24292f; stroke-width: 2; fill: none }
@media (prefers-color-scheme: dark) {
  .page { fill: #161b22 } .ink { fill: #e6ebf1 } .soft { fill: #9aa5b1 } .line { stroke: #30363d }
  .good { fill: #4cc38a } .fair { fill: #6aa8f7 } .bad { fill: #f0906a } .open { fill: #9aa5b1 }
  .mark { stroke: #e6ebf1 }
}"""


class _Scale:
    """A logarithmic axis over the picture's middle."""

    def __init__(self, values: list[float]) -> None:
        self.low, self.high = min(0.8, *values) / 1.1, max(2.0, *values) * 1.1

    def __call__(self, ratio: float) -> float:
        share = math.log(ratio / self.low) / math.log(self.high / self.low)
        return LEFT + share * (WIDTH - LEFT - RIGHT)

    def ticks(self) -> list[float]:
        return [tick for tick in TICKS if self.low <= tick <= self.high]


def chart(result: Result) -> str:
    """An SVG for light and dark pages. Each row is a target in ratios; what was not measured is named."""
    rows = [row for row in result["targets"] if row["unit"] == "×"]
    values = [
        row[key] for row in rows for key in ("at_least", "aim", "measured", "low", "high") if row[key] is not None
    ]
    scale = _Scale(values + [found["ratio"] for row in rows for found in row["inputs"]])
    bottom = TOP + ROW * len(rows)
    parts = [*_axis(scale, bottom), *(part for i, row in enumerate(rows) for part in _row(row, TOP + ROW * i, scale))]
    parts += _legend(bottom + 44)
    title = "How many times faster than torch's layers, forward and backward"
    return f"""<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {bottom + 60}" font-family="sans-serif"
font-size="13" role="img">
<title>{title}</title>
<style>{STYLE}</style>
<rect class="page" width="{WIDTH}" height="{bottom + 60}" rx="6"/>
<text class="ink" x="16" y="26" font-weight="600">{title}</text>
{chr(10).join(parts)}
</svg>
"""


def _axis(scale: _Scale, bottom: float) -> Iterator[str]:
    for tick in scale.ticks():
        x, kind = scale(tick), "one" if tick == 1 else "line"
        yield f'<line class="{kind}" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP - 8}" y2="{bottom}"/>'
        yield f'<text class="soft" x="{x:.1f}" y="{bottom + 16}" text-anchor="middle">{tick:g}×</text>'


def _row(row: Result, top: float, scale: _Scale) -> Iterator[str]:
    y, kind = top + ROW / 2, CLASSES[row["verdict"]]
    yield f'<text class="ink" x="{LEFT - 12}" y="{y + 4:.1f}" text-anchor="end">{escape(row["name"])}</text>'
    if row["measured"] is None:
        yield f'<text class="soft" x="{WIDTH - 16}" y="{y + 4:.1f}" text-anchor="end">not measured</text>'
    else:
        if row["low"] is not None:
            left, right = scale(row["low"]), scale(row["high"])
            box = f'x="{left:.1f}" y="{y - 1.5}" width="{right - left:.1f}" height="3"'
            yield f'<rect class="{kind}" {box} opacity="0.5"/>'
        if row["kind"] == "mean":
            yield from (
                f'<circle class="{kind}" cx="{scale(found["ratio"]):.1f}" cy="{y}" r="3" opacity="0.35">'
                f"<title>{escape(found['label'])}: {found['ratio']:.2f}×</title></circle>"
                for found in row["inputs"]
            )
        yield f'<rect class="{kind}" x="{scale(row["measured"]) - 3:.1f}" y="{y - 9}" width="6" height="18" rx="2"/>'
        place = f'x="{WIDTH - 16}" y="{y + 4:.1f}" text-anchor="end" font-weight="600"'
        yield f'<text class="{kind}" {place}>{measured(row)}{" ?" if row["left_out"] else ""}</text>'
    if row["at_least"] is not None:
        yield _least(scale(row["at_least"]), y)
        yield _aim(scale(row["aim"]), y)


def _least(x: float, y: float) -> str:
    return f'<line class="mark" x1="{x:.1f}" x2="{x:.1f}" y1="{y - 6}" y2="{y + 6}"/>'


def _aim(x: float, y: float) -> str:
    return f'<path class="mark" d="M{x:.1f} {y - 6}l6 6l-6 6l-6 -6z"/>'


def _legend(y: float) -> Iterator[str]:
    yield f'<rect class="fair" x="16" y="{y - 9}" width="6" height="18" rx="2"/>'
    yield f'<text class="soft" x="28" y="{y + 4}">measured</text>'
    yield f'<circle class="fair" cx="112" cy="{y}" r="3" opacity="0.35"/>'
    yield f'<text class="soft" x="121" y="{y + 4}">one input</text>'
    yield _least(206, y) + f'<text class="soft" x="214" y="{y + 4}">at least</text>'
    yield _aim(286, y) + f'<text class="soft" x="297" y="{y + 4}">aim</text>'
    for x, kind, words in ((344, "good", "aim reached"), (448, "fair", "enough"), (522, "bad", "not enough")):
        yield f'<text class="{kind}" x="{x}" y="{y + 4}" font-weight="600">{words}</text>'
    yield f'<text class="soft" x="620" y="{y + 4}">?: inputs left out</text>'
