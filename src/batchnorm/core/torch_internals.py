"""Every private name of torch that the package uses, in one place, with what breaks if torch drops it.

Public names serve everywhere else; tests/core/test_torch_internals.py holds the tree to that.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

# Without these two modules, models whose inputs and outputs are nested in containers could not be followed, and no
# operation could be watched. Their names are public in all but the path.
from torch.utils._python_dispatch import TorchDispatchMode as TorchDispatchMode
from torch.utils._pytree import tree_leaves as tree_leaves


def recomputing() -> bool:
    """Whether this forward pass runs inside a backward pass, as an activation checkpoint's does.

    Without `torch._C._current_graph_task_id`, checkpoints would move the running statistics twice.
    """
    return not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1


def transformed() -> bool:
    """Whether a transform is active that differentiates or vectorises plain torch operations only.

    Without `torch._C._are_functorch_transforms_active` and `forward_ad._current_level`, vmap, torch.func and
    forward-mode derivatives would meet operators that have no rule for them.
    """
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0


def unwatched() -> bool:
    """Whether no compiler, tracer, transform or dispatch mode follows the operations: their results alone count.

    Without `torch._C._is_tracing` and the names of `transformed` and `dispatch_mode_active`, traces would miss standard
    operators, and fake tensors would be asked for values.
    """
    return not (
        torch.compiler.is_compiling()
        or torch._C._is_tracing()
        or torch._C._are_functorch_transforms_active()
        or torch._C._len_torch_dispatch_stack() > 0
        or forward_ad._current_level >= 0
    )


def dispatch_mode_active() -> bool:
    """Whether a TorchDispatchMode watches: a fake tensor mode, say, whose tensors have no values to read.

    Without `torch._C._len_torch_dispatch_stack`, checks of values would fail under such modes.
    """
    return torch._C._len_torch_dispatch_stack() > 0


def below_autograd() -> AbstractContextManager[None]:
    """Dispatch operators below autograd.

    Without `torch._C._AutoDispatchBelowAutograd`, a gradient that nobody differentiates again would take the way of one
    that somebody does.
    """
    return torch._C._AutoDispatchBelowAutograd()


def constant_to_compilers(function: Callable[[], bool]) -> Callable[[], bool]:
    """Have torch.compile call `function` while it traces, and take the result as a constant.

    Without `_dynamo_marked_constant` it would trace into the function; the public decorator for it imports the
    compiler, which takes seconds.
    """
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function


def version(tensor: Tensor) -> int:
    """How often the tensor's memory was written in place; views and detached tensors count with it.

    Without `Tensor._version`, a saved tensor that was changed before the backward pass would go unnoticed under
    `bn.recompute`.
    """
    return tensor._version


def saved_tensors_hooks_on_top() -> tuple[Callable[[Tensor], Any], Callable[[Any], Tensor]] | None:
    """The pack and unpack hooks that autograd would call for a tensor that is saved now.

    Without `torch._C._autograd._top_saved_tensors_default_hooks`, `bn.recompute` would take the place of hooks that the
    user has opened, `save_on_cpu` say, and change what happens inside activation checkpoints.
    """
    return torch._C._autograd._top_saved_tensors_default_hooks(False)


def saved_tensors_hooks_allowed() -> bool:
    """Whether hooks may be opened: torch.func's transforms, and users, forbid them for a while.

    Without `_saved_tensors_hooks_get_disabled_error_message` of `torch._C._autograd`, a model under `bn.recompute`
    would fail there.
    """
    return torch._C._autograd._saved_tensors_hooks_get_disabled_error_message() is None


def past_function_modes() -> AbstractContextManager[None]:
    """Leave out `__torch_function__` of modes and subclasses.

    Without `torch._C.DisableTorchFunction`, each look at a tensor by `bn.recompute` would be a call of its own mode.
    """
    return torch._C.DisableTorchFunction()


def function_mode_on_top() -> Any:
    """The TorchFunctionMode that sees the next call, or None.

    Without `torch.overrides._get_current_function_mode`, an interrupted forward pass under `bn.recompute` could end a
    mode of the user in place of its own.
    """
    return torch.overrides._get_current_function_mode()


def in_checkpoint() -> bool:
    """Whether an activation checkpoint sees the tensors that are saved now; it counts them.

    Without `torch.utils.checkpoint` as the module of the checkpoint's pack hook, `bn.recompute` around a forward pass
    within a checkpoint would end in the checkpoint's error.
    """
    hooks = saved_tensors_hooks_on_top()
    return hooks is not None and getattr(hooks[0], "__module__", None) == "torch.utils.checkpoint"
