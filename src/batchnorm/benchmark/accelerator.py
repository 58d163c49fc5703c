"""The comparison of single layers on an accelerator, ours and torch's, on every backend.

Times are measured by the device, between two events. The bytes of a case are those that must move if a channel does not
fit on chip: x is read twice, in the backward pass the gradient too, and other inputs and outputs move once. Tests run
this on the CPU, where the times mean nothing.
"""

import contextlib
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from batchnorm.backends import backend, triton
from batchnorm.benchmark.agreement import DisagreementError, affine, gradient_for, judge, parts
from batchnorm.benchmark.cases import BLOCKS, DTYPES, LARGE, LAYOUTS, QUICK, Case

Result = dict[str, Any]
Step = Callable[[], object]
Progress = Callable[[int, int, str], None]

PAIRS = [(dtype, block) for dtype in ("float32", "bfloat16", "float16") for block in ("plain", "relu", "add-relu")]
TURNS = 7
TURN = 20e-3  # least seconds of a turn: long compared with the launch of its first call


@dataclass(frozen=True)
class Subject:
    """One way to run a case: with our layer or torch's, and with a context for the forward pass."""

    name: str
    ours: bool
    context: Callable[[], contextlib.AbstractContextManager[Any]] = contextlib.nullcontext
    compiled: bool = False


def subjects(device: torch.device, block: str) -> Iterator[Subject]:
    """The ways to run a block on this device."""
    cudnn = device.type == "cuda" and torch.backends.cudnn.is_available()
    yield Subject("torch", False)
    if cudnn:
        yield Subject("torch without cuDNN", False, lambda: torch.backends.cudnn.flags(enabled=False))
    yield Subject("torch.compile", False, compiled=True)
    yield Subject("ours: aten", True, lambda: backend("aten"))
    if triton.reason_against(torch.empty(1, device=device)) is None:
        yield Subject("ours: triton", True, lambda: backend("triton"))


def others(case: Case, device: torch.device) -> Iterator[tuple[str, nn.Module]]:
    """Plain batch norms of other packages, if they are installed."""
    if case.block != "plain" or len(case.shape) != 4:
        return
    with contextlib.suppress(ImportError):
        from apex.parallel import SyncBatchNorm  # type: ignore[import-not-found]

        yield "apex", SyncBatchNorm(case.shape[1]).to(device)
    with contextlib.suppress(ImportError):
        from inplace_abn import InPlaceABN  # type: ignore[import-not-found]

        yield "inplace_abn", InPlaceABN(case.shape[1], activation="identity").to(device)


def cases(quick: bool) -> list[Case]:
    """Large inputs in both layouts, all dtypes and blocks."""
    shapes = QUICK if quick else LARGE
    return [
        Case(shape, DTYPES[dtype], layout, block)
        for dtype, block in PAIRS
        for layout in LAYOUTS
        for shape in shapes
        if layout == "contiguous" or len(shape) > 3
    ]


def bytes_moved(case: Case) -> dict[str, int]:
    """Bytes of a forward pass, and of forward and backward, if x is read twice in each, and the gradient twice."""
    size = torch.Size(case.shape).numel() * case.dtype.itemsize
    add = BLOCKS[case.block][1]
    forward = 3 + add
    backward = 5 + (3 if add else 0)  # the output or residual is read twice, and its gradient written
    return {"forward": size * forward, "both": size * (forward + backward)}


