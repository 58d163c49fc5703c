"""Trains one network once; the same setting gives the same numbers."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .arms import build
from .data import Data, Part
from .run_log import PROBE, RunLog
from .study_networks import MakeNetwork

Arm = Literal["batch norm", "plain", "layer norm", "group norm", "raw"]

MARKS = 40  # times a run is scored, at evenly spaced steps
OBSERVE_EVERY = 4  # the layers are observed at one in so many scores
DIVERGED = 1.1  # times the loss of the best constant prediction

Tick = Callable[[int], None]


@dataclass(frozen=True)
class Setting:
    """The settings that differ between runs."""

    arm: Arm
    rate: float
    seed: int
    batch_size: int
    steps: int
    optimizer: str = "sgd"
    record: bool = True
    samples: int | None = None  # number of training samples that the run may use; None for all


@dataclass
class Run:
    """The results of a run. Scores are accuracy or R²; `curve` has a validation score for each marked step."""

    setting: Setting
    steps: list[int] = field(default_factory=list)
    curve: list[float] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)  # of the training batch at each marked step
    final_loss: float = math.nan  # mean over the last tenth of the steps
    diverged: bool = False
    train_score: float = math.nan
    score: float = math.nan  # on the validation part, at the end; the chance score if the run diverged
    test_score: float = math.nan
    log: RunLog = field(default_factory=RunLog)

    def to_dict(self) -> dict[str, Any]:
        names = ("arm", "rate", "seed", "batch_size", "optimizer", "samples")
        measured = ("steps", "curve", "losses", "final_loss", "diverged", "train_score", "score", "test_score")
        return {n: getattr(self.setting, n) for n in names} | {n: getattr(self, n) for n in measured}


def train(make_network: MakeNetwork, data: Data, setting: Setting, tick: Tick = lambda steps: None) -> Run:
    """Trains one arm. The same setting gives the same numbers; a seed fixes weights, order of batches and dropout."""
    run = Run(setting)
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*not finite", RuntimeWarning)  # the layer's; `diverged` records this
        torch.manual_seed(setting.seed)
        network = build(make_network, data, setting.seed, setting.arm)
        data = replace(data, train=data.train.head(setting.samples or len(data.train)))
        finite = _training_loop(network, data, setting, run, tick)
        run.diverged = not finite or run.final_loss > DIVERGED * chance_loss(data)
        if run.diverged:
            run.score = run.test_score = run.train_score = chance_score(data)
        else:
            run.train_score = score(network, data.train.head(), data)
            run.score = run.curve[-1]
            run.test_score = score(network, data.test.head(), data)
        if setting.record and finite:
            run.log.examine(network, data.train.x[:PROBE])
    return run


def _training_loop(network: nn.Module, data: Data, setting: Setting, run: Run, tick: Tick) -> bool:
    """Trains the network; returns False as soon as a loss is not finite."""
    optimizer = make_optimizer(network, setting)
    batches = _batches(data.train, setting)
    marks = {round(i * setting.steps / MARKS) for i in range(MARKS + 1)}
    tail: list[float] = []
    done = 0
    for step in range(setting.steps + 1):
        if step in marks:
            tick(step - done)
            done = step
            run.steps.append(step)
            run.curve.append(score(network, data.validation.head(), data))
            if setting.record and len(run.steps) % OBSERVE_EVERY == 1:
                probe = data.train.head(PROBE)
                run.log.observe(network, probe.x, partial(loss_of, y=probe.y, data=data), step)
        if step == setting.steps:
            break
        x, y = next(batches)
        loss = loss_of(network(x), y, data)
        value = loss.item()
        if not math.isfinite(value):
            tick(setting.steps - done)
            return False
        optimizer.zero_grad()
        loss.backward()
        if step in marks:
            run.losses.append(value)
        optimizer.step()
        if step >= 0.9 * setting.steps - 1:
            tail.append(value)
    run.final_loss = sum(tail) / len(tail)
    return True


def make_optimizer(network: nn.Module, setting: Setting) -> torch.optim.Optimizer:
    if setting.optimizer == "adam":
        return torch.optim.Adam(network.parameters(), lr=setting.rate)
    return torch.optim.SGD(network.parameters(), lr=setting.rate)


def _batches(part: Part, setting: Setting) -> Iterator[tuple[Tensor, Tensor]]:
    """Yields whole batches only, as a last batch of one has no variance. The order depends on the seed alone."""
    generator = torch.Generator().manual_seed(setting.seed)
    size = setting.batch_size
    while True:
        order = torch.randperm(len(part), generator=generator)
        for start in range(0, len(part) - size + 1, size):
            chosen = order[start : start + size]
            yield part.x[chosen], part.y[chosen]


def loss_of(output: Tensor, y: Tensor, data: Data) -> Tensor:
    """Cross-entropy, or the mean squared error in units of the target's variance."""
    if data.task == "classification":
        return F.cross_entropy(output, y)
    return F.mse_loss(output.reshape(len(y)), y)


def score(network: nn.Module, part: Part, data: Data) -> float:
    """Accuracy, or R² = 1 − Σ(y − ŷ)²/Σ(y − ȳ)², in evaluation mode."""
    network.eval()
    with torch.no_grad():
        output = network(part.x)
    network.train()
    if data.task == "classification":
        return (output.argmax(1) == part.y).double().mean().item()
    y, predicted = part.y.double(), output.reshape(len(part)).double()
    value = (1 - (y - predicted).square().sum() / (y - y.mean()).square().sum()).item()
    return value if math.isfinite(value) else -math.inf


def chance_loss(data: Data) -> float:
    """The training loss of the best constant prediction: the entropy of the classes, or the target's variance."""
    if data.task == "regression":
        return data.train.y.var(correction=0).item()
    shares = data.train.y.bincount(minlength=data.outputs).double() / len(data.train)
    return -torch.special.xlogy(shares, shares).sum().item()


def chance_score(data: Data, part: Literal["validation", "test"] = "validation") -> float:
    """The best constant prediction's score on a part: the share of the training part's largest class, or R² = 0."""
    if data.task == "regression":
        return 0.0
    commonest = data.train.y.bincount().argmax()
    return (getattr(data, part).head().y == commonest).double().mean().item()
