"""The classes that `convert` and `revert` turn into one another.

Layers of torch's four classes and of those of `register` change their class and nothing else. Layers of other packages
are recognised by class name, so that nothing is imported, and the first of each class is compared with ours on small
inputs.
"""

import copy
import importlib
from collections.abc import Callable
from typing import Any, NamedTuple

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from batchnorm.integrations import frozen, norm_act
from batchnorm.layers import BatchNorm, BatchNorm1d, BatchNorm2d, BatchNorm3d, SyncBatchNorm
from batchnorm.tools.probe import bare_copy, disagreement

_ours: dict[type[nn.Module], type[BatchNorm]] = {
    nn.BatchNorm1d: BatchNorm1d,
    nn.BatchNorm2d: BatchNorm2d,
    nn.BatchNorm3d: BatchNorm3d,
    nn.SyncBatchNorm: SyncBatchNorm,
}


class Known(NamedTuple):
    """Layers of another package: functions that recognise them, convert them, and revert the conversion."""

    is_it: Callable[[type[nn.Module]], bool]
    ours: type[BatchNorm]
    enter: Callable[[Any, type[BatchNorm]], None]
    leave: Callable[[Any], None]


def _change_class(module: Any, ours: type[BatchNorm]) -> None:
    module.__class__ = ours


def _nothing(module: Any) -> None:
    return None


KNOWN = (
    Known(norm_act.is_norm_act, norm_act.BatchNormAct2d, _change_class, _nothing),
    Known(norm_act.is_sync_norm_act, norm_act.SyncBatchNormAct, _change_class, _nothing),
    Known(frozen.is_frozen, frozen.FrozenBatchNorm2d, frozen.enter, frozen.leave),
    Known(frozen.is_frozen_act, frozen.FrozenBatchNormAct2d, frozen.enter, frozen.leave),
)
_found_different: dict[type[nn.Module], str | None] = {}  # classes of KNOWN that were compared with ours


def register(theirs: type[nn.Module], ours: type[BatchNorm], *, example: nn.Module | None = None) -> None:
    """Have `convert` turn layers of exactly the class `theirs` into `ours`, and `revert` turn them back.

    `theirs` must keep its state as torch's batch norms do, and `ours` must compute the same as `theirs`: outputs,
    gradients and statistics of both are compared on small inputs.

    Args:
        theirs: a subclass of torch's batch norms, not of ours.
        ours: a subclass of `BatchNorm`, counterpart of no other class.
        example: a layer of the class `theirs`; needed if ``theirs(num_features)`` does not make one.

    Raises:
        TypeError: `theirs` is not a batch norm of torch's kind, or `ours` is not one of ours.
        ValueError: the two compute different things, or `ours` already is the counterpart of another class.

    Examples:
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
            raise ValueError(f"{ours.__name__} already is the counterpart of {other.__name__}; make a subclass of it")
    different = _difference(example if example is not None else _example(theirs), _change_class, ours)
    if different is not None:
        raise ValueError(f"{ours.__name__} does not compute what {theirs.__name__} computes: {different}")
    _ours[theirs] = ours


def knows(module: nn.Module) -> bool:
    """True if `make_ours` would try to turn the module into ours."""
    return type(module) in _ours or any(known.is_it(type(module)) for known in KNOWN)


def make_ours(module: Any) -> str | None:
    """Convert a known layer to ours, in place; returns the reason if it was left as it is, or None.

    For a module that is not a batch norm, it returns None too.
    """
    theirs = type(module)
    if theirs in _ours:
        module.__class__ = _ours[theirs]
        return None
    if isinstance(module, BatchNorm):
        return None
    known = next((k for k in KNOWN if k.is_it(theirs)), None)
    if known is not None:
        if theirs not in _found_different:
            _found_different[theirs] = _difference(module, known.enter, known.ours)
        if (why := _found_different[theirs]) is not None:
            return f"it does not compute what {known.ours.__name__} does ({why})"
        known.enter(module, known.ours)
        module._theirs = theirs.__module__, theirs.__qualname__
        return None
    if isinstance(module, nn.modules.lazy.LazyModuleMixin) and isinstance(module, _BatchNorm):
        return "not materialised: run a batch through the model first"
    if isinstance(module, _BatchNorm):
        return (
            "a subclass of torch's, which may compute something else: "
            f"batchnorm.register({theirs.__name__}, ...) if it does not"
        )
    return None


def counterpart(layer: BatchNorm) -> type[nn.Module] | None:
    """The class that `revert` gives to a layer of ours, or None."""
    if layer._theirs is not None:
        module, name = layer._theirs
        found: Any = importlib.import_module(module)
        for part in name.split("."):
            found = getattr(found, part)
        return found
    return next((theirs for theirs, ours in _ours.items() if ours is type(layer)), None)


def leave(layer: BatchNorm) -> None:
    """Remove the attributes that a layer of another package got when it was converted."""
    for known in KNOWN:
        if known.ours is type(layer):
            known.leave(layer)


def _example(theirs: type[nn.Module]) -> nn.Module:
    try:
        return theirs(6)
    except Exception as error:
        raise TypeError(
            f"{theirs.__name__}(6) makes no layer to compare ({error}); pass register(..., example=a layer)"
        ) from error


def _difference(module: nn.Module, enter: Callable[[Any, type[BatchNorm]], None], ours: type[BatchNorm]) -> str | None:
    if any(t.is_meta for t in module.state_dict().values()):
        return None  # there are no values to compare
    theirs = bare_copy(module)
    twin: Any = copy.deepcopy(theirs)
    try:
        enter(twin, ours)
        return disagreement(theirs, twin)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
