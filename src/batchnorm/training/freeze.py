"""Freeze batch norms so that they stay frozen after `.train()`; γ and β still train unless `affine`."""

from typing import TypeVar

from torch import nn

from batchnorm.tools.convert import convert
from batchnorm.training.own_layers import own_layers

Model = TypeVar("Model", bound=nn.Module)


def freeze(model: Model, affine: bool = False) -> Model:
    """Normalise by the running statistics in every batch norm of `model`, in training too, and do not update them.

    torch's own layers are converted first. The `state_dict` records that a layer is frozen: `num_batches_tracked` is an
    int32 there, and has the shape (1,) with `affine`; its value is the same. So files of tensors alone (safetensors)
    record it too. torch's layers load this `state_dict` as well.

    Args:
        model: changed in place.
        affine: True to stop the training of γ and β too.

    Returns:
        The model.

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
    """Undo `freeze`: training normalises by the batch and updates the running statistics again; γ and β train.

    Layers that were not frozen stay as they are.

    Args:
        model: changed in place.

    Returns:
        The model.

    Examples:
        >>> import batchnorm as bn
        >>> from torch import nn
        >>> bn.unfreeze(bn.freeze(nn.BatchNorm1d(8), affine=True)).weight.requires_grad
        True
    """
    for layer in own_layers(model):
        layer.unfreeze()
    return model
