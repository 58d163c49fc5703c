"""The comparison with torch as one page that needs nothing besides itself."""

from __future__ import annotations

from html import escape
from itertools import groupby
from typing import Any

from .bench_words import NAMES, SIZES, aims, at_least, doubts, load, measured, quartiles, shape, spread
from .document import document
from .plotly_parts import blank

Result = dict[str, Any]
COLORS = {"torch": "#e0782f", "compiled": "#9a63d8", "converted": "#8d99ae", "fused": "#2f7de1"}
SYMBOLS = {"torch": "circle", "compiled": "diamond"}
DOUBTFUL = {"color": "#8a8f98", "symbol": "x-thin-open", "size": 11, "line": {"width": 2, "color": "#8a8f98"}}
VERDICTS = {"aim reached": "#2e9e6b", "enough": "#2f7de1", "not enough": "#ca472f", "no aim": "#8a8f98"}
BADGES = {"aim reached": "holds", "enough": "", "not enough": "fails"}
TICKS = [0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100]


def page(result: Result) -> str:
    """Self-contained HTML for the dict of a comparison: the aims first, then a figure for each block and layout."""
    figures: dict[str, Result] = {}
    sections = []
    targets = [row for row in result["targets"] if result["settings"]["targets"] or row["measured"] is not None]
    if targets:
        sections.append(_section("Beside the aims", [], figures, _aims(targets), _table(targets)))
    for (dtype, block, layout), cases in groupby(result["cases"], key=lambda c: (c["dtype"], c["block"], c["layout"])):
        totals = [t for t in result["totals"] if (t["dtype"], t["block"], t["layout"]) == (dtype, block, layout)]
        figure = _times_faster(list(cases))
        sections.append(_section(f"{block}, {dtype}, {layout}", [_total(t) for t in totals], figures, figure))
    if result["networks"]:
        sections.append(_section("A training step beside torch's", [], figures, _steps(result["networks"])))
    if result["memory"]:
        sections.append(_section("Kept for the backward pass", [], figures, _kept(result["memory"])))
    return document("Batch norm against torch", _header(result) + "\n".join(sections), figures)


