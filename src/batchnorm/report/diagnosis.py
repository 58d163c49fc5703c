"""A diagnosis as a page and as a table in the terminal, from the report's dict. Its names are untrusted text."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING, Any

from .chart import Chart, Kind, Panel, Series
from .document import document
from .figures import LAYERS, ramp, spaced
from .svg import draw, without_prefix

if TYPE_CHECKING:
    from rich.console import Console

Result = dict[str, Any]

STYLES = {"error": "bold red", "warning": "yellow", "info": "dim"}
SLUGS = {"error": "fails", "warning": "warns", "info": "open"}
MOST = 4  # the most layers that a row of the terminal or a card names
MOST_HEALTHY = 20  # the most healthy layers that the terminal lists
CAPTIONS = {
    "figure-gap": "Each layer's part of the gap between training and evaluation, in standard deviations of the output.",
    "figure-stale": "Distance of the running statistics from those of the inputs in training; the part due to chance.",
    "figure-values": "The number of independent values that a batch is worth, for each layer.",
    "figure-drift": "Distance of each batch's mean from the mean of all batches, in σ.",
    "figure-state": "The stored σ and |γ| of each layer: smallest and largest channel, with a mark at the median.",
}


def show(result: Result, console: Console) -> None:
    """Prints one row per finding, worst first, then one row per layer, healthy or not."""
    from rich.table import Table
    from rich.text import Text

    title = _summary(result)
    if not result["findings"]:
        console.print(Text(title, style="green"))
    else:
        table = Table(title=Text(title), title_justify="left", show_lines=True)
        table.add_column("")
        for column in ("found", "where", "cause and cure"):
            table.add_column(column, overflow="fold")
        for f in result["findings"]:
            found = Text.assemble(f["what"], (f"\n{f['rule']}", "dim"))
            cure = Text.assemble(f["cause"], ("\n→ " + f["cure"], "bold"))
            table.add_row(Text(f["severity"], style=STYLES[f["severity"]]), found, Text(_where(f)), cure)
        console.print(table)
    if result["layers"]:
        console.print(_layers(result))
    for note in result["notes"]:
        console.print(Text(f"note: {note}", style="dim"))


def _layers(result: Result) -> Any:
    """A table of the layers with their worst severity and their numbers; of many healthy ones, only the first."""
    from rich.table import Table
    from rich.text import Text

    worst: dict[str, str] = {}
    for f in result["findings"]:  # worst first
        for name in f["layers"]:
            worst.setdefault(name, f["severity"])
    healthy = [name for name in result["layers"] if name not in worst]
    hidden = set(healthy[MOST_HEALTHY:])
    table = Table(title=Text(f"{len(healthy)} of {len(result['layers'])} layers healthy"), title_justify="left")
    for column in ("", "layer", "channels", "updates", "σ, smallest – median – largest", "|γ|"):
        table.add_column(column, overflow="fold")
    for name, numbers in result["layers"].items():
        if name not in hidden:
            severity = worst.get(name, "healthy")
            values = (_words(numbers.get(key)) for key in ("channels", "updates", "σ", "γ"))
            table.add_row(Text(severity, style=STYLES.get(severity, "green")), Text(name), *map(Text, values))
    if hidden:
        table.add_row("", f"and {len(hidden)} more healthy layers", "", "", "", "")
    return table


def page(result: Result) -> str:
    """Self-contained HTML: a card and a section per finding, then figures and numbers per layer."""
    plots = "".join(
        f'<div><div class="plot" id="{name}">{draw(chart)}</div><p class="caption">{CAPTIONS[name]}</p></div>'
        for name, chart in figures(result).items()
    )
    notes = "".join(f'<p class="notice">{escape(note)}</p>' for note in result["notes"])
    findings = list(enumerate(result["findings"], 1))
    body = f"""<header>
