"""Batch norms with a built-in activation, as in timm, which is not imported."""

from typing import Any

from torch import Tensor, fx, nn

from batchnorm.core.fx_leaf import as_leaf
from batchnorm.layers import BatchNorm, BatchNorm2d, SyncBatchNorm

# Activations of other packages that compute what ours do, by package and name of the class.
ACTIVATIONS_BY_NAME = {("timm", "GELU"): "gelu", ("timm", "Swish"): "silu", ("timm", "SwishMe"): "silu"}


class NormAct(BatchNorm):
    """A batch norm, then `drop`, then `act`.

    If the batch norm applies the activation in its own pass, `act` stays as a child that is not called: `revert` and
    the names of the modules need it.
    """

    drop: nn.Module
    act: nn.Module

    def forward(
        self,
        input: Tensor,
        residual: Tensor | None = None,
        mask: Tensor | None = None,
        lengths: Tensor | None = None,
    ) -> Tensor:
        if type(input) is not Tensor and isinstance(input, fx.Proxy):
            return as_leaf(self, NormAct.forward, input, residual, mask, lengths)
        output = super().forward(input, residual, mask, lengths)
        for module in self.behind():
            output = module(output)
        return output

    def behind(self) -> tuple[nn.Module, ...]:
        """The modules that follow in the layer's own forward; none if the batch norm itself applies the activation."""
        if self._fused:
            return ()
        children = self._modules  # timm's synchronised layers may lack them
        return tuple(m for name in ("drop", "act") if (m := children.get(name)) is not None)


class BatchNormAct2d(NormAct, BatchNorm2d):
    """timm's `BatchNormAct2d`: activation(drop(batch norm)), for (N, C, H, W). `convert` turns timm's into this."""


class SyncBatchNormAct(NormAct, SyncBatchNorm):
    """timm's `SyncBatchNormAct`: activation(drop(batch norm)) with statistics shared between ranks."""


def is_norm_act(theirs: type[nn.Module]) -> bool:
    return _of_timm(theirs) and theirs.__name__ == "BatchNormAct2d"


def is_sync_norm_act(theirs: type[nn.Module]) -> bool:
    return _of_timm(theirs) and theirs.__name__ == "SyncBatchNormAct"


def _of_timm(theirs: type[Any]) -> bool:
    return theirs.__module__.partition(".")[0] == "timm"
