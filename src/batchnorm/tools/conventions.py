"""Weight-decay groups for optimizers, and layers made from the arrays of Keras and Flax."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from batchnorm.layers import BatchNorm


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Group a model's parameters for an optimizer: weights decay; biases, γ and β do not.

    All parameters of fewer than two dimensions have no decay. Weight decay on γ pulls the scale of the layer's
    output towards 0. A weight before a batch norm is different: its scale does not change the output, so decay only
    changes its effective learning rate.

    Args:
        model: its parameters that require a gradient are taken.
        weight_decay: of the first group, the parameters of two dimensions or more.

    Returns:
        Two groups: parameters with weight decay, and parameters without.

    Examples:
        >>> import torch, batchnorm as bn
        >>> from torch import nn
        >>> model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
        >>> optimizer = torch.optim.SGD(bn.parameter_groups(model, weight_decay=1e-4), lr=0.1)
        >>> for group in optimizer.param_groups:
        ...     print(len(group["params"]), group["weight_decay"])
        1 0.0001
        3 0.0

    Source: He et al. 2019, "Bag of Tricks for Image Classification with Convolutional Neural Networks"
    (arXiv:1812.01187), section 3.1 (no bias decay).
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    return [
        {"params": [p for p in parameters if p.dim() > 1], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.dim() <= 1], "weight_decay": 0.0},
    ]


def from_keras(
    moving_mean: Any,
    moving_variance: Any,
    gamma: Any = None,
    beta: Any = None,
    *,
    momentum: float = 0.99,
    epsilon: float = 1e-3,
) -> BatchNorm:
    """Make a layer from the arrays and settings of a Keras BatchNormalization.

    In evaluation both compute the same. In training Keras updates its moving variance by the biased variance of the
    batch, and this layer by the unbiased one, as torch does. The channels of the input must be in dimension 1.

    Args:
        moving_mean: (C,), an array, a tensor or a list; so are the next three.
        moving_variance: (C,).
        gamma: γ (C,), or None for 1.
        beta: β (C,), or None for 0.
        momentum: as in Keras, the weight of the old value: 0.99 becomes torch's 0.01.
        epsilon: added to the variance.

    Returns:
        A `BatchNorm`.

    Raises:
        RuntimeError: an array that does not fit the number of channels of `moving_mean`.

    Examples:
        >>> import batchnorm as bn
        >>> layer = bn.from_keras([1.0, 2.0], [4.0, 9.0], gamma=[1.0, 1.0], beta=[0.0, 0.0])
        >>> round(layer.momentum, 6), layer.eps, layer.running_var.tolist()
        (0.01, 0.001, [4.0, 9.0])
    """
    layer = BatchNorm(len(moving_mean), eps=epsilon, momentum=1 - momentum)
    values = {"running_mean": moving_mean, "running_var": moving_variance, "weight": gamma, "bias": beta}
    with torch.no_grad():
        for name, value in values.items():
            if value is not None:
                getattr(layer, name).copy_(torch.as_tensor(value))
    return layer


def from_flax(
    batch_stats: Mapping[str, Any],
    params: Mapping[str, Any] | None = None,
    *,
    momentum: float = 0.99,
    epsilon: float = 1e-5,
) -> BatchNorm:
    """Make a layer from the variables of a Flax BatchNorm.

    In evaluation both compute the same; in training the variance differs as in `from_keras`.

    Args:
        batch_stats: "mean" and "var", each (C,).
        params: "scale" (γ) and "bias" (β), each (C,) or left out; None for neither.
        momentum: as in Flax, the weight of the old value: 0.99 becomes torch's 0.01.
        epsilon: added to the variance.

    Returns:
        A `BatchNorm`.

    Raises:
        KeyError: `batch_stats` without "mean" or "var".
        RuntimeError: an array that does not fit the number of channels.

    Examples:
        >>> import batchnorm as bn
        >>> bn.from_flax({"mean": [1.0], "var": [4.0]}, {"scale": [3.0]}).weight.item()
        3.0
    """
    params = params or {}
    return from_keras(
        batch_stats["mean"],
        batch_stats["var"],
        params.get("scale"),
        params.get("bias"),
        momentum=momentum,
        epsilon=epsilon,
    )
