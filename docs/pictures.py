"""Draws the pictures of README, tools.md, standardize.md and big-batch.md from the examples: python docs/pictures.py"""

import copy
import math
import runpy
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from sklearn.datasets import load_wine
from torch import nn

import batchnorm as bn
from batchnorm.benchmark.steps import images, kept_by
from batchnorm.benchmark.whole_networks import NETWORKS

FOLDER = Path(__file__).parent / "images"
EXAMPLES = Path(__file__).parent.parent / "examples"
FRAME = '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 640 {height}" font-family="sans-serif" font-size="13">'
BACKGROUND = '<rect width="640" height="{height}" fill="white"/>'
ORANGE, PURPLE, GREEN, GREY = "#d95f02", "#7570b3", "#1b9e77", "#999"


def example(name: str) -> dict[str, Any]:
    """What is left when an example has run."""
    return runpy.run_path(str(EXAMPLES / name))


def write(name: str, height: float, parts: list[str]) -> None:
    head = [FRAME.format(height=height), BACKGROUND.format(height=height)]
    (FOLDER / name).write_text("\n".join([*head, *parts, "</svg>"]) + "\n")


def text(x: float, y: float, words: str, anchor: str = "start") -> str:
    return f'<text x="{x:.0f}" y="{y:.0f}" text-anchor="{anchor}" fill="#333">{words}</text>'


def bars(name: str, title: str, groups: Iterable[tuple[str, list[tuple[str, float, str]]]]) -> None:
    """A horizontal bar for each (caption, length from 0 to 1, colour), in groups with a label."""
    parts, y = [text(20, 24, title)], 50
    for label, rows in groups:
        parts.append(text(20, y + 10 * len(rows) + 4, label))
        for caption, length, colour in rows:
            width = max(360 * length, 2)
            parts.append(f'<rect x="140" y="{y}" width="{width:.0f}" height="16" fill="{colour}"/>')
            parts.append(text(146 + width, y + 13, caption))
            y += 20
        y += 14
    write(name, y + 4, parts)


def magnitude(error: float) -> float:
    """From 1e-8 (0) to 1 (1)."""
    return max(math.log10(max(error, 1e-8)) / 8 + 1, 0)


def calibration() -> None:
    """How wrong a variance of the second layer is, for data sorted by class, by how the statistics were taken."""
    run = example("calibrate_weight_average.py")
    ways = {"update_bn": ORANGE, "one pass": PURPLE, "calibrate": GREEN}
    groups = []
    for size in (500, 100, 20):
        errors = {how: run["error"](run["x"].split(size), how) for how in ways}
        rows = [(f"{how} {error:.0e}", magnitude(error), ways[how]) for how, error in errors.items()]
        groups.append((f"batches of {size}", rows))
    bars("calibrate.svg", "largest error of a variance, relative (log scale); digits sorted by class", groups)


def adaptation() -> None:
    """The accuracy at home, in the new domain, and there after `adapt`."""
    run = example("adapt_to_a_new_domain.py")
    rows = [("clean", "at home", GREY), ("before", "new domain", ORANGE), ("after", "adapted", GREEN)]
    found = [(f"{label} {run[key]:.0%}", run[key], colour) for key, label, colour in rows]
    bars("adapt.svg", "accuracy on digits: darker and noisier pictures, no labels used to adapt", [("", found)])


