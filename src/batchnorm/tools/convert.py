"""Swap every batch norm of a model for ours, and back.

A layer changes its class in place: it stays the same object with the same parameters, buffers, hooks, names and flags,
so optimizers, shared modules and references to it go on as they were.
"""

import warnings
from typing import Any, Literal, TypeVar

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from batchnorm.layers import BatchNorm, BatchNorm1d, BatchNorm2d, BatchNorm3d, SyncBatchNorm
from batchnorm.tools import fuse as fusion
from batchnorm.training import recompute as recomputation

Model = TypeVar("Model", bound=nn.Module)

_ours: dict[type[nn.Module], type[BatchNorm]] = {
    nn.BatchNorm1d: BatchNorm1d,
    nn.BatchNorm2d: BatchNorm2d,
    nn.BatchNorm3d: BatchNorm3d,
    nn.SyncBatchNorm: SyncBatchNorm,
}


def register(theirs: type[nn.Module], ours: type[BatchNorm]) -> None:
    """Have `convert` turn layers of exactly the class `theirs` into `ours`, and `revert` turn them back.

    `theirs` must keep its state as torch's batch norms do, and `ours` must compute what it computes.

    Raises:
        TypeError: `theirs` is not a batch norm of torch's kind, or `ours` is not one of ours.
        ValueError: `ours` already stands for another class, so `revert` would not know the way back.

    >>> import batchnorm as bn
    >>> from torch import nn
    >>> class Theirs(nn.BatchNorm2d):
    ...     "One more name for the same thing."
    >>> class Ours(bn.BatchNorm2d):
    ...     "Its counterpart."
    >>> bn.register(Theirs, Ours)
    >>> type(bn.convert(Theirs(3))).__name__, type(bn.revert(bn.convert(Theirs(3)))).__name__
    ('Ours', 'Theirs')
    """
    if not issubclass(theirs, _BatchNorm) or issubclass(theirs, BatchNorm):
        raise TypeError(f"{theirs.__name__} must be a subclass of torch's batch norms, and not of ours")
    if not issubclass(ours, BatchNorm):
        raise TypeError(f"{ours.__name__} must be a subclass of batchnorm.BatchNorm")
    for other, counterpart in _ours.items():
        if counterpart is ours and other is not theirs:
            raise ValueError(f"{ours.__name__} already stands for {other.__name__}; make a subclass of it")
    _ours[theirs] = ours


def counterpart(module: nn.Module) -> type[BatchNorm] | None:
    """Our class for a layer of torch's, or of a class that was registered; None for every other module."""
    return _ours.get(type(module))


def convert(
    model: Model,
    *,
    fuse: bool = False,
    sync: bool = False,
    recompute: bool | Literal["chain"] = False,
    **options: Any,
) -> Model:
    """Turn every batch norm of `model` that is torch's own into ours, in place; returns the model.

    Layers of exactly the registered classes (torch's four, and those of `register`) are converted. Subclasses may
    behave in their own way: they are left as they are and named in a warning. `options` are those of `BatchNorm`
    beyond torch's; they are also set on layers that are ours already. `sync` shares statistics between all ranks, and
    is short for ``process_group=True``. `recompute` puts the hooks of `bn.recompute` on the model, until `revert`.

    Raises:
        TypeError, ValueError: a bad option; then nothing is changed.

    >>> import batchnorm as bn
    >>> from torch import nn
    >>> model = bn.convert(nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)))
    >>> type(model[1])
    <class 'batchnorm.layers.BatchNorm2d'>
    """
    options |= {"process_group": True} if sync else {}
    recomputation.check(recompute)
    BatchNorm(1).set_options(**options)  # complains before anything is changed
    strangers = []
    for name, module in model.named_modules():
        if type(module) in _ours:
            module.__class__ = _ours[type(module)]
        elif isinstance(module, _BatchNorm) and not isinstance(module, BatchNorm):
            strangers.append(f"{name or '(the model itself)'} ({_why_left(module)})")
        if isinstance(module, BatchNorm):
            module.set_options(**options)._name = name
    if fuse:
        fusion.fuse(model)
    if recompute:
        recomputation.attach(model, recompute)
    if strangers:
        warnings.warn(f"left as they are: {', '.join(strangers)}", stacklevel=2)
    return model


def revert(model: Model) -> Model:
    """Turn our batch norms in `model` back into torch's, in place; returns the model. Undoes `convert`.

    Raises:
        ValueError: a layer computes what torch's class cannot, an activation say; then nothing is changed.

    >>> import batchnorm as bn
    >>> from torch import nn
    >>> type(bn.revert(bn.convert(nn.BatchNorm2d(8))))
    <class 'torch.nn.modules.batchnorm.BatchNorm2d'>
    """
    theirs = {ours: class_ for class_, ours in _ours.items()}
    layers = [(name or "(the model itself)", m) for name, m in model.named_modules() if isinstance(m, BatchNorm)]
    taken = fusion.fused(model)
    stuck = [f"{name} (activation={m.activation!r})" for name, m in layers if m.activation and m not in taken]
    stuck += [f"{name} (frozen)" for name, m in layers if m.frozen]
    stuck += [f"{name} (populations {', '.join(m.banks)})" for name, m in layers if hasattr(m, "banks")]
    stuck += [f"{name} ({type(m).__name__} has no counterpart)" for name, m in layers if type(m) not in theirs]
    if stuck:
        raise ValueError(
            f"torch's batch norm cannot do what these layers do: {', '.join(stuck)}. "
            "Take the option off (layer.set_options), or register a counterpart; nothing was changed"
        )
    fusion.unfuse(model)
    recomputation.detach(model)
    for _, module in layers:
        group = module.process_group
        for name in BatchNorm.__annotations__:  # all that our class adds to torch's
            module.__dict__.pop(name, None)
        module.__class__ = theirs[type(module)]  # type: ignore[assignment]
        if isinstance(module, nn.SyncBatchNorm):  # there it is torch's
            module.process_group = None if group is True else group
    return model


def _why_left(module: nn.Module) -> str:
    if isinstance(module, nn.modules.lazy.LazyModuleMixin):
        return f"{type(module).__name__} is not materialised: run a batch through the model first"
    return f"{type(module).__name__} is a subclass of torch's: batchnorm.register it if it only adds a name"
