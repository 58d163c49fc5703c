"""The layers: state and options. What they compute is in `functional`."""

from typing import Any, Self, get_args

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn.modules.batchnorm import _BatchNorm

from batchnorm.functional import batch_norm
from batchnorm.kernels.reference import ACTIVATIONS, statistics_dtype
from batchnorm.population import NonFinite

OPTIONS: dict[str, tuple[Any, ...]] = {"activation": (None, *ACTIVATIONS), "nonfinite": get_args(NonFinite)}


class BatchNorm(_BatchNorm):
    """Batch normalization of an input of any rank, (N, C, *).

    y = activation((x − μ) / √(σ² + eps) · γ + β + residual), per channel. In training μ and σ² (biased) are the
    batch's; in evaluation they are the population's, the running statistics that training has moved:
    running ← (1 − momentum)·running + momentum·batch (with the unbiased variance), or with ``momentum=None`` the
    average over all batches so far. Without running statistics the batch's are used in evaluation too.

    A drop-in for torch's: same signature, state_dict and errors. `BatchNorm1d`, `BatchNorm2d` and `BatchNorm3d` are
    this layer for one rank, as subclasses of torch's classes.

    Args:
        num_features: C, the size of dimension 1.
        eps: added to the variance.
        momentum: the weight of the newest batch in the running statistics, or None for a plain average.
        affine: whether there are γ (`weight`) and β (`bias`).
        track_running_stats: whether there are running statistics.
        bias: whether β is among the affine parameters.
        activation: "relu", "leaky_relu", "silu", "gelu" or "hardswish", applied in the same pass.
        nonfinite: what a channel with NaN or Inf in its batch does to the running statistics: "skip", "raise" or
            "propagate" (torch's way).

    Shape:
        input, residual and output: (N, C, *), the output in the input's dtype and memory format.

    Raises:
        ValueError: an input of the wrong rank, one value per channel in training, an unknown option.
        RuntimeError: another number of channels than `num_features`, or a dtype that does not fit.

    >>> import torch, batchnorm as bn
    >>> layer = bn.BatchNorm(3)
    >>> x = torch.randn(64, 3, 8, 8) * 10 + 5
    >>> y = layer(x)
    >>> bool(y.mean().abs() < 1e-6), bool((y.std(correction=0) - 1).abs() < 1e-4)
    (True, True)

    Source: Ioffe & Szegedy 2015, algorithms 1 and 2.
    """

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        bias: bool = True,
        activation: str | None = None,
        nonfinite: NonFinite = "skip",
    ) -> None:
        super().__init__(
            num_features, eps, momentum, affine, track_running_stats, device=device, dtype=dtype, bias=bias
        )
        self.set_options(activation=activation, nonfinite=nonfinite)

    # Options at their defaults live on the class: a layer converted from torch's, or pickled by it, has them too.
    activation: str | None = None
    nonfinite: NonFinite = "skip"

    def set_options(self, **options: Any) -> Self:
        """Set the options beyond torch's, by their names in the constructor; returns the layer.

        Raises:
            TypeError: an unknown option.
            ValueError: an unknown value; then none is set.
        """
        for name, value in options.items():
            if name not in OPTIONS:
                raise TypeError(f"unknown option {name!r}; there are {', '.join(OPTIONS)}")
            if value not in OPTIONS[name]:
                raise ValueError(f"{name} must be one of {', '.join(map(repr, OPTIONS[name]))}, got {value!r}")
        for name, value in options.items():
            setattr(self, name, value)
        return self

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() < 2:
            raise ValueError(f"expected at least 2D input (N, C, *) (got {input.dim()}D input)")

    def forward(self, input: Tensor, residual: Tensor | None = None) -> Tensor:
        self._check_input_dim(input)
        learns = self.training and self.track_running_stats
        momentum: float | Tensor = 0.0 if self.momentum is None else self.momentum
        if learns and self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
            if self.momentum is None:
                count = self.num_batches_tracked
                momentum = 1.0 / count.to(statistics_dtype(count))  # 1 / an integer tensor is float32
        # Running statistics that are not tracked are not written to: in training they are not passed.
        known = learns or not self.training
        return batch_norm(
            input,
            self.running_mean if known else None,
            self.running_var if known else None,
            self.weight,
            self.bias,
            self.training or (self.running_mean is None and self.running_var is None),
            momentum,
            self.eps,
            residual=residual,
            activation=self.activation,
            nonfinite=self.nonfinite,
        )

    def extra_repr(self) -> str:
        changed = [f"{k}={v!r}" for k in OPTIONS if (v := getattr(self, k)) != getattr(BatchNorm, k)]
        return ", ".join([super().extra_repr(), *changed])


class BatchNorm1d(BatchNorm, nn.BatchNorm1d):
    """`BatchNorm` for (N, C) or (N, C, L), a subclass of `torch.nn.BatchNorm1d`."""

    _check_input_dim = nn.BatchNorm1d._check_input_dim


class BatchNorm2d(BatchNorm, nn.BatchNorm2d):
    """`BatchNorm` for (N, C, H, W), a subclass of `torch.nn.BatchNorm2d`."""

    _check_input_dim = nn.BatchNorm2d._check_input_dim


class BatchNorm3d(BatchNorm, nn.BatchNorm3d):
    """`BatchNorm` for (N, C, D, H, W), a subclass of `torch.nn.BatchNorm3d`."""

    _check_input_dim = nn.BatchNorm3d._check_input_dim


class SyncBatchNorm(BatchNorm, nn.SyncBatchNorm):
    """`BatchNorm` whose place in a network is that of `torch.nn.SyncBatchNorm`, a subclass of it.

    In a process group of several ranks it computes what torch's does, by torch's own code (which needs a GPU);
    everywhere else it is plain `BatchNorm`.
    """

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        process_group: Any | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **keywords: Any,
    ) -> None:
        super().__init__(num_features, eps, momentum, affine, track_running_stats, device, dtype, **keywords)
        self.process_group = process_group

    def forward(self, input: Tensor, residual: Tensor | None = None) -> Tensor:
        if not (self.training and dist.is_available() and dist.is_initialized() and self._world_size() > 1):
            return super().forward(input, residual)
        y = nn.SyncBatchNorm.forward(self, input)
        y = y if residual is None else y + residual
        return y if self.activation is None else ACTIVATIONS[self.activation][0](y)

    def _world_size(self) -> int:
        return dist.get_world_size(self.process_group or dist.group.WORLD)
