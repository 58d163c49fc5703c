"""Trace a module's own forward as a graph of calls of its children, and make a class from a changed graph."""

import builtins
import copy
import dis
import functools
import inspect
import itertools
import math
from collections.abc import Iterator
from types import CodeType, FunctionType
from typing import Any

from torch import Tensor, fx, nn

from batchnorm.backends.reference import ACTIVATIONS
from batchnorm.layers import BatchNorm

# A forward that uses these asks for the type of its input, or does more than compute.
SUSPECT = ("isinstance", "type", "super", "print")
MOST_CHOICES = 16  # combinations of values of optional inputs
RESIDUAL = "residual"  # the added input of a forward that passes a residual on


class _TensorProxy(fx.Proxy):
    """A proxy that `isinstance` takes for a tensor."""

    _is_param = False  # read by `isinstance(x, nn.Parameter)`

    __class__: Any = property(lambda self: Tensor)


class _OneModule(fx.Tracer):
    """Records the calls of children and does not look into them."""

    def __init__(self, proxies: type[fx.Proxy] = fx.Proxy) -> None:
        super().__init__()
        self.proxies = proxies

    def is_leaf_module(self, m: nn.Module, name: str) -> bool:
        return True

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return self.proxies(node, self)

    def create_arg(self, a: Any) -> Any:
        return a.node if type(a) is _TensorProxy else super().create_arg(a)


def trace(module: nn.Module) -> fx.Graph | None:
    """The graph of the module's forward if the graph certainly computes the same; None otherwise.

    It is None if forward has optional inputs, checks types, differs between training and evaluation, or changes
    attributes.
    """
    function = _forward_of(module)
    if function is None:
        return None
    required, optional = _inputs(function)
    rewritten = without_forward(module) is not type(module)
    if not required or list(optional) not in ([], [RESIDUAL] if rewritten else []):
        return None
    if len(required) > 1 and any(i.opname == "IS_OP" or "NONE" in i.opname for i in dis.get_instructions(function)):
        return None  # an input may be None in some calls
    if any(name in SUSPECT or _is_method(module, name) for name in _names(function.__code__)):
        return None
    state = _State(module)
    try:
        training, evaluation = (_OneModule().trace(_in_mode(module, mode)) for mode in (True, False))
        unchanged = state.is_that_of(module)
    except Exception:  # whatever a forward does with what is no tensor
        return None
    finally:
        state.restore(module)
    source = source_of(training)
    return training if unchanged and source is not None and source == source_of(evaluation) else None


def sightings(module: nn.Module) -> list[fx.Graph]:
    """The graphs of every path through the module's forward; none if one of them cannot be traced.

    The paths are those in training and in evaluation, with a tensor or a list of one, with and without each optional
    input.
    """
    function = _forward_of(module)
    if function is None:
        return []
    required, optional = _inputs(function)
    choices = [_choices(name, default) for name, default in optional.items()]
    asks = any(name == "isinstance" for name in _names(function.__code__))
    kinds: list[dict[str, Any]] = [{}, {required[0]: [fx.PH]}] if asks and required else [{}]
    state, found = _State(module), []
    if math.prod(map(len, choices)) > MOST_CHOICES:
        return []
    for mode, *chosen in itertools.product((True, False), *choices):
        given, graphs = {name: value for choice in chosen for name, value in choice.items()}, []
        for kind in kinds:
            try:
                graphs.append(_OneModule(_TensorProxy).trace(_in_mode(module, mode), {**given, **kind} or None))
            except Exception:  # whatever a forward does with what is no tensor
                continue
            finally:
                state.restore(module)
        if not graphs:
            return []
        found += graphs
    return found


def _choices(name: str, default: Any) -> list[dict[str, Any]]:
    """The values of an optional input to try; an empty dict stands for a tensor."""
    if default is None:
        return [{name: None}, {}]
    return [{name: True}, {name: False}] if isinstance(default, bool) else [{name: default}]


def _forward_of(module: nn.Module) -> FunctionType | None:
    function = type(module).forward
    fixed = not isinstance(module, fx.GraphModule) and "forward" not in vars(module)
    return function if fixed and isinstance(function, FunctionType) else None


def _inputs(function: FunctionType) -> tuple[list[str], dict[str, Any]]:
    """The required and the optional inputs of a forward; both empty if it takes *args or **kwargs."""
    inputs = list(inspect.signature(function).parameters.values())[1:]
    if any(p.kind is not p.POSITIONAL_OR_KEYWORD for p in inputs):
        return [], {}
    optional = {p.name: p.default for p in inputs if p.default is not p.empty}
    return [p.name for p in inputs if p.name not in optional], optional


