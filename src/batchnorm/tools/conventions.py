"""Small translations: weight-decay groups for optimizers, and layers from Keras and Flax."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from batchnorm.layers import BatchNorm


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Two groups for an optimizer: weights decay; biases, γ and β (anything of fewer than two dimensions) do not.

    Decaying γ pulls the scale of a layer to 0, which no batch norm after it restores; a weight that a batch norm
    follows has no scale of its own, and decay only sets its effective learning rate.

    Examples:
        >>> import torch, batchnorm as bn
        >>> from torch import nn
        >>> model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
        >>> optimizer = torch.optim.SGD(bn.parameter_groups(model, weight_decay=1e-4), lr=0.1)
        >>> for group in optimizer.param_groups:
        ...     print(len(group["params"]), group["weight_decay"])
        1 0.0001
        3 0.0

    Source: He et al. 2019, "Bag of tricks for image classification", section 3.1 (no bias decay).
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
    """A layer that computes what a Keras BatchNormalization does, its arrays and settings given.

    The momentum of Keras is the share of the old value, torch's that of the new one: 0.99 becomes 0.01. Keras
    remembers the biased variance; it is taken as it is, and later batches add unbiased ones. Its default epsilon is
    1e-3. The channels of the input must be in dimension 1.

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
    """A layer that computes what a Flax BatchNorm does: its "batch_stats" (mean, var) and "params" (scale, bias).

    Momentum and variance are as in Keras; the default epsilon is 1e-5.

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
