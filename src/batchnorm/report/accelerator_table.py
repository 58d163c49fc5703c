"""The comparison on an accelerator as tables for the terminal."""

from typing import Any

from rich.console import Console
from rich.table import Table


def show(result: dict[str, Any], console: Console) -> None:
    """Prints a row for each case and each step: the speed relative to torch, and the share of a copy's bandwidth."""
    environment = result["environment"]
    console.print(" · ".join(f"{name} {value}" for name, value in environment.items() if value is not None))
    if result["cases"]:
        console.print(_cases(result["cases"]))
    if result["steps"]:
        console.print(_steps(result["steps"]))
    for case in result["cases"]:
        for note in case["notes"]:
            console.print(note)
    if result["quick"]:
        console.print("small inputs, to see that it works: no times to quote")


def _cases(cases: list[dict[str, Any]]) -> Table:
    names = list(dict.fromkeys(name for case in cases for name in case["both"] if name not in ("bytes", "copy")))
    table = Table(title="times as fast as torch, forward and backward (share of a copy's bandwidth)")
    for column in ("case", *names):
        table.add_column(column)
    for case in cases:
        both = case["both"]
        what = f"{case['block']} {tuple(case['shape'])} {case['dtype']} {case['layout']}"
        cells = [f"{both[n]['over torch']:.2f} ({both[n]['share of a copy']:.0%})" if n in both else "" for n in names]
        table.add_row(what, *cells)
    return table


def _steps(steps: list[dict[str, Any]]) -> Table:
    table = Table(title="whole steps: times as fast as torch, and peak memory")
    for column in ("network", "with", "times", "memory"):
        table.add_column(column)
    for step in steps:
        for name, times in step["over torch"].items():
            peak = step["peak bytes"][name]
            memory = "" if peak is None else f"{peak / 2**20:.0f} MiB"
            table.add_row(f"{step['name']} {step['layout']} {step['dtype']}", name, f"{times:.2f}", memory)
    return table
