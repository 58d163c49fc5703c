"""The comparison with torch as one page that needs no other file."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from itertools import groupby
from typing import Any

from . import svg
from .bench_chart import STYLE, Mark, Row, draw, target_rows
from .bench_words import NAMES, SIZES, aims, at_least, doubts, load, measured, shape, spread
from .chart import Chart, Panel, Series
from .document import document

Result = dict[str, Any]
COLORS = {"torch": "plain", "compiled": "raw", "converted": "layer", "fused": "batch"}
BADGES = {"aim reached": "holds", "enough": "", "not enough": "fails"}


def page(result: Result) -> str:
    """Self-contained HTML for the dict of a comparison: the aims first, then a figure for each block and layout."""
    sections = []
    targets = [row for row in result["targets"] if result["settings"]["targets"] or row["measured"] is not None]
    if targets:
        rows, title = target_rows(targets), "Torch's time over ours, compared with the aims"
        half = -(-len(rows) // 2)
        plots = [draw(rows[:half], title, legend=True, same_axis=rows), draw(rows[half:], title, same_axis=rows)]
        sections.append(_section("Compared with the aims", [_plot(plot) for plot in plots], _table(targets)))
    for (dtype, block), layouts in groupby(result["cases"], key=lambda c: (c["dtype"], c["block"])):
        plots = []
        for layout, cases in groupby(layouts, key=lambda c: c["layout"]):
            totals = [t for t in result["totals"] if (t["dtype"], t["block"], t["layout"]) == (dtype, block, layout)]
            plots.append(_times_faster(f"{block}, {dtype}, {layout}", list(cases), [_total(t) for t in totals]))
        sections.append(_section(f"{block}, {dtype}", plots))
    pair = []
    if result["networks"]:
        steps = _plot(_steps(result["networks"]), "converted", "fused")
        pair.append(_section("A training step compared with torch's", [steps]))
    if result["memory"]:
        pair.append(_section("Memory kept for the backward pass", [_plot(svg.draw(_memory(result["memory"])))]))
    sections.append(f'<div class="pair">{"".join(pair)}</div>')
    return document("Batch norm against torch", _header(result) + "\n".join(sections), style=STYLE)


def _header(result: Result) -> str:
    facts = {**result["settings"], **result["environment"]}
    chips = "".join(f"<div><dt>{escape(k)}</dt><dd>{escape(_plain(v))}</dd></div>" for k, v in facts.items())
    notes = [*result["notes"], *(["Interrupted: only what was measured until then"] if result["interrupted"] else [])]
    lines = "".join(f"<li>{escape(line)}</li>" for line in doubts(result))
    doubtful = f"<details><summary>Ratios that cannot be trusted</summary><ul>{lines}</ul></details>" if lines else ""
    return f"""<header>
<p class="eyebrow">batchnorm bench</p>
<h1>Our batch norm compared with torch's, on this machine</h1>
<p class="lead">Forward and backward, measured in turns in one process. Marks are medians of the ratios, bars are their
quartiles, on a log scale. Above 1 ours is faster, below 1 torch's. A grey cross is a ratio that cannot be trusted,
which totals leave out.</p>
{"".join(f'<p class="notice">{escape(note)}</p>' for note in notes)}
<p class="caption">{escape(load(result["load"]).capitalize())}.</p>
{doubtful}
<dl class="facts">{chips}</dl>
</header>"""


def _plain(value: Any) -> str:
    return ", ".join(_plain(v).replace(", ", " ") for v in value) if isinstance(value, (list, tuple)) else str(value)


def _total(total: Result) -> str:
    parts = []
    for name, mean in total["mean"].items():
        rival, slower, left_out = NAMES.get(name, name), total["slower"][name], total["left_out"][name]
        words = [] if mean is None else [f"least {total['least'][name]:.2f}×"]
        words += [f"{rival} is faster on {slower}"] if slower else []
        words += [f"{left_out} left out"] if left_out else []
        parts.append(f"against {rival} {'no ratio to trust' if mean is None else f'{mean:.2f}×'} ({'; '.join(words)})")
    return f"Inputs of {SIZES[total['group']]} ({total['cases']}), geometric mean: {', '.join(parts)}."


def _table(rows: list[Result]) -> str:
    body = ""
    for row in rows:
        badge = f'<span class="badge {BADGES.get(row["verdict"], "")}">{escape(row["verdict"])}</span>'
        inputs = str(len(row["inputs"])) if row["kind"] in ("mean", "least") else ""
        inputs += f", {len(row['left_out'])} left out" if row["left_out"] else ""
        cells = [escape(text) for text in (row["name"], measured(row), spread(row), at_least(row), aims(row))]
        body += "<tr>" + "".join(f"<td>{cell}</td>" for cell in [*cells, badge, escape(inputs)]) + "</tr>"
    head = "".join(f"<th>{name}</th>" for name in ("", "measured", "spread", "at least", "aim", "", "inputs"))
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _section(title: str, plots: list[str], more: str = "") -> str:
    return f'<section><h2>{escape(title)}</h2><div class="plots">{"".join(plots)}</div>{more}</section>'


def _plot(drawing: str, *names: str, title: str = "", words: Sequence[str] = ()) -> str:
    """The HTML of a figure, with its title, its text and the marks of the compared series above it."""
    head = f"<h3>{escape(title)}</h3>" if title else ""
    text = "".join(f"<p>{escape(line)}</p>" for line in words)
    keys = "".join(
        f'<span><svg viewBox="-6 -6 12 12" aria-hidden="true">{svg.mark(COLORS[name], 0, 0)}</svg>'
        f"{escape(NAMES.get(name, name))}</span>"
        for name in names
    )
    return f'<div class="plot">{head}{text}{f"<p class=keys>{keys}</p>" if keys else ""}{drawing}</div>'


def _mark(name: str, ratio: Result) -> Mark:
    words = f"{ratio['median']:.2f}×"
    return Mark(ratio["median"], COLORS[name], words, ratio["low"], ratio["high"], ratio["doubt"])


def _times_faster(title: str, cases: list[Result], words: list[str]) -> str:
    """A figure with a row for each input: a mark for torch and, if measured, one for torch.compile."""
    rivals = [name for name in ("torch", "compiled") if any(name in case["ratios"] for case in cases)]
    rows = [
        Row(shape(case), [_mark(name, case["ratios"][name]) for name in rivals if name in case["ratios"]])
        for case in cases
    ]
    drawing = draw(rows, f"Torch's time over ours: {title}")
    layout = title.rpartition(", ")[2]
    return _plot(drawing, *rivals, title=layout, words=words)


def _steps(networks: list[Result]) -> str:
    rows = [
        Row(
            ", ".join(found[key] for key in ("name", "layout", "dtype")),
            [_mark(kind, found["ratios"][kind]) for kind in ("converted", "fused")],
        )
        for found in networks
    ]
    return draw(rows, "Torch's time over ours, for a training step")


def _memory(memory: list[Result]) -> Chart:
    """A chart with a panel for each network and bars for each activation."""
    panels = []
    for name, group in groupby(memory, key=lambda found: found["name"]):
        found = {row["activation"]: row["mebibytes"] for row in group}
        series = [
            Series("bars", list(found), [sizes[kind] for sizes in found.values()], COLORS[kind], kind)
            for kind in ("torch", "converted", "fused")
        ]
        panels.append(Panel(series, "activation", "MiB an image", name, names=list(found)))
    return Chart(panels, "Memory kept for the backward pass", height=100)
