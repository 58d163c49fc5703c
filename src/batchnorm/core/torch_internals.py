"""Every private name of torch that the package uses, in one place, with what breaks if torch drops it.

Public names serve everywhere else; tests/core/test_torch_internals.py holds the tree to that.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import fx
from torch.ao.quantization import fuser_method_mappings
from torch.autograd import forward_ad

# Without these modules, models whose inputs and outputs are nested in containers could not be followed, and no
# operation could be watched. Their names are public in all but the path.
from torch.utils._python_dispatch import TorchDispatchMode as TorchDispatchMode
from torch.utils._pytree import tree_leaves as tree_leaves
from torch.utils._pytree import tree_map as tree_map


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
