"""Triton's interpreter, made quicker for tests and with its programs in any order."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from unittest import mock


@contextmanager
def quickly() -> Iterator[None]:
    """Have the interpreter replace Triton's functions once for each launch and module.

    It replaces them in every call of every function otherwise, which takes most of its time.
    """
    from triton import language
    from triton.runtime import interpreter

    original, active = interpreter._patch_lang, set[int]()

    class Outer:
        def __init__(self, scope: Any) -> None:
            self.scope = scope

        def restore(self) -> None:
            active.clear()
            self.scope.restore()

    def patch(function: Any) -> Any:
        held = function.__globals__.values()
        key = sum(1 << i for i, module in enumerate((language, language.core)) if any(v is module for v in held))
        if key in active:
            return Outer(mock.Mock())
        active.add(key)
        return Outer(original(function))

    with mock.patch.object(interpreter, "_patch_lang", patch):
        yield


@contextmanager
def arriving(order: Sequence[int]) -> Iterator[None]:
    """The programs of launches as large as `order` run in this order."""
    from triton.runtime.interpreter import interpreter_builder

    original = interpreter_builder.set_grid_idx

    def set_grid_idx(x: int, y: int, z: int) -> None:
        original(order[x] if interpreter_builder.grid_dim[0] == len(order) else x, y, z)

    with mock.patch.object(interpreter_builder, "set_grid_idx", set_grid_idx):
        yield
