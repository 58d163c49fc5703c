"""Batch norms of other frameworks under the names of torch's layer. Each imports its framework when it is made."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


class KerasBatchNorm(nn.Module):
    """`keras.layers.BatchNormalization` on Keras's torch backend: set ``KERAS_BACKEND=torch``.

    Keras counts no batches, and its momentum is the weight of the old value.
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
        """Make the layer again in another dtype: Keras converts inputs to the dtype that a layer was made with."""
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


class FlaxBatchNorm(nn.Module):
    """`flax.linen.BatchNorm` on (N, C, *), differentiated by JAX.

    Flax counts no batches, and its momentum is the weight of the old value. JAX arrays have no memory format: the
    output gets the input's.
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, num_features: int, eps: float = 1e-5, momentum: float = 0.1) -> None:
        super().__init__()
        import jax
        from flax import linen

        jax.config.update("jax_enable_x64", True)
        self.layer: Any = linen.BatchNorm(axis=1, epsilon=eps, momentum=1 - momentum)
        self.weight, self.bias = nn.Parameter(torch.ones(num_features)), nn.Parameter(torch.zeros(num_features))
        self.register_buffer("running_mean", torch.zeros(num_features))
        self.register_buffer("running_var", torch.ones(num_features))

    def forward(self, x: Tensor) -> Tensor:
        training, mean, var = self.training, _to_jax(self.running_mean), _to_jax(self.running_var)

        def call(x: Any, scale: Any, bias: Any) -> tuple[Any, ...]:
            variables = {"params": {"scale": scale, "bias": bias}, "batch_stats": {"mean": mean, "var": var}}
            y, moved = self.layer.apply(variables, x, use_running_average=not training, mutable=["batch_stats"])
            return y, moved["batch_stats"]["mean"], moved["batch_stats"]["var"]

        y, mean_after, var_after = _Jax.apply(call, x, self.weight, self.bias)
        if training:
            with torch.no_grad():
                self.running_mean.copy_(mean_after)
                self.running_var.copy_(var_after)
        return torch.empty_like(x).copy_(y)


class _Jax(torch.autograd.Function):
    """A function of JAX arrays, called with tensors. Its derivative is one too: derivatives of every order exist."""

    @staticmethod
    def forward(ctx: Any, function: Callable[..., Any], *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.function = function
        ctx.save_for_backward(*tensors)
        return tuple(torch.from_dlpack(result).clone() for result in function(*map(_to_jax, tensors)))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        import jax

        tensors, function = ctx.saved_tensors, ctx.function

        def derivative(*arrays: Any) -> Any:
            inputs, arriving = arrays[: len(tensors)], arrays[len(tensors) :]
            return jax.vjp(function, *inputs)[1](arriving)

        return None, *_Jax.apply(derivative, *tensors, *grads)


def _to_jax(tensor: Tensor) -> Any:
    """A copy as a JAX array: JAX holds its arrays to be constant."""
    import jax

    return jax.numpy.array(jax.dlpack.from_dlpack(tensor.detach().contiguous()), copy=True)