def measure(case: Case, device: torch.device) -> Result:
    """Measures every subject on one case: milliseconds, and the numbers computed from them.

    Raises:
        DisagreementError: a result of ours is wrong.
    """
    inputs, gradient = [t.to(device) for t in case.inputs()], gradient_for(case).to(device)
    found: dict[str, dict[str, Step]] = {"forward": {}, "both": {}}
    notes: list[str] = []
    torchs, exact = _layer(case.torchs(), case, device), _exact(case, device, inputs, gradient)
    rival = parts(torchs, inputs, gradient)
    for subject in subjects(device, case.block):
        layer = _layer(case.ours() if subject.ours else case.torchs(), case, device)
        if subject.ours:
            with subject.context():
                judge(f"{case}, {subject.name}", parts(layer, inputs, gradient), rival, exact)
        if subject.compiled:
            torch.compiler.reset()
            layer.compile(dynamic=False)
        forward, both = _steps(layer, inputs, gradient, subject.context)
        try:
            both()
        except DisagreementError:
            raise
        except Exception as error:  # a compiler may raise anything
            notes.append(f"{case}: {subject.name} does not run: {' '.join(str(error).split())[:200]}")
            continue
        found["forward"][subject.name], found["both"][subject.name] = forward, both
    for name, layer in others(case, device):
        found["forward"][name], found["both"][name] = _steps(layer, inputs, gradient, contextlib.nullcontext)
    copy = inputs[0].clone()
    times = {way: turns(steps | {"copy": lambda: copy.copy_(inputs[0])}, device) for way, steps in found.items()}
    return {**case.facts, **{way: _figures(case, way, of) for way, of in times.items()}, "notes": notes}


def _figures(case: Case, way: str, times: dict[str, list[float]]) -> Result:
    median = {name: statistics.median(of) for name, of in times.items()}
    copied = 2 * torch.Size(case.shape).numel() * case.dtype.itemsize / median["copy"]
    moved = bytes_moved(case)[way]
    return {
        name: {
            "milliseconds": 1e3 * seconds,
            "quartiles": [1e3 * q for q in statistics.quantiles(times[name], n=4, method="inclusive")[::2]],
            "over torch": median["torch"] / seconds,
            "terabytes per second": moved / seconds / 1e12,
            "share of a copy": moved / seconds / copied,
        }
        for name, seconds in median.items()
        if name != "copy"
    } | {"bytes": moved, "copy": {"milliseconds": 1e3 * median["copy"], "terabytes per second": copied / 1e12}}


def _layer(layer: nn.Module, case: Case, device: torch.device) -> nn.Module:
    for parameter, value in zip(layer.parameters(), affine(case), strict=True):
        parameter.data.copy_(value)
    return layer.to(device)


def _exact(case: Case, device: torch.device, inputs: list[Tensor], gradient: Tensor) -> dict[str, Tensor]:
    wide = Case(case.shape, torch.float64, case.layout, case.block)
    return parts(_layer(wide.torchs(), wide, device), [t.double() for t in inputs], gradient.double())


def _steps(layer: nn.Module, inputs: list[Tensor], gradient: Tensor, context: Callable[[], Any]) -> tuple[Step, Step]:
    """Functions for a forward pass in training, and for a forward and backward pass that deletes its gradients."""
    leaves = [t.detach().requires_grad_() for t in inputs]

    def forward() -> Tensor:
        with context():
            y: Tensor = layer(*leaves)
        return y

    def both() -> None:
        forward().backward(gradient)
        for leaf in (*leaves, *layer.parameters()):
            leaf.grad = None

    return forward, both


# ---- time


def turns(steps: dict[str, Step], device: torch.device, least: float = TURN) -> dict[str, list[float]]:
    """Seconds per call in each of several turns; the subjects take turns, every other round in reverse order."""
    calls = {name: max(1, round(least / max(_warm(step, device), 1e-7))) for name, step in steps.items()}
    found: dict[str, list[float]] = {name: [] for name in steps}
    for i in range(TURNS):
        for name in reversed(steps) if i % 2 else steps:
            found[name].append(seconds(steps[name], calls[name], device))
    return found


def _warm(step: Step, device: torch.device) -> float:
    for _ in range(3):
        step()
    return seconds(step, 3, device)


def seconds(step: Step, calls: int, device: torch.device) -> float:
    """Seconds per call, measured by the device's clock if it has one."""
    if device.type == "cpu":
        start = time.perf_counter()
        for _ in range(calls):
            step()
        return (time.perf_counter() - start) / calls
    module: Any = torch.get_device_module(device)
    begin, end = module.Event(enable_timing=True), module.Event(enable_timing=True)
    module.synchronize(device)
    begin.record()
    for _ in range(calls):
        step()
    end.record()
    module.synchronize(device)
    return float(begin.elapsed_time(end)) / 1e3 / calls
