"""Runs in several processes: the same numbers, errors reach the caller, and a stop keeps finished runs."""

import os
import signal
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from batchnorm.experiment import workers
from batchnorm.experiment.data import split, standardise
from batchnorm.experiment.runs import Run, Setting
from batchnorm.experiment.study_networks import mlp
from batchnorm.experiment.workers import Job, WorkerError, work

GO = SimpleNamespace(asked=False)

pytestmark = pytest.mark.skipif(not workers._may_fork(), reason="processes are forked on Linux only")


def jobs(count: int, make: Any = mlp) -> tuple[list[Job], list[Run]]:
    x = torch.randn(100, 3, generator=torch.Generator().manual_seed(0))
    data, into = standardise(split("easy", x, (x.sum(1) > 0).long())), []  # type: ignore[var-annotated]
    return [Job(make, data, Setting("batch norm", 0.5, seed, 20, 10), (into,)) for seed in range(count)], into


def made(count: int, workers: int, make: Any = mlp, stop: Any = GO, tick: Any = lambda steps, label: None) -> list[Run]:
    todo, into = jobs(count, make)
    finished: list[Run] = []
    try:
        work(todo, workers, 1, stop, tick, finished)
    finally:
        assert [id(run) for run in into] == [id(run) for run in finished]
    return finished


def test_the_numbers_do_not_depend_on_the_number_of_processes() -> None:
    ticks: list[int] = []
    one, two = made(3, 1), made(3, 2, tick=lambda steps, label: ticks.append(steps))
    assert [run.to_dict() for run in one] == [run.to_dict() for run in two]
    assert [run.log.gradients for run in one] == [run.log.gradients for run in two]
    assert [run.log.normalised for run in one] == [run.log.normalised for run in two]
    assert sum(ticks) == 30


def test_it_runs_in_other_processes() -> None:
    def make(shape: Any, outputs: int) -> nn.Module:
        raise ValueError(str(os.getpid()))

    with pytest.raises(ValueError, match=r"\d+") as caught:
        made(2, 2, make)
    assert str(caught.value) != str(os.getpid())


class Odd(Exception):  # noqa: N818
    """Cannot be unpickled: its constructor wants two arguments."""

    def __init__(self, a: int, b: int) -> None:
        super().__init__(f"{a} and {b}")


def test_an_error_that_does_not_travel_comes_back_in_words() -> None:
    def make(shape: Any, outputs: int) -> nn.Module:
        raise Odd(1, 2)

    with pytest.raises(RuntimeError, match="Odd: 1 and 2"):
        made(2, 2, make)


def test_a_process_that_dies_is_an_error_in_words() -> None:
    def make(shape: Any, outputs: int) -> nn.Module:
        os.kill(os.getpid(), signal.SIGKILL)
        return mlp(shape, outputs)

    with pytest.raises(WorkerError, match="ended with status -9"):
        made(2, 2, make)


@pytest.mark.parametrize("count", [1, 2])
def test_a_stop_keeps_what_was_finished(count: int) -> None:
    stop = SimpleNamespace(asked=False)

    def tick(steps: int, label: str) -> None:
        stop.asked = True

    assert len(made(6, count, stop=stop, tick=tick)) == count


def test_a_second_interruption_keeps_what_was_finished() -> None:
    seen: list[str] = []

    def tick(steps: int, label: str) -> None:
        seen.append(label)
        if "seed 2" in label:
            raise KeyboardInterrupt

    todo, into = jobs(4)
    with pytest.raises(KeyboardInterrupt):
        work(todo, 2, 1, GO, tick, finished := [])
    assert 1 <= len(finished) == len(into) < 4
