"""Tables that compare `big_batch` with one big batch, for the terminal and for the documentation."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .bench_doubts import print_doubts
from .bench_markdown import run, table
from .bench_words import quartiles

if TYPE_CHECKING:
    from rich.console import Console

Result = dict[str, Any]
WAYS = ("one batch", "big_batch", "big_batch, offload")
EXACT = ("", "big_batch", "accumulation")
TIMES = ("", "one batch, ms", "big_batch", "with offload")
AIM = 1.25


def show(result: Result, console: Console) -> None:
    """Prints the tables of errors, times and memory."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    for title, heads, cells in tables(result):
        found = Table(title=Text(title), title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
        for i, head in enumerate(heads):
            found.add_column(head, justify="right" if i else "left", no_wrap=not i)
        for row in cells:
            found.add_row(*map(Text, row))
        if cells:
            console.print(found)
    print_doubts(console, result, doubts(result))


def markdown(result: Result) -> str:
    """The machine and the tables, in Markdown."""
    parts = [run(result | {"cases": [], "networks": []})]
    parts += [f"**{title[0].upper()}{title[1:]}.**\n\n{table(heads, cells)}" for title, heads, cells in tables(result)]
    parts += [f"Note: {note}.\n" for note in result["notes"]]
    return "\n".join(parts)


def tables(result: Result) -> list[tuple[str, tuple[str, ...], list[list[str]]]]:
    """Title, heads and rows of each table."""
    settings = result["settings"]
    exact, timed = settings["exact"], settings["timed"]
    micro, pixels = settings["micro_batch"], settings["pixels"]
    return [
        (
            f"error of all gradients, relative to one batch of {exact[0]}, micro-batches of {exact[1]}, float64",
            EXACT,
            [[row["name"], f"{row['big_batch']:.0e}", f"{row['accumulation']:.0%}"] for row in result["exact"]],
        ),
        (
            f"time of a step over that of one batch of {timed[0]} images of {timed[2]} pixels, micro-batches of "
            f"{timed[1]}; aim without offload: {AIM}",
            TIMES,
            [_times(row) for row in result["times"]],
        ),
        (
            f"MiB of resident memory that a step adds, micro-batches of {micro} images of {pixels} pixels",
            ("", "micro-batches", "inputs", *WAYS),
            [_memory(row) for row in result["memory"]],
        ),
    ]


def _times(row: Result) -> list[str]:
    ratios = [row[way] for way in WAYS[1:]]
    cells = ["?" if ratio["doubt"] else f"{ratio['median']:.2f} ({quartiles(ratio)})" for ratio in ratios]
    return [row["name"], f"{row['milliseconds']:.0f}", *cells]


def _memory(row: Result) -> list[str]:
    sizes = ["" if row[way] is None else f"{row[way]:.0f}" for way in WAYS]
    return [row["name"], str(row["micro_batches"]), f"{row['inputs']:.1f}", *sizes]


def doubts(result: Result) -> list[str]:
    """The ratios that are not to be trusted, each with the reason."""
    return [f"{r['name']}, {way}: {r[way]['doubt']}" for r in result["times"] for way in WAYS[1:] if r[way]["doubt"]]
