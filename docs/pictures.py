"""Draws the pictures of README, tools.md, standardize.md and big-batch.md from the examples: python docs/pictures.py

They are laid out for a phone, 360 units wide with letters of 12.5, and shown larger where there is room.
"""

import copy
import math
import runpy
from collections.abc import Iterable
from pathlib import Path
from textwrap import wrap
from typing import Any

import torch
from sklearn.datasets import load_wine
from torch import nn

import batchnorm as bn
from batchnorm.benchmark.steps import images, kept_by
from batchnorm.benchmark.whole_networks import NETWORKS

FOLDER = Path(__file__).parent / "images"
EXAMPLES = Path(__file__).parent.parent / "examples"
WIDTH, LARGER = 360, 1.2
FRAME = (
    f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH * LARGER:.0f}" height="{{larger:.0f}}" '
    f'viewBox="0 0 {WIDTH} {{height}}" font-family="sans-serif" font-size="12.5">'
)
BACKGROUND = f'<rect width="{WIDTH}" height="{{height}}" fill="white"/>'
ORANGE, PURPLE, GREEN, GREY = "#d95f02", "#7570b3", "#1b9e77", "#999"


def example(name: str) -> dict[str, Any]:
    """The variables of an example after it has run."""
    return runpy.run_path(str(EXAMPLES / name))


def write(name: str, height: float, parts: list[str]) -> None:
    head = [FRAME.format(height=height, larger=LARGER * height), BACKGROUND.format(height=height)]
    (FOLDER / name).write_text("\n".join([*head, *parts, "</svg>"]) + "\n")


def text(x: float, y: float, words: str, anchor: str = "start") -> str:
    return f'<text x="{x:.0f}" y="{y:.0f}" text-anchor="{anchor}" fill="#333">{words}</text>'


def title(words: str) -> tuple[list[str], int]:
    """A title over as many lines as it needs, and where it ends."""
    lines = wrap(words, 46)
    return [text(12, 22 + 17 * i, line) for i, line in enumerate(lines)], 22 + 17 * (len(lines) - 1)


def upright(x: float, y: float, words: str) -> str:
    """The title of an axis from bottom to top."""
    turned = f'text-anchor="middle" transform="rotate(-90 {x:.0f} {y:.0f})"'
    return f'<text x="{x:.0f}" y="{y:.0f}" fill="#333" {turned}>{words}</text>'


def line(points: Iterable[tuple[float, float]], colour: str, dash: str = "", width: float = 2) -> str:
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    dashes = f' stroke-dasharray="{dash}"' if dash else ""
    return f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="{width}"{dashes}/>'


def key(x: float, y: float, words: str, colour: str, dash: str = "", width: float = 2) -> str:
    return line([(x, y - 4), (x + 24, y - 4)], colour, dash, width) + text(x + 30, y, words)


def box(left: float, top: float, width: float, height: float) -> str:
    return f'<rect x="{left}" y="{top}" width="{width}" height="{height}" fill="none" stroke="{GREY}"/>'


def bars(name: str, words: str, groups: Iterable[tuple[str, list[tuple[str, float, str]]]]) -> None:
    """A horizontal bar for each (caption, length from 0 to 1, colour), in groups below their labels."""
    parts, y = title(words)
    y += 18
    for label, rows in groups:
        if label:
            parts.append(text(12, y + 8, label))
            y += 16
        for caption, length, colour in rows:
            width = max(180 * length, 2)
            parts.append(f'<rect x="12" y="{y}" width="{width:.0f}" height="16" fill="{colour}"/>')
            parts.append(text(20 + width, y + 13, caption))
            y += 20
        y += 12
    write(name, y, parts)


def magnitude(error: float) -> float:
    """From 1e-8 (0) to 1 (1)."""
    return max(math.log10(max(error, 1e-8)) / 8 + 1, 0)


