"""A fault planted in each kernel is caught by the checks that the other tests make."""

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch

from tests.backends.triton import test_plain as plain
from tests.backends.triton import test_population as population
from tests.support.material import drifting
from tests.support.primitives import check_primitives

launch = pytest.importorskip("batchnorm.backends.triton.launch", exc_type=ImportError)
pytestmark = pytest.mark.usefixtures("small")

FOLDER = Path(launch.__file__).parent
MODULES = ("elementwise", "merging", "kernels")


def primitives(mask: str = "none", shape=(9, 2, 17)):
    tensors = [drifting(*shape, offset=offset) for offset in (3.0, 1.0, 0.3)]
    return lambda: check_primitives(launch, tensors, mask, 0, "silu")


def plain_case(shape):
    return lambda: plain.check(shape, torch.float32, "contiguous", True, "silu", True)


SPLIT, WHOLE = (9, 2, 9), (4, 2, 9)

# fmt: off
FAULTS = {
    "moments: a weight left out": ("kernels", "first += w * deviation", "first += deviation", primitives("weights")),
    "moments: a share without its last tile": ("kernels", "for t in range(begin, end):\n        base, offsets, inside, position, positions = locate(t, group, tile, A, C, S, GROUP, ROWS, P, Q, WIDE)\n        value = read(x, base, offsets, inside)\n        w = weights(mask, base, offsets, position, positions, inside, MASK)\n        if MASK != 0",  # noqa: E501
        "for t in range(begin, end - 1):\n        base, offsets, inside, position, positions = locate(t, group, tile, A, C, S, GROUP, ROWS, P, Q, WIDE)\n        value = read(x, base, offsets, inside)\n        w = weights(mask, base, offsets, position, positions, inside, MASK)\n        if MASK != 0", primitives()),  # noqa: E501
    "merge: what lies between shares": ("merging", "within + n * apart * apart", "within", primitives()),
    "merge: before the last has arrived": ("merging", "arrived == SPLITS - 1", "arrived == SPLITS - 2", primitives()),
    "merge of sums: one share twice": ("merging", "second += tl.sum(tl.load(entries + size", "second += tl.sum(2 * tl.load(entries + size", primitives()),  # noqa: E501
    "normalize: the rest of the mean": ("kernels", "(x - high[None, :]) - low[None, :]) * scale", "(x - high[None, :])) * scale", lambda: plain.test_large_offsets(1e6, (16, 2, 4, 4), "contiguous")),  # noqa: E501
    "normalize: the mask": ("kernels", "return tl.where(w > 0, activate(z, ACTIVATION), 0.0)", "return activate(z, ACTIVATION)", primitives("values")),  # noqa: E501
    "reduce: x in place of x − mean": ("kernels", "sum_gx += g * centered", "sum_gx += g * value", primitives()),
    "reduce: the gradient of γ": ("kernels", "parameters(dweight, dbias, total, total_x * rstd", "parameters(dweight, dbias, total, total_x", plain_case(SPLIT)),  # noqa: E501
    "apply: the weight": ("kernels", "through * w, 0.0", "through, 0.0", primitives("weights")),
    "apply: through the variance": ("kernels", "return -each * rstd * rstd * total_x", "return -each * rstd * total_x", plain_case(SPLIT)),  # noqa: E501
    "whole forward: the unbiased variance": ("kernels", "rstd = 1.0 / tl.sqrt(m2 / n +", "rstd = 1.0 / tl.sqrt(m2 / (n - 1) +", plain_case(WHOLE)),  # noqa: E501
    "whole backward: a sign": ("kernels", "+ constant.to(tl.float32)[None, :]\n        result", "- constant.to(tl.float32)[None, :]\n        result", plain_case(WHOLE)),  # noqa: E501
    "population: the biased variance": ("kernels", "        update_statistics(\n            running_mean, running_var, batches, skipped, counters, momentum, limit, tiles,\n            mean, m2 / (n - 1)", "        update_statistics(\n            running_mean, running_var, batches, skipped, counters, momentum, limit, tiles,\n            mean, m2 / n", plain_case(WHOLE)),  # noqa: E501
    "population: one whose variance is infinite": ("merging", "(tl.abs(mean) <= limit) & (unbiased <= limit)", "tl.abs(mean) <= limit", lambda: population.test_like_plain_torch(0.3, True, "inf")),  # noqa: E501
    "population: counted by every program": ("merging", "if is_last(arrivals, 0, tiles):\n        met", "if tiles > 0:\n        met", lambda: population.test_like_plain_torch(0.3, True, "nan")),  # noqa: E501
    "population alone: the variance in the mean's place": ("kernels", "new_mean, new_var = row(mean, 0, 0, channels, known), row(var", "new_mean, new_var = row(var, 0, 0, channels, known), row(var", lambda: population.test_like_plain_torch(None, False, "")),  # noqa: E501
    "tiles: a block of positions twice": ("elementwise", "(t % across) * Q", "0 * Q", primitives()),
    "slope of an activation": ("elementwise", "g = g * s * (1 + z * (1 - s))", "g = g * s * (1 - z * (1 - s))", plain_case(SPLIT)),  # noqa: E501
}
# fmt: on


@pytest.fixture
def plant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[object]:
    """Load copies of the kernels with one place changed, and have the launcher use them."""
    package = "planted_kernels"

    def load(module: str, right: str, wrong: str) -> None:
        for name in MODULES:
            text = (FOLDER / f"{name}.py").read_text().replace("batchnorm.backends.triton.", f"{package}.")
            if name == module:
                assert text.count(right) == 1, f"{right!r} is no single place in {name}.py"
                text = text.replace(right, wrong)
            (tmp_path / f"{name}.py").write_text(text)
        parent = ModuleType(package)
        parent.__path__ = [str(tmp_path)]
        sys.modules[package] = parent
        importlib.invalidate_caches()
        monkeypatch.setattr(launch, "kernels", importlib.import_module(f"{package}.kernels"))

    yield load
    for name in [name for name in sys.modules if name.partition(".")[0] == package]:
        del sys.modules[name]
    from batchnorm.backends.triton import arguments

    arguments._counters.clear()  # a faulty kernel may leave something


def test_copies_without_a_fault_pass(plant):
    plant("", "", "")
    primitives("weights")()
    plain_case(WHOLE)()


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_caught(fault, plant):
    module, right, wrong, check = FAULTS[fault]
    plant(module, right, wrong)
    with pytest.raises(AssertionError):
        check()
