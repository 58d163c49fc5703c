"""The comparison with torch as tables in Markdown, for the documentation."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from .bench_words import NAMES, aims, at_least, doubts, judged, load, measured, quartiles, shape, spread

Result = dict[str, Any]
BLOCKS = {"plain": "plain", "relu": "with ReLU", "add-relu": "with residual and ReLU"}


def table(heads: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    lines = [list(heads), *map(list, rows)]
    lines.insert(1, ["---"] * len(lines[0]))
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines) + "\n"


def run(result: Result) -> str:
    """A paragraph about the machine, the date and the load."""
    found = result["environment"]
    threads = "1 thread" if found["threads"] == 1 else f"{found['threads']} threads"
    machine = f"{found['processor']}, {found['cores']} cores, torch {found['torch']}, {threads}"
    left_out = len(list(doubts(result)))
    many = "One ratio cannot be trusted and is" if left_out == 1 else f"{left_out} ratios cannot be trusted and are"
    doubtful = f" {many} left out." if left_out else ""
    words = load(result["load"])
    return f"Measured on {found['date']}: {machine}. {words[0].upper()}{words[1:]}.{doubtful}\n"


def targets(result: Result) -> str:
    """A table of every target beside its aims."""
    rows = [
        (row["name"], measured(row), spread(row), at_least(row), aims(row), judged(row)) for row in result["targets"]
    ]
    return table(("", "measured", "spread", "at least", "aim", ""), rows)


def inputs(result: Result, dtype: str, block: str, layout: str) -> str:
    """A table with a row for each input: times, ratio with quartiles, and multiples of a copy for large inputs."""
    wanted = [
        case for case in result["cases"] if (case["dtype"], case["block"], case["layout"]) == (dtype, block, layout)
    ]
    rows = []
    for case in wanted:
        ms, copies = case["milliseconds"], case["copies"]
        large = case["group"] == "large"
        cells = [shape(case), f"{ms['torch']:.3g}", f"{ms['ours']:.3g}", _ratio(case["ratios"]["torch"])]
        rows.append([*cells, *(f"{copies[way]['median']:.1f}" if large else "" for way in ("forward", "both"))])
    return table(("input", "torch, ms", "ours, ms", "times as fast", "copies, forward", "copies, both passes"), rows)


def _ratio(ratio: Result) -> str:
    if ratio["doubt"] is not None:
        return "not to be trusted"
    return f"{ratio['median']:.2f} ({quartiles(ratio)})"


def networks(result: Result) -> str:
    """A table of training steps: the speed relative to torch, with quartiles."""
    rows = [
        (f"{found['name']}, {found['layout']}", *(_ratio(found["ratios"][kind]) for kind in ("converted", "fused")))
        for found in result["networks"]
    ]
    return table(("", "converted", "fused"), rows)


def memory(result: Result) -> str:
    """A table of the memory that fused networks keep for the backward pass, as a share of torch's."""
    activations = list(dict.fromkeys(found["activation"] for found in result["memory"]))
    shares = {(m["name"], m["activation"]): m["mebibytes"] for m in result["memory"]}
    rows = [
        (name, *(f"{shares[name, a]['fused'] / shares[name, a]['torch']:.0%}" for a in activations))
        for name in dict.fromkeys(name for name, _ in shares)
    ]
    return table(("", *activations), rows)


def totals(result: Result, rival: str, group: str = "large") -> str:
    """A table of means against `rival` ("torch" or "compiled"): a row for each block, a column for each layout."""
    found = {(t["dtype"], t["block"], t["layout"]): t for t in result["totals"] if t["group"] == group}
    layouts = list(dict.fromkeys(layout for *_, layout in found))
    rows = []
    for dtype, block in dict.fromkeys((dtype, block) for dtype, block, _ in found):
        cells = [_total(found.get((dtype, block, layout)), rival) for layout in layouts]
        if any(cells):
            rows.append([f"{dtype}, {BLOCKS.get(block, block)}", *cells])
    return table((f"times as fast as {NAMES.get(rival, rival)}", *layouts), rows)


def _total(total: Result | None, rival: str) -> str:
    if total is None or total["mean"].get(rival) is None:
        return ""
    left_out = f"; {total['left_out'][rival]} left out" if total["left_out"][rival] else ""
    return f"{total['mean'][rival]:.1f} (least {total['least'][rival]:.2f}{left_out})"


def readme(result: Result) -> str:
    """The table for the README, of five lines: large float32 inputs, plain and with fused operations."""
    wanted = [t for t in result["totals"] if t["dtype"] == "float32" and t["block"] in BLOCKS]
    return totals({"totals": wanted}, "torch")
