"""Threads: the same bits on any number of them, and no hang, from whichever thread the calls come."""

import os
import subprocess
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from torch import Tensor

from batchnorm.core import ops
from tests.backends.native.material import DTYPES, PLACES, forward, parameters, tensors, wide
from tests.support.backends import needs_native

pytestmark = needs_native

# bands of channels that are one piece of work each; a slice of columns a piece of work; few channels, so several chunks
# of each; chunks of rows; and an output past the cache
SMALL = {"bands": (6, 40, 13, 11), "slices": (900, 70)}
SHAPES = SMALL | {"chunks": (3, 2, 131, 133), "chunks of rows": (2100, 130), "past the cache": (17, 64, 31, 33)}
CASES = [(shape, dtype) for shape in SMALL for dtype in DTYPES]
CASES += [(shape, torch.float32) for shape in SHAPES if shape not in SMALL]


def everything(x: Tensor, residual: Tensor, grad: Tensor) -> list[Tensor]:
    """Every kernel's results: fused and primitive, plain, in groups and with masks."""
    channels = x.shape[1]
    mean, var, weight, bias = parameters(channels, wide(x.dtype))
    y, statistics = forward(x, residual, weight, bias, running_mean=mean, running_var=var, activation="relu")
    found = [y, statistics, mean, var]
    for constant in (False, True):
        found += ops.backward(grad, x, y, weight, bias, statistics, 1e-5, "relu", constant, [True] * 4)
    found += ops.backward(grad, x, None, weight, bias, statistics, 1e-5, "silu", False, [True, False, True, True])
    positions = torch.rand(x.shape[0], 1, *x.shape[2:])
    for virtual, mask in ((0, None), (2, None), (0, positions), (2, positions), (0, torch.rand(x.shape).to(x.dtype))):
        count, batch_mean, m2 = ops.moments(x, virtual, mask)
        given = batch_mean, (m2 / count + 1e-5).rsqrt(), torch.ones_like(m2)
        rest = residual, "silu", virtual, mask
        found += [count, batch_mean, m2, ops.normalize(x, *given, *rest)]
        found += ops.backward_reduce(grad, x, *given, *rest)
        found += [t for t in ops.backward_apply(grad, x, *given, *given, *rest) if t is not None]
    return found