def calibration() -> None:
    """The error of a variance of the second layer on data sorted by class, for each way to take the statistics."""
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
    parts, top = title("all the data of two clients, and what each way takes their distribution to be")
    low, bins, width = -6.0, 48, 0.25
    bottom = top + 160

    def place(x: float, density: float) -> tuple[float, float]:
        return 30 + 318 * (x - low) / (bins * width), bottom - 330 * density

    shares = torch.histc(data, bins, low, low + bins * width) / len(data) / width
    for i, share in enumerate(shares.tolist()):
        x, y = place(low + i * width, share)
        parts.append(f'<rect x="{x:.1f}" y="{y:.1f}" width="6" height="{bottom - y:.1f}" fill="#ccc"/>')
    parts.append(f'<line x1="30" x2="348" y1="{bottom}" y2="{bottom}" stroke="{GREY}"/>')
    parts.append(upright(18, bottom - 70, "density"))
    parts += [text(place(x, 0)[0], bottom + 16, f"{x}", "middle") for x in (-6, -3, 0, 3, 6)]
    y = bottom + 40
    parts.append(f'<rect x="30" y="{y - 11}" width="24" height="10" fill="#ccc"/>')
    parts.append(text(60, y, f"all the data: variance {run['truth']:.2f}"))
    ways = [("merged", run["ours"], GREEN, ""), ("variances averaged", run["naive"].item(), ORANGE, "6 3")]
    for label, variance, colour, dash in ways:
        curve = torch.distributions.Normal(mean, variance**0.5)
        xs = torch.linspace(low, low + bins * width, 121)
        points = [place(x, d) for x, d in zip(xs.tolist(), curve.log_prob(xs).exp().tolist(), strict=True)]
        parts.append(line(points, colour, dash))
        y += 20
        parts.append(key(30, y, f"{label}: variance {variance:.2f}", colour, dash))
    write("merge.svg", y + 14, parts)


def fusing() -> None:
    """The bytes that networks with SiLU keep for the backward pass, for an image of 64 pixels."""
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
    parts, top = title("a running mean over 200 batches of 16, momentum 0.99 in Keras; the data's mean is 3")
    values = [mean for path in paths.values() for mean in path]
    low, high = min(values), max(values)
    top, bottom = top + 16, top + 176

    def place(i: float, mean: float, last: int) -> tuple[float, float]:
        return 48 + 300 * i / last, bottom - 8 - (bottom - top - 16) * (mean - low) / (high - low)

    parts.append(box(48, top, 300, bottom - top))
    parts += [text(42, y, f"{mean:.1f}", "end") for y, mean in ((top + 12, high), (bottom - 4, low))]
    for tick in range(math.ceil(low), math.floor(high) + 1):
        y = place(0, tick, 1)[1]
        parts.append(text(42, y + 4, f"{tick}", "end"))
        parts.append(f'<line x1="48" x2="348" y1="{y:.1f}" y2="{y:.1f}" stroke="#ddd"/>')
    parts += [text(48, bottom + 16, "1"), text(198, bottom + 16, "batch", "middle")]
    parts += [text(348, bottom + 16, "200", "end"), upright(18, (top + bottom) / 2, "running mean")]
    styles = ((ORANGE, "", 1.5), (GREEN, "", 3))
    for row, ((label, path), style) in enumerate(zip(reversed(paths.items()), styles, strict=True)):
        parts.append(line([place(i, mean, len(path) - 1) for i, mean in enumerate(path)], *style))
        parts.append(key(48, bottom + 40 + 20 * row, label, *style))
    write("momentum.svg", bottom + 74, parts)


@torch.no_grad()
def folding() -> None:
    """The error of float32 networks against float64, folded and not."""
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
    parts, top = [], 10
    for data, words in ((x, "before: proline and hue"), (layer(x), "after Standardize")):
        low, high = data.min().item(), data.max().item()  # one range for both columns, so that scales can be compared
        parts += [text(186, top + 14, words, "middle"), box(66, top + 24, 240, 240)]
        parts += [
            f'<circle cx="{74 + 224 * px:.1f}" cy="{top + 256 - 224 * py:.1f}" r="2.5" fill="{GREEN}" opacity="0.6"/>'
            for px, py in ((data - low) / (high - low)).tolist()
        ]
        ends = f"{low:.2g}", f"{high:.4g}"
        parts += [text(66, top + 280, ends[0]), text(306, top + 280, ends[1], "end")]
        parts += [text(62, top + 264, ends[0], "end"), text(62, top + 34, ends[1], "end")]
        parts += [text(186, top + 280, "proline", "middle"), upright(24, top + 144, "hue")]
        top += 306
    write("standardize.svg", top, parts)


