"""Hooks on the modules of a model: the outermost call opens a `ForwardPass` and closes it at its end."""

import threading
from typing import Any

import torch
from torch import nn

from batchnorm.core.recipes import of_thread
from batchnorm.core.torch_internals import (
    function_mode_on_top,
    in_checkpoint,
    recomputing,
    saved_tensors_hooks_allowed,
    unwatched,
)
from batchnorm.layers import BatchNorm
from batchnorm.training.forward_pass import ForwardPass
from batchnorm.training.operations import Operations


class _Opened(threading.local):
    """The call in this thread that has an open `ForwardPass`, if any."""

    module: nn.Module | None = None
    hooks: "Hooks | None" = None
    operations: Operations | None = None


_opened = _Opened()


class Hooks:
    """A pair of hooks for every module that contains our batch norms, since any of these may be called first."""

    def __init__(self, links: int, lasting: bool = False) -> None:
        self.links, self.lasting = links, lasting

    def put_on(self, model: nn.Module) -> None:
        """Register the pair. If there are several pairs, the newest opens the `ForwardPass`."""
        for module in _holders(model):
            module.register_forward_pre_hook(self.open, prepend=True)
            module.register_forward_hook(self.close, always_call=True)

    def take_off(self, model: nn.Module) -> None:
        """Remove the pair, and end a call that an interrupt has left open."""
        for module in model.modules():
            for hooks in (module._forward_pre_hooks, module._forward_hooks):
                for key in [key for key, hook in hooks.items() if _owner(hook) is self]:
                    del hooks[key]
                    module._forward_hooks_always_called.pop(key, None)
        if _opened.hooks is self:
            _end()

    @staticmethod
    def lasting_on(model: nn.Module) -> "list[Hooks]":
        """The pairs of hooks on a model that stay until `detach`."""
        owners = {_owner(hook) for module in model.modules() for hook in module._forward_pre_hooks.values()}
        return [hooks for hooks in owners if isinstance(hooks, Hooks) and hooks.lasting]

    def open(self, module: nn.Module, args: Any) -> None:
        """Before a forward pass: open a `ForwardPass`, if gradients are needed and no call is open."""
        if torch.compiler.is_compiling() or not torch.is_grad_enabled() or not unwatched():
            return
        if recomputing() or in_checkpoint() or not saved_tensors_hooks_allowed():
            return
        if self._opened(module):  # an interrupt skipped `close`, or the module calls itself
            _end()
        if _opened.module is None:
            forward_pass = ForwardPass(self.links)
            _opened.module, _opened.hooks = module, self
            _opened.operations = Operations(forward_pass)
            _opened.operations.__enter__()
            of_thread.listener = forward_pass

    def close(self, module: nn.Module, args: Any, output: Any) -> None:
        """After the call that opened a `ForwardPass`, also after its error: close it."""
        if not torch.compiler.is_compiling() and self._opened(module):
            _end()

    def _opened(self, module: nn.Module) -> bool:
        return _opened.module is module and _opened.hooks is self


def _end() -> None:
    operations = _opened.operations
    _opened.module = _opened.hooks = _opened.operations = None
    listener, of_thread.listener = of_thread.listener, None
    if operations is not None and function_mode_on_top() is operations:
        operations.__exit__(None, None, None)
    if isinstance(listener, ForwardPass):
        listener.close()


def _owner(hook: Any) -> Any:
    return getattr(hook, "__self__", None)


def _holders(model: nn.Module) -> list[nn.Module]:
    """The modules that hold batch norms of ours, at any depth."""
    return [
        module
        for module in model.modules()
        if not isinstance(module, BatchNorm) and any(isinstance(child, BatchNorm) for child in module.modules())
    ]
