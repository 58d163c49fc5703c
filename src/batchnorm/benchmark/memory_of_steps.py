"""Memory and time of whole steps: torch's layers, ours fused, with `recompute`, and with torch's checkpoints."""

import contextlib
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import torch
from torch import nn

from batchnorm.backends import native
from batchnorm.benchmark import load, steps
from batchnorm.benchmark.agreement import DisagreementError
from batchnorm.benchmark.comparison import environment
from batchnorm.benchmark.memory import kept
from batchnorm.benchmark.memory_networks import MEMORY_NETWORKS, VARIANTS, variant
from batchnorm.benchmark.resident import peak_of_a_step
from batchnorm.benchmark.timing import alternate

Result = dict[str, Any]
Progress = Callable[[int, int, str], None]

# Aims of `recompute`, set on 2026-11-24: the memory that it keeps, as a share of that with torch's layers. `TIME_AIM`:
# the time of a step, over that of the fused network without it.
AIMS = {
    "MobileNetV2": 0.40,
    "EfficientNet-B0": 0.40,
    "VGG-16": 0.55,
    "Darknet-53": 0.55,
    "DenseNet-121": 0.50,
    "ResNet-50": 0.68,
    "ResNet-50 SiLU": 0.45,
}
TIME_AIM = 1.05
TIMED = VARIANTS[1:]


def measure(seconds: float, quick: bool, progress: Progress = lambda done, total, what: None) -> Result:
    """Measure every network. Ctrl-C ends the run, and the result is what was measured until then.

    Raises:
        DisagreementError: a gradient with `recompute` differs from that without it, in any bit.
    """
    batch, pixels = (1, 64) if quick else (8, 224)
    networks: list[Result] = []
    before, others, interrupted = load.average(), load.Others(), True
    with contextlib.suppress(KeyboardInterrupt):
        for done, name in enumerate(MEMORY_NETWORKS):
            progress(done, len(MEMORY_NETWORKS), name)
            networks.append(_network(name, batch, pixels, seconds, others))
        progress(len(MEMORY_NETWORKS), len(MEMORY_NETWORKS), "")
        interrupted = False
    notes = ["small inputs, to see that it works: no figures to quote"] if quick else []
    if not native.available():
        notes.append("the native kernels are not available: torch's operator was measured")
    return {
        "settings": {"quick": quick, "seconds": seconds, "recompute": True},
        "interrupted": interrupted,
        "steps": networks,
        "notes": [*notes, *load.warnings(before, others.cores)],
        "load": {"before": before, "after": load.average(), "others": others.cores},
        "environment": environment(),
    }


def _network(name: str, batch: int, pixels: int, seconds: float, others: load.Others) -> Result:
    x, labels = steps.images(batch, pixels, "contiguous")
    found = {kind: kept(variant(name, kind), x) for kind in VARIANTS}
    peaks = {kind: peak_of_a_step(name, kind, batch, pixels, torch.get_num_threads()) for kind in VARIANTS}
    models = {kind: variant(name, kind) for kind in TIMED}
    _check(name, models, *steps.images(2, 64, "contiguous"))
    with others:
        times = alternate(
            {kind: steps.training(model, x, labels, "float32") for kind, model in models.items()}, seconds
        )
    return {
        "name": name,
        "batch": batch,
        "pixels": pixels,
        "kept": found,
        "resident": None if None in peaks.values() else peaks,
        "milliseconds": {kind: 1e3 * times.seconds(kind).median for kind in models},
        "times": {kind: asdict(times.ratio(kind, "fused")) for kind in TIMED[1:]},
        "turns": len(times.turns["fused"]),
        "aim": AIMS[name],
        "time_aim": TIME_AIM,
    }


def _check(name: str, models: dict[str, nn.Sequential], x: torch.Tensor, labels: torch.Tensor) -> None:
    """Checks that the gradients of all parameters are the same with `recompute` and without."""
    found = {}
    for kind in ("fused", "recompute", "chain"):
        model = models[kind]
        torch.manual_seed(0)  # of dropout
        torch.nn.functional.cross_entropy(model(x), labels).backward()
        found[kind] = [p.grad for p in model.parameters() if p.grad is not None]
        model.zero_grad()
    for kind in ("recompute", "chain"):
        if not all(torch.equal(a, b) for a, b in zip(found[kind], found["fused"], strict=True)):
            raise DisagreementError(f"{name}, {kind}: a gradient is not the same, bit for bit, as without")
