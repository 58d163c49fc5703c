"""The comparison with torch as one page that needs nothing besides itself."""

from __future__ import annotations

from html import escape
from itertools import groupby
from typing import Any

from .document import document
from .figures import blank

Result = dict[str, Any]
NAMES = {"compiled": "torch.compile"}
SIZES = {"large": "8,192 values or more", "small": "fewer than 8,192 values"}
COLORS = {"torch": "#e0782f", "compiled": "#9a63d8", "converted": "#8d99ae", "fused": "#2f7de1"}


def page(result: Result) -> str:
    """Self-contained HTML for the dict of a comparison: totals first, then a figure for each block and layout."""
    figures: dict[str, Result] = {}
    sections = []
    for (block, layout), cases in groupby(result["cases"], key=lambda case: (case["block"], case["layout"])):
        title = f"{block}, {layout}"
        words = [_total(total) for total in result["totals"] if (total["block"], total["layout"]) == (block, layout)]
        sections.append(_section(title, words, figures, _times_faster(list(cases))))
    if result["networks"]:
        sections.append(_section("A training step", [], figures, _steps(result["networks"])))
    if result["memory"]:
        sections.append(_section("Kept for the backward pass", [], figures, _kept(result["memory"])))
    return document("Batch norm against torch", _header(result) + "\n".join(sections), figures)


def _header(result: Result) -> str:
    facts = {**result["settings"], **result["environment"]}
    chips = "".join(f"<div><dt>{escape(k)}</dt><dd>{escape(_plain(v))}</dd></div>" for k, v in facts.items())
    notes = [*result["notes"], *(["Interrupted: only what was measured until then"] if result["interrupted"] else [])]
    return f"""<header>
<p class="eyebrow">batchnorm bench</p>
<h1>Batch norm against torch's, on this machine</h1>
<p class="lead">Forward and backward, medians, in turns in one process. Above 1 ours is faster; below, torch.</p>
{"".join(f'<p class="notice">{escape(note)}</p>' for note in notes)}
<dl class="facts">{chips}</dl>
</header>"""


def _plain(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)


def _total(total: Result) -> str:
    parts = []
    for name, mean in total["mean"].items():
        rival, slower = NAMES.get(name, name), total["slower"][name]
        slower = f"; {rival} is faster on {slower}" if slower else ""
        parts.append(f"against {rival} {mean:.2f}× (least {total['least'][name]:.2f}×{slower})")
    return f"Inputs of {SIZES[total['group']]} ({total['cases']}), geometric mean: {', '.join(parts)}."


def _section(title: str, words: list[str], figures: dict[str, Result], figure: Any) -> str:
    name = f"figure-{len(figures)}"
    figures[name] = figure.to_plotly_json()
    text = "".join(f"<p>{escape(line)}</p>" for line in words)
    return f'<section><h2>{escape(title)}</h2>{text}<div class="plot" id="{name}"></div></section>'


def _bars(figure: Any, labels: list[Any], series: dict[str, list[float | None]], unit: str) -> Any:
    for name, values in series.items():
        label = NAMES.get(name, name)
        hover = f"%{{x}}: %{{y:.3g}}{unit}<extra>{label}</extra>"
        figure.add_bar(x=labels, y=values, name=label, marker_color=COLORS[name], hovertemplate=hover)
    return figure


def _times_faster(cases: list[Result]) -> Any:
    figure = blank("input", "torch's time over ours", height=420, barmode="group")
    labels = ["×".join(map(str, case["shape"])) for case in cases]
    rivals = [name for name in ("torch", "compiled") if any(name in case["times"] for case in cases)]
    _bars(figure, labels, {name: [case["times"].get(name) for case in cases] for name in rivals}, "×")
    figure.update_xaxes(type="category")
    figure.add_hline(y=1, line={"color": "#ca472f", "width": 2})
    return figure


def _steps(networks: list[Result]) -> Any:
    figure = blank("", "ms", barmode="group")
    labels = [[found[key] for found in networks] for key in ("name", "layout")]  # two levels
    kinds = ("torch", "converted", "fused")
    return _bars(figure, labels, {kind: [found["milliseconds"][kind] for found in networks] for kind in kinds}, " ms")


def _kept(memory: list[Result]) -> Any:
    figure = blank("", "MiB an image", barmode="group")
    labels = [[found[key] for found in memory] for key in ("name", "activation")]
    kinds = ("torch", "converted", "fused")
    return _bars(figure, labels, {kind: [found["mebibytes"][kind] for found in memory] for kind in kinds}, " MiB")
