"""The thread launcher: the same bits on any number of threads, and no hang, whoever calls from wherever."""

import os
import subprocess
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from torch import Tensor

from batchnorm.backends.numba import cpu
from batchnorm.backends.numba import threads as launcher
from batchnorm.backends.numba.cpu import _plan
from tests.support.kernel_oracle import data

# one piece of work per channel; few channels, so several per channel; rows
SHAPES = {"fused": (6, 40, 31, 33), "chunked": (6, 2, 131, 133), "rows": (3000, 40)}


def everything(x: Tensor) -> list[Tensor]:
    C = x.shape[1]
    weight, bias = torch.linspace(0.5, 1.5, C), torch.linspace(-1, 1, C)
    y, statistics, _ = cpu.forward(x, x, weight, bias, 1e-5, "relu")
    dx, dresidual, dweight, dbias = cpu.backward(y, x, x, weight, bias, statistics, "relu", False, True, True)
    count, mean2, m2 = cpu.moments(x)
    assert dresidual is not None
    assert dweight is not None
    assert dbias is not None
    return [y, statistics, dx, dresidual, dweight, dbias, count, mean2, m2]


def same(one: list[Tensor], other: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_threads_do_not_change_a_bit(shape: tuple[int, ...], threads: None) -> None:
    x = data(shape, torch.float32)
    torch.set_num_threads(1)
    _plan.cache_clear()
    expected = everything(x)
    for count in (2, 3, 7):
        torch.set_num_threads(count)
        _plan.cache_clear()  # a cut that looked at the threads must not be remembered from before
        assert same(everything(x), expected)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_without_openmp(shape: tuple[int, ...], threads: None, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_num_threads(3)
    x = data(shape, torch.float32)
    expected = everything(x)
    monkeypatch.setattr(launcher, "_gomp_parallel", None)
    monkeypatch.setattr(launcher, "_pool", None)
    assert same(everything(x), expected)
    assert launcher._pool is not None


def test_launches_ask_for_torchs_number_of_threads(threads: None, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    gomp = launcher._gomp_parallel

    def spy(function: int, argument: int, count: int, flags: int) -> None:
        asked.append(count)
        assert gomp is not None
        gomp(function, argument, count, flags)

    if gomp is None:
        pytest.skip("no GOMP_parallel in this process")
    monkeypatch.setattr(launcher, "_gomp_parallel", spy)
    x = data((8, 32, 32, 32), torch.float32)
    for count in (2, 3):
        torch.set_num_threads(count)
        cpu.forward(x, None, None, None, 1e-5, None)
    torch.set_num_threads(1)
    cpu.forward(x, None, None, None, 1e-5, None)
    cpu.forward(data((2, 4, 8, 8), torch.float32), None, None, None, 1e-5, None)  # too small to share
    assert asked == [2, 3]


@pytest.mark.parametrize("openmp", [True, False])
def test_many_python_threads_at_once(openmp: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not openmp:
        monkeypatch.setattr(launcher, "_gomp_parallel", None)
    inputs = [data(shape, torch.float32) for shape in SHAPES.values()]
    expected = [everything(x) for x in inputs]
    with ThreadPoolExecutor(6) as pool:
        work = [(i % 3, pool.submit(everything, inputs[i % 3])) for i in range(36)]
        for i, result in work:
            assert same(result.result(timeout=60), expected[i])


def run(script: str, tmp_path: Path, **environment: str) -> str:
    """Runs a script in a fresh interpreter; one that hangs fails."""
    path = tmp_path / "script.py"
    path.write_text(textwrap.dedent(script))
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(path)],
        env={**os.environ, **environment, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_fork_after_use(tmp_path: Path) -> None:
    """A child forked while torch's team exists gets the same bits without it."""
    script = """
        import os, signal, sys, torch
        from batchnorm.backends.numba import cpu
        torch.set_num_threads(2)
        x = torch.randn(8, 32, 40, 40)
        y, *_ = cpu.forward(x, None, None, None, 1e-5, None)
        child = os.fork()
        if child == 0:
            signal.alarm(30)
            again, *_ = cpu.forward(x, None, None, None, 1e-5, None)
            os._exit(0 if again.numpy().tobytes() == y.numpy().tobytes() else 3)
        _, status = os.waitpid(child, 0)
        assert os.waitstatus_to_exitcode(status) == 0, status
        print("same")
    """
    assert run(script, tmp_path) == "same\n"


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_data_loader_workers(method: str, tmp_path: Path) -> None:
    script = f"""
        import torch
        from torch.utils.data import DataLoader, Dataset
        from batchnorm.backends.numba import cpu

        class Normalised(Dataset):
            def __len__(self):
                return 4
            def __getitem__(self, i):
                x = torch.full((8, 32, 40, 40), float(i)) + torch.linspace(0, 1, 40)
                return cpu.forward(x, None, None, None, 1e-5, None)[0]

        if __name__ == "__main__":
            expected = Normalised()[1]
            loader = DataLoader(Normalised(), batch_size=1, num_workers=2, multiprocessing_context="{method}")
            outputs = [batch[0] for batch in loader]
            assert torch.equal(outputs[1], expected)
            print(len(outputs))
    """
    assert run(script, tmp_path) == "4\n"
