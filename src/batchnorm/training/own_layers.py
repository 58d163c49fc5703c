"""The batch norms of this package inside a model."""

from torch import nn

from batchnorm.layers import BatchNorm


def own_layers(model: nn.Module) -> list[BatchNorm]:
    """Our batch norms in the model, in its order; torch's are left out."""
    return [m for m in model.modules() if isinstance(m, BatchNorm)]


def require_own_layers(model: nn.Module) -> list[BatchNorm]:
    """Our batch norms in the model, for a tool that would do nothing without one.

    Raises:
        ValueError: the model has none.
    """
    layers = own_layers(model)
    if not layers:
        raise ValueError("this model has no batch norm of ours: bn.convert(model) first")
    return layers
