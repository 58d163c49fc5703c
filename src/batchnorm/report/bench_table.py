"""The comparison with torch as tables in the terminal."""

from __future__ import annotations

from itertools import groupby
from typing import TYPE_CHECKING, Any

from .bench_doubts import print_doubts
from .bench_words import aims, at_least, batches, doubts, judged, measured, quartiles, shape, spread

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

Result = dict[str, Any]
LEGEND = (
    "×: how many times as fast ours is (median over rounds), then its quartiles. compiled: torch.compile.\n"
    "copies: our time over that of copying the input. large: 262,144 values or more; small: fewer than 8,192.\n"
    "Totals are geometric means. ?: a ratio that cannot be trusted; it is listed below and left out of totals.\n"
)
QUARTILES, VERDICT = 9, 12  # widths, in characters, of columns that must not be cut
STYLES = {"aim reached": "green", "enough": "cyan", "not enough": "bold red", "not measured": "dim", "no aim": ""}


def show(result: Result, console: Console) -> None:
    """Prints tables of cases, networks, memory and targets. Ratios below 1 are red, and the totals count them."""
    roomy = console.width >= 100
    for (dtype, block, layout), cases in groupby(result["cases"], key=lambda c: (c["dtype"], c["block"], c["layout"])):
        console.print(_cases(f"{block}, {dtype}, {layout}", list(cases), roomy))
    if result["totals"]:
        console.print(_totals(result["totals"]))
        console.print(LEGEND, style="dim", highlight=False)
    for dtype, networks in groupby(result["networks"], key=lambda found: found["dtype"]):
        console.print(_networks(dtype, list(networks), roomy))
    if result["memory"]:
        console.print(_memory(result["memory"]))
    targets = [row for row in result["targets"] if result["settings"]["targets"] or row["measured"] is not None]
    if targets:
        console.print(_targets(targets, roomy))
    print_doubts(console, result, doubts(result))


def _table(title: str, *columns: str) -> Table:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    table = Table(title=Text(title), title_justify="left", box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    for i, column in enumerate(columns):
        words = max(map(len, column.split()), default=VERDICT)
        width = max(words, QUARTILES) if column.startswith("×") else words
        table.add_column(column, justify="right" if i else "left", no_wrap=not i, overflow="fold", min_width=width)
    return table


def _ratio(ratio: Result | None, roomy: bool) -> Text:
    """Our speed-up with its quartiles, which are beside it, or below it if there is little room."""
    from rich.text import Text

    if ratio is None:
        return Text("")
    if ratio["doubt"] is not None:
        return Text("?", style="yellow")
    text = _times(ratio["median"])
    between = quartiles(ratio)
    return text.append(f" ({between})" if roomy else f"\n{between}", style="dim")


def _times(value: float | None) -> Text:
    from rich.text import Text

    if value is None:
        return Text("?", style="yellow")
    text = Text()
    return text.append(f"{value:.2f}×", style="green" if value >= 1 else "bold red")


def _copies(case: Result, way: str) -> str:
    if case["group"] != "large":
        return ""
    return f"{case['copies'][way]['median']:.1f}" if case["copies"][way]["doubt"] is None else "?"


def _cases(title: str, cases: list[Result], roomy: bool) -> Table:
    rivals = [name for name in ("torch", "compiled") if any(name in case["ratios"] for case in cases)]
    heads = [f"{name}\nms" for name in [*rivals, "ours"]] + [f"×\n{name}" for name in rivals]
    table = _table(title, "input", *heads, "copies\nforward", "copies\nboth")
    for case in cases:
        ms = case["milliseconds"]
        table.add_row(
            shape(case),
            *(f"{ms[name]:.3f}" if name in ms else "" for name in [*rivals, "ours"]),
            *(_ratio(case["ratios"].get(name), roomy) for name in rivals),
            *(_copies(case, way) for way in ("forward", "both")),
        )
    return table


def _totals(totals: list[Result]) -> Table:
    from rich.text import Text

    rivals = [name for name in ("torch", "compiled") if any(name in total["mean"] for total in totals)]
    heads = [part for name in rivals for part in (f"×\n{name}", "least", f"{name}\nfaster", "left\nout")]
    table = _table("in total", "inputs", *heads)
    for total in totals:
        cells: list[Text] = []
        for name in rivals:
            if name not in total["mean"]:
                cells += [Text("")] * 4
                continue
            slower, left_out = total["slower"][name], total["left_out"][name]
            cells += [_times(total["mean"][name]), _times(total["least"][name])]
            cells.append(Text(f"{slower} of {total['cases'] - left_out}", style="bold red" if slower else ""))
            cells.append(Text(str(left_out or ""), style="yellow"))
        table.add_row(f"{total['block']} {total['dtype']} {total['layout']} {total['group']}", *cells)
    return table


def _networks(dtype: str, networks: list[Result], roomy: bool) -> Table:
    title = f"a training step of {batches(networks)}, {dtype}, ms"
    table = _table(title, "network", "torch", "converted", "fused", "×\nconverted", "×\nfused")
    for found in networks:
        ms, ratios = found["milliseconds"], found["ratios"]
        table.add_row(
            f"{found['name']} {found['layout']}",
            *(f"{ms[kind]:.3g}" if ms[kind] < 100 else f"{ms[kind]:.0f}" for kind in ("torch", "converted", "fused")),
            *(_ratio(ratios[kind], roomy) for kind in ("converted", "fused")),
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


def _targets(rows: list[Result], roomy: bool) -> Table:
    from rich.text import Text

    table = _table("the aims", "target", "measured", *(["spread"] if roomy else []), "at least", "aim", "")
    for row in rows:
        cells = [row["name"], measured(row), *([spread(row)] if roomy else []), at_least(row), aims(row)]
        table.add_row(*map(Text, cells), Text(judged(row), style=STYLES[row["verdict"]]))
    return table
