"""A model of the launches in NumPy: the grids and strides of the launcher touch each element once, and few bytes."""

from collections import Counter

import numpy as np
import pytest
import torch

calls = pytest.importorskip("batchnorm.backends.triton.calls", exc_type=ImportError)
plan = pytest.importorskip("batchnorm.backends.triton.plan", exc_type=ImportError)

FULL = {"x", "y", "residual", "grad", "extra", "dx", "dresidual"}  # tensors of the input's size


def tile_offsets(p, group, tile, t):
    """The memory offsets of a tile's values, from the shapes alone: (outer, channel, inner) as torch lays them out."""
    v = p.view
    across = 1 if v.rows else -(-v.inner // p.Q)
    outer = group * v.group + t // across * p.P + np.arange(p.P)
    outer = outer[outer < min((group + 1) * v.group, v.outer)]
    if v.rows:
        channel, inner = tile * p.Q + np.arange(p.Q), np.zeros(1, int)
        channel = channel[channel < v.channels]
    else:
        channel, inner = np.array([tile]), t % across * p.Q + np.arange(p.Q)
        inner = inner[inner < v.inner]
    at = (outer[:, None, None] * v.channels + channel[:, None]) * v.inner + inner
    return at.ravel()


def program(p, index):
    """(group, channel tile, its tiles) of a program of the grid."""
    v = p.view
    count = -(-v.group // p.P) * (1 if v.rows else -(-v.inner // p.Q))
    tile, split, group = index % p.tiles, index // p.tiles % p.splits, index // p.tiles // p.splits
    return group, tile, range(split * p.per, min((split + 1) * p.per, count))


@pytest.mark.parametrize("virtual", [0, 3])
@pytest.mark.parametrize("rows", [False, True], ids=["planes", "rows"])
@pytest.mark.parametrize("shape", [(8, 5, 63, 65), (7, 130, 7, 7), (300, 37), (70, 3, 2), (33, 1, 40)], ids=str)
def test_every_launch_touches_each_element_once(shape, rows, virtual):
    for launch in calls.Call(shape, rows, torch.float32, "silu", True, virtual=virtual).launches():
        touched = Counter[int]()
        for group, tile, tiles in (program(launch.plan, i) for i in range(launch.plan.programs)):
            for t in tiles:
                touched.update(tile_offsets(launch.plan, group, tile, t).tolist())
        assert set(touched) == set(range(torch.Size(shape).numel())), launch.name
        assert set(touched.values()) == {1}, launch.name


@pytest.mark.parametrize("rows", [False, True], ids=["planes", "rows"])
def test_beyond_31_bits(rows):
    """The last tile of 2³¹ values and more ends with the last value, and the kernel's own offsets say so too."""
    from tests.backends.triton.offsets import offsets_kernel

    for shape in ((4, 70000, 125, 125), (70000, 33000), (3, 3, 40000, 40000)):
        v = plan.view(shape, rows)
        assert (numel := torch.Size(shape).numel()) > 2**31
        for p in (plan.reduction(v, 2), plan.elementwise(v, 2)):
            for group, tile, tiles in ((0, 0, range(1)), program(p, p.programs - 1)):
                out, kept = torch.zeros(p.P, p.Q, dtype=torch.int64), torch.zeros(p.P, p.Q, dtype=torch.int32)
                offsets_kernel[(1,)](out, kept, group, tile, tiles[-1], v.outer, v.channels, v.inner, v.group, v.rows,
                                     p.P, p.Q, p.wide)  # fmt: skip
                expected = tile_offsets(p, group, tile, tiles[-1])
                assert out[kept > 0].tolist() == expected.tolist()
            assert expected.max() == numel - 1


def trips(launches):
    """Passes over tensors of the input's size, each read or written once by a launch."""
    return sum(
        sum(name in FULL and isinstance(value, torch.Tensor) for name, value in launch.arguments.items())
        for launch in launches
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("rows", [False, True], ids=["planes", "rows"])
@pytest.mark.parametrize("shape", [(32, 64, 56, 56), (32, 512, 28, 28), (32, 512, 7, 7), (8, 64, 7, 7)], ids=str)
def test_bytes(shape, rows, dtype):
    """Forward 3 trips, or 2 on chip; backward 5, or 3; a residual adds one trip of its own each time it is read."""
    from batchnorm.backends.triton import launch

    call = calls.Call(shape, rows, dtype)
    x, grad, weight = call.tensor(), call.tensor(), torch.empty(shape[1], device="meta")
    on_chip = plan.whole(plan.view(shape, rows), x.itemsize) is not None
    assert on_chip == (torch.Size((*shape[:1], *shape[2:])).numel() <= (8192 * x.itemsize // 64 if rows else 2048))
    with launch.recording() as forward:
        _, statistics = launch.forward(x, None, weight, weight, *[None] * 6, 0.1, 1e-5, "relu", True)
    with launch.recording() as backward:
        launch.backward(grad, x, None, weight, weight, statistics, 1e-5, "relu", False, [True, False, True, True])
    assert (len(forward), trips(forward)) == ((1, 2) if on_chip else (2, 3))
    assert (len(backward), trips(backward)) == ((1, 3) if on_chip else (2, 5))
    tables = [t for launch in (*forward, *backward) if (t := launch.arguments.get("table")) is not None]
    assert all(t.nbytes <= 0.06 * x.nbytes for t in tables)


def test_a_share_is_counted_exactly_in_float32():
    v = plan.view((2**18, 1, 2**14), False)
    p = plan.reduction(v, 4)
    assert p.per * p.P * p.Q <= 2**23
    assert p.programs * p.per * p.P * p.Q >= 2**32
