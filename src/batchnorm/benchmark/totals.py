"""Totals over the cases of a run: geometric means without the ratios that cannot be trusted, and counts of these."""

from itertools import groupby
from typing import Any

from batchnorm.benchmark.targets import geometric_mean

Result = dict[str, Any]
KINDS = ("dtype", "block", "layout", "group")


def totals(cases: list[Result]) -> list[Result]:
    """The speed of ours relative to each rival, for every dtype, block, layout and size of input.

    `mean` is a geometric mean and `least` the least ratio, both None if no ratio can be trusted. `slower` counts the
    ratios below 1, `left_out` those that cannot be trusted.
    """
    return [
        {**dict(zip(KINDS, kind, strict=True)), **_total(list(members))}
        for kind, members in groupby(cases, key=lambda case: tuple(case[k] for k in KINDS))
    ]


def _total(cases: list[Result]) -> Result:
    rivals = {name: None for case in cases for name in case["ratios"]}
    found = {name: [case["ratios"][name] for case in cases if name in case["ratios"]] for name in rivals}
    trusted = {name: [r["median"] for r in ratios if r["doubt"] is None] for name, ratios in found.items()}
    return {
        "cases": len(cases),
        "mean": {name: geometric_mean(values) if values else None for name, values in trusted.items()},
        "least": {name: min(values, default=None) for name, values in trusted.items()},
        "slower": {name: sum(ratio < 1 for ratio in values) for name, values in trusted.items()},
        "left_out": {name: len(found[name]) - len(values) for name, values in trusted.items()},
    }
