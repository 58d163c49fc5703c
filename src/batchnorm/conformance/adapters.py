"""Batch norms of other frameworks under the names of torch's layer. Each imports its framework when it is made."""

from typing import Any

import torch
from torch import Tensor, nn


class KerasBatchNorm(nn.Module):
    """`keras.layers.BatchNormalization` on Keras's torch backend: set ``KERAS_BACKEND=torch``.

    Keras counts no batches, and its momentum is the weight of what was.
    """

    def __init__(self, num_features: int, eps: float = 1e-5, momentum: float = 0.1) -> None:
        super().__init__()
        self.num_features, self.eps, self.momentum = num_features, eps, momentum
        self._build(torch.float32)

    def _build(self, dtype: torch.dtype) -> None:
        import keras

        name = str(dtype).removeprefix("torch.")
        self.layer: Any = keras.layers.BatchNormalization(
            axis=1, epsilon=self.eps, momentum=1 - self.momentum, dtype=name
        )
        self.layer.build((None, self.num_features, None, None))

    def to(self, dtype: torch.dtype) -> "KerasBatchNorm":  # type: ignore[override]
        """The layer anew in another dtype: Keras converts inputs to the one that it was made with."""
        self._build(dtype)
        return self

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x, training=self.training)

    @property
    def weight(self) -> Tensor:
        return self.layer.gamma.value

    @property
    def bias(self) -> Tensor:
        return self.layer.beta.value

    @property
    def running_mean(self) -> Tensor:
        return self.layer.moving_mean.value

    @property
    def running_var(self) -> Tensor:
        return self.layer.moving_variance.value


class TimmBatchNorm(nn.Module):
    """Makes timm's `BatchNormAct2d` without its activation."""

    def __new__(cls, num_features: int, **options: Any) -> Any:
        from timm.layers import BatchNormAct2d

        return BatchNormAct2d(num_features, apply_act=False, **options)
