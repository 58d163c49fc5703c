"""The result of a study in one or two sentences, and notes on its learning rates."""

from __future__ import annotations

import statistics
from typing import Any

from .data import Data
from .sweep import Sweep
from .verdict import Claim, NotMeasured

WITH = {"batch norm": "with batch norm", "plain": "without", "raw": "on the raw table", "layer norm": "with layer norm",
        "group norm": "with group norm"}  # fmt: skip


def headline(data: Data, scores: dict[str, Any], claims: list[Claim]) -> str:
    """Sentences about the networks that learned, the test scores, the number of benefits that hold, and the cost."""
    if not scores:
        return "The study was interrupted before there was anything to compare."
    pair = {arm: scores[arm] for arm in ("batch norm", "plain")}
    tests = " and ".join(f"{_mean(found['test'])} {WITH[arm]}" for arm, found in pair.items())
    result = f"Test {data.score_name}: {tests}."
    if not any(found["learned"] for found in pair.values()):
        return (
            "Nothing was learned: on the test part, neither network is better than a constant answer by more than "
            f"chance. {result} So nothing can be said about training here."
        )
    only = [arm for arm, found in pair.items() if found["learned"]]
    word = WITH[only[0]] + " batch norm" * (only[0] == "plain")
    alone = "" if len(only) == 2 else f"Only the network {word} learned. "
    judged = [c for c in claims if c.verdict != "not measured" and c.kind == "benefit"]
    holds = sum(c.verdict == "holds" for c in judged)
    costs = any(c.verdict == "holds" and c.kind == "cost" for c in claims)
    cost = " Small batches cost the network with batch norm more than the one without." if costs else ""
    return f"{alone}{result} {holds} of the {len(judged)} benefits that could be judged hold here.{cost}"


def _mean(values: list[float]) -> str:
    return f"{statistics.fmean(values):.3f}"


def notes(main: Sweep, scales: Sweep | None) -> list[str]:
    """Sentences about the rates added to each sweep, and about arms with a best rate that is still at an edge."""
    found = []
    for sweep in (main, scales):
        if sweep is None:
            continue
        try:
            edges = sweep.at_edge()
        except NotMeasured:
            continue
        table = "" if sweep is main else f" over the columns' scales ({sweep.data.name})"
        if sweep.added:
            rates = ", ".join(f"{rate:g}" for rate in sweep.added)
            found.append(f"The best rate was at an edge of the sweep{table}, so these rates were added: {rates}.")
        for arm, rate in edges.items():
            found.append(
                f"The best rate {WITH[arm]}{' batch norm' * (arm == 'plain')}, {rate:g}, is at the edge of the "
                f"sweep{table}: a better one may lie beyond. --lr chooses other rates."
            )
    return found
