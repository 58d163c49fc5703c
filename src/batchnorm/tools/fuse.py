"""Have batch norms apply the activations and residual additions that follow them.

There are two ways. If an activation module runs once, right after a batch norm that runs once, it is replaced by a
`Fused`, which returns its input: the forward stays as it was written. If an activation is a function, or follows
several batch norms, or if a residual is added, the module that contains them gets a subclass of its class. The forward
of the subclass is the traced one, without the operations that the batch norms now apply. This is done only if the trace
certainly contains everything that the forward does.

A batch norm may be the last layer of another module (`nn.Sequential(conv, norm)`). Then it applies the operations that
follow that module, and the module passes the residual on to it.
"""

import operator
from collections import Counter
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional as F

from batchnorm.backends.reference import ACTIVATIONS
from batchnorm.integrations.norm_act import ACTIVATIONS_BY_NAME, NormAct
from batchnorm.layers import BatchNorm
from batchnorm.tools.forward_graph import (
    RESIDUAL,
    joined,
    sightings,
    source_of,
    trace,
    with_forward,
    without_forward,
)

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
# Settings of an activation with which ours is the same. (`inplace` may be either: no other code reads the values.)
SETTINGS = {"inplace": (True, False), "negative_slope": (0.01,), "approximate": ("none",)}


class Fused(nn.Identity):
    """Placeholder for an activation that the batch norm before it now applies."""

    replaced: nn.Module
    taken_by: BatchNorm

    def __init__(self, replaced: nn.Module, taken_by: BatchNorm) -> None:
        super().__init__()
        self.__dict__.update(replaced=replaced, taken_by=taken_by)  # not as submodules

    def extra_repr(self) -> str:
        return f"{self.replaced} is in the batch norm before"


def fuse(model: nn.Module) -> None:
    """Have our batch norms apply the activations and additions that follow them; changes the model in place."""
    fusion = _Fusion(model)
    for module in reversed(list(model.modules())):  # children first
        fusion.within(module)


def take_own_activation(layer: NormAct) -> None:
    """Have a batch norm that contains an activation module apply the activation in its own pass, if it can."""
    drop, act = layer._modules.get("drop"), layer._modules.get("act")
    activation = _activation_of(act)
    if activation and layer.activation is None and _is_nothing(drop):
        _take(layer, activation)


def fused(model: nn.Module) -> set[nn.Module]:
    """The norms of `model` whose activations `unfuse` restores. (It cannot in a graph traced from a fused model.)"""
    found: set[nn.Module] = set()
    for module in model.modules():
        found.update(vars(module).get("_taken_in", ()))
        if isinstance(module, Fused):
            found.add(module.taken_by)
        if isinstance(module, NormAct) and module._fused:
            found.add(module)
    return found


def unfuse(model: nn.Module) -> None:
    """Undo `fuse`, except for the options of the norms, which `revert` removes."""
    for module in list(model.modules()):
        module.__class__ = without_forward(module)
        vars(module).pop("_taken_in", None)
        for name, child in module._modules.items():
            if isinstance(child, Fused):
                module._modules[name] = child.replaced


Carriers = tuple[nn.Module, ...]  # a module, its last child, and so on down to the one that calls the batch norm
Chain = tuple[Carriers, BatchNorm]


