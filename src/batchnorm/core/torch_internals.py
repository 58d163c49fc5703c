"""Every private name of torch that the package uses, in one place, with what breaks if torch drops it.

All other code uses public names only; tests/core/test_torch_internals.py checks this.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx
from torch.ao.quantization import fuser_method_mappings
from torch.autograd import forward_ad
from torch.multiprocessing.reductions import StorageWeakRef as StorageWeakRef
from torch.nn.parallel import DistributedDataParallel

# Without these modules, models whose inputs and outputs are nested in containers could not be followed, and no
# operation could be watched. Their names are public in all but the path.
from torch.utils._python_dispatch import TorchDispatchMode as TorchDispatchMode
from torch.utils._pytree import TreeSpec as TreeSpec
from torch.utils._pytree import keystr as keystr
from torch.utils._pytree import tree_flatten as tree_flatten
from torch.utils._pytree import tree_flatten_with_path as tree_flatten_with_path
from torch.utils._pytree import tree_leaves as tree_leaves
from torch.utils._pytree import tree_map as tree_map
from torch.utils._pytree import tree_unflatten as tree_unflatten


def recomputing() -> bool:
    """True if this forward pass runs inside a backward pass, as an activation checkpoint's does.

    Without `torch._C._current_graph_task_id`, checkpoints would update the running statistics twice.
    """
    return not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1


def transformed() -> bool:
    """True if a transform is active that differentiates or vectorises plain torch operations only.

    Without `torch._C._are_functorch_transforms_active` and `forward_ad._current_level`, vmap, torch.func and
    forward-mode derivatives would meet operators that have no rule for them.
    """
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0


def unwatched() -> bool:
    """True if no compiler, tracer, transform or dispatch mode records the operations.

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
    """True under a TorchDispatchMode, such as a fake tensor mode, whose tensors have no values to read.

    Without `torch._C._len_torch_dispatch_stack`, checks of values would fail under such modes.
    """
    return torch._C._len_torch_dispatch_stack() > 0


def below_autograd() -> AbstractContextManager[None]:
    """Dispatch operators below autograd.

    Without `torch._C._AutoDispatchBelowAutograd`, every backward pass would be recorded as for a second derivative.
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
    """The number of writes in place to the tensor's memory; views and detached tensors share the number.

    Without `Tensor._version`, a saved tensor that was changed before the backward pass would go unnoticed under
    `bn.recompute`.
    """
    return tensor._version


SavedTensorHooks = tuple[Callable[[Tensor], Any], Callable[[Any], Tensor]]


def saved_tensors_hooks_on_top() -> SavedTensorHooks | None:
    """The pack and unpack hooks that autograd would call for a tensor that is saved now.

    Without `torch._C._autograd._top_saved_tensors_default_hooks`, `bn.recompute` would replace hooks that the user has
    set, such as `save_on_cpu`, and would interfere with activation checkpoints; hooks would not reach the threads of
    `bn.big_batch`.
    """
    return torch._C._autograd._top_saved_tensors_default_hooks(False)


def saved_tensors_hooks_allowed() -> bool:
    """True if saved-tensor hooks may be set: transforms of torch.func, and users, can forbid them.

    Without `_saved_tensors_hooks_get_disabled_error_message` of `torch._C._autograd`, a model under `bn.recompute`
    would fail there.
    """
    return torch._C._autograd._saved_tensors_hooks_get_disabled_error_message() is None


def past_function_modes() -> AbstractContextManager[None]:
    """Do not call `__torch_function__` of modes and subclasses.

    Without `torch._C.DisableTorchFunction`, `bn.recompute` would call its own mode whenever it inspects a tensor, and
    modes would see how `bn.big_batch(offload=)` moves tensors.
    """
    return torch._C.DisableTorchFunction()


def function_mode_on_top() -> Any:
    """The TorchFunctionMode that handles the next call, or None.

    Without `torch.overrides._get_current_function_mode`, an interrupted forward pass under `bn.recompute` could end a
    mode of the user instead of its own.
    """
    return torch.overrides._get_current_function_mode()


def in_checkpoint() -> bool:
    """True if an activation checkpoint packs and counts the tensors that are saved now.

    Without `torch.utils.checkpoint` as the module of the checkpoint's pack hook, `bn.recompute` around a forward pass
    within a checkpoint would end in the checkpoint's error.
    """
    hooks = saved_tensors_hooks_on_top()
    return hooks is not None and getattr(hooks[0], "__module__", None) == "torch.utils.checkpoint"


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
    """Put these modes on this thread's stacks without a second call of `__enter__`, which starts some of them anew.

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
    """The post-accumulate-grad hooks of `leaf`, by handle; the dict may be changed in place.

    Without `_post_accumulate_grad_hooks`, they would run once for each micro-batch of `bn.big_batch`.
    """
    return getattr(leaf, "_post_accumulate_grad_hooks", None) or {}


def has_communication_hook(model: DistributedDataParallel) -> bool:
    """True if a hook reduces the gradients of `model` in its own way.

    Without `_comm_hooks`, `bn.big_batch` would average the gradients and ignore the hook.
    """
    return bool(getattr(model, "_comm_hooks", ()))


def broadcast_buffers(model: DistributedDataParallel) -> None:
    """Write the first rank's buffers over every rank's, if a forward pass of `model` would do so now.

    Without `_sync_buffers`, ranks would have different running statistics under `bn.big_batch`.
    """
    if model.will_sync_module_buffers():
        model._sync_buffers()


def owners_of_storage(t: Tensor) -> int:
    """The number of tensors that share the memory of `t`, itself among them.

    Without `torch._C._storage_Use_Count`, `bn.big_batch(offload=)` could not tell a tensor from one with views.
    """
    storage = t.untyped_storage()  # this object is a second owner
    return torch._C._storage_Use_Count(storage._cdata) - 1


def fuser_methods() -> dict[Any, Any]:
    """The table of torch.ao.quantization: classes of layers in a row → the function that merges them.

    Without `_DEFAULT_OP_LIST_TO_FUSER_METHOD`, `fuse_modules` would refuse a convolution and a batch norm of ours.
    """
    return fuser_method_mappings._DEFAULT_OP_LIST_TO_FUSER_METHOD


def keep_in_copies(graph: fx.GraphModule, name: str, value: Any) -> None:
    """Set an attribute of a graph that `copy.deepcopy` of the graph keeps as well.

    Without `_USER_PRESERVED_ATTRIBUTES_KEY`, a copy of a folded model would have no report.
    """
    setattr(graph, name, value)
    graph.meta.setdefault(fx.graph_module._USER_PRESERVED_ATTRIBUTES_KEY, {})[name] = value
