"""A module's own forward as a graph, its children being atoms; and a class with such a graph for its forward."""

import builtins
import copy
import functools
import inspect
from collections.abc import Iterator
from types import CodeType, FunctionType
from typing import Any

from torch import Tensor, fx, nn

from batchnorm.backends.reference import ACTIVATIONS
from batchnorm.layers import BatchNorm

# A forward that uses these asks what its input is, or does more than compute.
SUSPECT = ("isinstance", "type", "super", "append", "print")


class _OneModule(fx.Tracer):
    """Sees the calls of children and does not look into them."""

    def is_leaf_module(self, m: nn.Module, name: str) -> bool:
        return True


def trace(module: nn.Module) -> fx.Graph | None:
    """What the module's forward does with its children; None where tracing it could give something else.

    That is where forward is more than one function of one input, asks for types, does not do the same in training and
    in evaluation, or leaves something behind.
    """
    function = type(module).forward
    if isinstance(module, fx.GraphModule) or "forward" in vars(module) or not isinstance(function, FunctionType):
        return None
    inputs = list(inspect.signature(function).parameters.values())[1:]
    if [(p.default, p.kind) for p in inputs] != [(inspect.Parameter.empty, inspect.Parameter.POSITIONAL_OR_KEYWORD)]:
        return None
    if any(name in SUSPECT or _is_method(module, name) for name in _names(function.__code__)):
        return None
    before = dict(vars(module))
    try:
        training, evaluation = (_OneModule().trace(_in_mode(module, mode)) for mode in (True, False))
        after = {**vars(module), "training": before["training"]}
    except Exception:  # whatever a forward does with what is no tensor
        return None
    finally:
        vars(module).clear()
        vars(module).update(before)
    same = after.keys() == before.keys() and all(after[name] is value for name, value in before.items())
    return training if same and source_of(training) == source_of(evaluation) else None


def _in_mode(module: nn.Module, training: bool) -> nn.Module:
    module.training = training  # the children do not matter: they are not looked into
    return module


def _names(code: CodeType) -> Iterator[str]:
    """The names that a function uses, those of functions inside it too."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names(constant)


def _is_method(module: nn.Module, name: str) -> bool:
    """Whether this is a method of the module's class: called by itself, it would run the norms with what they took."""
    own = getattr(type(module), name, None)
    return isinstance(own, FunctionType) and own is not getattr(nn.Module, name, None)


def joined(layer: BatchNorm, x: Tensor, residual: Tensor) -> Tensor:
    """layer(x, residual); where the residual is not like x, the operations that this stands for."""
    if isinstance(x, fx.Proxy) or (x.shape == getattr(residual, "shape", None) and x.dtype == residual.dtype):
        return layer(x, residual)
    y = copy.copy(layer).set_options(activation=None)(x) + residual
    return y if layer.activation is None else ACTIVATIONS[layer.activation][0](y)


def source_of(graph: fx.Graph) -> str | None:
    """The forward that a graph stands for; None where it calls what is neither torch's nor Python's."""
    code = graph.python_code("self")
    return code.src if code.globals.keys() <= {*SCOPE, *dir(builtins)} else None


def with_forward(base: Any, source: str) -> Any:
    """A subclass of `base` with another forward, the same one for the same source. It pickles by its source."""
    return _subclass(base, source)


def without_forward(module: nn.Module) -> type[nn.Module]:
    """The class that the module had before `with_forward`, or has."""
    return getattr(type(module), "_unfused", type(module))


def _scope() -> dict[str, Any]:
    """The names that generated code may use: those that torch.fx always gives, and `joined`."""
    graph = fx.Graph()
    graph.output(graph.call_function(joined))
    return graph.python_code("self").globals


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
