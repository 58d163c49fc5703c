"""Fold batch norms into the convolution or linear layer next to them, for deployment."""

import copy
import inspect
import operator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.operator_schemas import normalize_function
from torch.fx.passes.shape_prop import ShapeProp
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim.swa_utils import AveragedModel

from batchnorm.backends.reference import ACTIVATIONS
from batchnorm.core.torch_internals import keep_in_copies, tree_leaves
from batchnorm.integrations.norm_act import NormAct
from batchnorm.layers import BatchNorm
from batchnorm.tools.convert import require_model, revert
from batchnorm.tools.exported import BATCH_NORM, BATCH_NORM_ARGUMENTS, OF_SHAPE, exported
from batchnorm.tools.linear import (
    Linear,
    has_hooks,
    label,
    linear_of,
    replace,
    scaled_after,
    scaled_before,
    tensor_at,
)

TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-3, torch.float16: 2e-2, torch.bfloat16: 1e-1}


@dataclass
class Folded:
    """The report of `fold`.

    `into` maps each folded batch norm to the layer that it was folded into, `left` each other batch norm to the reason.
    `error` is the largest difference of an output, divided by the largest output; None without an example.
    """

    into: dict[str, str] = field(default_factory=dict)
    left: dict[str, str] = field(default_factory=dict)
    error: float | None = None

    def __str__(self) -> str:
        lines = [f"{len(self.into)} batch norms folded, {len(self.left)} left"]
        lines += [f"  {name}: {why}" for name, why in self.left.items()]
        return "\n".join([*lines, *([] if self.error is None else [f"error on the example: {self.error:.1e}"])])


@dataclass(frozen=True)
class _Norm:
    """A batch norm in the graph: y = activation(x·a + b + residual)."""

    name: str
    node: fx.Node
    input: Any
    residual: Any
    activation: str | None
    a: Tensor
    b: Tensor
    rank: int | None  # of the input, if the class of the layer determines it
    behind: tuple[nn.Module, ...] = ()  # called on the output by the layer itself


def fold(model: nn.Module, example: Any = None) -> fx.GraphModule:
    """Fold every batch norm into the convolution, transposed convolution or linear layer before or after it.

    With a = γ/√(σ² + eps) and b = β − μ·a: conv(x)·a + b is a convolution with weight W·a and bias c·a + b; and
    conv(x·a + b) is one with weight W·a and bias c + ΣW·b, if conv does not pad with zeros (or b is 0). The new weights
    are computed in float64.

    The order of operations is taken from the traced graph (`torch.fx`), not from names; if torch.fx cannot trace, from
    `torch.export` on the example. The result is a new model in evaluation mode, a `torch.fx.GraphModule` of plain torch
    modules, or of torch's operators; `model` stays as it is. The result's `report` (a `Folded`) lists the batch norms
    that were folded, and those that were not with the reason: another operation in between, a module used several
    times, statistics of the batch. Arguments of `forward` that have defaults keep these, unless the example has them.

    Args:
        model: in evaluation mode. Of averaged weights (`torch.optim.swa_utils.AveragedModel`), the model inside is
            folded.
        example: an input, or a tuple of inputs. It gives the shapes, without which nothing can be folded into linear
            and one-dimensional layers (their channels may be in another dimension). Both models are compared on it.

    Raises:
        ValueError: the model is in training mode, has a batch norm that was never trained, or its dataflow depends
            on the data. RuntimeError: the outputs on the example differ by more than rounding.

    Examples:
        >>> import torch, batchnorm as bn
        >>> from torch import nn
        >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU())
        >>> _ = model(torch.randn(16, 3, 8, 8))
        >>> folded = bn.fold(model.eval(), example=torch.randn(2, 3, 8, 8))
        >>> print([type(m).__name__ for m in folded.children()], folded.report.error < 1e-5)
        ['Conv2d', 'ReLU'] True

    Source: Jacob et al. 2018, "Quantization and Training of Neural Networks", equation 14.
    """
    require_model(model)
    modes = [name or "the model" for name, m in model.named_modules() if m.training and (not name or _learns(m))]
    if modes:
        raise ValueError(f"{', '.join(modes)} is in training mode, where batches normalise themselves: call .eval()")
    model = model.module if isinstance(model, AveragedModel) else model
    inputs = None if example is None else example if isinstance(example, tuple) else (example,)
    root, graph = _traced(copy.deepcopy(model), inputs)
    _refuse_untrained(root, graph)
    if inputs is not None:
        with torch.no_grad():
            ShapeProp(graph).propagate(*inputs)
    report = Folded()
    for node in list(graph.graph.nodes):
        norm = _norm_of(graph, node)
        if isinstance(norm, _Norm):
            before = _fold_before(graph, norm)
            after = _fold_after(graph, norm) if isinstance(before, str) else None
            if isinstance(before, Linear):
                report.into[norm.name] = label(before.node)
            elif isinstance(after, Linear):
                report.into[norm.name] = label(after.node)
            else:
                report.left[norm.name] = f"{before}; {after}"
        elif norm is not None:
            report.left[norm[0]] = norm[1]
    graph.graph.eliminate_dead_code()
    graph.delete_all_unused_submodules()
    graph.graph.lint()
    graph.recompile()
    _revert_left(graph)
    if inputs is not None:
        report.error = _error(model, graph, inputs)
    keep_in_copies(graph, "report", report)
    return graph


