"""The study as one page that needs nothing besides itself."""

from __future__ import annotations

from html import escape
from typing import Any

from .document import document
from .figures import figures

Result = dict[str, Any]


def page(result: Result) -> str:
    """Self-contained HTML for a study's dict (as in report.json): summary cards, then each claim with its figures.

    plotly.js is inlined once; a content security policy forbids every request. Text from files and networks is escaped.
    Raises ImportError, naming the extra to install, if plotly is missing.
    """
    drawn = {claim["number"]: figures(claim) for claim in result["claims"]}
    specs = {f"figure-{n}-{i}": spec for n, specs in drawn.items() for i, spec in enumerate(specs)}
    body = f"""{_header(result)}
<nav class="cards" aria-label="Claims">
{"".join(_card(claim) for claim in result["claims"])}
</nav>
{"".join(_section(claim, len(drawn[claim["number"]])) for claim in result["claims"])}
{_appendix(result)}"""
    return document(f"Batch norm study: {result['network']} on {result['data']['name']}", body, specs)


def _header(result: Result) -> str:
    data, settings = result["data"], result["settings"]
    holds = sum(claim["verdict"] == "holds" for claim in result["claims"])
    judged = sum(claim["verdict"] != "not measured" for claim in result["claims"])
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
    return f"""<header>
<p class="eyebrow">batchnorm study</p>
<h1>What does batch norm do for this network?</h1>
<p class="lead"><strong>{holds} of {judged}</strong> claims that could be judged hold here.{_scores(result)}</p>
{_interrupted(result)}
<dl class="facts">{chips}</dl>
</header>"""


def _scores(result: Result) -> str:
    scores = result["scores"]
    if not scores:
        return ""
    means = {arm: _mean(values["test"]) for arm, values in scores.items()}
    return (
        f" Test {escape(result['data']['score'])}, each arm at its own best learning rate, mean over seeds: "
        f"<strong>{means['batch norm']}</strong> with batch norm, <strong>{means['plain']}</strong> without."
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
    return f"""<a class="card {_slug(claim)}" href="#claim-{claim["number"]}">
<span class="top">
<span class="title"><span class="number">{claim["number"]}</span>{escape(claim["title"])}</span>{_badge(claim)}
</span>
<span class="figure">{escape(claim["figure"] or claim["reason"])}</span>
<span class="effect">{_effect(claim)}</span>
</a>
"""


def _badge(claim: dict[str, Any]) -> str:
    return f'<span class="badge {_slug(claim)}">{escape(claim["verdict"])}</span>'


def _slug(claim: dict[str, Any]) -> str:
    return {"holds": "holds", "does not hold here": "fails"}.get(claim["verdict"], "open")


def _effect(claim: dict[str, Any]) -> str:
    if claim["median"] is None:
        return ""
    spread = "" if claim["spread"] is None else f" ± {claim['spread']:.2g}"
    return escape(f"effect {claim['median']:.3g}{spread} {claim['unit']}")


def _section(claim: dict[str, Any], drawn: int) -> str:
    number = claim["number"]
    plots = "".join(f'<div class="plot" id="figure-{number}-{i}"></div>' for i in range(drawn))
    seeds = ", ".join("∞" if e is None else f"{e:.3g}" for e in claim["effects"])
    by_seed = f"<p>Seed by seed: {seeds}.</p>" if seeds else ""
    how = f"<details><summary>How it is measured</summary><p>{escape(claim['rule'])}</p>{by_seed}</details>"
    return f"""<section id="claim-{number}">
<h2><span class="number">{number}</span>{escape(claim["title"])} {_badge(claim)}</h2>
<p class="statement">{escape(claim["statement"])}</p>
<p>{escape(claim["figure"])}{": " if claim["figure"] else ""}{escape(claim["reason"])}.</p>
<div class="plots">{plots}</div>
{f'<p class="caption">{escape(claim["explanation"])}</p>' if drawn else ""}
{how}
</section>
"""


def _appendix(result: Result) -> str:
    names = ("arm", "rate", "batch_size", "seed", "train_score", "score", "test_score", "diverged")
    rows = "".join("<tr>" + "".join(f"<td>{_cell(run[n])}</td>" for n in names) + "</tr>" for run in result["runs"])
    head = "".join(f"<th>{n.replace('_', ' ')}</th>" for n in names)
    versions = escape(", ".join(f"{k} {v}" for k, v in result["environment"].items()))
    return f"""<section>
<h2>Every run</h2>
<details><summary>{len(result["runs"])} runs: score at the end on training, validation and test samples</summary>
<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div></details>
<p class="caption">Every number is also in report.json beside this page.
{versions}; {result["timings"]["seconds"]:g} s.</p>
</section>"""


def _cell(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else ""
    return escape(f"{value:.4g}" if isinstance(value, float) else str(value))
