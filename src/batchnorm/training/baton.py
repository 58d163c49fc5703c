"""Coroutines as threads: a function runs in its own thread, and only while its caller waits for it."""

import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any, NamedTuple


class Abandoned(BaseException):  # not an Exception, so that no `except Exception` in the model catches it
    """Raised in a waiting function that will not be resumed."""


class Ended(NamedTuple):
    """The last message of a function: its result."""

    result: Any


class Coroutine:
    """A function that can wait for an answer from its caller, at any depth of nested calls.

    A generator can wait in its own frame only, and the forward of a model is not a generator. The two threads never run
    at the same time, so they need no locks.
    """

    def __init__(self, function: Callable[["Coroutine"], Any], name: str) -> None:
        self._answers: SimpleQueue[Any] = SimpleQueue()
        self._messages: SimpleQueue[tuple[Any, BaseException | None]] = SimpleQueue()
        self._abandoned = False
        self._function: Callable[[Coroutine], Any] | None = function
        # a daemon, so that the process can exit although a model does not return after a second Ctrl-C
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._started = False

    def resume(self, answer: Any = None) -> Any:
        """Run the function until it waits or ends; return its message, or `Ended`. Its errors are raised here."""
        if self._started:
            self._answers.put(answer)
        else:
            self._started = True
            self._thread.start()
        message, error = self._messages.get()  # Ctrl-C interrupts this wait
        if error is not None:
            raise error
        return message

    def wait(self, message: Any) -> Any:
        """Called by the function: send `message` to the caller, which continues, and wait for its answer."""
        if not self._abandoned:
            self._messages.put((message, None))
            answer = self._answers.get()
            if not self._abandoned:
                return answer
        raise Abandoned

    def abandon(self) -> None:
        """Raise `Abandoned` in the function at its current or next `wait`. `join` waits until the thread ends."""
        self._abandoned = True
        self._answers.put(None)

    def join(self) -> None:
        """Wait for the end of the thread."""
        if self._started:
            self._thread.join()

    def _run(self) -> None:
        function, self._function = self._function, None
        assert function is not None
        try:
            self._messages.put((Ended(function(self)), None))
        except BaseException as error:
            self._messages.put((None, error))
