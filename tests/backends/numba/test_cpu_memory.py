"""Memory of large outputs: used again when nothing else uses it, and never before."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

import batchnorm as bn
from batchnorm.backends.numba import cpu_memory
from batchnorm.backends.numba.cpu_memory import Pool

pytestmark = pytest.mark.skipif(cpu_memory.pool is None, reason="no pool on this platform")
LARGE = 1 << 20  # float32 values: 4 MiB


@pytest.fixture
def pool() -> Pool:
    return Pool(limit=20 << 20, advise=lambda *_: 0)


def test_what_is_let_go_is_used_again_and_what_is_held_is_not(pool: Pool) -> None:
    x = torch.ones(LARGE)
    first = pool.empty_like(x)
    second = pool.empty_like(x)
    assert first.data_ptr() != second.data_ptr()
    where, view = second.data_ptr(), second[10:]
    del second
    assert pool.empty_like(x).data_ptr() != where  # a view holds it
    del view
    assert where in {t.data_ptr() for t in [pool.empty_like(x) for _ in range(3)]}


def test_layout_and_dtype_are_those_of_the_input(pool: Pool) -> None:
    x = torch.ones(2, 64, 64, 256, dtype=torch.bfloat16).to(memory_format=torch.channels_last)
    y = pool.empty_like(x)
    assert (y.shape, y.stride(), y.dtype, y._is_view()) == (x.shape, x.stride(), x.dtype, False)
    assert pool.empty_like(torch.ones(LARGE // 2 * 4, dtype=torch.bfloat16)).dtype is torch.bfloat16


def test_beyond_the_limit_nothing_is_kept_but_what_is_held_stays(pool: Pool) -> None:
    held = [pool.empty_like(torch.ones(LARGE)).fill_(i) for i in range(8)]  # 32 MiB
    assert pool._bytes <= 20 << 20
    assert [t[0].item() for t in held] == list(range(8))
    assert len({t.data_ptr() for t in held}) == 8


def test_what_was_resized_or_shared_with_a_process_is_not_used_again(pool: Pool) -> None:
    x = torch.ones(LARGE)
    resized = pool.empty_like(x)
    resized.untyped_storage().resize_(0)
    del resized
    shared = pool.empty_like(x).share_memory_()
    where = shared.data_ptr()
    del shared
    fresh = pool.empty_like(x)
    assert fresh.untyped_storage().nbytes() == x.nbytes
    assert fresh.data_ptr() != where
    assert not fresh.is_shared()


def test_threads_never_share_an_output(pool: Pool) -> None:
    x = torch.ones(LARGE)

    def work(i: int) -> bool:
        y = pool.empty_like(x).fill_(i)
        return bool((y == i).all())

    with ThreadPoolExecutor(4) as threads:
        assert all(threads.map(work, range(200)))


def test_outputs_of_a_layer_are_ordinary_tensors() -> None:
    layer = bn.BatchNorm2d(16)
    x = torch.randn(8, 16, 96, 96, requires_grad=True)
    one, other = layer(x), layer(x * 2)
    kept = one.detach().clone()
    other.relu_()  # in place, on what autograd made
    assert torch.equal(one, kept)
    one.sum().backward()
    one.detach().resize_(0)
    assert x.grad is not None


def test_it_can_be_turned_off() -> None:
    code = "from batchnorm.backends.numba import cpu_memory; assert cpu_memory.pool is None"
    subprocess.run([sys.executable, "-c", code], env={**os.environ, "BATCHNORM_HUGE_PAGES": "0"}, check=True)
