"""Every private name of torch that the package uses, in one place, with what breaks if torch drops it.

Public names serve everywhere else; tests/core/test_torch_internals.py holds the tree to that.
"""

import torch
from torch import Tensor
from torch.autograd import forward_ad


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


def dispatch_mode_active() -> bool:
    """Whether a TorchDispatchMode watches: a fake tensor mode, say, whose tensors have no values to read.

    Without `torch._C._len_torch_dispatch_stack`, checks of values would fail under such modes.
    """
    return torch._C._len_torch_dispatch_stack() > 0


