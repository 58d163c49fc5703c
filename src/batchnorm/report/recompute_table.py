"""Memory and time of steps under `recompute` as one table, for the terminal and for the documentation."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .bench_doubts import print_doubts
from .bench_markdown import run, table
from .bench_words import batches, quartiles

if TYPE_CHECKING:
    from rich.console import Console

Result = dict[str, Any]
KINDS = {"fused": "fused", "recompute": "recompute", "chain": "chain", "checkpoint": "checkpoint"}
HEADS = ("network", "", "torch", *KINDS.values(), "aim")
LEGEND = (
    "kept: bytes that autograd holds for the backward pass, without parameters, relative to torch's layers.\n"
    "resident: the peak of the resident memory that a step adds, relative to torch's layers.\n"
    "time: of a step, relative to the fused network without recompute; median over turns, with its quartiles.\n"
    "fused: our layers with activation and residual; recompute: under bn.recompute(model); chain: with chain=True.\n"
    "checkpoint: the fused network with torch.utils.checkpoint around the same blocks. The aim is for recompute."
)


def show(result: Result, console: Console) -> None:
    """Prints a table with rows for each network and a column for each way to save memory."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    found = Table(
        title=Text(_title(result)), title_justify="left", box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True
    )
    for i, head in enumerate(HEADS):
        found.add_column(head, justify="right" if i > 1 else "left", no_wrap=i < 3, min_width=len(head))
    for network in result["steps"]:
        lines = rows(network, roomy=console.width >= 100)
        for i, cells in enumerate(lines):
            found.add_row(*map(Text, cells), end_section=i == len(lines) - 1)
    if result["steps"]:
        console.print(found)
        console.print(LEGEND, style="dim", highlight=False)
    print_doubts(console, result, _doubts(result))


def markdown(result: Result) -> str:
    """The machine and the table, in Markdown."""
    cells = [line for network in result["steps"] for line in rows(network)]
    legend = "\n".join(f"- {line}" for line in LEGEND.splitlines())
    notes = "".join(f"\nNote: {note}.\n" for note in result["notes"])
    machine = run(result | {"cases": [], "networks": []})
    return f"{machine}\nA step of {batches(result['steps'])}.\n\n{table(HEADS, cells)}\n{legend}\n{notes}"


def _title(result: Result) -> str:
    return f"memory and time of a step of {batches(result['steps'])}, float32"


def rows(network: Result, roomy: bool = True) -> list[list[str]]:
    """Rows of bytes kept, resident memory (if the system reports it), and time (with quartiles if `roomy`)."""
    found = [[network["name"], *_sizes(network, "kept"), f"{network['aim']:.2f}"]]
    if network["resident"] is not None:
        found.append(["", *_sizes(network, "resident"), f"{network['aim']:.2f}"])
    times = ["" if kind == "fused" else _time(network["times"][kind], roomy) for kind in KINDS]
    return [*found, ["", "time", "", *times, f"{network['time_aim']:.2f}"]]


def _sizes(network: Result, what: str) -> list[str]:
    torchs = network[what]["torch"]
    return [what, f"{torchs / 2**20:.0f} MiB", *(f"{network[what][kind] / torchs:.2f}" for kind in KINDS)]


def _time(time: Result, roomy: bool) -> str:
    between = f" ({quartiles(time)})" if roomy else ""
    return "?" if time["doubt"] else f"{time['median']:.2f}{between}"


def _doubts(result: Result) -> list[str]:
    return [
        f"{network['name']}, {kind}: {time['doubt']}"
        for network in result["steps"]
        for kind, time in network["times"].items()
        if time["doubt"]
    ]
