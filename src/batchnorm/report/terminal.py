"""The study as a table in the terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .tone import STYLES, badge, tone

if TYPE_CHECKING:
    from rich.console import Console


# Verdicts that need a word of explanation.
LEGEND = {
    "true by construction": "the arithmetic of the layer guarantees it.",
    "within its spread": "other seeds could give the opposite answer.",
}


def show(result: dict[str, Any], console: Console) -> None:
    """Prints a table with one row per claim, the meaning of some verdicts, the headline and the notes.

    A row has a sentence, the effect with its spread over seeds (if there is room), and the verdict in its colour.
    """
    from rich.table import Table
    from rich.text import Text

    table = Table(title=Text(f"{result['network']} on {result['data']['name']}"), title_justify="left")
    table.add_column("", justify="right", style="dim")
    table.add_column("claim", no_wrap=True)
    table.add_column("measured here")
    roomy = console.width >= 110
    if roomy:
        table.add_column("effect ± spread")
    table.add_column("verdict")
    for claim in result["claims"]:
        found = Text(claim["sentence"] or f"{claim['reason'][:1].upper()}{claim['reason'][1:]}.")
        verdict = Text(badge(claim), style=STYLES[tone(claim)])
        effect = [Text(_effect(claim))] if roomy else []
        table.add_row(str(claim["number"]), Text(claim["title"]), found, *effect, verdict)
    console.print(table)
    badges = {badge(claim) for claim in result["claims"]}
    for name, meaning in LEGEND.items():
        if name in badges:
            console.print(Text(f"{name}: {meaning}", style="dim"))
    console.print(Text(result["headline"]))
    for note in result["notes"]:
        console.print(Text(note, style="dim"))
    if result["interrupted"]:
        done, planned = result["runs_finished"], result["runs_planned"]
        console.print(
            f"Interrupted: {done} of {planned} runs were finished, and only they are counted.", style="yellow"
        )


def _effect(claim: dict[str, Any]) -> str:
    if claim["median"] is None:
        return ""
    spread = "" if claim["spread"] is None else f" ± {claim['spread']:.2g}"
    return f"{claim['median']:.3g}{spread} {claim['unit']}"