class _State:
    """The attributes of a module, and the contents of its lists, dicts and sets."""

    def __init__(self, module: nn.Module) -> None:
        self.attributes = dict(vars(module))
        containers = {k: v for k, v in self.attributes.items() if isinstance(v, (list, dict, set))}
        self.contents = {name: copy.copy(value) for name, value in containers.items()}

    def is_that_of(self, module: nn.Module) -> bool:
        now = {**vars(module), "training": self.attributes["training"]}
        same = now.keys() == self.attributes.keys() and all(now[k] is v for k, v in self.attributes.items())
        return same and all(_alike(self.attributes[name], value) for name, value in self.contents.items())

    def restore(self, module: nn.Module) -> None:
        vars(module).clear()
        vars(module).update(self.attributes)
        for name, value in self.contents.items():
            container: Any = self.attributes[name]
            if not _alike(container, value):
                container.clear()
                container.extend(value) if isinstance(container, list) else container.update(value)


def _alike(one: Any, other: Any) -> bool:
    """True if two containers hold the same objects."""
    if isinstance(one, dict):
        return list(one) == list(other) and all(value is other[key] for key, value in one.items())
    return len(one) == len(other) and all(a is b for a, b in zip(one, other, strict=True))


def _in_mode(module: nn.Module, training: bool) -> nn.Module:
    module.training = training  # without the children, which are not traced
    return module


def _names(code: CodeType) -> Iterator[str]:
    """The names that a function uses, and those that functions inside it use."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names(constant)


def _is_method(module: nn.Module, name: str) -> bool:
    """True for a method of the module's class: called directly, it would run the norms with their new activations."""
    own = getattr(type(module), name, None)
    return isinstance(own, FunctionType) and own is not getattr(nn.Module, name, None)


def joined(layer: Any, x: Tensor, residual: Tensor | None) -> Tensor:
    """layer(x, residual); if shape or dtype of the residual differ from those of x, the same as separate operations.

    The layer is a batch norm of ours, or a module that ends in one and passes the residual on to it.
    """
    if isinstance(x, fx.Proxy) and isinstance(x.tracer, _OneModule):  # a rewritten forward is traced again
        node = x.tracer.create_proxy("get_attr", x.tracer.path_of_module(layer), (), {})
        return x.tracer.create_proxy("call_function", joined, (node, x, residual), {})
    if residual is None:
        return layer(x)
    if not isinstance(layer, BatchNorm) or isinstance(x, fx.Proxy):
        return layer(x, residual)
    if x.shape == getattr(residual, "shape", None) and x.dtype == residual.dtype:
        return layer(x, residual)
    y = copy.copy(layer).set_options(activation=None)(x) + residual
    return y if layer.activation is None else ACTIVATIONS[layer.activation][0](y)


def source_of(graph: fx.Graph) -> str | None:
    """The source of a forward that computes the graph; None if it calls anything outside of torch and Python."""
    code = graph.python_code("self")
    return code.src if code.globals.keys() <= {*SCOPE, *dir(builtins)} else None


def with_forward(base: Any, source: str) -> Any:
    """A subclass of `base` with another forward; the same class for the same source. It is pickled by its source."""
    return _subclass(base, source)


def without_forward(module: nn.Module) -> type[nn.Module]:
    """The class of the module without the forward that `with_forward` gave it."""
    return getattr(type(module), "_unfused", type(module))


def _scope() -> dict[str, Any]:
    """The names that generated code may use: those that torch.fx always gives, and `joined`."""
    graph = fx.Graph()
    graph.output(graph.call_function(joined))
    return {**graph.python_code("self").globals, "joined": joined}


SCOPE = _scope()


@functools.cache
def _subclass(base: Any, source: str) -> type[nn.Module]:
    scope = dict(SCOPE)
    exec(source, scope)
    members = {"forward": scope["forward"], "__reduce_ex__": _reduce, "_unfused": base, "_source": source}
    return type(base)(base.__name__, (base,), members | {"__module__": base.__module__, "__doc__": base.__doc__})


def _reduce(self: Any, protocol: Any) -> tuple[Any, ...]:
    return _blank, (self._unfused, self._source), *object.__reduce_ex__(self, protocol)[2:]


def _blank(base: Any, source: str) -> Any:
    fused = _subclass(base, source)
    return fused.__new__(fused)
