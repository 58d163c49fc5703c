"""Convolutions, transposed convolutions and linear layers in a graph, with a scale and shift folded into them."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, fx, nn
from torch.nn import functional as F

from batchnorm.tools.exported import LINEAR

MODULES: dict[type[nn.Module], str] = {
    **dict.fromkeys((nn.Conv1d, nn.Conv2d, nn.Conv3d), "convolution"),
    **dict.fromkeys((nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d), "transposed"),
    nn.Linear: "linear",
}
FUNCTIONS: dict[Callable[..., Any], str] = {
    **dict.fromkeys((F.conv1d, F.conv2d, F.conv3d), "convolution"),
    **dict.fromkeys((F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d), "transposed"),
    F.linear: "linear",
    **LINEAR,
}
ARGUMENTS = {
    "convolution": ("input", "weight", "bias", "stride", "padding", "dilation", "groups"),
    "transposed": ("input", "weight", "bias", "stride", "padding", "output_padding", "groups", "dilation"),
    "linear": ("input", "weight", "bias"),
}


@dataclass(frozen=True)
class Linear:
    """A node of a graph that computes a linear map with a known weight."""

    node: fx.Node
    input: Any
    kind: str
    weight: Tensor
    bias: Tensor | None
    groups: int
    pads: bool  # with zeros, which a shift before the map does not change

    @property
    def rank(self) -> int:
        """The rank of its input, with a batch dimension and the channels (or features) in dimension 1."""
        return self.weight.dim()


def linear_of(graph: fx.GraphModule, node: Any) -> Linear | str:
    """`node` as a linear map, or the reason why it cannot be used as one."""
    if not isinstance(node, fx.Node):
        return "its input is a constant"
    if node.op == "call_module":
        module = graph.get_submodule(str(node.target))
        return _of_module(graph, node, module)
    if node.op == "call_function" and node.target in FUNCTIONS:
        return _of_function(graph, node)
    return f"its neighbour is {label(node)}"


def arguments(node: fx.Node) -> dict[str, Any]:
    """The arguments of a functional call by name. (torch.fx cannot tell the overloads of conv2d apart.)"""
    names = ARGUMENTS[FUNCTIONS[node.target]]  # type: ignore[index]
    return dict(zip(names, node.args, strict=False)) | node.kwargs


def label(node: fx.Node) -> str:
    """A description of a node for messages."""
    return node.target if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))


def tensor_at(graph: fx.GraphModule, node: Any) -> Tensor | None:
    """The parameter or buffer that a node fetches, or None if it is something else."""
    if not (isinstance(node, fx.Node) and node.op == "get_attr"):
        return None
    value: Any = graph
    for name in str(node.target).split("."):
        value = getattr(value, name)
    return value if isinstance(value, Tensor) else None


def has_hooks(module: nn.Module) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks)


def _of_module(graph: fx.GraphModule, node: fx.Node, module: Any) -> Linear | str:
    kind = MODULES.get(type(module))
    if kind is None:
        return f"its neighbour is {node.target} ({type(module).__name__})"
    if has_hooks(module):
        return f"{node.target} has hooks"
    if sum(other.op == "call_module" and other.target == node.target for other in graph.graph.nodes) > 1:
        return f"{node.target} is used several times"
    input = node.args[0] if node.args else node.kwargs["input"]
    pads = kind == "transposed" or (
        kind == "convolution" and module.padding_mode == "zeros" and _pads(module.padding, module.kernel_size)
    )
    return Linear(node, input, kind, module.weight, module.bias, getattr(module, "groups", 1), pads)


def _of_function(graph: fx.GraphModule, node: fx.Node) -> Linear | str:
    values = arguments(node)
    weight, bias = tensor_at(graph, values.get("weight")), tensor_at(graph, values.get("bias"))
    if weight is None or (bias is None and values.get("bias") is not None):
        return f"the weight of {label(node)} is computed"
    kind = FUNCTIONS[node.target]  # type: ignore[index]
    pads = kind == "transposed" or (kind == "convolution" and _pads(values.get("padding", 0), weight.shape[2:]))
    return Linear(node, values["input"], kind, weight, bias, values.get("groups", 1), pads)


def _pads(padding: Any, kernel: Any) -> bool:
    if isinstance(padding, str):
        return padding == "same" and any(k != 1 for k in kernel)
    return bool(padding) if isinstance(padding, int) else any(padding)


def scaled_after(map: Linear, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Weight and bias of map(x)·a + b, computed in float64; a and b have one value per output channel."""
    weight = map.weight.detach().double()
    if map.kind == "transposed":  # (inputs, outputs / groups, *)
        grouped = weight.unflatten(0, (map.groups, -1))
        factor = a.reshape(map.groups, 1, -1, *[1] * (weight.dim() - 2))
        weight = (grouped * factor).flatten(0, 1)
    else:
        weight = weight * a.reshape(-1, *[1] * (weight.dim() - 1))
    bias = b if map.bias is None else map.bias.detach().double() * a + b
    return weight.to(map.weight.dtype), bias.to(map.weight.dtype)


def scaled_before(map: Linear, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Weight and bias of map(x·a + b), computed in float64; a and b per input channel. Not for transposed ones."""
    weight = (
        map.weight.detach().double().unflatten(0, (map.groups, -1))
    )  # (groups, outputs / groups, inputs / groups, *)
    shape = map.groups, 1, -1, *[1] * (map.weight.dim() - 2)
    shift = (weight * b.reshape(shape)).flatten(2).sum(2).flatten()
    bias = shift if map.bias is None else map.bias.detach().double() + shift
    return (weight * a.reshape(shape)).flatten(0, 1).to(map.weight.dtype), bias.to(map.weight.dtype)


def replace(graph: fx.GraphModule, map: Linear, weight: Tensor, bias: Tensor) -> None:
    """Give a map in the graph another weight and bias; parameters that other nodes share stay as they are."""
    node, parameters = map.node, (nn.Parameter(weight, False), nn.Parameter(bias, False))
    if node.op == "call_module":
        module: Any = graph.get_submodule(str(node.target))
        parameters = tuple(  # type: ignore[assignment]
            p.requires_grad_(map.weight.requires_grad) for p in parameters
        )
        module.weight, module.bias = parameters
        return
    with graph.graph.inserting_before(node):
        names = []
        for part, parameter in zip(("weight", "bias"), parameters, strict=True):
            name = f"folded_{node.name}_{part}"
            graph.register_parameter(name, parameter)
            names.append(graph.graph.get_attr(name))
    values = arguments(node)
    node.args, node.kwargs = (), {**values, "weight": names[0], "bias": names[1]}