class _Tracer(fx.Tracer):
    """Traces through every module except torch's own and our batch norms, which are recorded as one node each."""

    def is_leaf_module(self, m: nn.Module, name: str) -> bool:
        return isinstance(m, BatchNorm) or super().is_leaf_module(m, name)


def _traced(model: nn.Module, inputs: tuple[Any, ...] | None) -> tuple[nn.Module, fx.GraphModule]:
    parameters = list(inspect.signature(model.forward).parameters.values())
    given = 0 if inputs is None else len(inputs)
    fixed = {p.name: p.default for p in parameters[given:] if p.default is not p.empty}
    tracer = _Tracer()
    try:
        # torch.fx always traces the forward of the outermost module: a model that is a leaf is wrapped to stay one.
        root = nn.Sequential(model) if tracer.is_leaf_module(model, "") else model
        return root, fx.GraphModule(root, tracer.trace(root, fixed if root is model else None)).eval()
    except Exception as error:
        return model, _by_export(model, inputs, error)


def _by_export(model: nn.Module, inputs: tuple[Any, ...] | None, symbolic: Exception) -> fx.GraphModule:
    """The graph that torch.export records on the example, for a forward that torch.fx cannot trace.

    Raises:
        ValueError: there is no example, or torch.export cannot follow the model either.
    """
    what = f"the dataflow of {type(model).__name__} cannot be followed, so nothing was folded: {symbolic}."
    cure = "Fold the parts whose dataflow does not depend on the data, or take the dependence out of forward"
    if inputs is None:
        raise ValueError(f"{what} With an example, torch.export is tried as well. {cure}") from symbolic
    try:
        with torch.no_grad():
            return exported(model, inputs).eval()
    except Exception as error:
        first = str(error).strip().splitlines()[0]
        raise ValueError(f"{what} torch.export on the example: {first}. {cure}") from error


