"""Frozen batch norms of torchvision, timm, detectron and transformers, which are no subclasses of torch's batch norms.

They hold γ, β and the statistics as buffers, and always normalise by the statistics. Those packages are not imported.
"""

from typing import Any

from torch import Tensor, nn

from batchnorm.integrations.norm_act import NormAct
from batchnorm.layers import BatchNorm, BatchNorm2d

BUFFERS = {"weight", "bias", "running_mean", "running_var"}


class FrozenBatchNorm2d(BatchNorm2d):
    """A frozen layer of ours that replaces another package's, for (N, C, H, W).

    γ and β are parameters without a gradient. `bn.unfreeze` makes it a batch norm that trains. The `state_dict` has the
    keys of the other package's layer: no `num_batches_tracked`. The output has the dtype of the input.
    """

    def freeze(self, affine: bool = False) -> None:
        super().freeze(affine or self.frozen == "all")

    def _load_from_state_dict(self, state_dict: Any, prefix: str, local_metadata: Any, *args: Any) -> None:
        state_dict.pop(f"{prefix}num_batches_tracked", None)  # of a checkpoint with layers that are not frozen
        super()._load_from_state_dict(state_dict, prefix, local_metadata | {"version": 2}, *args)


class FrozenBatchNormAct2d(NormAct, FrozenBatchNorm2d):
    """timm's `FrozenBatchNormAct2d`: activation(drop(frozen batch norm)), for (N, C, H, W)."""


def is_frozen(theirs: type[nn.Module]) -> bool:
    """True if the class has the name of such a layer; `probe` then compares what it computes."""
    return theirs.__name__.endswith("FrozenBatchNorm2d") and not issubclass(theirs, BatchNorm)


def is_frozen_act(theirs: type[nn.Module]) -> bool:
    return theirs.__name__ == "FrozenBatchNormAct2d" and not issubclass(theirs, BatchNorm)


def enter(module: Any, ours: type[BatchNorm]) -> None:
    """Turn another package's frozen layer into ours, in place.

    Raises:
        AttributeError: the layer has other buffers.
    """
    found = {name for name, buffer in module._buffers.items() if isinstance(buffer, Tensor)}
    if found - {"num_batches_tracked"} != BUFFERS or module._parameters:
        raise AttributeError(f"expected the buffers {', '.join(sorted(BUFFERS))}, got {', '.join(sorted(found))}")
    for name in ("weight", "bias"):
        module._parameters[name] = nn.Parameter(module._buffers.pop(name), requires_grad=False)
    module._buffers["num_batches_tracked"] = None
    given = vars(module)
    added = {
        "num_features": module._parameters["weight"].numel(),
        "eps": given.get("eps", 1e-5),
        "momentum": 0.1,
        "affine": True,
        "track_running_stats": True,
    }
    given["_added"] = tuple(name for name in added if name not in given)
    given.update({name: value for name, value in added.items() if name not in given})
    module.__class__ = ours
    module.frozen = "all"


def leave(module: Any) -> None:
    """Undo `enter`, except for the class."""
    for name in ("weight", "bias"):
        module._buffers[name] = module._parameters.pop(name).detach()
    buffers = module._buffers
    for name in ("weight", "bias", "running_mean", "running_var"):  # their order in the state_dict
        buffers[name] = buffers.pop(name)
    del buffers["num_batches_tracked"]
    for name in module.__dict__.pop("_added"):
        del module.__dict__[name]
