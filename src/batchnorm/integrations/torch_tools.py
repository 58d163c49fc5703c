"""Wrappers of torch's tools that would drop the options of our layers.

`nn.SyncBatchNorm.convert_sync_batchnorm` would make plain layers of ours, and the functions that merge a convolution
with a batch norm would drop an activation. `inform` wraps these functions of torch: for torch's own layers nothing
changes.
"""

import functools
import sys
from collections.abc import Callable
from typing import Any

from torch import nn
from torch.ao.quantization import fuser_method_mappings
from torch.nn.utils import fusion

from batchnorm.core.torch_internals import fuser_methods
from batchnorm.integrations.norm_act import BatchNormAct2d, NormAct, SyncBatchNormAct
from batchnorm.layers import BatchNorm, BatchNorm1d, BatchNorm2d, BatchNorm3d, SyncBatchNorm
from batchnorm.tools.convert import revert

# For each class of ours, the one that shares statistics by default and is a subclass of torch's `SyncBatchNorm`.
SYNCHRONISED: dict[type[nn.Module], type[BatchNorm]] = {
    **dict.fromkeys((BatchNorm1d, BatchNorm2d, BatchNorm3d), SyncBatchNorm),
    BatchNormAct2d: SyncBatchNormAct,
}


def inform() -> None:
    """Wrap torch's functions, once."""
    if not hasattr(nn.SyncBatchNorm.convert_sync_batchnorm, "__wrapped__"):
        theirs = nn.SyncBatchNorm.convert_sync_batchnorm.__func__  # type: ignore[attr-defined]
        nn.SyncBatchNorm.convert_sync_batchnorm = classmethod(_synchronising(theirs))  # type: ignore[assignment]
        for name in ("fuse_conv_bn_eval", "fuse_linear_bn_eval"):
            wrapped = _merging(getattr(fusion, name))
            for place in (fusion, nn.utils):
                if hasattr(place, name):
                    setattr(place, name, wrapped)
        fuser_methods().update(_fusers())


def _synchronising(theirs: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(theirs)
    def convert_sync_batchnorm(cls: Any, module: Any, process_group: Any = None) -> Any:
        if not isinstance(module, BatchNorm):
            return theirs(cls, module, process_group)
        _inform_lightning()
        return share(module, True if process_group is None else process_group)

    return convert_sync_batchnorm


def share(layer: BatchNorm, process_group: Any, change_class: bool = True) -> BatchNorm:
    """Have a layer of ours share its statistics; with `change_class` it becomes an instance of torch's class for that.

    Raises:
        ValueError: the layer has virtual batches.
    """
    if layer.virtual_batch_size is not None:
        raise ValueError(
            f"{layer.label()} has virtual_batch_size={layer.virtual_batch_size}, which process_group excludes. "
            "Take it off (layer.set_options(virtual_batch_size=None)), then bn.convert(model, sync=True)"
        )
    if layer._before_sharing is None:
        layer._before_sharing = type(layer), layer.process_group
    if change_class and not isinstance(layer, nn.SyncBatchNorm) and (sync := SYNCHRONISED.get(type(layer))):
        layer.__class__ = sync
    return layer.set_options(process_group=process_group)


def unshare(layer: BatchNorm) -> BatchNorm:
    """Undo `share`."""
    if layer._before_sharing is not None:
        kind, group = layer._before_sharing
        layer.__class__, layer._before_sharing = kind, None
        layer.set_options(process_group=group)
    return layer


def _inform_lightning() -> None:
    """Lightning turns any SyncBatchNorm into a plain layer; our layers get their old class back."""
    for package in ("lightning.pytorch", "pytorch_lightning"):
        plugin = getattr(sys.modules.get(f"{package}.plugins.layer_sync"), "TorchSyncBatchNorm", None)
        if plugin is not None and not hasattr(plugin.revert, "__wrapped__"):
            plugin.revert = _reverting(plugin.revert)


def _reverting(theirs: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(theirs)
    def revert(plugin: Any, model: Any) -> Any:
        return unshare(model) if isinstance(model, BatchNorm) else theirs(plugin, model)

    return revert


def _merging(theirs: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(theirs)
    def merge(linear: Any, bn: Any, *others: Any, **named: Any) -> Any:
        if isinstance(bn, BatchNorm) and (more := _beyond_torch(bn)):
            raise ValueError(
                f"{theirs.__name__} would drop {more} of {bn.label()}. Use bn.fold(model, example), which keeps it"
            )
        return theirs(linear, bn, *others, **named)

    return merge


def _beyond_torch(layer: BatchNorm) -> str | None:
    """The effects of a layer in evaluation that do not come from its tensors: its activation and the like."""
    if layer.activation is not None:
        return f"activation={layer.activation!r}"
    behind = layer.behind() if isinstance(layer, NormAct) else ()
    names = [type(module).__name__ for module in behind if type(module) is not nn.Identity]
    return " and ".join(names) or None


def _fusers() -> dict[tuple[type[nn.Module], ...], Callable[..., Any]]:
    """The functions by which `torch.ao.quantization.fuse_modules` and `fuse_modules_qat` merge our layers.

    Quantisation works on torch's own layers: our layers become torch's, and an activation becomes a module.
    """
    found: dict[tuple[type[nn.Module], ...], Callable[..., Any]] = {}
    convolutions = {BatchNorm1d: nn.Conv1d, BatchNorm2d: nn.Conv2d, BatchNorm3d: nn.Conv3d}
    for ours, convolution in convolutions.items():
        found[convolution, ours] = _fuse_convolution
        found[convolution, ours, nn.ReLU] = _fuse_convolution
    found[nn.Linear, BatchNorm1d] = _fuse_linear
    return found


def _fuse_convolution(is_qat: bool, convolution: nn.Module, norm: Any, relu: nn.Module | None = None) -> nn.Module:
    if norm.activation not in (None, "relu") or (norm.activation and relu is not None):
        raise ValueError(
            f"quantisation merges a convolution, a batch norm and a ReLU; {norm.label()} has activation="
            f"{norm.activation!r}. Revert the layers first: bn.revert(model, expand=True)"
        )
    if norm.activation:
        relu = nn.ReLU().train(norm.training)
    norm = _of_torch(norm)
    if relu is None:
        return fuser_method_mappings.fuse_conv_bn(is_qat, convolution, norm)
    return fuser_method_mappings.fuse_conv_bn_relu(is_qat, convolution, norm, relu)


def _fuse_linear(is_qat: bool, linear: nn.Module, norm: Any) -> nn.Module:
    if norm.activation is not None:
        raise ValueError(
            f"quantisation merges a linear layer and a batch norm; {norm.label()} has activation={norm.activation!r}. "
            "Revert the layers first: bn.revert(model, expand=True)"
        )
    return fuser_method_mappings.fuse_linear_bn(is_qat, linear, _of_torch(norm))


def _of_torch(norm: BatchNorm) -> nn.Module:
    return revert(norm.set_options(activation=None))
