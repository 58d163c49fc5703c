"""Copy settings from one thread to another: those that change how torch computes."""

import contextvars
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch

from batchnorm.core import torch_internals


class ThreadState:
    """The settings of the current thread; `run` calls a function with these settings in another thread.

    They are context variables (`bn.backend`), autocast, saved-tensor hooks, function modes (a default device is one),
    dispatch modes, and the current CUDA device and stream. The default dtype, the number of threads and the random
    generators belong to the process: they are not copied.
    """

    def __init__(self) -> None:
        self.variables = contextvars.copy_context()
        self.autocast = autocast_states()
        self.modes = torch_internals.modes()
        self.hooks = torch_internals.saved_tensors_hooks_on_top()
        self.stream = torch.cuda.current_stream() if torch.cuda.is_initialized() else None

    def run(self, function: Callable[[], Any]) -> Any:
        """Call `function` with these settings. Call `run` in a new thread, which has no settings yet."""
        return self.variables.copy().run(self._inside, function)

    def _inside(self, function: Callable[[], Any]) -> Any:
        with ExitStack() as stack:
            # A backward pass runs in the thread that calls it, on accelerators too. Otherwise a micro-batch that waits
            # in its backward pass would block autograd's thread of the device for the other micro-batches.
            stack.enter_context(torch.autograd.set_multithreading_enabled(False))
            if self.stream is not None:
                stack.enter_context(torch.cuda.stream(self.stream))
            if self.hooks is not None:
                stack.enter_context(torch.autograd.graph.saved_tensors_hooks(*self.hooks))
            stack.enter_context(torch_internals.under(self.modes))
            return function()

    @contextmanager
    def autocasting(self) -> Iterator[None]:
        """Autocast as in the thread that was copied, for a forward pass; backward passes run outside of it."""
        with ExitStack() as stack:
            for device, (dtype, cached) in self.autocast.items():
                stack.enter_context(torch.autocast(device, dtype, cache_enabled=cached))
            yield


def autocast_states() -> dict[str, tuple[torch.dtype, bool]]:
    """The dtype, and whether casts are cached, for each type of device that autocasts in this thread."""
    cached = torch.is_autocast_cache_enabled()
    accelerator = torch.accelerator.current_accelerator()
    devices = {"cpu", "cuda"} | ({accelerator.type} if accelerator is not None else set())
    return {d: (torch.get_autocast_dtype(d), cached) for d in sorted(devices) if torch.is_autocast_enabled(d)}


@contextmanager
def without_autocast() -> Iterator[None]:
    """No autocast, for a backward pass."""
    with ExitStack() as stack:
        for device in autocast_states():
            stack.enter_context(torch.autocast(device, enabled=False))
        yield