def same(one: list[Tensor], other: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize(("shape", "dtype"), CASES, ids=str)
def test_threads_do_not_change_a_bit(shape, dtype, place, threads):
    material = tensors(SHAPES[shape], dtype, place)
    results = []
    for count in (1, 2, 3, 5, 16):
        torch.set_num_threads(count)
        torch.manual_seed(0)
        results.append(everything(*material))
    assert all(same(result, results[0]) for result in results[1:])


def test_many_python_threads_at_once(threads):
    """Each has a team of its own, and none takes another's pieces of work."""
    torch.set_num_threads(2)
    given = [tensors(shape, torch.float32, place) for shape in SHAPES.values() for place in PLACES]
    arguments = {shape[1]: parameters(shape[1])[2:] for shape in SHAPES.values()}

    def step(x: Tensor, residual: Tensor, grad: Tensor) -> list[Tensor]:
        affine = arguments[x.shape[1]]
        y, statistics = forward(x, residual, *affine, activation="relu")
        return [y, statistics, *ops.backward(grad, x, y, *affine, statistics, 1e-5, "relu", False, [True] * 4)]

    expected = [step(*material) for material in given]
    with ThreadPoolExecutor(6) as pool:
        work = [(i % len(given), pool.submit(step, *given[i % len(given)])) for i in range(60)]
        for i, result in work:
            assert same(result.result(timeout=60), expected[i])


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_inside_the_pool_of_the_backward_pass(shape, threads):
    """Backward kernels run on a thread of autograd's, with the same bits as in this one."""
    torch.set_num_threads(3)
    x, residual, grad = tensors(shape, torch.float32, "contiguous")
    affine = parameters(shape[1])[2:]
    y, statistics = forward(x, residual, *affine, activation="relu")
    expected = ops.backward(grad, x, y, *affine, statistics, 1e-5, "relu", False, [True] * 4)
    leaves = [t.requires_grad_() for t in (x, residual, *affine)]
    with ThreadPoolExecutor(1) as pool:
        y, _ = pool.submit(forward, *leaves, activation="relu").result()
    assert same(list(torch.autograd.grad(y, leaves, grad)), list(expected))


# ---- processes


def run(script: str, tmp_path: Path, **environment: str) -> str:
    """Runs a script in a fresh interpreter; one that hangs fails."""
    path = tmp_path / "script.py"
    path.write_text(PRELUDE + textwrap.dedent(script))
    command = [sys.executable, "-W", "ignore", str(path)]
    settings = os.environ | environment | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(command, env=settings, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


PRELUDE = """
import os, signal, sys, threading, torch
import batchnorm as bn

def step(x):  # nothing of torch's that uses threads: it would hang in a child by itself
    leaf = x.detach().requires_grad_()
    y = bn.BatchNorm2d(x.shape[1], activation="silu")(leaf)
    (grad,) = torch.autograd.grad(y, leaf, x)
    return y.detach().numpy().tobytes() + grad.numpy().tobytes()

def child_agrees(x, expected):
    child = os.fork()
    if child == 0:
        signal.alarm(20)  # a child that hangs ends by it
        os._exit(0 if step(x) == expected else 3)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
"""
needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")


@needs_fork
@pytest.mark.parametrize("count", [1, 2, 5])
def test_a_forked_child_does_not_hang(count, tmp_path):
    """libgomp's threads do not come along: a child that asks for the team of its parent would wait for ever."""
    script = f"""
        torch.set_num_threads({count})
        x = torch.randn(8, 32, 40, 40)
        expected = step(x)
        print(child_agrees(x, expected), child_agrees(x, expected), step(x) == expected)
    """
    assert run(script, tmp_path) == "0 0 True\n"


@needs_fork
def test_a_child_forked_while_another_thread_computes(tmp_path):
    script = """
        torch.set_num_threads(2)
        x, done = torch.randn(8, 32, 40, 40), threading.Event()
        expected = step(x)
        def work():
            while not done.is_set():
                step(x)
        threads = [threading.Thread(target=work) for _ in range(2)]
        for thread in threads: thread.start()
        print({child_agrees(x, expected) for _ in range(5)})
        done.set()
        for thread in threads: thread.join()
    """
    assert run(script, tmp_path) == "{0}\n"


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_data_loader_workers(method, tmp_path):
    script = f"""
        from torch.utils.data import DataLoader, Dataset

        class Normalised(Dataset):
            def __len__(self):
                return 4
            def __getitem__(self, i):
                x = torch.full((8, 32, 40, 40), float(i)) + torch.linspace(0, 1, 40)
                return bn.batch_norm(x, None, None, training=True)

        if __name__ == "__main__":
            expected = Normalised()[1]
            loader = DataLoader(Normalised(), batch_size=1, num_workers=2, multiprocessing_context="{method}")
            outputs = [batch[0] for batch in loader]
            assert torch.equal(outputs[1], expected)
            print(len(outputs))
    """
    assert run(script, tmp_path) == "4\n"


def test_inside_a_parallel_region(tmp_path):
    """Where a team of torch's works already, each thread of it runs a kernel by itself."""
    script = """
        import ctypes
        gomp = getattr(ctypes.CDLL(None), "GOMP_parallel", None)
        torch.set_num_threads(2)
        x = torch.randn(8, 32, 40, 40)
        expected, results = step(x), []
        body = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(lambda _: results.append(step(x) == expected))
        if gomp is None:
            results += [True] * 3
        else:
            gomp.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
            gomp(ctypes.cast(body, ctypes.c_void_p), None, 3, 0)
        print(results)
    """
    assert run(script, tmp_path) == "[True, True, True]\n"