class _Fusion:
    """One run over a model: the modules that occur once in it, and the graphs traced so far."""

    def __init__(self, model: nn.Module) -> None:
        held = Counter(id(module) for _, module in model.named_modules(remove_duplicate=False))
        self.once = {i for i, times in held.items() if times == 1}
        self.graphs: dict[int, fx.Graph | None] = {}
        self.seen: dict[int, list[fx.Graph]] = {}

    def within(self, module: nn.Module) -> None:
        """Fuse the layers that the forward of a module calls directly."""
        if not any(isinstance(m, BatchNorm) for m in module.modules()) or isinstance(module, BatchNorm):
            return
        if _is_sequence(module):
            self._within_sequence(module)
        elif module._modules and not isinstance(module, (nn.ModuleList, nn.ModuleDict)):
            if (graph := self._graph(module)) is not None:
                self._rewrite(module, graph)
            self._replace_activations(module)

    # ---- which batch norm a module ends with

    def chain(self, module: nn.Module | None) -> Chain | None:
        """The free batch norm that computes the module's output, and the modules around it; None if there is none."""
        if module is None or id(module) not in self.once:
            return None
        if isinstance(module, BatchNorm):
            return ((), module) if _is_free(module) else None
        if _is_watched(module):
            return None
        chain = self.chain(self._last(module))
        return None if chain is None else ((module, *chain[0]), chain[1])

    def _last(self, module: nn.Module) -> nn.Module | None:
        """The child whose output is the module's, if it runs once."""
        if _is_sequence(module):
            return next((m for m in reversed(module._modules.values()) if not _is_nothing(m)), None)
        if not module._modules:
            return None
        graphs = self._sightings(module)
        ends = {_end(module, graph) for graph in graphs}
        return None if len(ends) != 1 or (end := ends.pop()) is None else module.get_submodule(end)

    def _graph(self, module: nn.Module) -> fx.Graph | None:
        if id(module) not in self.graphs:
            self.graphs[id(module)] = trace(module)
        return self.graphs[id(module)]

    def _sightings(self, module: nn.Module) -> list[fx.Graph]:
        if id(module) not in self.seen:
            graph = self._graph(module)
            self.seen[id(module)] = sightings(module) if graph is None else [graph]
        return self.seen[id(module)]

    # ---- an activation module that runs once

    def _within_sequence(self, sequence: nn.Module) -> None:
        doing = [(name, m) for name, m in sequence._modules.items() if m is not None and not _is_nothing(m)]
        for (_, before), (name, after) in pairwise(doing):
            if (activation := _activation_of(after)) and (chain := self.chain(before)):
                sequence._modules[name] = Fused(after, _take(chain[1], activation))

    def _replace_activations(self, module: nn.Module) -> None:
        graphs = self._sightings(module)
        for target, after in dict.fromkeys(pair for graph in graphs[:1] for pair in _pairs(module, graph)):
            act = module.get_submodule(after)
            activation = _activation_of(act)
            if (
                id(act) not in self.once
                or activation is None
                or not all((target, after) in _pairs(module, g) for g in graphs)
            ):
                continue
            if chain := self.chain(module.get_submodule(target)):
                parent = module.get_submodule(after.rpartition(".")[0])
                parent._modules[after.rpartition(".")[2]] = Fused(act, _take(chain[1], activation))

    # ---- a forward without the operations that the batch norms now apply

    def _rewrite(self, module: nn.Module, graph: fx.Graph) -> None:
        taken = [found for node in list(graph.nodes) if (found := self._absorb(module, graph, node))]
        source = source_of(graph)
        if not taken or source is None:
            return
        for norm, activation, carriers in taken:
            _take(norm, activation)
            for carrier in carriers:
                self._carry(carrier)
        _become(module, source, [norm for norm, *_ in taken])

    def _absorb(
        self, module: nn.Module, graph: fx.Graph, node: fx.Node
    ) -> tuple[BatchNorm, str | None, Carriers] | None:
        """Let a free batch norm apply the operations after its node.

        Returns the norm, its activation, and the modules that pass a residual on to it.
        """
        chain = self.chain(_called_once(module, graph, node))
        if chain is None:
            return None
        carriers, norm = chain
        between, addition = _next_user(module, node)
        residual = None if addition is None or not self._can_carry(carriers) else _residual(between, addition, node)
        last = between if residual is None or addition is None else addition
        last, after = _next_user(module, last)
        activation = None if after is None else _activation_at(module, after)
        if residual is None and activation is None:
            return None
        if activation is not None and after is not None:
            after.replace_all_uses_with(last)
            graph.erase_node(after)
        if residual is not None and addition is not None:
            with graph.inserting_before(addition):
                call = graph.call_function(joined, (graph.get_attr(str(node.target)), node.args[0], residual))
            addition.replace_all_uses_with(call)
            for done in (addition, *_backwards(between, node)):
                graph.erase_node(done)
        return norm, activation, carriers if residual is not None else ()

    def _can_carry(self, carriers: Carriers) -> bool:
        return all(_is_sequence(m) or self._graph(m) is not None for m in carriers)

    def _carry(self, carrier: nn.Module) -> None:
        """Give a module an input for a residual, which it passes on to its last child."""
        if _is_sequence(carrier):
            last = next(name for name, m in reversed(carrier._modules.items()) if not _is_nothing(m))
            _become(carrier, SEQUENCE.format(last=last), [])
            return
        graph = self._graph(carrier)
        assert graph is not None
        target = _end(carrier, graph)
        node = next(n for n in graph.nodes if n.op == "call_module" and n.target == target)
        first = next(n for n in graph.nodes if n.op == "placeholder")
        with graph.inserting_after(first):
            residual = graph.placeholder(RESIDUAL, default_value=None)
        with graph.inserting_before(node):
            call = graph.call_function(joined, (graph.get_attr(str(target)), node.args[0], residual))
        node.replace_all_uses_with(call)
        graph.erase_node(node)
        source = source_of(graph)
        assert source is not None
        _become(carrier, source, [])


SEQUENCE = """
def forward(self, input, residual = None):
    for name, module in self._modules.items():
        input = joined(module, input, residual) if name == {last!r} else module(input)
    return input
"""


