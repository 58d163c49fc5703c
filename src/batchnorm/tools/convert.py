"""Convert the batch norms of a model to ours, and revert the conversion.

A layer changes its class in place: it stays the same object with the same parameters, buffers, hooks, names and flags,
so optimizers, shared modules and references to it stay valid.
"""

import warnings
from collections import defaultdict
from typing import Any, Literal, TypeVar, Unpack

from torch import nn

from batchnorm.core.rules import ConvertOptions
from batchnorm.integrations.frozen import FrozenBatchNorm2d
from batchnorm.integrations.norm_act import NormAct
from batchnorm.layers import BatchNorm
from batchnorm.tools import expanded, registry
from batchnorm.tools import fuse as fusion
from batchnorm.training import recompute as recomputation

Model = TypeVar("Model", bound=nn.Module)
Left = dict[tuple[str, str], list[str]]  # class and reason → names of layers


def convert(
    model: Model,
    *,
    fuse: bool = False,
    sync: bool = False,
    recompute: bool | Literal["chain"] = False,
    **options: Unpack[ConvertOptions],
) -> Model:
    """Turn every batch norm of `model` into ours, in place; returns the model.

    Layers of exactly the registered classes are converted: torch's four, and those of `register`. Layers of other
    packages that are recognised by class name are converted too: timm's batch norms with an activation, and the frozen
    ones of torchvision, timm, detectron and transformers, as frozen layers. Other subclasses may compute something
    else: they stay as they are and are named in one warning, grouped by class.

    Args:
        model: changed in place.
        fuse: True to have the batch norms also apply the activations and residual additions that follow them.
        sync: share statistics between all ranks; short for ``process_group=True``.
        recompute: True to apply `bn.recompute` to the model until `revert`; "chain" for its option ``chain=True``.
        **options: options of `BatchNorm`, also set on layers that are ours already. An option that is not given stays
            as it is.

    Raises:
        TypeError, ValueError: a bad option, or a class in place of a model; then nothing is changed.

    Examples:
        >>> import batchnorm as bn
        >>> from torch import nn
        >>> model = bn.convert(nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)))
        >>> type(model[1])
        <class 'batchnorm.layers.BatchNorm2d'>
    """
    require_model(model)
    if sync:
        options["process_group"] = True
    recomputation.check(recompute)
    BatchNorm(1).set_options(**options)  # raises an error before anything is changed
    left: Left = defaultdict(list)
    for name, module in model.named_modules():
        theirs = type(module).__name__
        if why := registry.make_ours(module):
            left[theirs, why].append(name or "(the model itself)")
        if isinstance(module, BatchNorm):
            module.set_options(**options)._name = name
        if isinstance(module, NormAct):
            fusion.take_own_activation(module)
    if fuse:
        fusion.fuse(model)
    if recompute:
        recomputation.attach(model, recompute)
    if left:
        warnings.warn(_said_of(left), stacklevel=2)
    return model


def revert(model: Model, *, expand: bool = False) -> Any:
    """Turn our batch norms in `model` back into torch's, in place; returns the model. Undoes `convert`.

    Args:
        model: changed in place.
        expand: True to replace a layer with an activation by a small module that does the same with torch's layers,
            `batchnorm.tools.expanded.Expanded`; its keys in the `state_dict` begin with "norm.". Tools that look for
            torch's layers, for example for quantisation, then find all of them.

    Raises:
        ValueError: a layer computes what torch's class cannot, such as an activation; then nothing is changed.

    Examples:
        >>> import batchnorm as bn
        >>> from torch import nn
        >>> type(bn.revert(bn.convert(nn.BatchNorm2d(8))))
        <class 'torch.nn.modules.batchnorm.BatchNorm2d'>
    """
    taken = fusion.fused(model)
    if expand:
        model = expanded.expand(model, taken)
    layers = [(name or "(the model itself)", m) for name, m in model.named_modules() if isinstance(m, BatchNorm)]
    theirs = {m: registry.counterpart(m) for _, m in layers}
    stuck = [f"{name} (activation={m.activation!r})" for name, m in layers if m.activation and m not in taken]
    stuck += [f"{name} (frozen)" for name, m in layers if m.frozen and not isinstance(m, FrozenBatchNorm2d)]
    stuck += [f"{name} (not frozen)" for name, m in layers if not m.frozen and isinstance(m, FrozenBatchNorm2d)]
    stuck += [f"{name} (populations {', '.join(m.banks)})" for name, m in layers if hasattr(m, "banks")]
    stuck += [f"{name} ({type(m).__name__} has no counterpart)" for name, m in layers if theirs[m] is None]
    if stuck:
        raise ValueError(
            f"torch's batch norm cannot do what these layers do: {', '.join(stuck)}. "
            "Take the option off (layer.set_options), or register a counterpart; nothing was changed"
        )
    fusion.unfuse(model)
    recomputation.detach(model)
    for _, module in layers:
        group = module.process_group
        registry.leave(module)
        for name in BatchNorm.__annotations__:  # all that our class adds to torch's
            module.__dict__.pop(name, None)
        module.__class__ = theirs[module]  # type: ignore[assignment]
        if isinstance(module, nn.SyncBatchNorm):  # torch's class takes a group or None
            module.process_group = None if group is True else group
    return model


def require_model(model: Any) -> None:
    """Raise a TypeError if `model` is not a model."""
    if not isinstance(model, nn.Module):
        what = f"the class {model.__name__}: make one first" if isinstance(model, type) else repr(model)
        raise TypeError(f"expected a model, an nn.Module, got {what}")


NAMED = 5  # layers of a class that a warning names


def _said_of(left: Left) -> str:
    lines = []
    for (theirs, why), names in left.items():
        more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
        lines.append(f"{len(names)} × {theirs} ({', '.join(names[:NAMED])}{more}): {why}")
    return "batch norms left as they are: " + "; ".join(lines)