def merging() -> None:
    """The data of two clients, and the normal curves of their merged and of their averaged variance."""
    run = example("merge_clients.py")
    data, mean = run["everything"].flatten(), run["merged"].running_mean.item()
    parts = [text(20, 24, "all the data of two clients, and what each way takes their distribution to be")]
    low, bins, width = -6.0, 48, 0.25

    def place(x: float, density: float) -> tuple[float, float]:
        return 20 + 600 * (x - low) / (bins * width), 220 - 430 * density

    shares = torch.histc(data, bins, low, low + bins * width) / len(data) / width
    for i, share in enumerate(shares.tolist()):
        x, y = place(low + i * width, share)
        parts.append(f'<rect x="{x:.1f}" y="{y:.1f}" width="11.5" height="{220 - y:.1f}" fill="#ddd"/>')
    ways = [("merged", run["ours"], GREEN), ("variances averaged", run["naive"].item(), ORANGE)]
    for row, (label, variance, colour) in enumerate(ways):
        curve = torch.distributions.Normal(mean, variance**0.5)
        xs = torch.linspace(low, low + bins * width, 121)
        points = [place(x, d) for x, d in zip(xs.tolist(), curve.log_prob(xs).exp().tolist(), strict=True)]
        line = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        parts.append(f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts.append(f'<rect x="400" y="{52 + 22 * row}" width="14" height="4" fill="{colour}"/>')
        parts.append(text(420, 58 + 22 * row, f"{label}: variance {variance:.2f}"))
    parts.append(text(420, 58 + 22 * len(ways), f"all the data: variance {run['truth']:.2f}"))
    write("merge.svg", 232, parts)


def fusing() -> None:
    """What networks with SiLU keep for the backward pass, an image of 64 pixels."""
    groups = []
    for name in NETWORKS:
        found = kept_by(name, "silu", images(2, 64, "contiguous")[0])
        sizes = {"torch's layers": (found["torch"], GREY), "fused": (found["fused"], GREEN)}
        rows = [
            (f"{label} {size / 2 / 2**20:.1f} MiB", size / found["torch"], colour)
            for label, (size, colour) in sizes.items()
        ]
        groups.append((name, rows))
    bars("fuse.svg", "kept for the backward pass of an image of 64 pixels, SiLU throughout", groups)


def following() -> None:
    """A running mean with the momentum of Keras, converted and taken as it is."""
    paths = example("other_frameworks.py")["paths"]
    parts = [text(20, 24, "a running mean over 200 batches of 16, momentum 0.99 in Keras; the data's mean is 3")]
    for (label, path), colour, x in zip(reversed(paths.items()), (ORANGE, GREEN), (20, 320), strict=True):
        points = " ".join(f"{20 + 3 * i:.1f},{120 - 80 * (mean - 3):.1f}" for i, mean in enumerate(path))
        parts.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts.append(f'<rect x="{x}" y="206" width="14" height="4" fill="{colour}"/>')
        parts.append(text(x + 20, 212, label))
    write("momentum.svg", 222, parts)


@torch.no_grad()
def folding() -> None:
    """How far float32 networks are from themselves in float64, folded and not."""
    groups = []
    for name, make in NETWORKS.items():
        torch.manual_seed(0)
        model, x = make().eval(), torch.randn(4, 3, 64, 64)
        bn.calibrate(model, [torch.randn(16, 3, 64, 64)])
        truth = copy.deepcopy(model).double()(x.double())
        ways: dict[str, tuple[nn.Module, str]] = {"as it is": (model, GREY), "folded": (bn.fold(model, x), GREEN)}
        rows = []
        for label, (network, colour) in ways.items():
            error = ((network(x) - truth).abs().max() / truth.abs().max()).item()
            rows.append((f"{label} {error:.0e}", magnitude(error), colour))
        groups.append((name, rows))
    bars("fold.svg", "largest error of an output against float64, relative (log scale)", groups)


def standardization() -> None:
    """Two columns of the wine data on equal axes: before, one of them is squashed to a line; after, both spread."""
    x = torch.from_numpy(load_wine().data)[:, [12, 10]]  # proline, hue
    layer = bn.Standardize(2).fit(x)
    parts = []
    for left, data, title in ((60, x, "before: proline and hue"), (380, layer(x), "after Standardize")):
        low, high = data.min().item(), data.max().item()  # one range for both columns, so that scales can be compared
        parts.append(text(left + 120, 22, title, "middle"))
        parts.append(f'<rect x="{left}" y="34" width="240" height="240" fill="none" stroke="{GREY}"/>')
        parts += [
            f'<circle cx="{left + 8 + 224 * px:.1f}" cy="{266 - 224 * py:.1f}" r="2.5" fill="{GREEN}" opacity="0.6"/>'
            for px, py in ((data - low) / (high - low)).tolist()
        ]
        parts += [text(left, 292, f"{low:.2g}"), text(left + 240, 292, f"{high:.4g}", "end")]
        parts += [text(left - 4, 274, f"{low:.2g}", "end"), text(left - 4, 44, f"{high:.4g}", "end")]
        parts += [text(left + 120, 292, "proline", "middle"), text(left - 4, 160, "hue", "end")]
    write("standardize.svg", 302, parts)


def contrasting() -> None:
    """The held-out loss of contrastive learning, by the way in which a big batch was made."""
    run = example("big_batch.py")["curves"](60)
    styles = {
        "accumulation": (ORANGE, 2),
        "ghost batches": (PURPLE, 2),
        "big batch": ("#ccc", 8),
        "bn.big_batch": (GREEN, 2),
    }
    parts = [text(20, 24, "held-out contrastive loss on digits: batches of 256, micro-batches and ghost batches of 4")]
    values = [loss for curve in run.values() for loss in curve]
    low, high = min(values), max(values)
    parts.append(f'<rect x="60" y="40" width="540" height="220" fill="none" stroke="{GREY}"/>')
    parts += [text(54, y, f"{value:.1f}", "end") for y, value in ((54, high), (258, low))]
    parts.append(text(60, 278, "0") + text(600, 278, "60 steps", "end"))
    for i, (label, (colour, width)) in enumerate(styles.items()):
        points = " ".join(
            f"{60 + 540 * at / (len(run[label]) - 1):.1f},{254 - 208 * (loss - low) / (high - low):.1f}"
            for at, loss in enumerate(run[label])
        )
        parts.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="{width}"/>')
        parts.append(f'<rect x="{60 + 140 * i}" y="296" width="14" height="{width + 1}" fill="{colour}"/>')
        parts.append(text(80 + 140 * i, 302, label))
    write("big_batch.svg", 316, parts)


def histogram(left: float, bottom: float, values: torch.Tensor, colour: str) -> list[str]:
    """24 bars from the least to the largest value, 240 wide and at most 70 high, with the range below."""
    low, high = values.min().item(), values.max().item()
    counts = torch.histc(values, 24, low, high)
    parts = [
        f'<rect x="{left + 10 * i}" y="{bottom - 70 * share:.1f}" width="9" height="{70 * share:.1f}" fill="{colour}"/>'
        for i, share in enumerate((counts / counts.max()).tolist())
    ]
    return [*parts, text(left, bottom + 16, f"{low:.1f}"), text(left + 240, bottom + 16, f"{high:.1f}", "end")]


def learning() -> None:
    """One channel before and after a batch norm, and the accuracy of a network with and without while it trains."""
    run = example("with_and_without.py")
    parts = [text(20, 24, "one channel: same shape, mean 0, σ 1")]
    for values, bottom, colour, label in ((run["before"], 126, ORANGE, "before"), (run["after"], 232, GREEN, "after")):
        parts += histogram(20, bottom, values, colour)
        mean = round(values.mean().item(), 2) + 0.0  # no "-0.00"
        parts.append(text(140, bottom + 16, f"{label}: mean {mean:.2f}, σ {values.std():.2f}", "middle"))
    parts.append(text(340, 24, "accuracy on held-out digits"))
    parts.append(f'<rect x="370" y="40" width="250" height="192" fill="none" stroke="{GREY}"/>')
    parts += [text(364, y, label, "end") for y, label in ((46, "1"), (140, "0.5"), (236, "0"))]
    parts.append(text(370, 248, "0") + text(620, 248, "1000 steps", "end"))
    for name, colour, y in (("with", GREEN, 74), ("without", ORANGE, 216)):
        found = [0.1, *run["curves"][name, run["best"][name]]]  # chance, before the first step
        points = " ".join(f"{370 + 250 * i / (len(found) - 1):.1f},{232 - 192 * v:.1f}" for i, v in enumerate(found))
        parts.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2.5"/>')
        parts.append(text(610, y, f"{name} batch norm", "end"))
    write("why.svg", 262, parts)


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for draw in (
        learning, contrasting, fusing, calibration, adaptation, merging, folding, following, standardization,
    ):  # fmt: skip
        draw()