def contrasting() -> None:
    """The held-out loss of contrastive learning, by the way in which a big batch was made."""
    run = example("big_batch.py")["curves"](60)
    styles = {
        "accumulation": (ORANGE, "6 3", 2),
        "ghost batches": (PURPLE, "2 3", 2),
        "big batch": ("#bbb", "", 8),
        "bn.big_batch": (GREEN, "", 2),
    }
    parts, top = title("held-out contrastive loss on digits: batches of 256, micro-batches and ghost batches of 4")
    values = [loss for curve in run.values() for loss in curve]
    low, high = min(values), max(values)
    top += 14
    parts.append(box(52, top, 296, 190))
    parts += [text(47, y, f"{value:.1f}", "end") for y, value in ((top + 14, high), (top + 186, low))]
    parts += [text(52, top + 206, "0"), text(348, top + 206, "60 steps", "end"), upright(18, top + 95, "loss")]
    for i, (label, style) in enumerate(styles.items()):
        points = [
            (52 + 296 * at / (len(run[label]) - 1), top + 182 - 174 * (loss - low) / (high - low))
            for at, loss in enumerate(run[label])
        ]
        parts.append(line(points, *style))
        parts.append(key(52 + 150 * (i % 2), top + 230 + 20 * (i // 2), label, *style))
    write("big_batch.svg", top + 262, parts)


def histogram(bottom: float, values: torch.Tensor, colour: str) -> list[str]:
    """24 bars from the least to the largest value, 336 wide and at most 70 high, with the range below."""
    low, high = values.min().item(), values.max().item()
    counts = torch.histc(values, 24, low, high)
    parts = [
        f'<rect x="{12 + 14 * i}" y="{bottom - 70 * share:.1f}" width="13" height="{70 * share:.1f}" fill="{colour}"/>'
        for i, share in enumerate((counts / counts.max()).tolist())
    ]
    return [*parts, text(12, bottom + 16, f"{low:.1f}"), text(348, bottom + 16, f"{high:.1f}", "end")]


def learning() -> None:
    """One channel before and after a batch norm, and the accuracy of a network with and without while it trains."""
    run = example("with_and_without.py")
    parts, _ = title("one channel: same shape, mean 0, σ 1")
    for values, bottom, colour, label in ((run["before"], 110, ORANGE, "before"), (run["after"], 212, GREEN, "after")):
        parts += histogram(bottom, values, colour)
        mean = round(values.mean().item(), 2) + 0.0  # no "-0.00"
        parts.append(text(180, bottom + 16, f"{label}: mean {mean:.2f}, σ {values.std():.2f}", "middle"))
    parts += [text(12, 266, "accuracy on held-out digits"), box(42, 280, 306, 170)]
    parts += [text(36, y, label, "end") for y, label in ((288, "1"), (369, "0.5"), (452, "0"))]
    parts += [text(42, 468, "0"), text(348, 468, "1000 steps", "end")]
    for name, colour, dash, x in (("with", GREEN, "", 12), ("without", ORANGE, "6 3", 184)):
        found = [0.1, *run["curves"][name, run["best"][name]]]  # chance, before the first step
        parts.append(
            line([(42 + 306 * i / (len(found) - 1), 450 - 170 * v) for i, v in enumerate(found)], colour, dash)
        )
        parts.append(key(x, 494, f"{name} batch norm", colour, dash))
    write("why.svg", 510, parts)


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for draw in (
        learning, contrasting, fusing, calibration, adaptation, merging, folding, following, standardization,
    ):  # fmt: skip
        draw()
