"""Freezing that survives `.train()`: the running statistics normalise and are not updated; γ and β train or not."""

from typing import TypeVar

from torch import nn

from batchnorm.tools.convert import convert
from batchnorm.training.own_layers import own_layers

Model = TypeVar("Model", bound=nn.Module)


def freeze(model: Model, affine: bool = False) -> Model:
    """Normalise by the running statistics in every batch norm of `model`, in training too; they are not updated.

    γ and β go on learning, unless `affine` freezes them as well. torch's own layers are converted first. The
    `state_dict` records that a layer is frozen, also as a plain dict or a file of tensors alone (safetensors):
    `num_batches_tracked` is an int32 there, with `affine` of shape (1,); its value stays. torch's layers load this
    `state_dict` too. Returns the model.

    Raises:
        ValueError: a layer has no running statistics; then none is frozen.

    Examples:
        >>> import batchnorm as bn
        >>> from torch import nn
        >>> model = bn.freeze(nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8))).train()
        >>> model[1].frozen
        'statistics'
    """
    layers = own_layers(convert(model))
    for layer in layers:
        if layer.running_mean is None:
            raise ValueError(f"{layer!r} has no running statistics to normalise by: it cannot be frozen")
    for layer in layers:
        layer.freeze(affine)
    return model


def unfreeze(model: Model) -> Model:
    """Undo `freeze`: batches normalise and update the running statistics again; γ and β train. Returns the model.

    Examples:
        >>> import batchnorm as bn
        >>> from torch import nn
        >>> bn.unfreeze(bn.freeze(nn.BatchNorm1d(8), affine=True)).weight.requires_grad
        True
    """
    for layer in own_layers(model):
        layer.unfreeze()
    return model
