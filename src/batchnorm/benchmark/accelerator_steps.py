"""Whole training steps on an accelerator, with their peak memory, and the function that runs all measurements there."""

import contextlib
import datetime
import statistics
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn

from batchnorm.backends import backend, triton
from batchnorm.benchmark import accelerator
from batchnorm.benchmark.accelerator import Progress, Result, Step
from batchnorm.benchmark.cases import DTYPES
from batchnorm.benchmark.steps import images, variants
from batchnorm.training.recompute import recompute

NETWORKS = ("ResNet-50", "MobileNetV2")


def compare(device: torch.device, quick: bool, networks: bool, progress: Progress = lambda *_: None) -> Result:
    """Measure every case and every network. Ctrl-C ends the run, and the result is what was measured until then.

    Raises:
        DisagreementError: a result of ours is wrong.
    """
    jobs: list[tuple[str, str, Callable[[], Result]]] = [
        ("cases", str(case), partial(accelerator.measure, case, device)) for case in accelerator.cases(quick)
    ]
    if networks:
        for name in NETWORKS:
            for layout in ("contiguous", "channels_last"):
                for dtype in ("float32", "bfloat16"):
                    step = partial(network, name, layout, dtype, device, quick)
                    jobs.append(("steps", f"{name} {layout} {dtype}", step))
    result: Result = {"environment": environment(device), "quick": quick, "interrupted": True, "cases": [], "steps": []}
    with contextlib.suppress(KeyboardInterrupt):
        for done, (kind, what, job) in enumerate(jobs):
            progress(done, len(jobs), what)
            result[kind].append(job())
        progress(len(jobs), len(jobs), "")
        result["interrupted"] = False
    return result


def network(name: str, layout: str, dtype: str, device: torch.device, quick: bool) -> Result:
    """Measures steps of a network: with torch's layers, with ours converted and fused, on Triton, with `recompute`."""
    batch, pixels = (2, 32) if quick else (64, 224)
    models = {kind: model.to(device) for kind, model in variants(name, layout).items()}
    x, labels = (t.to(device) for t in images(batch, pixels, layout))
    chosen: dict[str, tuple[nn.Module, str | None]] = {"torch": (models["torch"], None)}
    chosen |= {"ours: converted": (models["converted"], None), "ours: fused": (models["fused"], None)}
    if triton.reason_against(x) is None:
        chosen["ours: fused, triton"] = (models["fused"], "triton")
    steps: dict[str, Step] = {}
    for kind, (model, backend_name) in chosen.items():
        steps[kind] = _training(model, x, labels, dtype, backend_name, False)
        if model is not models["torch"]:
            steps[f"{kind}, recompute"] = _training(model, x, labels, dtype, backend_name, True)
    peaks = {kind: _peak(step, device) for kind, step in steps.items()}
    times = {kind: statistics.median(of) for kind, of in accelerator.turns(steps, device).items()}
    return {
        "name": name, "layout": layout, "dtype": dtype, "batch": batch, "pixels": pixels,
        "milliseconds": {kind: 1e3 * seconds for kind, seconds in times.items()},
        "over torch": {kind: times["torch"] / seconds for kind, seconds in times.items()},
        "peak bytes": peaks,
    }  # fmt: skip


def _training(
    model: nn.Module, x: torch.Tensor, labels: torch.Tensor, dtype: str, backend_name: str | None, recomputed: bool
) -> Step:
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)

    def step() -> None:
        optimizer.zero_grad()
        with contextlib.ExitStack() as around:
            if backend_name is not None:
                around.enter_context(backend(backend_name))
            if recomputed:
                around.enter_context(recompute(model))
            with torch.autocast(x.device.type, DTYPES[dtype], enabled=dtype != "float32"):
                loss = nn.functional.cross_entropy(model(x), labels)
            loss.backward()
        optimizer.step()

    return step


def _peak(step: Step, device: torch.device) -> int | None:
    """The most bytes that tensors took during a step; None if the device does not count them."""
    step()
    if device.type == "cpu":
        return None
    module: Any = torch.get_device_module(device)
    module.synchronize(device)
    module.reset_peak_memory_stats(device)
    step()
    module.synchronize(device)
    return int(module.max_memory_allocated(device))


def environment(device: torch.device) -> Result:
    """The card and the software of a run."""
    found: Result = {"date": datetime.date.today().isoformat(), "torch": torch.__version__, "device": str(device)}
    if triton.installed():
        from importlib.metadata import version

        found["triton"] = version("triton")
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        found |= {
            "card": properties.name, "capability": list(torch.cuda.get_device_capability(device)),
            "memory": properties.total_memory, "cuda": torch.version.cuda, "rocm": torch.version.hip,
            "cudnn": torch.backends.cudnn.version(),
        }  # fmt: skip
    return found
