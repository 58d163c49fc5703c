"""The set-up of every test: its own seed, poisoned memory, a fixed hypothesis profile."""

import os
import signal
import zlib
from collections.abc import Iterator
from contextlib import nullcontext

import hypothesis
import pytest
import torch

import batchnorm as bn

# The same examples everywhere and every time; a shared machine is no place for deadlines.
hypothesis.settings.register_profile("fixed", derandomize=True, deadline=None, max_examples=40, database=None)
hypothesis.settings.register_profile("search", deadline=None, max_examples=1000)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "fixed"))

# A shell starts a job in the background with Ctrl-C ignored. Tests send it to themselves and to their children.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Workers share the cores: teams of threads that wait for one another by spinning would leave none for the work.
# What depends on the number of threads sets it (tests/backends/native).
if "PYTEST_XDIST_WORKER" in os.environ:
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def seed(request: pytest.FixtureRequest) -> None:
    """Each test draws its own data, the same in every run and on every worker; TEST_SEED=n draws others."""
    torch.manual_seed(zlib.crc32(request.node.nodeid.encode()) + int(os.environ.get("TEST_SEED", "0")))


# What holds for a batch norm holds on every backend.
ON_EVERY_BACKEND = {"test_functional", "test_layers", "test_population", "test_torch_cases", "test_onnx_cases"}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if metafunc.module.__name__.rpartition(".")[2] in ON_EVERY_BACKEND:
        metafunc.parametrize("kernels", ["default", "reference"], indirect=True)


@pytest.fixture(autouse=True)
def kernels(request: pytest.FixtureRequest) -> Iterator[None]:
    """The reference where a test asks for it, else the kernels of the tensor's device."""
    with bn.backend("reference") if getattr(request, "param", None) == "reference" else nullcontext():
        yield


@pytest.fixture(autouse=True)
def poison() -> Iterator[None]:
    """`torch.empty` is full of NaN: a kernel that leaves an element unwritten cannot pass by luck."""
    torch.use_deterministic_algorithms(True)  # torch fills uninitialised memory in this mode
    yield
    torch.use_deterministic_algorithms(False)
