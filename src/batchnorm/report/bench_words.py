"""Texts of a comparison with torch that the terminal, the page and the documentation share."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

Result = dict[str, Any]
NAMES = {"compiled": "torch.compile"}
SIZES = {
    "large": "262,144 values or more",
    "medium": "8,192 to 262,143 values",
    "small": "fewer than 8,192 values",
}


def shape(case: Result) -> str:
    return "×".join(map(str, case["shape"]))


def batches(networks: list[Result]) -> str:
    """The inputs of training steps, as text."""
    sizes = {(found["batch"], found["pixels"]) for found in networks}
    images = [f"{batch} images of {pixels} px" for batch, pixels in sizes if pixels is not None]
    rows = [f"{batch} rows" for batch, pixels in sizes if pixels is None]
    return " or ".join(images + rows)


def doubts(result: Result) -> Iterator[str]:
    """A line for every ratio that is not to be trusted."""
    for case in result["cases"]:
        where = f"{case['block']} {shape(case)} {case['dtype']} {case['layout']}"
        shown = [*case["ratios"].values(), *(case["copies"].values() if case["group"] == "large" else ())]
        for reason in dict.fromkeys(ratio["doubt"] for ratio in shown):
            if reason is not None:
                yield f"{where}: {reason}"
    for found in result["networks"]:
        for reason in dict.fromkeys(ratio["doubt"] for ratio in found["ratios"].values()):
            if reason is not None:
                yield f"{found['name']} {found['layout']} {found['dtype']}: {reason}"


def load(found: Result) -> str:
    """The load of the machine, as text."""
    before, after, others = (
        None if found[key] is None else f"{found[key]:.2f}" for key in ("before", "after", "others")
    )
    averages = f"load average {before} before the run and {after} after it, its own threads included"
    cores = f"other programs kept {others} cores busy during the turns"
    parts = [*([] if before is None else [averages]), *([] if others is None else [cores])]
    return "; ".join(parts) or "this system does not tell how busy it is"


def number(value: float, unit: str) -> str:
    return f"{value:.0f} s" if unit == "s" else f"{value:.2f}×"


def quartiles(ratio: Result) -> str:
    """Lower and upper quartile, with two decimals below 10."""
    return "–".join(f"{value:.2f}" if value < 10 else f"{value:.3g}" for value in (ratio["low"], ratio["high"]))


def measured(row: Result) -> str:
    """The measured value of a target's row."""
    return "" if row["measured"] is None else number(row["measured"], row["unit"])


def spread(row: Result) -> str:
    """The quartiles of a row with one ratio; for a mean, the least and the largest of its inputs."""
    if row["measured"] is None or row["unit"] == "s":
        return ""
    if row["low"] is not None:
        which = f", {row['which']}" if row["kind"] == "least" else ""
        return f"({quartiles(row)}){which}"
    ratios = [found["ratio"] for found in row["inputs"]]
    return f"{min(ratios):.2f} to {max(ratios):.2f}"


def judged(row: Result) -> str:
    """The verdict, the number of inputs left out, and the command for a target that this benchmark cannot measure."""
    parts = [] if row["verdict"] == "no aim" else [row["verdict"]]
    parts += [f"{len(row['left_out'])} left out"] if row["left_out"] else []
    parts += [f"by {row['how']}"] if row["how"] else []
    return ", ".join(parts)


def at_least(row: Result) -> str:
    return "" if row["at_least"] is None else number(row["at_least"], row["unit"])


def aims(row: Result) -> str:
    return "" if row["aim"] is None else number(row["aim"], row["unit"])
