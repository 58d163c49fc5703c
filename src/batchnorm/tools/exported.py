"""The graph that torch.export records of a model on an example: operators of torch and the model's tensors."""

from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import Dim, export

from batchnorm.core.torch_internals import tree_map

aten = torch.ops.aten
LINEAR: dict[Any, str] = {
    **dict.fromkeys((aten.conv1d.default, aten.conv1d.padding), "convolution"),
    **dict.fromkeys((aten.conv2d.default, aten.conv2d.padding), "convolution"),
    **dict.fromkeys((aten.conv3d.default, aten.conv3d.padding), "convolution"),
    aten.conv_transpose1d.default: "transposed",
    aten.conv_transpose2d.input: "transposed",
    aten.conv_transpose3d.input: "transposed",
    aten.linear.default: "linear",
}
BATCH_NORM = aten.batch_norm.default
BATCH_NORM_ARGUMENTS = ("input", "weight", "bias", "running_mean", "running_var", "training", "momentum", "eps")
OF_SHAPE = (aten.sym_size.int,)


def exported(model: nn.Module, inputs: tuple[Any, ...]) -> fx.GraphModule:
    """The model as a graph, for any size of the first dimension of its inputs if the model allows it.

    Raises:
        Exception: the error of torch.export for a model that it cannot trace.
    """
    sizes = tree_map(lambda value: {0: Dim.AUTO} if isinstance(value, Tensor) and value.dim() else None, inputs)
    recorded = export(model, inputs, dynamic_shapes=sizes).module()
    for node in recorded.graph.nodes:
        if node.op == "call_module" and node.target == "_guards_fn":  # it compares inputs with the example
            recorded.graph.erase_node(node)
            break
    return fx.GraphModule(recorded, recorded.graph)
