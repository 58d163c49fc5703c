"""Trains the runs of a study in several processes at once. Results do not depend on the number of processes."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import sys
import threading
import warnings
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any, Protocol, cast

import torch

from .data import Data
from .runs import Run, Setting, train
from .study_networks import MakeNetwork


@dataclass(frozen=True)
class Job:
    """One run, and the lists it goes into."""

    make_network: MakeNetwork
    data: Data
    setting: Setting
    into: tuple[list[Run], ...]

    @property
    def label(self) -> str:
        s = self.setting
        return f"{self.data.name}, {s.arm}, rate {s.rate:g}, batch {s.batch_size}, seed {s.seed}"


class Stop(Protocol):
    """An object with `asked`, which is True when no further run may begin."""

    asked: bool


Tick = Callable[[int, str], None]


class WorkerError(RuntimeError):
    """A process that trained ended without a result."""


def cores() -> int:
    """The number of processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def work(jobs: list[Job], workers: int, threads: int, stop: Stop, tick: Tick, finished: list[Run]) -> None:
    """Trains the jobs until `stop.asked`, and adds the runs to the jobs' lists and to `finished`, in order.

    Processes are forked, so that they have networks and data of any kind. If this is not possible (macOS, Windows,
    inside a daemon process), and with several threads, this process trains the runs one after another.
    """
    workers = min(workers, len(jobs)) if threads == 1 and _may_fork() else 1
    make = _in_this_process(jobs, threads, stop, tick) if workers < 2 else _in_processes(jobs, workers, stop, tick)
    found: dict[int, Run] = {}
    try:
        found.update(make)
    finally:  # also after Ctrl-C: finished runs are kept
        for i in sorted(found):
            finished.append(found[i])
            for runs in jobs[i].into:
                runs.append(found[i])


def _may_fork() -> bool:
    return sys.platform == "linux" and not multiprocessing.current_process().daemon


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """Sets the number of threads within a `with`, as torch's sums may depend on it."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _in_this_process(jobs: list[Job], threads: int, stop: Stop, tick: Tick) -> Iterator[tuple[int, Run]]:
    with _threads(threads):
        for i, job in enumerate(jobs):
            if stop.asked:
                return
            yield i, _train(job, tick)


def _train(job: Job, tick: Callable[..., None]) -> Run:
    return train(job.make_network, job.data, job.setting, lambda steps: tick(steps, job.label))


def _in_processes(jobs: list[Job], workers: int, stop: Stop, tick: Tick) -> Iterator[tuple[int, Run]]:
    fork = multiprocessing.get_context("fork")
    waiting = deque(range(len(jobs)))
    pool: dict[Any, Any] = {}
    try:
        for _ in range(workers):
            ours, theirs = fork.Pipe()
            process = fork.Process(target=_serve, args=(jobs, theirs, [*pool, ours]), daemon=True)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)  # about forking with threads; the child uses none
                process.start()
            theirs.close()
            pool[ours] = process
            ours.send(waiting.popleft())
        busy = set(pool)
        while busy:
            for connection in cast("list[Connection]", wait(list(busy))):
                kind, i, content = _receive(connection, pool[connection])
                if kind == "tick":
                    tick(content, jobs[i].label)
                    continue
                if kind == "error":
                    raise content
                busy.discard(connection)
                yield i, pickle.loads(content)
                if waiting and not stop.asked:
                    connection.send(waiting.popleft())
                    busy.add(connection)
    finally:
        for connection, process in pool.items():
            connection.close()
            process.terminate()
            process.join()


def _receive(connection: Any, process: Any) -> tuple[str, int, Any]:
    try:
        message: tuple[str, int, Any] = connection.recv()
    except (EOFError, ConnectionResetError):
        process.join()
        raise WorkerError(
            f"a process that trained ended with status {process.exitcode}; was memory short? workers=1 uses none"
        ) from None
    return message


def _serve(jobs: list[Job], connection: Connection, others: list[Connection]) -> None:
    """Trains the jobs with the numbers that the connection sends, until it closes. The parent handles Ctrl-C."""
    for other in others:  # copies of the parent's ends: they would keep this connection open after the parent's death
        other.close()
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
    torch.set_num_threads(1)  # the parent's threads do not exist here
    while True:
        try:
            i = connection.recv()
        except EOFError:
            return
        try:
            run = _train(jobs[i], lambda steps, label, i=i: connection.send(("tick", i, steps)))
            connection.send(("run", i, pickle.dumps(run)))  # torch's own way of sending needs shared memory
        except Exception as error:  # the user's network may raise anything; the parent raises it
            connection.send(("error", i, _portable(error)))


def _portable(error: Exception) -> Exception:
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error
