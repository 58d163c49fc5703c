"""The verdicts on nine claims as one picture, to keep or to share."""

from __future__ import annotations

from html import escape
from textwrap import wrap
from typing import Any

from .tone import badge, tone

WIDTH, LINE, PAD = 860, 19, 28  # pixels
COLORS = {"holds": "#0d7a4f", "fails": "#a8441a", "warns": "#8a5a00", "open": "#5c6775", "fact": "#2563c9"}


def summary(result: dict[str, Any]) -> str:
    """A standalone SVG on white: the headline, then a row for each claim. Text in it is escaped."""
    rows, y = [], PAD + 22.0
    rows.append(_text(PAD, y, f"{result['network']} on {result['data']['name']}", 20, "#1b2430", bold=True))
    for line in wrap(result["headline"], 108):
        y += LINE + 3
        rows.append(_text(PAD, y, line, 14.5, "#1b2430"))
    y += 14
    for claim in result["claims"]:
        color = COLORS[tone(claim)]
        lines = wrap(claim["sentence"] or claim["reason"], 92)
        height = LINE * len(lines) + 34
        y += 8
        rows.append(f'<rect x="{PAD}" y="{y:g}" width="4" height="{height - 8}" rx="2" fill="{color}"/>')
        rows.append(_text(PAD + 16, y + 16, f"{claim['number']}  {claim['title']}", 15, "#1b2430", bold=True))
        rows.append(_text(WIDTH - PAD, y + 16, badge(claim), 13.5, color, bold=True, anchor="end"))
        for i, line in enumerate(lines):
            rows.append(_text(PAD + 16, y + 38 + i * LINE, line, 14, "#1b2430"))
        y += height
    whole = y + PAD
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{whole:g}" viewBox="0 0 {WIDTH} {whole:g}">'
        f'<rect width="100%" height="100%" fill="#fff"/>{"".join(rows)}</svg>'
    )


def _text(x: float, y: float, text: str, size: float, color: str, bold: bool = False, anchor: str = "start") -> str:
    weight = ' font-weight="600"' if bold else ""
    return (
        f'<text x="{x:g}" y="{y:g}" font-size="{size:g}" fill="{color}" text-anchor="{anchor}"{weight} '
        f'font-family="system-ui, -apple-system, Segoe UI, Roboto, sans-serif">{escape(text)}</text>'
    )
