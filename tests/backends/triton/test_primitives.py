"""The primitives under the interpreter, against the oracle: both layouts, every edge of tiles, shares and groups.

The interpreter runs programs one after another and does no arithmetic in bfloat16; it rounds to bfloat16 towards zero.
"""

import pytest
import torch

from tests.support.material import LAYOUTS, drifting
from tests.support.oracle import ACTIVATIONS
from tests.support.primitives import MASKS, check_primitives

launch = pytest.importorskip("batchnorm.backends.triton.launch", exc_type=ImportError)
pytestmark = pytest.mark.usefixtures("small")

PLACES = ("contiguous", "channels_last")
# With tiles of 32 values: planes have 16 positions at most, rows 4 channels of float32.
SHAPES = [
    # one block of positions: 15, 16, 17; one sample fewer and more than a tile has
    (3, 2, 15), (3, 2, 16), (3, 2, 17), (2, 2, 16), (1, 1, 2), (5, 1, 3), (9, 3, 2),
    # rows: a tile of 8, channels of 3, 4 and 5; one row more and less
    (7, 3), (8, 4), (9, 5), (1, 4), (2, 1),
    # shares: channels that split into several, and that fill the programs
    (70, 3), (40, 7), (9, 2, 33), (2, 14, 3), (40, 1, 1),
]  # fmt: skip


def tensors(shape, dtype, place):
    return [LAYOUTS[place](drifting(*shape, dtype=dtype, offset=offset)) for offset in (3.0, 1.0, 0.3)]


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_shapes(shape, place):
    check_primitives(launch, tensors(shape, torch.float32, place), "none", 0, "silu")


@pytest.mark.parametrize("virtual", [1, 2, 4])
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("shape", [(5, 2, 17), (5, 3)], ids=str)
def test_virtual_batches(shape, place, virtual):
    check_primitives(launch, tensors(shape, torch.float32, place), "none", virtual, "silu")


@pytest.mark.parametrize("virtual", [0, 3])
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("mask", MASKS)
def test_masks(mask, place, virtual):
    check_primitives(launch, tensors((5, 4, 3, 2), torch.float32, place), mask, virtual, "silu")


@pytest.mark.parametrize("mask", ["positions", "values"])
def test_masks_of_shares_whose_first_tiles_are_empty(mask):
    """The center of a share is the mean of the first tile with a value that counts."""
    x = drifting(40, 2, 5) + 1e4
    weights = torch.ones(40, 1, 5) if mask == "positions" else torch.ones(40, 2, 5)
    weights[:30] = 0
    _, mean, m2 = launch.moments(x, 0, weights)
    kept = x[30:].double()
    torch.testing.assert_close(mean[0], kept.mean([0, 2]), rtol=1e-9, atol=0)
    torch.testing.assert_close(m2[0], kept.var([0, 2], correction=0) * 50, rtol=1e-5, atol=0)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize(
    ("dtype", "place"),
    [(torch.float32, "contiguous"), (torch.bfloat16, "channels_last"), (torch.float16, "contiguous")],
    ids=str,
)
def test_dtypes_and_activations(dtype, place, activation):
    check_primitives(launch, tensors((4, 3, 3, 3), dtype, place), "none", 0, activation)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(layout):
    """Those of neither memory format are copied; the result has the strides that torch's would have."""
    x = LAYOUTS[layout](drifting(4, 3, 3, 2))
    _, mean, m2 = launch.moments(x)
    torch.testing.assert_close(mean[0], x.double().mean([0, 2, 3]))
    torch.testing.assert_close(m2[0], x.double().var([0, 2, 3], correction=0) * 24)
    one = torch.ones(1, 3, dtype=torch.float64)
    y = launch.normalize(x, mean, one, one)
    torch.testing.assert_close(y.double(), x.double() - mean.reshape(1, 3, 1, 1) + 1)


def test_what_no_kernel_reads_is_an_error():
    with pytest.raises(RuntimeError, match=r"expected a float32.* got torch.float64"):
        launch.moments(torch.ones(3, 3).double())
    with pytest.raises(RuntimeError, match=r"expected residual of shape \(3, 3\)"):
        launch.normalize(torch.ones(3, 3), *torch.ones(3, 1, 3).double(), residual=torch.ones(2, 3))
    with pytest.raises(RuntimeError, match="expected parameters of 3 virtual batches, or of one, got 2"):
        launch.normalize(torch.ones(3, 3), *torch.ones(3, 2, 3).double(), virtual_batch_size=1)