def _header(result: Result) -> str:
    facts = {**result["settings"], **result["environment"]}
    chips = "".join(f"<div><dt>{escape(k)}</dt><dd>{escape(_plain(v))}</dd></div>" for k, v in facts.items())
    notes = [*result["notes"], *(["Interrupted: only what was measured until then"] if result["interrupted"] else [])]
    lines = "".join(f"<li>{escape(line)}</li>" for line in doubts(result))
    doubtful = f"<details><summary>Ratios not to be trusted</summary><ul>{lines}</ul></details>" if lines else ""
    return f"""<header>
<p class="eyebrow">batchnorm bench</p>
<h1>Batch norm against torch's, on this machine</h1>
<p class="lead">Forward and backward, in turns in one process: medians of the ratios, with quartiles as bars, on a log
scale. Above 1 ours is faster; below, torch. A grey cross is a ratio that is not to be trusted, in no total.</p>
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
        parts.append(f"against {rival} {'nothing to trust' if mean is None else f'{mean:.2f}×'} ({'; '.join(words)})")
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


def _section(title: str, words: list[str], figures: dict[str, Result], figure: Any, more: str = "") -> str:
    name = f"figure-{len(figures)}"
    figures[name] = figure.to_plotly_json()
    text = "".join(f"<p>{escape(line)}</p>" for line in words)
    return f'<section><h2>{escape(title)}</h2>{text}<div class="plot" id="{name}"></div>{more}</section>'


def _logarithmic(update: Any) -> None:
    update(type="log", tickvals=TICKS, ticktext=[f"{tick:g}×" for tick in TICKS])


def _points(figure: Any, name: str, labels: Any, ratios: list[Result], color: str, symbol: str) -> None:
    """Medians with quartiles; ratios not to be trusted apart, as grey crosses without."""
    good = [(x, r) for x, r in zip(labels, ratios, strict=True) if r["doubt"] is None]
    figure.add_scatter(
        x=[x for x, _ in good],
        y=[r["median"] for _, r in good],
        customdata=[quartiles(r) for _, r in good],
        error_y={
            "type": "data",
            "symmetric": False,
            "array": [r["high"] - r["median"] for _, r in good],
            "arrayminus": [r["median"] - r["low"] for _, r in good],
            "thickness": 1.5,
        },
        mode="markers",
        marker={"color": color, "symbol": symbol, "size": 9},
        name=NAMES.get(name, name),
        hovertemplate="%{x}: %{y:.3g}× (%{customdata})<extra>" + NAMES.get(name, name) + "</extra>",
    )
    bad = [(x, r) for x, r in zip(labels, ratios, strict=True) if r["doubt"] is not None]
    if bad:
        figure.add_scatter(
            x=[x for x, _ in bad],
            y=[r["median"] for _, r in bad],
            customdata=[r["doubt"] for _, r in bad],
            mode="markers",
            marker=DOUBTFUL,
            name=f"{NAMES.get(name, name)}: not to be trusted",
            hovertemplate="%{x}: not to be trusted<br>%{customdata}<extra></extra>",
        )


def _times_faster(cases: list[Result]) -> Any:
    figure = blank("input", "torch's time over ours", height=420)
    for name in ("torch", "compiled"):
        inside = [case for case in cases if name in case["ratios"]]
        if inside:
            ratios = [case["ratios"][name] for case in inside]
            _points(figure, name, [shape(case) for case in inside], ratios, COLORS[name], SYMBOLS[name])
    order = [shape(case) for case in cases]
    figure.update_xaxes(type="category", categoryorder="array", categoryarray=order)
    _logarithmic(figure.update_yaxes)
    figure.add_hline(y=1, line={"color": "#ca472f", "width": 2})
    return figure


def _steps(networks: list[Result]) -> Any:
    figure = blank("", "torch's time over ours")
    labels = [f"{found['name']}<br>{found['layout']}<br>{found['dtype']}" for found in networks]
    for kind in ("converted", "fused"):
        _points(figure, kind, labels, [found["ratios"][kind] for found in networks], COLORS[kind], "circle")
    figure.update_yaxes(type="log", tickvals=[0.5, 0.8, 1, 1.2, 1.5, 2, 3], ticksuffix="×")
    figure.add_hline(y=1, line={"color": "#ca472f", "width": 2})
    return figure


def _kept(memory: list[Result]) -> Any:
    figure = blank("", "MiB an image", barmode="group")
    labels = [[found[key] for found in memory] for key in ("name", "activation")]  # two levels
    for kind in ("torch", "converted", "fused"):
        sizes = [found["mebibytes"][kind] for found in memory]
        hover = f"%{{x}}: %{{y:.3g}} MiB<extra>{kind}</extra>"
        figure.add_bar(x=labels, y=sizes, name=kind, marker_color=COLORS[kind], hovertemplate=hover)
    return figure


def _aims(rows: list[Result]) -> Any:
    """The measured ratios beside what is enough and what is aimed at."""
    rows = [row for row in rows if row["unit"] == "×"][::-1]
    figure = blank("torch's time over ours", "", height=120 + 30 * len(rows))
    for verdict, color in VERDICTS.items():
        inside = [row for row in rows if row["verdict"] == verdict]
        if inside:
            figure.add_scatter(
                x=[row["measured"] for row in inside],
                y=[row["name"] for row in inside],
                mode="markers",
                name=verdict,
                marker={"color": color, "size": 12},
                hovertemplate="%{y}: %{x:.3g}×<extra>measured</extra>",
            )
    for key, name, symbol in (("at_least", "at least", "line-ns-open"), ("aim", "aim", "diamond-open")):
        figure.add_scatter(
            x=[row[key] for row in rows],
            y=[row["name"] for row in rows],
            mode="markers",
            name=name,
            marker={"color": "#8a8f98", "symbol": symbol, "size": 12, "line": {"width": 2}},
            hovertemplate=f"%{{y}}: %{{x:.3g}}×<extra>{name}</extra>",
        )
    _logarithmic(figure.update_xaxes)
    figure.update_yaxes(type="category", categoryorder="array", categoryarray=[row["name"] for row in rows])
    figure.add_vline(x=1, line={"color": "#ca472f", "width": 1})
    return figure
