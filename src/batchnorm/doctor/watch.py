"""Records a model's batch norms at regular intervals while it trains, and reports faults as they happen."""

from __future__ import annotations

import math
import statistics
import warnings
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim.optimizer import register_optimizer_step_post_hook

from batchnorm.core.torch_internals import recomputing

from . import writers
from .findings import Finding, Report, report
from .rules_training import RULES, Reading
from .states import norms


class TroubleWarning(UserWarning):
    """`watch` found a fault during training."""


class TroubleError(RuntimeError):
    """`watch` found a fault during training, with on_trouble="raise". `finding` describes it."""

    def __init__(self, finding: Finding) -> None:
        super().__init__(_line(finding))
        self.finding = finding


def watch(
    model: nn.Module, writer: Any = None, *, every: int = 50, on_trouble: Literal["warn", "raise"] = "warn"
) -> Watch:
    """Record every batch norm of `model` while it trains, on one forward pass in `every`; a context manager.

    Each layer's output (mean, standard deviation, share of silent channels) and its gradient (root mean square) go to
    `records`, and to the writer if there is one. Four faults are reported, once per layer: values that are not finite,
    channels that became silent, an exploding gradient, and running statistics that are updated more than once per step
    of the optimizer. A forward pass that is not recorded costs one Python call per layer. All hooks are removed at the
    end, also after an exception. Forward passes in evaluation mode are not recorded.

    Args:
        model: a model with batch norms, torch's or ours.
        writer: TensorBoard's SummaryWriter, a run of wandb, a logger of Lightning, mlflow, or anything else with one of
            `add_scalar(tag, value, step)`, `log_metrics(values, step)` and `log(values, step=step)`.
        every: record the first forward pass in training mode, and then one in `every`.
        on_trouble: "warn" (a `TroubleWarning`) or "raise" (a `TroubleError`).

    Raises:
        TypeError: a writer with none of these methods.
        ValueError: no batch norm in the model, `every` below 1, or another `on_trouble`.

    Examples:
        >>> import torch, batchnorm as bn
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), bn.BatchNorm1d(8))
        >>> with bn.watch(model, every=2) as w:
        ...     for _ in range(4):
        ...         model(torch.randn(32, 4)).square().sum().backward()
        >>> sorted({record["step"] for record in w.records})
        [0, 2]
    """
    layers = norms(model)
    if not layers:
        raise ValueError("this model has no batch norm to watch")
    if every < 1 or on_trouble not in ("warn", "raise"):
        raise ValueError(f'expected every ≥ 1 and on_trouble "warn" or "raise", got {every!r} and {on_trouble!r}')
    if writer is not None:
        writers.check(writer)
    return Watch(model, layers, writer, every, on_trouble)


