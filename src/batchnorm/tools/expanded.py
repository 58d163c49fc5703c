"""A batch norm with an activation or a residual as separate modules, for tools that support torch's layers only."""

from typing import Any

from torch import Tensor, nn

from batchnorm.layers import BatchNorm

MODULES: dict[str | None, Any] = {
    "relu": nn.ReLU,
    "relu6": nn.ReLU6,
    "leaky_relu": nn.LeakyReLU,
    "silu": nn.SiLU,
    "gelu": nn.GELU,
    "hardswish": nn.Hardswish,
    None: nn.Identity,
}


class Expanded(nn.Module):
    """activation(norm(input) + residual), as separate steps."""

    def __init__(self, norm: nn.Module, activation: nn.Module) -> None:
        super().__init__()
        self.norm, self.activation = norm, activation

    def forward(self, input: Tensor, residual: Tensor | None = None) -> Tensor:
        y = self.norm(input)
        return self.activation(y if residual is None else y + residual)


def expand(model: nn.Module, taken: set[nn.Module]) -> Any:
    """Replace each batch norm with an activation by an `Expanded`, except those whose activation `revert` removes."""
    new: dict[nn.Module, Expanded] = {}
    for layer in list(model.modules()):
        if isinstance(layer, BatchNorm) and layer.activation is not None and layer not in taken:
            new[layer] = Expanded(layer, MODULES[layer.activation]())
            layer.set_options(activation=None)
    for module in list(model.modules()):
        for name, child in module._modules.items():
            if child in new:
                module._modules[name] = new[child]
    return new.get(model, model)
