"""The study as one page that needs no other file."""

from __future__ import annotations

from html import escape
from typing import Any
from urllib.parse import quote

from .document import document, part
from .figures import NAMES, figures
from .interactive import interactive as to_plotly
from .summary import summary
from .svg import draw
from .tone import badge, tone

Result = dict[str, Any]


def page(result: Result, interactive: bool = False) -> str:
    """Self-contained HTML for a study's dict (as in report.json): summary cards, then each claim with its figures.

    interactive: figures of plotly, with plotly.js in the page (5 MB); raises ImportError, naming the extra to install,
    if plotly is missing. Otherwise figures are SVG. Text from files and networks is escaped.
    """
    charts = {claim["number"]: figures(claim) for claim in result["claims"]}
    specs: dict[str, dict[str, Any]] = {}
    drawn: dict[int, list[str]] = {}
    for number, found in charts.items():
        names = [f"figure-{number}-{i}" for i in range(len(found))]
        if interactive:
            specs |= {name: to_plotly(chart) for name, chart in zip(names, found, strict=True)}
        drawn[number] = [
            f'<div class="plot" id="{name}" role="img" aria-label="{escape(chart.title)}"></div>'
            if interactive
            else f'<div class="plot" id="{name}">{draw(chart)}</div>'
            for name, chart in zip(names, found, strict=True)
        ]
    body = f"""{_header(result)}
<nav class="cards" aria-label="Claims">
{"".join(_card(claim) for claim in result["claims"])}
</nav>
{"".join(_section(claim, drawn[claim["number"]]) for claim in result["claims"])}
{_appendix(result)}"""
    title = f"Batch norm study: {result['network']} on {result['data']['name']}"
    return document(title, body, specs, part("summary.js"))


def _header(result: Result) -> str:
    data, settings = result["data"], result["settings"]
    facts = (
        ("network", result["network"]),
        ("data", f"{data['name']}, {data['task']}"),
        ("samples", f"{data['train']} training, {data['validation']} validation, {data['test']} test"),
        ("learning rates", ", ".join(f"{rate:g}" for rate in settings["rates"])),
        (
            "runs",
            f"{result['runs_finished']} over {len(settings['seeds'])} seeds, {settings['steps']} steps in the sweep",
        ),
        ("optimizer", f"{settings['optimizer']}, batches of {settings['batch_size']}"),
    )
    chips = "".join(f"<div><dt>{name}</dt><dd>{escape(str(value))}</dd></div>" for name, value in facts)
    picture = "data:image/svg+xml," + quote(summary(result))
    return f"""<header>
<p class="eyebrow">batchnorm study</p>
<h1>What does batch norm do for this network?</h1>
<p class="lead">{escape(result["headline"])}</p>
{_interrupted(result)}
{"".join(f'<p class="note">{escape(note)}</p>' for note in result["notes"])}
{_scores(result)}
<p class="keep">Save the summary: <a id="summary-svg" download="summary.svg" href="{picture}">SVG</a>
<a id="summary-png" download="summary.png" href="#">PNG</a></p>
<dl class="facts">{chips}</dl>
</header>"""


def _scores(result: Result) -> str:
    """A table of every arm at its own best rate; empty for two arms, as the headline has their scores."""
    if len(result["scores"]) < 3:
        return ""
    rows = "".join(
        f"<tr><td>{escape(NAMES[arm])}</td><td>{found['rate']:g}</td><td>{_mean(found['validation'])}</td>"
        f"<td>{_mean(found['test'])}</td></tr>"
        for arm, found in result["scores"].items()
    )
    head = "<th>arm</th><th>best rate</th><th>validation</th><th>test</th>"
    return (
        f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>'
        f'<p class="caption">{escape(result["data"]["score"])}, mean over seeds; the claims compare the first two.</p>'
    )


def _mean(values: list[float | None]) -> str:
    known = [value for value in values if value is not None]
    return f"{sum(known) / len(known):.3f}" if known else "none"


def _interrupted(result: Result) -> str:
    if not result["interrupted"]:
        return ""
    done, planned = result["runs_finished"], result["runs_planned"]
    return f'<p class="notice">Interrupted: {done} of {planned} runs were finished, and only they are counted.</p>'


def _card(claim: dict[str, Any]) -> str:
    return f"""<a class="card {tone(claim)}" href="#claim-{claim["number"]}">
<span class="top">
<span class="title"><span class="number">{claim["number"]}</span>{escape(claim["title"])}</span>{_badge(claim)}
</span>
<span class="figure">{escape(claim["sentence"] or _capital(claim["reason"]) + ".")}</span>
<span class="effect">{_effect(claim)}</span>
</a>
"""


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _badge(claim: dict[str, Any]) -> str:
    return f'<span class="badge {tone(claim)}">{escape(badge(claim))}</span>'


def _effect(claim: dict[str, Any]) -> str:
    if claim["median"] is None:
        return ""
    spread = "" if claim["spread"] is None else f" ± {claim['spread']:.2g}"
    return escape(f"effect {claim['median']:.3g}{spread} {claim['unit']}")


def _section(claim: dict[str, Any], drawn: list[str]) -> str:
    number = claim["number"]
    seeds = ", ".join("∞" if e is None else f"{e:.3g}" for e in claim["effects"])
    by_seed = f"<p>Effect, seed by seed: {seeds} {escape(claim['unit'])}.</p>" if seeds else ""
    how = f"<details><summary>How it is measured</summary><p>{escape(claim['rule'])}</p>{by_seed}</details>"
    small = ". ".join(_capital(part) for part in (claim["figure"], claim["reason"]) if part)
    return f"""<section id="claim-{number}">
<h2><span class="number">{number}</span>{escape(claim["title"])} {_badge(claim)}</h2>
<p class="caption">The claim: {escape(claim["statement"])}</p>
<p class="statement">{escape(claim["sentence"])}</p>
<p class="caption">{escape(small)}.</p>
<div class="shown">
<div class="plots">{"".join(drawn)}</div>
<div>{f'<p class="caption">{escape(claim["explanation"])}</p>' if drawn else ""}
{how}</div>
</div>
</section>
"""


def _appendix(result: Result) -> str:
    names = ("arm", "rate", "batch_size", "samples", "seed", "train_score", "score", "test_score", "diverged")
    rows = "".join("<tr>" + "".join(f"<td>{_cell(run[n])}</td>" for n in names) + "</tr>" for run in result["runs"])
    head = "".join(f"<th>{n.replace('_', ' ')}</th>" for n in names)
    versions = escape(", ".join(f"{k} {v}" for k, v in result["environment"].items()))
    return f"""<section>
<h2>Every run</h2>
<details><summary>{len(result["runs"])} runs: score at the end on training, validation and test samples</summary>
<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div></details>
<p class="caption">To try batch norm by hand, run <code>batchnorm play</code>.
Every number is also in report.json beside this page.
{versions}; {result["timings"]["seconds"]:g} s.</p>
</section>"""


def _cell(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return "yes" if value else ""
    return escape(f"{value:.4g}" if isinstance(value, float) else str(value))