@dataclass
class Watch:
    """The `records` of `watch` (one dict per layer and reading) and its `findings`; `report()` returns both."""

    model: nn.Module
    layers: dict[str, _BatchNorm]
    writer: Any
    every: int
    on_trouble: str
    records: list[dict[str, Any]] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    step: int = -1  # forward passes in training mode, from 0
    by_forward: bool = True  # count calls of the model; if False, the training loop calls `next_pass` itself

    def __enter__(self) -> Watch:
        self._recording = False
        self._latest: tuple[str, Tensor] | None = None  # the last batch norm's output, compared with a ReLU's input
        self._rectified = {n for n, m in self.layers.items() if getattr(m, "activation", None) in ("relu", "relu6")}
        self._silent_before: dict[str, tuple[Tensor, Tensor]] = {}  # per layer: constant channels, those below zero
        self._gradients: dict[str, list[float]] = {name: [] for name in self.layers}
        self._pending: list[Any] = []  # hooks on outputs whose gradient is not yet computed
        self._parameters = {id(p) for p in self.model.parameters()}
        self._steps, self._updates = 0, dict.fromkeys(self.layers, 0)
        self._counts: dict[str, int] = {}
        self._handles: list[Any] = [register_optimizer_step_post_hook(self._after_step)]
        if self.by_forward:
            self._handles.append(self.model.register_forward_pre_hook(self._begin))
        self._handles += [m.register_forward_hook(partial(self._after, n)) for n, m in self.layers.items()]
        relus = [m for m in self.model.modules() if isinstance(m, nn.ReLU | nn.ReLU6)]
        self._handles += [m.register_forward_pre_hook(self._before_relu) for m in relus]
        return self

    def __exit__(self, *_: object) -> None:
        for handle in (*self._handles, *self._pending):
            handle.remove()
        self._latest = None
        self._pending = []

    def report(self) -> Report:
        """The findings so far, with each layer's latest summaries."""
        layers: dict[str, dict[str, Any]] = {name: {} for name in self.layers}
        for record in self.records:
            layers[record["layer"]] |= {k: v for k, v in record.items() if k != "layer"}
        return report(self.findings, layers)

    def _begin(self, model: nn.Module, _: Any) -> None:
        if not model.training:
            self._recording = False
        elif not recomputing():
            self.next_pass()

    def next_pass(self) -> None:
        """Count a forward pass in training mode, and record it if it is the first of `every`."""
        self.step += 1
        self._recording = self.step % self.every == 0
        if self._recording:
            for handle in self._pending:
                handle.remove()
            self._pending = []

    def stop_recording(self) -> None:
        """Record no forward pass until `next_pass` is called."""
        self._recording = False

    def _after(self, name: str, layer: _BatchNorm, _: Any, output: Tensor) -> None:
        if not self._recording:
            return
        if output.requires_grad:
            self._pending.append(output.register_hook(partial(self._gradient, name, self.step)))
        if not recomputing():
            self._latest = name, output
            self._activation(name, output.detach())

    def _before_relu(self, _: nn.Module, args: Any) -> None:
        if self._latest is not None:
            if args and args[0] is self._latest[1]:
                self._rectified.add(self._latest[0])
            self._latest = None

    def _activation(self, name: str, output: Tensor) -> None:
        over = [d for d in range(output.dim()) if d != 1]
        high = output.amax(over)
        constant, below = high == output.amin(over), high <= 0
        before = self._silent_before.get(name, (torch.zeros_like(constant),) * 2)
        self._silent_before[name] = constant, below
        silent = constant & before[0]  # in two recorded passes in a row: one batch may miss a channel by chance
        if name in self._rectified:
            silent = silent | (below & before[1])
        var, mean = torch.var_mean(output.float(), correction=0)
        mean, var, share = torch.stack([mean, var, silent.float().mean()]).tolist()  # one transfer from the device
        deviation = math.sqrt(var) if math.isfinite(var) else var
        self._record(name, self.step, {"activation_mean": mean, "activation_std": deviation, "silent_channels": share})

    def _gradient(self, name: str, step: int, gradient: Tensor) -> None:
        rms = float(gradient.detach().float().square().mean().sqrt())
        earlier = self._gradients[name]
        usual = statistics.median(earlier) if len(earlier) >= 3 else None
        earlier.append(rms)
        self._record(name, step, {"gradient_rms": rms}, usual)

    def _after_step(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        """Count the updates between two steps of the optimizer, at one step in `every`."""
        if not any(id(p) in self._parameters for group in optimizer.param_groups for p in group["params"]):
            return
        phase, self._steps = self._steps % self.every, self._steps + 1
        if phase > 1:
            return
        counters = {n: m.num_batches_tracked for n, m in self.layers.items() if m.num_batches_tracked is not None}
        counts = dict(zip(counters, torch.stack(list(counters.values())).tolist(), strict=True)) if counters else {}
        before, self._counts = self._counts, counts
        for name in counts if before and (phase == 1 or self.every == 1) else ():
            earlier, self._updates[name] = self._updates[name], counts[name] - before[name]
            # Only two counts in a row are a fault: once, a gradient scaler may have skipped a step.
            self._judge(Reading(name, self.step, {"updates": min(earlier, self._updates[name])}))

    def _record(self, name: str, step: int, values: dict[str, float], usual: float | None = None) -> None:
        self.records.append({"step": step, "layer": name, **values})
        if self.writer is not None:
            writers.write(self.writer, {f"batchnorm/{name}/{what}": value for what, value in values.items()}, step)
        self._judge(Reading(name, step, values, usual))

    def _judge(self, reading: Reading) -> None:
        for finding in [f for rule in RULES for f in rule(reading)]:
            if any((f.rule, f.layers) == (finding.rule, finding.layers) for f in self.findings):
                continue
            self.findings.append(finding)
            if self.on_trouble == "raise":
                raise TroubleError(finding)
            warnings.warn(_line(finding), TroubleWarning, stacklevel=2)


def _line(f: Finding) -> str:
    (name,) = f.layers
    numbers = ", ".join(f"{what} {value:.3g}" for what, value in f.evidence[name].items())
    return f"{name}: {f.what} ({numbers}) [{f.rule}]. Likely cause: {f.cause}. Cure: {f.cure}"
