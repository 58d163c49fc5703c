"""Every private name of torch that the package uses, in one place, with what breaks if torch drops it.

Public names serve everywhere else; tests/core/test_torch_internals.py holds the tree to that.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.multiprocessing.reductions import StorageWeakRef as StorageWeakRef
from torch.nn.parallel import DistributedDataParallel


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


SavedTensorHooks = tuple[Callable[[Tensor], Any], Callable[[Any], Tensor]]


def saved_tensor_hooks() -> SavedTensorHooks | None:
    """The pair of hooks that packs and unpacks saved tensors in this thread.

    Without `torch._C._autograd._top_saved_tensors_default_hooks`, hooks would not reach the threads of `bn.big_batch`.
    """
    found = torch._C._autograd._top_saved_tensors_default_hooks(True)
    return None if found is None else (found[0], found[1])


class Modes(NamedTuple):
    """The function modes and the dispatch modes of a thread, outermost first."""

    function: list[Any]
    dispatch: list[Any]


def modes() -> Modes:
    """The modes of this thread.

    Without `torch._C._get_function_stack_at`, `_get_dispatch_stack_at` and their lengths, modes would not reach the
    threads of `bn.big_batch`.
    """
    return Modes(
        [torch._C._get_function_stack_at(i) for i in range(torch._C._len_torch_function_stack())],
        [torch._C._get_dispatch_stack_at(i) for i in range(torch._C._len_torch_dispatch_stack())],
    )


@contextmanager
def under(these: Modes) -> Iterator[None]:
    """These modes on this thread's stacks, without entering them once more: some start anew when entered.

    Without `torch._C._push_on_torch_function_stack`, `_push_on_torch_dispatch_stack` and their opposites, modes would
    not reach the threads of `bn.big_batch`.
    """
    for mode in these.function:
        torch._C._push_on_torch_function_stack(mode)
    for mode in these.dispatch:
        torch._C._push_on_torch_dispatch_stack(mode)
    try:
        yield
    finally:
        for _ in these.dispatch:
            torch._C._pop_torch_dispatch_stack(None)
        for _ in these.function:
            torch._C._pop_torch_function_stack()


def post_accumulate_hooks(leaf: Tensor) -> dict[int, Any]:
    """The hooks of `leaf` that run when its gradient was added to, by handle; to be emptied and filled in place.

    Without `_post_accumulate_grad_hooks`, they would run once for each micro-batch of `bn.big_batch`.
    """
    return getattr(leaf, "_post_accumulate_grad_hooks", None) or {}


def has_communication_hook(model: DistributedDataParallel) -> bool:
    """Whether a hook reduces the gradients of `model` in its own way.

    Without `_comm_hooks`, `bn.big_batch` would take the mean in spite of it.
    """
    return bool(getattr(model, "_comm_hooks", ()))


def broadcast_buffers(model: DistributedDataParallel) -> None:
    """Write the first rank's buffers over every rank's, if a forward pass of `model` would do so now.

    Without `_sync_buffers`, ranks would keep running statistics of their own under `bn.big_batch`.
    """
    if model.will_sync_module_buffers():
        model._sync_buffers()


def owners_of_storage(t: Tensor) -> int:
    """How many tensors share the memory of `t`, itself among them.

    Without `torch._C._storage_Use_Count`, `bn.big_batch(offload=)` could not tell a tensor from one with views.
    """
    storage = t.untyped_storage()  # one owner more
    return torch._C._storage_Use_Count(storage._cdata) - 1


def unseen_by_modes() -> AbstractContextManager[None]:
    """No function mode sees the operations inside.

    Without `torch._C.DisableTorchFunction`, modes would see tensors move to and fro under `bn.big_batch(offload=)`.
    """
    return torch._C.DisableTorchFunction()
