"""Activations and residual additions that follow a batch norm, taken into it.

In an `nn.Sequential` a `Fused` stands where the activation stood and passes its input on: slices of the Sequential,
and what is added to it later, stay right. Any other module that calls batch norms of its own is traced by itself, its
children being atoms, and gets a subclass of its class whose forward is what tracing saw, without the operations that
the norms do now. Where tracing may have missed something, all is left as it is.
"""

import operator
from collections import Counter
from itertools import pairwise
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional as F

from batchnorm.backends.reference import ACTIVATIONS
from batchnorm.layers import BatchNorm
from batchnorm.tools.forward_graph import joined, source_of, trace, with_forward, without_forward

MODULES: dict[type[nn.Module], str] = {
    nn.ReLU: "relu",
    nn.ReLU6: "relu6",
    nn.LeakyReLU: "leaky_relu",
    nn.SiLU: "silu",
    nn.GELU: "gelu",
    nn.Hardswish: "hardswish",
}
FUNCTIONS: dict[Any, str] = {getattr(F, name): name for name in ACTIVATIONS}
FUNCTIONS |= dict.fromkeys((torch.relu, torch.relu_, "relu", "relu_"), "relu")
ADDITIONS = (operator.add, operator.iadd, torch.add, "add", "add_")
# Settings under which an activation is ours. (In place or not, nobody else sees the values.)
SETTINGS = {"inplace": (True, False), "negative_slope": (0.01,), "approximate": ("none",)}


class Fused(nn.Identity):
    """Stands in an `nn.Sequential` where an activation stood that the batch norm before it applies now."""

    replaced: nn.Module

    def __init__(self, replaced: nn.Module) -> None:
        super().__init__()
        self.__dict__["replaced"] = replaced  # not as a submodule

    def extra_repr(self) -> str:
        return f"{self.replaced} is in the batch norm before"


def fuse(model: nn.Module) -> None:
    """Take activations and additions into the batch norms of ours that they follow, in place."""
    held = Counter(id(module) for _, module in model.named_modules(remove_duplicate=False))
    free = {id(m) for m in model.modules() if isinstance(m, BatchNorm) and held[id(m)] == 1 and _is_free(m)}
    for module in list(model.modules()):
        if type(module).forward is nn.Sequential.forward:
            _fuse_sequence(module, free)
        elif any(id(child) in free for child in module.children()):
            _fuse_forward(module, free)


def fused(model: nn.Module) -> set[nn.Module]:
    """The norms of `model` whose activation `unfuse` brings back. (In a graph traced from a fused model it cannot.)"""
    found: set[nn.Module] = set()
    for module in model.modules():
        if without_forward(module) is not type(module):
            found |= {child for child in module.children() if isinstance(child, BatchNorm) and child._fused}
        pairs = pairwise(module._modules.values())
        found |= {layer for layer, after in pairs if isinstance(layer, BatchNorm) and isinstance(after, Fused)}
    return found


def unfuse(model: nn.Module) -> None:
    """Undo `fuse`, but for the options of the norms, which `revert` takes off."""
    for module in list(model.modules()):
        module.__class__ = without_forward(module)
        for name, child in module._modules.items():
            if isinstance(child, Fused):
                module._modules[name] = child.replaced.train(child.training)


def _is_free(layer: BatchNorm) -> bool:
    """Whether nothing in the layer itself forbids that its output becomes another."""
    return layer.activation is None and type(layer).forward is BatchNorm.forward and not _is_watched(layer)


def _is_watched(module: nn.Module) -> bool:
    hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    return any(hooks) or "forward" in vars(module)


def _activation_of(module: nn.Module | None) -> str | None:
    name = None if module is None else MODULES.get(type(module))
    if module is None or name is None or _is_watched(module):
        return None
    settings = {key: value for key, value in vars(module).items() if key in SETTINGS}
    return name if _is_ours(settings) else None


def _is_ours(settings: dict[str, Any]) -> bool:
    return all(value in SETTINGS.get(key, ()) for key, value in settings.items())


def _take(layer: BatchNorm, activation: str | None) -> None:
    layer.activation, layer._fused = activation, True


def _fuse_sequence(sequence: nn.Module, free: set[int]) -> None:
    for (_, layer), (name, after) in pairwise(list(sequence._modules.items())):
        if isinstance(layer, BatchNorm) and id(layer) in free and (activation := _activation_of(after)):
            _take(layer, activation)
            sequence._modules[name] = Fused(after)  # type: ignore[arg-type]  # not None: it has an activation


def _fuse_forward(module: nn.Module, free: set[int]) -> None:
    graph = trace(module)
    if graph is None:
        return
    taken = [found for node in list(graph.nodes) if (found := _absorb(module, graph, node, free))]
    source = source_of(graph)
    if taken and source is not None:
        for layer, activation in taken:
            _take(layer, activation)
        module.__class__ = with_forward(type(module), source)


def _absorb(module: nn.Module, graph: fx.Graph, node: fx.Node, free: set[int]) -> tuple[BatchNorm, str | None] | None:
    """Let a node that is a free batch norm do what follows it; returns the layer and its activation."""
    layer = module._modules.get(str(node.target)) if node.op == "call_module" else None
    calls = sum(other.op == "call_module" and other.target == node.target for other in graph.nodes)
    if not isinstance(layer, BatchNorm) or id(layer) not in free or calls > 1 or len(node.args) != 1 or node.kwargs:
        return None
    addition = _only_user(node)
    residual = None if addition is None else _residual(node, addition)
    last = node if residual is None or addition is None else addition
    after = _only_user(last)
    activation = None if after is None else _activation_at(module, after)
    if after is not None and activation is not None:
        after.replace_all_uses_with(last)
        graph.erase_node(after)
    if last is not node:
        with graph.inserting_before(last):
            call = graph.call_function(joined, (graph.get_attr(str(node.target)), node.args[0], residual))
        last.replace_all_uses_with(call)
        graph.erase_node(last)
        graph.erase_node(node)
    return (layer, activation) if activation is not None or last is not node else None


def _only_user(node: fx.Node) -> fx.Node | None:
    return next(iter(node.users)) if len(node.users) == 1 else None


def _residual(norm: fx.Node, addition: fx.Node) -> fx.Node | None:
    """What the addition adds to the norm's output, if it is nothing but an addition and can wait with the norm."""
    if addition.op == "call_module" or addition.target not in ADDITIONS or addition.kwargs or len(addition.args) != 2:
        return None
    others = [value for value in addition.args if value is not norm]
    if not others or not isinstance(others[0], fx.Node):
        return None
    source = norm.args[0]
    # the norm is called later now: nothing in between may change its input
    waits = isinstance(source, fx.Node) and (_only_user(source) is norm or others[0] < norm)
    return others[0] if waits else None


def _activation_at(module: nn.Module, node: fx.Node) -> str | None:
    if len(node.args) != 1:
        return None
    if node.op == "call_module":
        return _activation_of(module._modules.get(str(node.target)))
    return FUNCTIONS.get(node.target) if _is_ours(node.kwargs) else None