def _is_sequence(module: nn.Module) -> bool:
    return type(module).forward is nn.Sequential.forward


def _is_free(layer: BatchNorm) -> bool:
    """True if a batch norm applies nothing after its own formula yet, and has no hooks."""
    if layer.activation is not None or _is_watched(layer):
        return False
    if isinstance(layer, NormAct):
        return all(_is_nothing(module) for module in layer.behind())
    return type(layer).forward is BatchNorm.forward


def _is_nothing(module: nn.Module | None) -> bool:
    return module is None or (type(module) is nn.Identity and not _is_watched(module))


def _is_watched(module: nn.Module) -> bool:
    hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    return any(hooks) or "forward" in vars(module)


def _activation_of(module: nn.Module | None) -> str | None:
    if module is None or _is_watched(module):
        return None
    cls = type(module)
    name = MODULES.get(cls) or ACTIVATIONS_BY_NAME.get((cls.__module__.partition(".")[0], cls.__name__))
    settings = {key: value for key, value in vars(module).items() if key in SETTINGS}
    return name if name and _is_ours(settings) else None


def _is_ours(settings: dict[str, Any]) -> bool:
    return all(value in SETTINGS.get(key, ()) for key, value in settings.items())


def _take(layer: Any, activation: str | None) -> BatchNorm:
    layer.activation, layer._fused = activation, True
    return layer


def _become(module: nn.Module, source: str, norms: list[BatchNorm]) -> None:
    """Give a module another forward, and list the batch norms that took over operations, for `revert`."""
    vars(module)["_taken_in"] = [*vars(module).get("_taken_in", []), *norms]
    module.__class__ = with_forward(without_forward(module), source)


def _called_once(module: nn.Module, graph: fx.Graph, node: fx.Node) -> nn.Module | None:
    """The module that a node calls with one input, if no other node uses the module."""
    if node.op != "call_module" or len(node.args) != 1 or node.kwargs:
        return None
    target = str(node.target)
    others = [str(n.target) for n in graph.nodes if n.op in ("call_module", "get_attr") and n is not node]
    shared = any(f"{other}.".startswith(f"{target}.") or target.startswith(f"{other}.") for other in others)
    return None if shared else module.get_submodule(target)


def _next_user(module: nn.Module, node: fx.Node) -> tuple[fx.Node, fx.Node | None]:
    """The node before the only user of `node`, and that user, identities skipped; no user if there are several."""
    while (user := _only_user(node)) is not None:
        if not (user.op == "call_module" and _is_nothing(module.get_submodule(str(user.target)))):
            break
        node = user
    return node, user


def _backwards(last: fx.Node, first: fx.Node) -> Iterator[fx.Node]:
    """The nodes of a chain, from its last to its first."""
    while last is not first:
        before: Any = last.args[0]
        yield last
        last = before
    yield first


def _only_user(node: fx.Node) -> fx.Node | None:
    return next(iter(node.users)) if len(node.users) == 1 else None


def _pairs(module: nn.Module, graph: fx.Graph) -> Iterator[tuple[str, str]]:
    """Pairs of modules that both run once: the second is the only user of the first."""
    for node in graph.nodes:
        if _called_once(module, graph, node) is not None:
            _, after = _next_user(module, node)
            if after is not None and _called_once(module, graph, after) is not None:
                yield str(node.target), str(after.target)


def _end(module: nn.Module, graph: fx.Graph) -> str | None:
    """The child that runs once and returns the module's output, which nothing else uses."""
    for node in graph.nodes:
        last, user = _next_user(module, node)
        child = _called_once(module, graph, node)
        if user is not None and user.op == "output" and user.args == (last,) and not _is_nothing(child):
            return str(node.target)
    return None


def _residual(last: fx.Node, addition: fx.Node, norm: fx.Node) -> fx.Node | None:
    """The other operand of an addition to the norm's output, if the norm can be called where the addition is."""
    if addition.op == "call_module" or addition.target not in ADDITIONS or addition.kwargs or len(addition.args) != 2:
        return None
    others = [value for value in addition.args if value is not last]
    if not others or not isinstance(others[0], fx.Node):
        return None
    source = norm.args[0]
    # the norm would be called later than now: nothing in between may change its input
    waits = isinstance(source, fx.Node) and (_only_user(source) is norm or others[0] < norm)
    return others[0] if waits else None


def _activation_at(module: nn.Module, node: fx.Node) -> str | None:
    if len(node.args) != 1:
        return None
    if node.op == "call_module":
        return _activation_of(module.get_submodule(str(node.target)))
    return FUNCTIONS.get(node.target) if _is_ours(node.kwargs) else None
