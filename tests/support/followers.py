"""The function that follows each batch norm of a network, recorded from the calls of torch while the network runs.

This is independent of `convert`, which traces the network.
"""

import operator
from collections import defaultdict
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

OURS = {
    F.relu: {},
    F.relu6: {},
    F.silu: {},
    F.gelu: {"approximate": "none"},
    F.hardswish: {},
    F.leaky_relu: {"negative_slope": 0.01},
    F.hardtanh: {"min_val": 0.0, "max_val": 6.0},
}
NAMES = {torch.relu: F.relu, torch.relu_: F.relu, Tensor.relu: F.relu, Tensor.relu_: F.relu}
ADDITIONS = (
    operator.add,
    operator.iadd,
    torch.add,
    Tensor.add,
    Tensor.add_,
    Tensor.__add__,
    Tensor.__iadd__,
    Tensor.__radd__,
)
NOT_VALUES = ("__get__", "shape", "dim", "size", "ndim", "dtype", "device", "is_contiguous", "stride", "requires_grad")


class Use(NamedTuple):
    """A function that takes the output of a batch norm, and the number of its call."""

    kind: str  # "activation" or "addition" if our layers can do it, else the function's name
    call: int


class Followers(TorchFunctionMode):
    """Records, for each call of `F.batch_norm`, the functions that take its output, until one writes to it."""

    def __init__(self) -> None:
        super().__init__()
        self.watched: dict[int, int] = {}  # tensor → number of the batch norm
        self.kept: list[Tensor] = []  # so that no id is used twice
        self.uses: list[list[Use]] = []
        self.calls = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", str(func))
        if name not in NOT_VALUES:
            self.calls += 1
            tensors = {id(a): a for a in tree_leaves((args, kwargs)) if isinstance(a, Tensor)}
            for tensor in tensors.values():
                if (norm := self.watched.get(id(tensor))) is not None:
                    self.uses[norm].append(Use(_kind(func, args, kwargs, tensor), self.calls))
        result = func(*args, **kwargs)
        if isinstance(result, Tensor) and any(a is result for a in args):
            self.watched.pop(id(result), None)  # it was written to
        if func is F.batch_norm:
            self.watched[id(result)] = len(self.uses)
            self.kept.append(result)
            self.uses.append([])
        return result


def _kind(func: Any, args: Any, kwargs: Any, tensor: Tensor) -> str:
    """ "activation" or "addition" if our layers can do it, else the function's name."""
    func = NAMES.get(func, func)
    if func in OURS and all(kwargs.get(key, value) == value for key, value in OURS[func].items()):
        slopes = args[1:] if func in (F.leaky_relu, F.hardtanh) else ()
        if all(given == want for given, want in zip(slopes, OURS[func].values(), strict=False)):
            return "activation"
    if func in ADDITIONS and kwargs.get("alpha", 1) == 1:
        others = [a for a in args[:2] if a is not tensor]
        if len(others) == 1 and isinstance(others[0], Tensor) and others[0].shape == tensor.shape:
            return "addition"
    return getattr(func, "__name__", str(func))


def followers(model: nn.Module, *inputs: Tensor) -> dict[str, Use]:
    """Batch norm → the only function that follows it; of the kind "several" or "nothing" if there is no such one."""
    names = {id(m): name for name, m in model.named_modules()}
    calls: dict[str, list[int]] = defaultdict(list)
    starts: list[int] = []
    watch, hooks = Followers(), []

    def after(module: nn.Module, *_: Any) -> None:
        calls[names[id(module)]].extend(range(starts.pop(), len(watch.uses)))

    for module in model.modules():
        if hasattr(module, "running_mean"):
            hooks.append(module.register_forward_pre_hook(lambda *_: starts.append(len(watch.uses))))
            hooks.append(module.register_forward_hook(after))
    with watch, torch.no_grad():
        model(*inputs)
    for hook in hooks:
        hook.remove()
    return {
        name: _only([use for norm in norms for use in watch.uses[norm]], len(norms)) for name, norms in calls.items()
    }


def _only(uses: list[Use], runs: int) -> Use:
    if runs != 1 or len(uses) > 1:
        return Use("several", 0)
    return uses[0] if uses else Use("nothing", 0)
