"""Outputs in large blocks are ordinary tensors: memory is reused only when no tensor needs it."""

import copy
import io
import os
import pickle
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils.dlpack import from_dlpack, to_dlpack

from .memory_library import MIB, idle, live, mapped, operators, output

SIZE = 8  # MiB


@pytest.fixture(autouse=True)
def no_idle_memory() -> None:
    operators().empty_cache()


def tensor_on(storage: torch.UntypedStorage) -> Tensor:
    return torch.empty(0).set_(storage)


def same(x: Tensor) -> Tensor:
    return x


# What holds the memory of a tensor, and how that is read once the tensor is gone.
HOLDERS: dict[str, tuple[Callable[[Tensor], Any], Callable[[Any], Any]]] = {
    "view": (lambda y: y[10:], same),
    "detached": (Tensor.detach, same),
    "set_": (lambda y: tensor_on(y.untyped_storage()), same),
    "lazy clone": (torch._lazy_clone, same),
    "storage": (Tensor.untyped_storage, tensor_on),
    "typed storage": (lambda y: y.storage().untyped(), tensor_on),
    "numpy": (Tensor.numpy, same),
    "memoryview": (lambda y: memoryview(y.numpy().data), same),
    "dlpack": (to_dlpack, from_dlpack),
}


@pytest.mark.filterwarnings("ignore:TypedStorage is deprecated")
@pytest.mark.parametrize(("hold", "read"), HOLDERS.values(), ids=HOLDERS)
def test_held_memory_is_not_used_again(hold: Callable[[Tensor], Any], read: Callable[[Any], Any]) -> None:
    y = output(SIZE, 1)
    start = y.data_ptr()
    holder = hold(y)
    del y
    others = [output(SIZE, 2) for _ in range(3)]
    assert start not in {other.data_ptr() for other in others}
    assert np.all(np.asarray(read(holder)) == 1)
    del holder
    assert output(SIZE).data_ptr() == start


def test_a_weak_reference_does_not_hold_memory_and_ends_with_it() -> None:
    y = output(SIZE, 1)
    start, reference = y.data_ptr(), StorageWeakRef(y.untyped_storage())
    assert not reference.expired()
    del y
    other = output(SIZE, 2)
    assert other.data_ptr() == start
    assert reference.expired()
    assert torch.UntypedStorage._new_with_weak_ptr(reference.cdata) is None
    assert other.eq(2).all()


def test_a_storage_that_is_resized_gets_other_memory() -> None:
    y = output(SIZE, 1)
    storage = y.untyped_storage()
    storage.resize_(2 * SIZE * MIB)
    assert (live(), idle()) == (2 * SIZE * MIB, SIZE * MIB)
    assert torch.empty(0).set_(storage)[: y.numel()].eq(1).all()
    storage.resize_(0)  # as FSDP does between uses
    assert live() == 0
    storage.resize_(100)
    assert live() == 0  # small: torch's own
    storage.resize_(SIZE * MIB)
    assert live() == SIZE * MIB
    del y, storage
    assert live() == 0


def test_a_tensor_that_is_resized_keeps_its_values() -> None:
    y = output(SIZE, 1)
    assert y.resize_(y.numel() + 5)[:-5].eq(1).all()


def open_files() -> list[str]:
    links = Path("/proc/self/fd").iterdir()
    return [os.readlink(link) for link in links if link.is_symlink()]


@pytest.mark.parametrize("strategy", ["file_descriptor", "file_system"])
def test_shared_copies_give_memory_back(strategy: str) -> None:
    """30 outputs of 8 MiB: 240 MiB of /dev/shm, if they stayed."""
    before = torch.multiprocessing.get_sharing_strategy()
    torch.multiprocessing.set_sharing_strategy(strategy)
    try:
        for i in range(30):
            y = output(SIZE, i).share_memory_()
            assert y.is_shared()
            assert y.eq(i).all()
            assert live() == 0  # the block came back when the storage moved to shared memory
            del y
    finally:
        torch.multiprocessing.set_sharing_strategy(before)
    assert "/dev/shm/" not in Path("/proc/self/maps").read_text()
    assert not any(name.startswith("/dev/shm/torch_") for name in open_files())
    mappings = mapped()
    assert not output(SIZE).is_shared()
    assert mapped() == mappings


def test_copies_are_equal_and_independent() -> None:
    y = output(SIZE, 1)
    file = io.BytesIO()
    torch.save(y, file)
    file.seek(0)
    for other in (copy.deepcopy(y), pickle.loads(pickle.dumps(y)), torch.load(file), y.clone()):
        assert torch.equal(other, y)
        other.zero_()
    lazy = torch._lazy_clone(y).zero_()
    assert y.eq(1).all()
    assert lazy.eq(0).all()


def test_threads_never_share_an_output() -> None:
    def work(i: int) -> bool:
        outputs = [output(4 + (i * 7 + j) % 5, 10 * i + j) for j in range(3)]
        return all(bool(y.eq(10 * i + j).all()) for j, y in enumerate(outputs))

    with ThreadPoolExecutor(4) as threads:
        assert all(threads.map(work, range(100)))
    assert live() == 0


@pytest.mark.parametrize(
    "x",
    [
        torch.empty(2, 64, 64, 256, dtype=torch.bfloat16).to(memory_format=torch.channels_last),
        torch.empty(64, 64, 256, dtype=torch.float64).permute(2, 0, 1),
        torch.empty(64, 64, 1000, dtype=torch.float16)[:, ::2],
        torch.empty(1, 1, 3).expand(1000, 1000, 3),
        torch.empty(3, 0),
        torch.empty(()),
    ],
    ids=["channels_last", "permuted", "sliced", "expanded", "empty", "scalar"],
)
def test_layout_and_dtype_are_those_of_torch(x: Tensor) -> None:
    y, expected = operators().empty_like(x), torch.empty_like(x)
    assert (y.shape, y.stride(), y.dtype, y.device) == (x.shape, expected.stride(), x.dtype, x.device)
    assert y.untyped_storage().nbytes() == expected.untyped_storage().nbytes()
    assert not y._is_view()


def test_the_default_device_has_no_say() -> None:
    x = torch.empty(SIZE * MIB, dtype=torch.uint8)
    with torch.device("meta"):
        assert operators().empty_like(x).device == torch.device("cpu")


@pytest.mark.parametrize("count", [100, 4 * MIB], ids=["small", "large"])
@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "bfloat16", "uint8", "bool"])
def test_deterministic_mode_fills_the_memory(dtype: str, count: int) -> None:
    x = torch.empty(count, dtype=getattr(torch, dtype))  # tests run in this mode
    y = operators().empty_like(x)
    assert torch.equal(y.isnan(), x.isnan())
    assert torch.equal(y.nan_to_num(), x.nan_to_num())


def test_memory_is_left_as_it_is_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.use_deterministic_algorithms(False)
    output(SIZE, 3)
    assert output(SIZE).eq(3).all()
    torch.use_deterministic_algorithms(True)
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", False)
    assert output(SIZE).eq(3).all()


def test_the_profiler_sees_the_memory() -> None:
    with torch.profiler.profile(profile_memory=True) as profile:
        y = output(SIZE)
        del y
    usage = [event.self_cpu_memory_usage for event in profile.events()]
    assert SIZE * MIB in usage
    assert -SIZE * MIB in usage