<p class="eyebrow">batchnorm doctor</p>
<h1>What is wrong with these batch norms?</h1>
<p class="lead"><strong>{escape(_summary(result))}.</strong>{_gap(result)}</p>
{notes}
</header>
<nav class="cards" aria-label="Findings">{"".join(_card(n, f) for n, f in findings)}</nav>
{"".join(_section(n, f) for n, f in findings)}
<section><h2>Layer by layer</h2><div class="plots">{plots}</div>
<details><summary>All numbers</summary>{_table(result["layers"])}</details></section>"""
    return document("Batch norm doctor", body)


def figures(result: Result) -> dict[str, Chart]:
    """Charts by id: that of the state, and the others if data were given. A chart without a number is left out."""
    layers = result["layers"]
    drawn: dict[str, Chart] = {}
    if any("gap" in numbers for numbers in layers.values()):
        drawn["figure-gap"] = _by_layer("bars", layers, {"part of the gap": "part of the gap"}, "part of the gap, σ")
        stale = {"σ from the data": "measured", "by chance": "by chance"}
        drawn["figure-stale"] = _by_layer("bars", layers, stale, "σ from the data")
        values = {"independent values": "independent values"}
        drawn["figure-values"] = _by_layer("points", layers, values, "independent values (log scale)")
        drawn["figure-drift"] = _drift(layers)
    if any("σ" in numbers for numbers in layers.values()):
        drawn["figure-state"] = _state(layers)
    return {name: chart for name, chart in drawn.items() if _has_values(chart)}


def _has_values(chart: Chart) -> bool:
    return any(value is not None for panel in chart.panels for series in panel.series for value in series.y)


def _by_layer(kind: Kind, layers: dict[str, Any], columns: dict[str, str], title: str) -> Chart:
    """A chart with one value per layer and column; points have a logarithmic axis."""
    series = [
        Series(kind, list(layers), [_number(numbers.get(column)) for numbers in layers.values()], f"c{i}",
               name if len(columns) > 1 else "")
        for i, (column, name) in enumerate(columns.items())
    ]  # fmt: skip
    return Chart([Panel(series, "layer", title, names=list(layers), log_y=kind == "points")], title)


def _drift(layers: dict[str, Any]) -> Chart:
    names = spaced([name for name in layers if layers[name].get("means, σ")], LAYERS)
    series = []
    for i, (name, label) in enumerate(zip(names, without_prefix(names), strict=True)):
        y = [_number(value) for value in layers[name]["means, σ"]]
        series.append(Series("line", list(range(1, len(y) + 1)), y, ramp(i, len(names)), label, marked=True))
    return Chart([Panel(series, "batch", "distance of the mean, σ")], "Distance of each batch's mean")


def _state(layers: dict[str, Any]) -> Chart:
    series = []
    for color, column in (("c0", "σ"), ("c1", "γ")):
        known = {name: numbers[column] for name, numbers in layers.items() if numbers.get(column)}
        low, middle, high = ([_positive(v[i]) for v in known.values()] for i in range(3))
        label = "|γ|" if column == "γ" else column
        series.append(Series("points", list(known), middle, color, label, low, high))
    return Chart(
        [Panel(series, "layer", "per channel (log scale)", names=list(layers), log_y=True)], "σ and |γ| by layer"
    )


def _card(number: int, f: dict[str, Any]) -> str:
    return f"""<a class="card {SLUGS[f["severity"]]}" href="#finding-{number}">
<span class="top"><span class="title">{escape(f["rule"])}</span>{_badge(f)}</span>
<span class="figure">{escape(f["what"])}</span>
<span class="effect">{escape(_names(f["layers"]))}</span>
</a>
"""


def _section(number: int, f: dict[str, Any]) -> str:
    rows = "".join(f"<tr><td>{escape(n)}</td><td>{escape(_words(v))}</td></tr>" for n, v in f["evidence"].items())
    return f"""<section id="finding-{number}">
<h2>{escape(_capital(f["what"]))} {_badge(f)}</h2>
<p>Likely cause: {escape(f["cause"])}.</p>
<p>Cure: <strong>{escape(f["cure"])}</strong></p>
<div class="scroll"><table class="evidence"><thead><tr><th>layer</th><th>evidence</th></tr></thead>
<tbody>{rows}</tbody></table></div>
</section>
"""


def _table(layers: dict[str, Any]) -> str:
    columns = list(dict.fromkeys(c for numbers in layers.values() for c in numbers if c != "means, σ"))
    head = "".join(f"<th>{escape(c)}</th>" for c in columns)
    rows = "".join(
        f"<tr><td>{escape(name)}</td>{''.join(f'<td>{escape(_words(n.get(c)))}</td>' for c in columns)}</tr>"
        for name, n in layers.items()
    )
    return f'<div class="scroll"><table><thead><tr><th>layer</th>{head}</tr></thead><tbody>{rows}</tbody></table></div>'


def _capital(text: str) -> str:
    """The text with a capital first letter; only Latin letters change, as γ is another quantity than Γ."""
    return text[:1].upper() + text[1:] if text[:1].isascii() else text


def _badge(f: dict[str, Any]) -> str:
    return f'<span class="badge {SLUGS[f["severity"]]}">{f["severity"]}</span>'


def _summary(result: Result) -> str:
    layers, found = len(result["layers"]), [f["severity"] for f in result["findings"]]
    counts = ", ".join(f"{found.count(s)} {s}{'s' * (found.count(s) > 1)}" for s in STYLES if s in found)
    return f"{layers} batch norm{'s' * (layers != 1)} read: {counts or 'nothing found'}"


def _gap(result: Result) -> str:
    gap = _number(result["output"].get("gap"))
    return "" if gap is None else f" Outputs in training and in evaluation differ by {gap:.2g} σ."


def _where(f: dict[str, Any]) -> str:
    lines = [f"{name}: {_words(value)}" for name, value in f["evidence"].items()]
    return "\n".join(lines[:MOST] + ([f"and {len(lines) - MOST} more"] if len(lines) > MOST else []))


def _names(layers: list[str]) -> str:
    return ", ".join(layers[:MOST]) + (f" and {len(layers) - MOST} more" if len(layers) > MOST else "")


def _words(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {_words(v)}" for name, v in value.items())
    if isinstance(value, list):
        return " – ".join(_words(v) for v in value)
    return "" if value is None else f"{value:.3g}" if isinstance(value, float) else str(value)


def _positive(value: Any) -> float | None:
    """The value for a logarithmic axis; None if it is not above 0."""
    number = _number(value)
    return number if number is not None and number > 0 else None


def _number(value: Any) -> float | None:
    """The number to draw; None for text, which the report has in place of non-finite numbers."""
    return value if isinstance(value, int | float) else None
