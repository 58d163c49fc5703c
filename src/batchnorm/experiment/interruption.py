"""Ctrl-C ends a study after the run that is under way, not in the middle of it."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


class Interruption:
    """A signal handler: `asked` is True after the first signal, and a second one raises KeyboardInterrupt."""

    def __init__(self, tell: Callable[[str], None]) -> None:
        self.asked = False
        self._tell = tell

    def __call__(self, *_: Any) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True
        self._tell("stopping after this run; press Ctrl-C again to stop now")


@contextmanager
def interruption(tell: Callable[[str], None]) -> Iterator[Interruption]:
    """Handles SIGINT within a `with`: the first one sets `asked`, and a second one ends the block without an error.

    Outside the main thread no handler can be set, and the block runs without one.
    """
    asked = Interruption(tell)
    if threading.current_thread() is not threading.main_thread():
        yield asked
        return
    before = signal.signal(signal.SIGINT, asked)
    try:
        yield asked
    except KeyboardInterrupt:
        asked.asked = True
    finally:
        signal.signal(signal.SIGINT, before)