def _norm_of(graph: fx.GraphModule, node: fx.Node) -> _Norm | tuple[str, str] | None:
    """The batch norm at `node`; its name and the reason if it cannot be folded; None for any other node."""
    if node.op == "call_module":
        layer: Any = graph.get_submodule(str(node.target))
        return _norm_of_module(graph, node, layer) if isinstance(layer, _BatchNorm) else None
    if node.op == "call_function" and node.target in (F.batch_norm, BATCH_NORM):
        v = _arguments(node)
        mean, var = tensor_at(graph, v.get("running_mean")), tensor_at(graph, v.get("running_var"))
        name = str(v["running_mean"].target).rpartition(".")[0] if mean is not None else node.name
        weight, bias = tensor_at(graph, v["weight"]), tensor_at(graph, v["bias"])
        known = [(weight, v["weight"]), (bias, v["bias"])]
        if mean is None or var is None or v["training"] is not False:
            return name, "it normalises by the batch"
        if any(t is None and value is not None for t, value in known):
            return name, "its weight or bias is computed"
        a, b = _affine(mean, var, weight, bias, v["eps"])
        return _Norm(name, node, v["input"], None, None, a, b, None)
    return None


def _arguments(node: fx.Node) -> dict[str, Any]:
    """The arguments of a functional batch norm, by name."""
    if node.target is BATCH_NORM:
        return dict(zip(BATCH_NORM_ARGUMENTS, node.args, strict=False)) | node.kwargs
    named = normalize_function(F.batch_norm, node.args, node.kwargs, normalize_to_only_use_kwargs=True)
    return named.kwargs if named else {}


def _norm_of_module(graph: fx.GraphModule, node: fx.Node, layer: Any) -> _Norm | tuple[str, str]:
    name = str(node.target)
    arguments = dict(zip(("input", "residual"), node.args, strict=False)) | node.kwargs
    at = layer.banks[layer._domain] if getattr(layer, "_domain", None) is not None else layer
    if at.running_mean is None:
        return name, "it normalises by the batch: it has no running statistics"
    if has_hooks(layer):
        return name, "it has hooks"
    if sum(other.op == "call_module" and other.target == node.target for other in graph.graph.nodes) > 1:
        return name, "it is used several times"
    if arguments.get("mask") is not None or arguments.get("lengths") is not None:
        return name, "it takes a mask"
    affine = at if at.affine else layer
    a, b = _affine(at.running_mean, at.running_var, affine.weight, affine.bias, layer.eps)
    rank = 4 if isinstance(layer, nn.BatchNorm2d) else 5 if isinstance(layer, nn.BatchNorm3d) else None
    activation = getattr(layer, "activation", None)
    behind = tuple(m for m in layer.behind() if type(m) is not nn.Identity) if isinstance(layer, NormAct) else ()
    return _Norm(name, node, arguments["input"], arguments.get("residual"), activation, a, b, rank, behind)


