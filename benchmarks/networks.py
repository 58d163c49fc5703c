"""The networks of tests/clients/zoo.txt: how many batch norms convert and fuse, and whether the results are torch's.

python -m benchmarks.networks [NAME...]    # some or all; a table on stdout
python -m benchmarks.networks --write      # all, and the table into docs/networks.md

A network trains three steps in float64, with torch's layers and converted with fuse=True. The error is the largest of
an output, a gradient or a statistic of the three steps, over the largest value of its tensor. Needs timm and
torchvision.
"""

import copy
import re
import sys
import warnings
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

import batchnorm as bn
from tests.support import zoo
from tests.support.followers import Use, followers

PAGE = Path(__file__).parents[1] / "docs" / "networks.md"
STEPS = 3
SMALL = 1e-6  # of the largest value


class Row(NamedTuple):
    """A network: its batch norms, those converted, the operations that ours could take, those taken, and the error."""

    network: str
    norms: int
    converted: int
    could: int
    fused: int
    left: Counter[str]  # reasons for operations that were not taken, or layers that were not converted
    error: float


def measure(entry: zoo.Entry, train: bool = True) -> Row:
    model, x = zoo.build(entry).train(), zoo.pictures(entry)
    after = followers(copy.deepcopy(model), x)
    fused = copy.deepcopy(model)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        bn.convert(fused, fuse=True)
    norms = {name: m for name, m in fused.named_modules() if hasattr(m, "running_mean")}
    took = {name for name, m in norms.items() if isinstance(m, bn.BatchNorm) and m._fused}
    follows: dict[int, list[str]] = {}
    for name, use in after.items():
        if use.kind in ("activation", "addition"):
            follows.setdefault(use.call, []).append(name)
    missed = [names[0] for names in follows.values() if not took & set(names)]
    return Row(
        str(entry),
        len(norms),
        sum(isinstance(m, bn.BatchNorm) for m in norms.values()),
        len(follows),
        len(follows) - len(missed),
        _reasons(missed, after) + Counter(str(w.message) for w in said),
        difference(model, fused, x) if train else 0.0,
    )


def _reasons(missed: list[str], after: dict[str, Use]) -> Counter[str]:
    return Counter(f"{after[name].kind} after {_place(name)}" for name in missed)


def _place(name: str) -> str:
    """The name of a batch norm without the numbers of blocks."""
    return re.sub(r"\d+", "…", name)


def difference(model: nn.Module, other: nn.Module, x: Tensor) -> float:
    """The largest relative difference of outputs, gradients and state over three steps of SGD in float64."""
    runs = []
    for m in (model.double(), other.double()):
        optimizer = torch.optim.SGD(m.parameters(), 1e-3, momentum=0.9)
        results = []
        for step in range(STEPS):
            torch.manual_seed(step)
            leaf = torch.randn(x.shape, dtype=torch.float64, requires_grad=True)
            outputs = [t for t in tree_leaves(m(leaf)) if isinstance(t, Tensor)]
            optimizer.zero_grad()
            torch.stack([t.square().mean() for t in outputs]).sum().backward()
            results += [*outputs, leaf.grad, *(p.grad for p in m.parameters() if p.grad is not None)]
            optimizer.step()
        runs.append([*results, *m.state_dict().values()])
    wanted, got = ([t.detach().double() for t in run if t.numel()] for run in runs)
    # gradients that are 0 in exact arithmetic, as of a bias before a batch norm, are rounding and nothing else
    least = SMALL * max(t.abs().max().item() for t in wanted[: -len(model.state_dict())])
    return max(((a - b).abs().max() / a.abs().max().clamp_min(least)).item() for a, b in zip(wanted, got, strict=True))


def _line(row: Row) -> str:
    left = "; ".join(f"{count} × {why}" if count > 1 else why for why, count in row.left.most_common(3))
    numbers = f"{row.norms} | {row.converted} | {row.could} | {row.fused} | {row.error:.0e}"
    return f"| {row.network} | {numbers} | {left} |"


def table(rows: list[Row]) -> str:
    """Markdown: a row for each network, and their sum."""
    lines = [
        "| network | norms | converted | could fuse | fused | error | left |",
        "|---|---:|---:|---:|---:|---:|---|",
        *map(_line, rows),
    ]
    norms, converted, could, fused = (
        sum(getattr(r, key) for r in rows) for key in ("norms", "converted", "could", "fused")
    )
    worst = max(r.error for r in rows)
    lines.append(
        f"| **{len(rows)} networks** | {norms} | {converted} ({converted / norms:.1%}) "
        f"| {could} | {fused} ({fused / max(could, 1):.1%}) | {worst:.0e} | |"
    )
    return "\n".join(lines)


def main(arguments: list[str]) -> None:
    names = [a for a in arguments if not a.startswith("--")]
    rows = []
    for entry in zoo.entries():
        if not names or entry.name in names or str(entry) in names:
            rows.append(measure(entry))
            print(_line(rows[-1]), flush=True)
    if "--write" in arguments:
        page = PAGE.read_text(encoding="utf-8")
        mark = re.compile(r"(<!-- networks -->\n).*?(<!-- end -->)", re.DOTALL)
        PAGE.write_text(mark.sub(lambda m: f"{m[1]}\n{table(rows)}\n\n{m[2]}", page), encoding="utf-8")
    print(table(rows).splitlines()[-1])


if __name__ == "__main__":
    main(sys.argv[1:])
