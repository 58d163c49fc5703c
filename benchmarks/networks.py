"""Converts the networks of tests/clients/zoo.txt: counts the converted and the fused batch norms, compares results.

python -m benchmarks.networks [NAME...]    # some or all; a table on stdout
python -m benchmarks.networks --write      # all, and the table into docs/networks.md; with names, their lines only

A network trains three steps in float64, with torch's layers and converted with fuse=True. The error is the largest
difference in an output, a gradient or a statistic of the three steps, over the largest value of its tensor. The command
needs timm and torchvision.
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
LARGE, NOISE = 1e-7, 1e-15
HEAD = [
    "| network | norms | converted | could fuse | fused | error | left |",
    "|---|---:|---:|---:|---:|---:|---|",
]
SMALL = 1e-6  # of the largest value


class Row(NamedTuple):
    """A network's batch norms, those converted, the operations that ours can fuse, those fused, and the error."""

    network: str
    norms: int
    converted: int
    fusible: int
    fused: int
    left: Counter[str]  # reasons for operations that were not fused, or layers that were not converted
    error: float
    noise: float  # the same error from weights changed by `NOISE` alone; measured if `error` is large


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
    error = difference(copy.deepcopy(model), fused, x) if train else 0.0
    missed = [names[0] for names in follows.values() if not took & set(names)]
    return Row(
        str(entry),
        len(norms),
        sum(isinstance(m, bn.BatchNorm) for m in norms.values()),
        len(follows),
        len(follows) - len(missed),
        _reasons(missed, after) + Counter(str(w.message) for w in said),
        error,
        difference(model, _changed(model), x) if error > LARGE else 0.0,
    )


def _changed(model: nn.Module) -> nn.Module:
    """The model with weights changed by a relative `NOISE`, in float64."""
    other = copy.deepcopy(model).double()
    with torch.no_grad():
        for parameter in other.parameters():
            parameter *= 1 + NOISE
    return other


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
    # gradients that are 0 in exact arithmetic, such as that of a bias before a batch norm, are rounding errors only
    least = SMALL * max(t.abs().max().item() for t in wanted[: -len(model.state_dict())])
    return max(((a - b).abs().max() / a.abs().max().clamp_min(least)).item() for a, b in zip(wanted, got, strict=True))


def _line(row: Row) -> str:
    left = "; ".join(f"{count} × {why}" if count > 1 else why for why, count in row.left.most_common(3))
    if row.error > LARGE:
        left = "; ".join(filter(None, [left, f"error {row.noise:.0e} from weights changed by {NOISE:.0e} alone"]))
    numbers = f"{row.norms} | {row.converted} | {row.fusible} | {row.fused} | {row.error:.0e}"
    return f"| {row.network} | {numbers} | {left} |"


def table(lines: list[str]) -> str:
    """The table in Markdown: the lines of the networks, and a line with their sums."""
    numbers = [[float(cell) for cell in line.split("|")[2:7]] for line in lines]
    norms, converted, fusible, fused = (int(sum(column)) for column in list(zip(*numbers, strict=True))[:4])
    worst = max(row[4] for row in numbers)
    total = (
        f"| **{len(lines)} networks** | {norms} | {converted} ({converted / norms:.1%}) "
        f"| {fusible} | {fused} ({fused / max(fusible, 1):.1%}) | {worst:.0e} | |"
    )
    return "\n".join([*HEAD, *lines, total])


def update(page: str, lines: dict[str, str]) -> str:
    """The page with new lines for these networks; lines of networks that are no longer in the list are removed."""
    before = {
        line.split("|")[1].strip(): line for line in page.splitlines() if line.startswith(("| timm:", "| torchv"))
    }
    kept = [{**before, **lines}[str(entry)] for entry in zoo.entries() if str(entry) in {**before, **lines}]
    return re.sub(
        r"(<!-- networks -->\n).*?(<!-- end -->)", lambda m: f"{m[1]}\n{table(kept)}\n\n{m[2]}", page, flags=re.DOTALL
    )


def main(arguments: list[str]) -> None:
    names = [a for a in arguments if not a.startswith("--")]
    lines = {}
    for entry in zoo.entries():
        if not names or entry.name in names or str(entry) in names:
            lines[str(entry)] = _line(measure(entry))
            print(lines[str(entry)], flush=True)
            if "--write" in arguments:
                PAGE.write_text(update(PAGE.read_text(encoding="utf-8"), lines), encoding="utf-8")
    print(table(list(lines.values())).splitlines()[-1])


if __name__ == "__main__":
    main(sys.argv[1:])
