"""Storage for tensors outside of the device or the process memory: a file, or the memory of the host."""

import tempfile
import threading
import weakref
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor


class Shelf(Protocol):
    """Storage for the bytes of tensors: `write` returns a place, which `read` and `free` take."""

    def takes(self, t: Tensor) -> bool:
        """True for a tensor that is not stored in this kind of place already."""

    def write(self, raw: Tensor) -> Any:
        """Keep a copy of bytes (uint8, one dimension); returns its place."""

    def read(self, place: Any, raw: Tensor) -> None:
        """Write the bytes from a place to a tensor of that size."""

    def free(self, place: Any) -> None:
        """Allow the place to be used again."""

    def close(self) -> None:
        """Free all places."""


class FileShelf:
    """A temporary file in a folder; closing deletes it.

    It is read and written, not mapped into memory: mapped pages would count as memory of the process again.
    """

    def __init__(self, folder: Path) -> None:
        self._file = tempfile.TemporaryFile(dir=folder, buffering=0)  # noqa: SIM115  # closed by `close`
        self._lock = threading.Lock()  # the thread that fetches ahead reads too
        self._end = 0
        self._free: dict[int, list[int]] = {}  # places by size: sizes recur

    def takes(self, t: Tensor) -> bool:
        """All tensors."""
        return True

    def write(self, raw: Tensor) -> tuple[int, int]:
        """Write to a free place of that size, or at the end of the file."""
        view = raw.cpu().numpy().data
        with self._lock:
            free = self._free.get(len(view))
            place = free.pop() if free else self._end
            self._end = max(self._end, place + len(view))
            self._file.seek(place)
            done = 0
            while done < len(view):
                done += self._file.write(view[done:])
        return place, len(view)

    def read(self, place: tuple[int, int], raw: Tensor) -> None:
        """Read the bytes; without a copy if `raw` is on the CPU."""
        host = raw if raw.is_cpu else torch.empty_like(raw, device="cpu")
        view, done = host.numpy().data, 0
        with self._lock:
            self._file.seek(place[0])
            while done < len(view):
                got = self._file.readinto(view[done:])
                if not got:
                    raise OSError(f"the file that big_batch keeps tensors in ends early, at {place[0] + done} bytes")
                done += got
        if host is not raw:
            raw.copy_(host)

    def free(self, place: tuple[int, int]) -> None:
        """Make the place free for the next tensor of that size."""
        with self._lock:
            self._free.setdefault(place[1], []).append(place[0])

    def close(self) -> None:
        """Delete the file."""
        self._file.close()


class HostShelf:
    """The host's memory, for the tensors of an accelerator."""

    def takes(self, t: Tensor) -> bool:
        """True for tensors of an accelerator."""
        return not t.is_cpu

    def write(self, raw: Tensor) -> Tensor:
        """Copy into pinned memory if there is CUDA, so that reading needs no second copy."""
        host = torch.empty(raw.shape, dtype=raw.dtype, device="cpu", pin_memory=raw.is_cuda)
        return host.copy_(raw)

    def read(self, place: Tensor, raw: Tensor) -> None:
        """Copy the bytes, and return when the copy is complete."""
        raw.copy_(place)

    def free(self, place: Tensor) -> None:
        """Do nothing: the memory is freed with the tensor."""

    def close(self) -> None:
        """Do nothing: no memory is held."""


def shelf_for(offload: Any) -> Shelf | None:
    """The shelf that `big_batch(offload=)` asks for.

    Raises:
        ValueError: a folder that does not exist.
        TypeError: neither "cpu" nor a path.
    """
    if offload is None:
        return None
    if not isinstance(offload, str | Path):
        raise TypeError(f"expected offload to be 'cpu', a folder or None, got {offload!r}")
    if offload == "cpu":
        return HostShelf()
    if not Path(offload).is_dir():
        raise ValueError(f"expected offload to be 'cpu' or a folder that exists, got {str(offload)!r}")
    return FileShelf(Path(offload))


class Kept:
    """A tensor on a shelf. Its place is freed with this object."""

    before: "weakref.ref[Kept] | None" = None  # the tensor that was kept just before it

    def __init__(self, shelf: Shelf, t: Tensor) -> None:
        self.shelf, self.shape, self.dtype, self.device = shelf, t.shape, t.dtype, t.device
        dense = torch.empty_like(t, device="meta").stride() == t.stride()
        t = t.detach() if dense else t.detach().contiguous()
        self.stride = t.stride()
        self._coming: Future[Tensor] | None = None
        self._place = shelf.write(_raw(t))

    def fetch(self, pool: ThreadPoolExecutor) -> None:
        """Start to read the tensor, in a thread of `pool`."""
        if self._coming is None:
            self._coming = pool.submit(self._read)

    def forget(self) -> None:
        """Drop the tensor that was fetched ahead, or cancel the fetch if it has not started."""
        if self._coming is not None:
            self._coming.cancel()
            self._coming = None

    def get(self) -> Tensor:
        """A copy of the tensor, with the stored strides."""
        coming, self._coming = self._coming, None
        return self._read() if coming is None else coming.result()

    def _read(self) -> Tensor:
        t = torch.empty_strided(self.shape, self.stride, dtype=self.dtype, device=self.device)
        self.shelf.read(self._place, _raw(t))
        return t

    def __del__(self) -> None:
        if hasattr(self, "_place"):
            self.shelf.free(self._place)


def _raw(t: Tensor) -> Tensor:
    """The bytes of a dense tensor, in the order of its storage."""
    return t.as_strided((t.numel(),), (1,)).view(torch.uint8)
