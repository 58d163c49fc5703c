"""The last lines of a benchmark in the terminal: ratios not to be trusted, the machine's load, and notes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from .bench_words import load

if TYPE_CHECKING:
    from rich.console import Console


def print_doubts(console: Console, result: dict[str, Any], doubts: Iterable[str]) -> None:
    """Print the reasons not to trust single ratios, the machine's load, and notes on the whole run."""
    for line in doubts:
        console.print(f"not to be trusted: {line}", style="yellow", markup=False, highlight=False)
    console.print(load(result["load"]), style="dim", highlight=False)
    for note in result["notes"]:
        console.print(f"note: {note}", markup=False, highlight=False)
    if result["interrupted"]:
        console.print("Interrupted: only what was measured until then is shown.", style="yellow")
