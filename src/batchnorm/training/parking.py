"""Move the tensors of a waiting micro-batch out of memory: those that its graph or its code still refers to."""

import weakref
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from batchnorm.core.torch_internals import SavedTensorHooks, StorageWeakRef, owners_of_storage, past_function_modes
from batchnorm.training.returned_memory import returned_memory
from batchnorm.training.shelf import Kept, Shelf, shelf_for

SMALLEST = 2**14  # bytes: smaller tensors are not worth the transfer


class Parking:
    """The shelf of a big batch, and the tensors that stay in memory because all micro-batches read them."""

    def __init__(self, shelf: Shelf, shared: Iterable[Tensor], stream: torch.cuda.Stream | None = None) -> None:
        self.shelf, self.pool = shelf, ThreadPoolExecutor(1, "fetching ahead", _computes_in, (stream,))
        self.stays: set[int] = set()
        self.share(shared)

    def share(self, tensors: Iterable[Tensor]) -> None:
        """Keep these tensors and their views in memory."""
        self.stays |= {t.untyped_storage().data_ptr() for t in tensors if _is_plain(t)}

    def close(self) -> None:
        """Free everything; no tensor can be read after this."""
        self.pool.shutdown(cancel_futures=True)
        self.shelf.close()

    def takes(self, t: Tensor) -> bool:
        """True for a tensor worth moving that belongs to one micro-batch."""
        large = _is_plain(t) and t.numel() * t.element_size() >= SMALLEST and self.shelf.takes(t)
        return large and t.untyped_storage().data_ptr() not in self.stays


@contextmanager
def parking(offload: Any, model: nn.Module) -> Iterator[Parking | None]:
    """The `Parking` that `big_batch(offload=)` asks for, within a `with`; None if tensors stay in memory."""
    shelf = shelf_for(offload)
    if shelf is None:
        yield None
        return
    stream = torch.cuda.current_stream() if torch.cuda.is_initialized() else None
    found = Parking(shelf, [*model.parameters(), *model.buffers()], stream)
    try:
        with returned_memory():
            yield found
    finally:
        found.close()


class Parked:
    """The tensors of one micro-batch, which are on the shelf while the micro-batch waits."""

    def __init__(self, parking: Parking) -> None:
        self.parking = parking
        self._seen: dict[int, weakref.ref[Tensor]] = {}  # tensors that the code may still refer to
        self._known: dict[int, tuple[StorageWeakRef, int, Kept]] = {}  # copies of tensors in memory, by address
        self._out: list[tuple[Tensor, Kept]] = []
        self._last: weakref.ref[Kept] | None = None  # the tensor that was saved last
        self._next: weakref.ref[Kept] | None = None  # the tensor that the backward pass needs next

    @contextmanager
    def watching(self, hooks: SavedTensorHooks | None) -> Iterator[None]:
        """Move saved tensors to the shelf at once (after the caller's own hooks), others when the micro-batch waits."""
        pack, unpack = hooks or (None, None)
        with ExitStack() as stack:
            stack.enter_context(torch.autograd.graph.saved_tensors_hooks(
                lambda t: self._pack(t if pack is None else pack(t)), lambda kept: self._unpack(kept, unpack)
            ))  # fmt: skip
            stack.enter_context(_Watch(self))
            yield

    def see(self, t: Tensor) -> None:
        """Note a tensor that may be alive when the micro-batch next waits."""
        if self.parking.takes(t):
            self._seen[id(t)] = weakref.ref(t)

    def leave(self) -> None:
        """Move out every noted tensor that is still alive and shares its memory with no other."""
        self._forget_next()
        with past_function_modes():
            self._leave()

    def _leave(self) -> None:
        alive = {id(t): t for reference in self._seen.values() if (t := reference()) is not None}
        self._seen = {key: reference for key, reference in self._seen.items() if key in alive}
        for t in alive.values():
            if not t._is_view() and owners_of_storage(t) == 1:
                self._out.append((t, self._keep(t)))
                # in place, so that every reference to the tensor sees it; NaN shows a read by mistake
                t.data = torch.full((), torch.nan, dtype=t.dtype, device=t.device).expand(t.shape)
        self._known = {address: known for address, known in self._known.items() if not known[0].expired()}

    def fetch(self) -> None:
        """Start to read the tensors that were moved out, and those that the backward pass needs next."""
        for _, kept in self._out:
            kept.fetch(self.parking.pool)
        self._fetch_next()

    def _fetch_next(self) -> None:
        if self._next is not None and (kept := self._next()) is not None:
            kept.fetch(self.parking.pool)

    def _forget_next(self, but: Kept | None = None) -> None:
        if self._next is not None and (kept := self._next()) is not None and kept is not but:
            kept.forget()

    def come_back(self) -> None:
        """Put the tensors that were moved out back into memory."""
        out, self._out = self._out, []
        with past_function_modes():
            for t, kept in out:
                t.data = kept.get()
                self._note(t, kept)

    def _keep(self, t: Tensor) -> Kept:
        """A copy on the shelf; the earlier copy if the tensor has not been written to since."""
        if (known := self._known.get(t.data_ptr())) is not None:
            storage, version, kept = known
            alike = (kept.shape, kept.stride, kept.dtype) == (t.shape, t.stride(), t.dtype)
            if alike and version == t._version and not storage.expired():
                return kept
        kept = Kept(self.parking.shelf, t)
        self._note(t, kept)
        return kept

    def _note(self, t: Tensor, kept: Kept) -> None:
        self._known[t.data_ptr()] = StorageWeakRef(t.untyped_storage()), t._version, kept

    def _pack(self, saved: Any) -> Any:
        if not isinstance(saved, Tensor) or not self.parking.takes(saved):
            return saved
        with past_function_modes():
            kept = self._keep(saved)
        if kept.before is None and (self._last is None or self._last() is not kept):  # not saved once already
            kept.before = self._last
            self._last = weakref.ref(kept)
        return kept

    def _unpack(self, saved: Any, unpack: Callable[[Any], Tensor] | None) -> Tensor:
        if isinstance(saved, Kept):
            self._forget_next(but=saved)
            self._next = saved.before  # the backward pass reads in the opposite order
            self._fetch_next()
            with past_function_modes():
                kept, saved = saved, saved.get()
                self._note(saved, kept)
        return saved if unpack is None else unpack(saved)


class _Watch(TorchFunctionMode):
    """A mode that notes the tensors of a micro-batch's forward pass."""

    def __init__(self, parked: Parked) -> None:
        super().__init__()
        self.parked = parked

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for value in (*args, result):
            for t in value if isinstance(value, tuple | list) else (value,):
                if isinstance(t, Tensor) and t.grad_fn is not None:
                    self.parked.see(t)
        return result


def _computes_in(stream: torch.cuda.Stream | None) -> None:
    """Make copies to the device run in order with its computation."""
    if stream is not None:
        torch.cuda.set_stream(stream)


def _is_plain(t: Tensor) -> bool:
    return type(t) in (Tensor, nn.Parameter) and t.layout is torch.strided and not t.is_meta
