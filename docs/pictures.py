"""Draws the pictures of tools.md and standardize.md: python docs/pictures.py"""

import copy
from pathlib import Path

import torch
from sklearn.datasets import load_digits, load_wine
from torch import nn
from torch.optim.swa_utils import update_bn

import batchnorm as bn

FOLDER = Path(__file__).parent / "images"
FRAME = '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 640 {height}" font-family="sans-serif" font-size="13">'
BACKGROUND = '<rect width="640" height="{height}" fill="white"/>'


def write(name: str, height: int, parts: list[str]) -> None:
    head = [FRAME.format(height=height), BACKGROUND.format(height=height)]
    (FOLDER / name).write_text("\n".join([*head, *parts, "</svg>"]) + "\n")


def text(x: float, y: float, words: str, anchor: str = "start") -> str:
    return f'<text x="{x:.0f}" y="{y:.0f}" text-anchor="{anchor}" fill="#333">{words}</text>'


def calibration() -> None:
    """How wrong a variance of the second layer is, for data sorted by class, by how the statistics were taken."""
    torch.manual_seed(0)
    digits = load_digits()
    x = torch.from_numpy(digits.images).float().unsqueeze(1)[torch.from_numpy(digits.target).argsort()]
    conv = nn.Conv2d(1, 16, 3), nn.Conv2d(16, 16, 3)
    start = nn.Sequential(conv[0], nn.BatchNorm2d(16), nn.ReLU(), conv[1], nn.BatchNorm2d(16))
    truth = copy.deepcopy(start)
    bn.calibrate(truth, [x])
    parts = [text(20, 24, "largest error of a variance, relative (log scale); digits sorted by class")]
    ways = {"update_bn": update_bn, "one pass": lambda b, m: bn.calibrate(m, b, exact=False)}
    ways["calibrate"] = lambda b, m: bn.calibrate(m, b)
    colours = {"update_bn": "#d95f02", "one pass": "#7570b3", "calibrate": "#1b9e77"}
    y = 50
    for size in (500, 100, 20):
        parts.append(text(20, y + 34, f"batches of {size}"))
        for name, way in ways.items():
            model = copy.deepcopy(start)
            way(x.split(size), model)
            error = ((model[4].running_var - truth[4].running_var).abs() / truth[4].running_var).max().item()
            width = 60 * (torch.tensor(max(error, 1e-8)).log10().item() + 8)
            parts.append(f'<rect x="130" y="{y}" width="{max(width, 2):.0f}" height="16" fill="{colours[name]}"/>')
            parts.append(text(136 + max(width, 2), y + 13, f"{name} {error:.0e}"))
            y += 20
        y += 14
    write("calibrate.svg", y + 4, parts)


def standardization() -> None:
    """Two columns of the wine data, before and after: the same picture on another scale."""
    x = torch.from_numpy(load_wine().data)[:, [12, 10]]  # proline, hue
    layer = bn.Standardize(2).fit(x)
    parts = []
    for left, data, title in ((40, x, "proline and hue"), (360, layer(x), "after Standardize")):
        low, high = data.amin(0), data.amax(0)
        parts.append(text(left + 120, 22, title, "middle"))
        parts.append(f'<rect x="{left}" y="34" width="240" height="200" fill="none" stroke="#999"/>')
        parts += [
            f'<circle cx="{left + 8 + 224 * px:.1f}" cy="{226 - 184 * py:.1f}" r="2.5" fill="#1b9e77" opacity="0.6"/>'
            for px, py in ((data - low) / (high - low)).tolist()
        ]
        parts.append(text(left, 252, f"{low[0]:.4g}") + text(left + 240, 252, f"{high[0]:.4g}", "end"))
        parts.append(text(left - 4, 232, f"{low[1]:.2g}", "end") + text(left - 4, 44, f"{high[1]:.2g}", "end"))
    write("standardize.svg", 262, parts)


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    calibration()
    standardization()