def _affine(mean: Tensor, var: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> tuple[Tensor, Tensor]:
    a = (var.detach().double() + eps).rsqrt()
    a = a if weight is None else a * weight.detach().double()
    b = -mean.detach().double() * a
    return a, b if bias is None else b + bias.detach().double()


def _fold_before(graph: fx.GraphModule, norm: _Norm) -> Linear | str:
    """Fold into the layer before; returns the reason if that cannot be done."""
    map = linear_of(graph, norm.input)
    if isinstance(map, str):
        return f"before: {map}"
    if _users(map.node) != {norm.node} or norm.residual is map.node:
        return f"before: the output of {label(map.node)} is used elsewhere too"
    if unknown := _elsewhere(norm, map):
        return f"before: {unknown}"
    replace(graph, map, *scaled_after(map, norm.a, norm.b))
    result = map.node
    with graph.graph.inserting_before(norm.node):
        if norm.residual is not None:
            result = graph.graph.call_function(operator.add, (result, norm.residual))
        if norm.activation is not None:
            result = graph.graph.call_function(ACTIVATIONS[norm.activation][0], (result,))
        for number, module in enumerate(norm.behind):
            name = f"{norm.name}.behind{number}".replace(".", "_")
            graph.add_submodule(name, module)
            result = graph.graph.call_module(name, (result,))
    norm.node.replace_all_uses_with(result)
    graph.graph.erase_node(norm.node)
    return map


def _fold_after(graph: fx.GraphModule, norm: _Norm) -> Linear | str:
    """Fold into the layer after; returns the reason if that cannot be done."""
    if norm.activation is not None or norm.residual is not None or norm.behind:
        return "after: it has an activation or a residual"
    users = _users(norm.node)
    if len(users) != 1:
        return f"after: its output is used {len(users)} times"
    map = linear_of(graph, next(iter(users)))
    if isinstance(map, str):
        return f"after: {map}"
    if map.kind == "transposed":
        return f"after: {label(map.node)} is a transposed convolution, whose border sees less of the shift"
    if map.pads and bool(norm.b.any()):
        return f"after: {label(map.node)} pads with zeros, which are not shifted"
    if unknown := _elsewhere(norm, map):
        return f"after: {unknown}"
    replace(graph, map, *scaled_before(map, norm.a, norm.b))
    norm.node.replace_all_uses_with(norm.input)
    graph.graph.erase_node(norm.node)
    return map


def _elsewhere(norm: _Norm, map: Linear) -> str | None:
    """The reason if the channels of the norm and the map may be in different dimensions, or None."""
    meta = norm.input.meta.get("tensor_meta") if isinstance(norm.input, fx.Node) else None
    rank = norm.rank if meta is None else len(meta.shape)
    if rank is None:
        return f"the rank of its input is not known; give an example to fold it into {label(map.node)}"
    if rank != map.rank:
        return f"the channels of {label(map.node)} are another dimension"
    return None


def _users(node: fx.Node) -> set[fx.Node]:
    """The nodes that use the values of a node, not only its shape."""

    def of_shape(user: fx.Node) -> bool:
        return (user.target is getattr and user.args[1] in ("shape", "ndim", "dtype", "device")) or (
            (user.op == "call_method" and user.target in ("size", "dim")) or user.target in OF_SHAPE
        )

    return {user for user in node.users if not of_shape(user)}


def _revert_left(graph: fx.GraphModule) -> None:
    """Revert the layers of ours that were not folded, if torch's layers can do the same."""
    more = {node.target for node in graph.graph.nodes if len(node.args) + len(node.kwargs) > 1}
    for name, layer in graph.named_modules():
        if isinstance(layer, BatchNorm) and name not in more:
            with suppress(ValueError):
                revert(layer)


def _learns(module: nn.Module) -> bool:
    return isinstance(module, _BatchNorm) and not getattr(module, "frozen", False)


def _refuse_untrained(root: nn.Module, graph: fx.GraphModule) -> None:
    used = {str(n.target) for n in graph.graph.nodes if n.op == "call_module"}
    used |= {str(n.target).rpartition(".")[0] for n in graph.graph.nodes if n.op == "get_attr"}
    untrained = [
        name
        for name, m in root.named_modules()  # of a call of F.batch_norm, the graph has the tensors only
        if name in used
        and isinstance(m, _BatchNorm)
        and m.running_mean is not None
        and m.running_var is not None
        and not m.running_mean.any()
        and bool((m.running_var == 1).all())
    ]
    if untrained:
        raise ValueError(
            f"never trained: {', '.join(untrained)} would normalise by mean 0 and variance 1. Train the model, load "
            "its weights, or bn.calibrate it"
        )


def _error(model: nn.Module, graph: nn.Module, inputs: tuple[Any, ...]) -> float:
    with torch.no_grad():
        expected, got = (
            [t for t in tree_leaves(m(*inputs)) if isinstance(t, Tensor) and t.is_floating_point()]
            for m in (model, graph)
        )
    worst = 0.0
    for a, b in zip(expected, got, strict=True):
        scale = a.double().abs().max().item() or 1.0
        error = (a.double() - b.double()).abs().max().item() / scale
        worst = max(worst, error)
        if not error <= TOLERANCE[a.dtype]:
            raise RuntimeError(
                f"the folded model differs from the model by {error:.1e} of its largest output on the example, where "
                f"{TOLERANCE[a.dtype]:.0e} is allowed: the model depends on something the traced graph leaves out"
            )
    return worst
