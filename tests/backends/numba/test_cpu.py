"""CPU kernels against float64."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from batchnorm.backends.numba import cpu
from batchnorm.backends.reference import BY_OUTPUT
from batchnorm.core.rules import Running
from batchnorm.layers import BatchNorm
from tests.support.kernel_oracle import ACTIVATIONS, KINKS, by_torch, close, data, moments, per_sample

F32 = torch.float32
# sizes around a block (1024), a run that is a block of its own (512), a slice of columns (512), and a tile
SHAPES = [
    (1, 3, 1023), (3, 2, 2048), (3, 2, 2049), (2, 2, 1025), (4, 5, 511), (4, 5, 513),
    (5, 17, 4097), (33, 20, 7, 7), (1, 1, 9001),
    (7, 5), (70, 513), (2, 511), (300, 3), (600, 40), (5, 3, 1, 1), (2, 18, 3, 5, 7), (40, 2, 31, 33),
]  # fmt: skip
LAYOUTS = {
    "contiguous": lambda x: x.contiguous(),
    "rows": lambda x: x.movedim(1, -1).contiguous().movedim(-1, 1),
    "strided": lambda x: torch.stack([x, x], -1)[..., 0],
}


def case(
    shape: tuple[int, ...], dtype: torch.dtype, layout: str, activation: str | None = None, add: bool = False,
    offset: float = 3.0,
) -> None:  # fmt: skip
    """Forward and backward, each result against float64 and torch."""
    place = LAYOUTS[layout]
    x, grad = place(data(shape, dtype, offset)), place(data(shape, dtype, 0.1))
    residual = place(data(shape, dtype, 0.0)) if add else None
    weight, bias = torch.rand(shape[1]) + 0.5, torch.randn(shape[1])
    params = (weight.double(), bias.double()) if dtype == torch.float64 else (weight, bias)
    y, statistics, _ = cpu.forward(x, residual, *params, 1e-5, activation)
    again = y if add and activation in BY_OUTPUT else residual
    dx, dresidual, dweight, dbias = cpu.backward(grad, x, again, *params, statistics, activation, False, add, True)
    exact = by_torch(
        x.double(), grad.double(), weight.double(), bias.double(), None if residual is None else residual.double(),
        activation,
    )  # fmt: skip
    theirs = by_torch(x, grad, *params, residual, activation)

    assert y.stride() == torch.empty_like(x.clone() if layout == "strided" else x).stride()
    close(y, exact["y"], theirs["y"])
    z = by_torch(
        x.double(), grad.double(), weight.double(), bias.double(), None if residual is None else residual.double(), None
    )["y"]
    apart = torch.ones_like(z, dtype=torch.bool)
    for kink in KINKS.get(activation, ()):
        apart &= (z - kink).abs() > 1e-6 * z.abs().max()
    assert apart.double().mean() > 0.99
    close(dx, exact["dx"], theirs["dx"], apart)
    close(dweight, exact["dweight"], theirs["dweight"])
    close(dbias, exact["dbias"], theirs["dbias"])
    if add:
        close(dresidual, exact["dresidual"], theirs["dresidual"], apart)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", SHAPES)
def test_shapes(shape: tuple[int, ...], layout: str) -> None:
    case(shape, F32, layout)


@pytest.mark.parametrize("layout", ["contiguous", "rows"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations(activation: str | None, layout: str) -> None:
    case((6, 20, 13, 11), F32, layout, activation)


@pytest.mark.parametrize("layout", ["contiguous", "rows"])
@pytest.mark.parametrize("activation", [None, "relu"])
@pytest.mark.parametrize("dtype", [F32, torch.float64, torch.bfloat16, torch.float16])
def test_residual_and_dtypes(dtype: torch.dtype, activation: str | None, layout: str) -> None:
    case((6, 20, 13, 11), dtype, layout, activation, add=True)


@pytest.mark.parametrize("layout", ["contiguous", "rows"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_dtypes_past_a_block(dtype: torch.dtype, layout: str) -> None:
    case((3, 5, 2500), dtype, layout)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.lists(st.integers(1, 9), min_size=0, max_size=3), st.integers(4, 40), st.integers(1, 40), st.booleans())
def test_any_rank(rest: list[int], samples: int, channels: int, rows: bool) -> None:
    case((samples, channels, *rest), torch.float64, "rows" if rows else "contiguous")


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", [(8, 4, 31, 33), (64, 20, 7, 7), (4096, 7)])
@pytest.mark.parametrize("offset", [1e4, 1e6])
def test_large_mean(offset: float, shape: tuple[int, ...], layout: str) -> None:
    """float32 holds x only to 1/16 at 1e6, but what it holds is normalised exactly."""
    x = LAYOUTS[layout]((torch.randn(shape, dtype=torch.float64) + offset).float())
    weight, bias = torch.ones(shape[1]), torch.zeros(shape[1])
    y, *_ = cpu.forward(x, None, weight, bias, 1e-5, None)
    exact = by_torch(x.double(), x.double(), weight.double(), bias.double(), None, None)["y"]
    assert (y.double() - exact).abs().max() < 1e-5


@pytest.mark.parametrize("layout", ["contiguous", "rows"])
@pytest.mark.parametrize("value", [1e7, -3.3, 0.0])
def test_constant_channel(value: float, layout: str) -> None:
    x = LAYOUTS[layout](torch.full((4, 3, 50, 50), value))
    y, statistics, _ = cpu.forward(x, None, None, None, 1e-5, None)
    assert torch.equal(y, torch.zeros_like(y))
    mean, rstd = statistics
    assert torch.equal(mean, torch.full_like(mean, x[0, 0, 0, 0].item()))
    assert torch.allclose(rstd, torch.full_like(rstd, 1e-5**-0.5))


@pytest.mark.parametrize("layout", ["contiguous", "rows"])
@pytest.mark.parametrize("size", [1e-25, 1e25])
def test_squares_beyond_float32(size: float, layout: str) -> None:
    x = LAYOUTS[layout](data((4, 3, 40, 40), torch.float64) * size).float()
    _, mean, m2 = cpu.moments(x)
    _, exact_mean, exact_m2 = moments(x)
    torch.testing.assert_close(mean, exact_mean, rtol=1e-6, atol=0)
    if size > 1:
        torch.testing.assert_close(m2, exact_m2, rtol=1e-6, atol=0)


@pytest.mark.parametrize("layout", ["contiguous", "rows"])
@pytest.mark.parametrize("shape", [(4, 3, 40, 40), (4, 3, 7, 7), (40, 20)])
@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_non_finite_stays_in_its_channel(poison: float, shape: tuple[int, ...], layout: str) -> None:
    x = LAYOUTS[layout](data(shape, F32))
    clean, *_ = cpu.forward(x, None, None, None, 1e-5, "relu")
    x[-1, 1].view(-1)[-1] = poison
    y, *_ = cpu.forward(x, None, None, None, 1e-5, "relu")
    assert y[:, 1].isnan().all()
    assert torch.equal(y[:, [0, 2]], clean[:, [0, 2]])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_rounding_is_to_nearest_even(dtype: torch.dtype) -> None:
    """Of a zero input only the shift is left, so the output is the shift as the kernel rounds it."""
    shifts = torch.cat([torch.randn(500) * 10.0**k for k in (-40, -6, -1, 0, 3)] + [torch.tensor([float("inf"), 1e30])])
    ties = 1 + torch.tensor([1.0, 3.0, 5.0, 7.0]) * torch.finfo(dtype).eps / 2
    shifts = torch.cat([shifts, ties, -ties])
    x = torch.zeros(2, len(shifts), dtype=dtype)
    zero, one = torch.zeros(1, len(shifts), dtype=torch.float64), torch.ones(1, len(shifts), dtype=torch.float64)
    y = cpu.normalize(x, zero, one, shifts.double()[None])
    assert torch.equal(y[0], shifts.to(dtype))


@pytest.mark.parametrize("virtual", [0, 1, 3, 4, 100])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("layout", ["contiguous", "rows"])
@pytest.mark.parametrize("shape", [(8, 5, 50, 50), (9, 20, 6, 5), (10, 33)])
def test_primitives(shape: tuple[int, ...], layout: str, masked: bool, virtual: int) -> None:
    """All four, in groups and under a mask, and the gradient they add up to against autograd's."""
    place = LAYOUTS[layout]
    N, C = shape[:2]
    x, residual, grad = (place(data(shape, F32, offset)) for offset in (3.0, 0.0, 0.2))
    S = x[0, 0].numel()
    mask = None
    if masked:
        mask = (torch.rand(N, S) > 0.3).float() * torch.rand(N, S).clamp(0.2)
        mask[0, 0] = 1.0
        mask[1, :] = 1.0
        hidden = (mask == 0).reshape(N, 1, *shape[2:]).expand(shape)
        for t in (x, residual, grad):
            t[hidden] = float("nan")
    weights = torch.ones(N, S) if mask is None else mask
    mask = None if mask is None else mask.reshape(N, 1, *shape[2:])

    count, mean, m2 = cpu.moments(x, virtual, mask)
    exact_count, exact_mean, exact_m2 = moments(x, virtual, mask)
    torch.testing.assert_close(count, exact_count, rtol=1e-6, atol=0)
    torch.testing.assert_close(mean, exact_mean, rtol=2e-7, atol=1e-7, equal_nan=True)
    torch.testing.assert_close(m2, exact_m2, rtol=3e-6, atol=1e-6, equal_nan=True)

    scale = (exact_m2 / exact_count.clamp(min=1e-30) + 1e-5).rsqrt()
    shift = torch.randn(len(mean), C, dtype=torch.float64)
    seen = (weights > 0).reshape(N, 1, *shape[2:]).expand(shape)
    x64, r64, g64 = (torch.where(seen, t.double(), 0.0) for t in (x, residual, grad))
    z = (x64 - per_sample(exact_mean, x, virtual)) * per_sample(scale, x, virtual) + per_sample(shift, x, virtual) + r64
    y = cpu.normalize(x, exact_mean, scale, shift, residual, "silu", virtual, mask)
    close(y, torch.where(seen, torch.nn.functional.silu(z), 0.0), z.float())

    z.requires_grad_()
    slope = torch.where(seen, torch.autograd.grad(torch.nn.functional.silu(z), z, g64)[0], 0.0)
    d = x64 - per_sample(exact_mean, x, virtual)
    sums = [
        torch.stack([t.reshape(len(t), C, -1).sum((0, 2)) for t in v.split(virtual or N)]) for v in (slope, slope * d)
    ]
    ours = cpu.backward_reduce(grad, x, exact_mean, scale, shift, residual, "silu", virtual, mask)
    for sum_ours, sum_exact in zip(ours, sums, strict=True):
        torch.testing.assert_close(sum_ours, sum_exact, rtol=1e-5, atol=1e-5 * slope.abs().sum().item() / C)

    a, b, c = (torch.randn_like(scale) for _ in range(3))
    dx, dresidual = cpu.backward_apply(
        grad, x, exact_mean, scale, shift, a, b, c, residual, "silu", virtual, mask, need_residual=True
    )
    w = weights.double().reshape(N, 1, *shape[2:])
    A, B, K = (per_sample(t, x, virtual) for t in (a, b, c))
    expected = torch.where(seen, A * slope + w * (B * d + K), 0.0)
    torch.testing.assert_close(dx.double(), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(dresidual.double(), slope, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("layout", ["contiguous", "rows"])
def test_population_statistics(layout: str) -> None:
    """The eval path: given statistics, and no gradient through them."""
    x, grad = (LAYOUTS[layout](data((6, 20, 13, 11), F32)) for _ in range(2))
    mean, var = torch.randn(20), torch.rand(20) + 0.5
    weight, bias = torch.rand(20) + 0.5, torch.randn(20)
    scale = (weight * (var.double() + 1e-5).rsqrt())[None]
    m, shift = mean.double()[None], bias.double()[None]
    y = cpu.normalize(x, m, scale, shift, activation="relu")
    zero = torch.zeros_like(m)
    dx, _ = cpu.backward_apply(grad, x, m, scale, shift, scale, zero, zero, activation="relu")
    leaf = x.double().requires_grad_()
    exact = torch.relu(
        torch.nn.functional.batch_norm(leaf, mean.double(), var.double(), weight.double(), bias.double())
    )
    torch.testing.assert_close(y.double(), exact.detach(), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(dx.double(), torch.autograd.grad(exact, leaf, grad.double())[0], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("shape", [(6, 20, 13, 11), (6, 3, 100, 100), (50, 7)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("momentum", [0.3, None])
def test_running_statistics(momentum: float | None, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    ours = torch.nn.BatchNorm1d(shape[1], momentum=momentum, dtype=dtype)
    theirs = torch.nn.BatchNorm1d(shape[1], momentum=momentum, dtype=dtype)
    for _ in range(3):
        x = data(shape, dtype)
        version = ours.running_mean._version
        cpu.forward(x, None, None, None, 1e-5, None, Running(*buffers(ours), momentum, "skip"))
        assert ours.running_mean._version == version + 1
        theirs(x.flatten(2) if x.dim() > 2 else x)
    for mine, other in zip(buffers(ours), buffers(theirs), strict=True):
        torch.testing.assert_close(mine, other)


def buffers(layer: torch.nn.BatchNorm1d) -> tuple[Tensor, Tensor, Tensor]:
    assert layer.running_mean is not None
    assert layer.running_var is not None
    assert layer.num_batches_tracked is not None
    return layer.running_mean, layer.running_var, layer.num_batches_tracked


@pytest.mark.parametrize("nonfinite", ["skip", "propagate"])
@pytest.mark.parametrize("layout", ["contiguous", "rows"])
def test_non_finite_batch_and_the_population(layout: str, nonfinite: str) -> None:
    x = LAYOUTS[layout](data((6, 20, 13, 11), F32))
    x[2, 4, 0, 0] = float("nan")
    mean, var = torch.zeros(20), torch.ones(20)
    cpu.forward(x, None, None, None, 1e-5, None, Running(mean, var, None, 0.1, nonfinite))
    others = torch.arange(20) != 4
    assert (mean[others] != 0).all()
    if nonfinite == "skip":
        assert mean[4] == 0
        assert var[4] == 1
    else:
        assert mean[4].isnan()
        assert var[4].isnan()


def test_cumulative_average_needs_a_counter() -> None:
    running = Running(torch.zeros(3), torch.ones(3), None, None, "skip")
    with pytest.raises(ValueError, match="num_batches_tracked"):
        cpu.forward(torch.randn(4, 3), None, None, None, 1e-5, None, running)


def test_parameters_in_low_precision() -> None:
    x, grad = data((6, 20, 13, 11), torch.bfloat16), data((6, 20, 13, 11), torch.bfloat16)
    for dtype in (torch.bfloat16, torch.float16, torch.float64):
        weight, bias = (torch.rand(20) + 0.5).to(dtype), torch.randn(20).to(dtype)
        y, statistics, _ = cpu.forward(x, None, weight, bias, 1e-5, None)
        _, _, dweight, dbias = cpu.backward(grad, x, None, weight, bias, statistics, None, False, False, True)
        exact = by_torch(x.double(), grad.double(), weight.double(), bias.double(), None, None)
        close(y, exact["y"], exact["y"].to(torch.bfloat16))
        assert dweight.dtype == dbias.dtype == dtype
        torch.testing.assert_close(dweight.double(), exact["dweight"], rtol=1e-2, atol=1e-2)
        torch.testing.assert_close(dbias.double(), exact["dbias"], rtol=1e-2, atol=1e-2)


def test_expanded_gradient_and_foreign_strides() -> None:
    """`y.sum().backward()` hands over one value with strides of zero; a layer above may use another layout."""
    x = data((6, 20, 13, 11), F32)
    weight, bias = torch.rand(20) + 0.5, torch.randn(20)
    residual = data((6, 20, 13, 11), F32)
    y, statistics, _ = cpu.forward(
        x, residual.contiguous(memory_format=torch.channels_last), weight, bias, 1e-5, "relu"
    )
    assert torch.equal(y, cpu.forward(x, residual, weight, bias, 1e-5, "relu")[0])
    dense = torch.full_like(x, 0.7)
    results = [
        cpu.backward(grad, x, y, weight, bias, statistics, "relu", False, False, False)[0]
        for grad in (dense, torch.tensor(0.7).expand_as(x), dense.contiguous(memory_format=torch.channels_last))
    ]
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


def test_nothing_in_nothing_out() -> None:
    for shape in [(0, 3), (0, 3, 4, 4), (2, 3, 0)]:
        x = torch.empty(shape)
        count, mean, m2 = cpu.moments(x)
        assert (count == 0).all()
        assert (mean == 0).all()
        assert (m2 == 0).all()
        assert cpu.normalize(x, mean, mean, mean).shape == shape


def test_what_is_supported() -> None:
    assert cpu.supports(torch.ones(2, 3))
    assert cpu.supports(torch.ones(2, 3, dtype=torch.bfloat16))
    assert not cpu.supports(torch.ones(3))
    assert not cpu.supports(torch.ones(2, 3, dtype=torch.int32))
    assert not cpu.supports(torch.ones(2, 3, device="meta"))
    assert not cpu.supports(torch.ones(2, 3).to_sparse())


def test_calls_are_counted() -> None:
    before = cpu.calls["forward"]
    cpu.forward(torch.randn(4, 3), None, None, None, 1e-5, None)
    assert cpu.calls["forward"] == before + 1


def test_more_than_two_to_the_31_elements() -> None:
    """Memory that was never written reads as zero and takes no room, so this is large in addresses only."""
    torch.use_deterministic_algorithms(False)  # or the poison would write it
    x = torch.empty((2, 3, 2**29), dtype=torch.bfloat16)
    assert x.numel() > 2**31
    x[1, 2, -1000:] = 1.0
    count, mean, _ = cpu.moments(x)
    assert count.item() == 2**30
    torch.testing.assert_close(mean, torch.tensor([[0.0, 0.0, 1000 / 2**30]], dtype=torch.float64))


@pytest.mark.parametrize("dtype", [F32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("layout", ["contiguous", "rows"])
@pytest.mark.parametrize("shape", [*SHAPES, (3, 1030, 5), (130, 1024), (9, 2050)])
def test_past_the_cache_the_same_bits(
    shape: tuple[int, ...], layout: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Large outputs go through a buffer in whole cache lines; here small ones do, wherever in a line they begin."""
    x, grad, residual = (LAYOUTS[layout](data(shape, dtype)) for _ in range(3))
    for shift in (0, 1, 13):
        guard = torch.full((x.numel() + 200,), 7.0, dtype=dtype)

        def shifted(like: Tensor, guard: Tensor = guard, shift: int = shift) -> Tensor:
            return guard.as_strided(like.shape, like.stride(), 64 + shift)

        monkeypatch.setattr(cpu, "empty_like", shifted)
        results = []
        for least in (1 << 60, 0):
            monkeypatch.setattr(cpu, "_PAST_CACHE", least)
            y, statistics, _ = cpu.forward(x, residual, None, None, 1e-5, "relu")
            results.append([y.clone()])
            for need_residual in (False, True):
                monkeypatch.setattr(cpu, "empty_like", shifted if not need_residual else torch.empty_like)
                dx, dr, *_ = cpu.backward(
                    grad, x, results[-1][0], None, None, statistics, "relu", False, need_residual, False
                )
                results[-1] += [dx.clone()] if dr is None else [dx, dr]
            monkeypatch.setattr(cpu, "empty_like", shifted)
        assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
        assert (guard[: 64 + shift] == 7).all()
        assert (guard[64 + shift + x.numel() :] == 7).all()


def test_warmup_compiles_what_layers_ask_for(monkeypatch: pytest.MonkeyPatch) -> None:
    get = cpu.get
    warmed: set[object] = set()
    monkeypatch.setattr(cpu, "get", lambda *kernel: warmed.add(kernel))
    cpu.warmup([F32], [None, "relu"])
    asked: set[object] = set()
    monkeypatch.setattr(cpu, "get", lambda *kernel: asked.add(kernel) or get(*kernel))
    for place in (LAYOUTS["contiguous"], LAYOUTS["rows"]):
        for activation in (None, "relu"):
            for add in (False, True):
                layer, (x, residual) = (
                    BatchNorm(20, activation=activation),
                    (place(data((6, 20, 5, 5), F32)) for _ in "xr"),
                )
                for _ in range(2):
                    layer(x.requires_grad_(), residual if add else None).sum().backward()
                    layer.eval()
    assert {kernel for _, kernel, _ in asked} >= {
        "forward",
        "backward",
        "moments",
        "reduce",
        "apply",
        "read_population",
    }
    assert asked <= warmed
