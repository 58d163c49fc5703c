"""The comparison with torch as tables in the terminal."""

from __future__ import annotations

from itertools import groupby
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

Result = dict[str, Any]
LEGEND = (
    "×: how many times faster ours is. compiled: torch.compile. copies: our time over that of copying the input.\n"
    "small: inputs of fewer than 8,192 values. Totals are geometric means.\n"
)


def show(result: Result, console: Console) -> None:
    """Cases, networks and memory; a ratio below 1 says that torch is faster, in red, and once more in words."""
    for (block, layout), cases in groupby(result["cases"], key=lambda case: (case["block"], case["layout"])):
        console.print(_cases(f"{block}, {result['settings']['dtype']}, {layout}", list(cases)))
    if result["totals"]:
        console.print(_totals(result["totals"]))
        console.print(LEGEND, style="dim", highlight=False)
    if result["networks"]:
        console.print(_networks(result["networks"]))
    if result["memory"]:
        console.print(_memory(result["memory"]))
    for note in result["notes"]:
        console.print(f"note: {note}", markup=False, highlight=False)
    if result["interrupted"]:
        console.print("Interrupted: only what was measured until then is shown.", style="yellow")


def _table(title: str, *columns: str) -> Table:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    table = Table(title=Text(title), title_justify="left", box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    for i, column in enumerate(columns):
        table.add_column(column, justify="right" if i else "left", no_wrap=not i)
    return table


def _ratio(value: float | None) -> Text:
    """How many times faster ours is."""
    from rich.text import Text

    if value is None:
        return Text("")
    return Text(f"{value:.2f}×", style="green" if value >= 1 else "bold red")


def _cases(title: str, cases: list[Result]) -> Table:
    rivals = [name for name in ("torch", "compiled") if any(name in case["times"] for case in cases)]
    heads = [f"{name}\nms" for name in [*rivals, "ours"]] + [f"×\n{name}" for name in rivals]
    table = _table(title, "input", *heads, "copies\nforward", "copies\nboth")
    for case in cases:
        ms, copies = case["milliseconds"], case["copies"]
        table.add_row(
            "×".join(map(str, case["shape"])),
            *(f"{ms[name]:.3f}" if name in ms else "" for name in [*rivals, "ours"]),
            *(_ratio(case["times"].get(name)) for name in rivals),
            *(f"{copies[way]:.1f}" if case["group"] == "large" else "" for way in ("forward", "both")),
        )
    return table


def _totals(totals: list[Result]) -> Table:
    from rich.text import Text

    rivals = [name for name in ("torch", "compiled") if any(name in total["mean"] for total in totals)]
    heads = [part for name in rivals for part in (f"×\n{name}", "least", f"{name}\nfaster")]
    table = _table("in total", "inputs", *heads)
    for total in totals:
        cells = []
        for name in rivals:
            slower = total["slower"].get(name, 0)
            cells += [_ratio(total["mean"].get(name)), _ratio(total["least"].get(name))]
            cells.append(Text(f"{slower} of {total['cases']}", style="bold red" if slower else ""))
        table.add_row(f"{total['block']} {total['layout']} {total['group']}", *cells)
    return table


def _networks(networks: list[Result]) -> Table:
    title = f"a training step of {networks[0]['batch']} images of {networks[0]['pixels']} px, ms"
    table = _table(title, "network", "torch", "converted", "fused", "× converted", "× fused")
    for found in networks:
        ms, times = found["milliseconds"], found["times"]
        table.add_row(
            f"{found['name']} {found['layout']}",
            *(f"{ms[kind]:.0f}" for kind in ("torch", "converted", "fused")),
            *(_ratio(times[kind]) for kind in ("converted", "fused")),
        )
    return table


def _memory(memory: list[Result]) -> Table:
    title = f"kept for the backward pass, MiB an image of {memory[0]['pixels']} px"
    table = _table(title, "network", "torch", "converted", "fused", "fused of torch's")
    for found in memory:
        size = found["mebibytes"]
        table.add_row(
            f"{found['name']} {found['activation']}",
            *(f"{size[kind]:.1f}" for kind in ("torch", "converted", "fused")),
            f"{size['fused'] / size['torch']:.0%}",
        )
    return table
