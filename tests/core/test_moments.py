"""`Moments`: exact, and the one merge."""

import math
from fractions import Fraction

import hypothesis
import hypothesis.strategies as st
import pytest
import torch

import batchnorm
from batchnorm import Moments
from tests.support.backends import NATIVE
from tests.support.material import LAYOUTS, drifting
from tests.support.oracle import judge


def by_numpy(x):
    """Count, mean and m2 in numpy's widest float, channel by channel."""
    columns = x.double().movedim(1, 0).reshape(x.shape[1], -1).numpy().astype("longdouble")
    mean = columns.mean(axis=1, keepdims=True)
    m2 = ((columns - mean) ** 2).sum(axis=1)
    return columns.shape[1], torch.tensor(mean[:, 0].astype("float64")), torch.tensor(m2.astype("float64"))


@pytest.mark.parametrize("offset", [0.0, 1e4, -1e6])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_of(dtype, layout, offset):
    x = LAYOUTS[layout]((torch.randn(3, 4, 29, 31) + (offset if dtype.itemsize >= 4 else offset / 1e5)).to(dtype))
    count, mean, m2 = by_numpy(x)
    got = Moments.of(x)
    assert got.count == count == 2697
    assert got.mean.dtype == got.m2.dtype == torch.float64
    tight = 1e-14 if dtype is torch.float64 else 1e-6  # of σ, whatever the offset
    judge("mean", got.mean, mean, budget=tight + 1e-15 * mean.abs().max().item())
    judge("m2", got.m2, m2, budget=tight * 2 * m2.max().item())
    judge("variance", got.variance, m2 / count, budget=tight * 2 * m2.max().item() / count)
    judge("unbiased", got.unbiased_variance, m2 / (count - 1), budget=tight * 2 * m2.max().item() / count)


@pytest.mark.parametrize("shape", [(5, 3), (2, 3, 7), (1, 3, 2, 2, 2, 3)], ids=str)
def test_any_rank(shape):
    x = drifting(*shape, dtype=torch.float64)
    count, mean, m2 = by_numpy(x)
    got = Moments.of(x)
    assert got.count == count
    judge("mean", got.mean, mean)
    judge("m2", got.m2, m2)


def test_differentiable():
    x = drifting(5, 2, 3, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: (Moments.of(x).mean, Moments.of(x).variance), x)


def parts(n, cuts):
    cuts = sorted(c % (n + 1) for c in cuts)
    return zip([0, *cuts], [*cuts, n], strict=True)


def of_maybe_nothing(x):
    """An empty shard has no mean: any finite one will do, for it must not matter."""
    return (
        Moments.of(x)
        if len(x)
        else Moments(0, torch.full((x.shape[1],), 7.0).double(), torch.zeros(x.shape[1]).double())
    )


@hypothesis.given(st.integers(1, 40), st.lists(st.integers(0, 1000), max_size=6), st.floats(-1e6, 1e6), st.randoms())
def test_merge_of_any_parts_in_any_order_is_the_whole(n, cuts, offset, random):
    torch.manual_seed(n)
    x = drifting(n, 3, dtype=torch.float64) + offset
    shards = [of_maybe_nothing(x[a:b]) for a, b in parts(n, cuts)]
    random.shuffle(shards)
    while len(shards) > 1:  # any tree
        i = random.randrange(len(shards) - 1)
        shards[i : i + 2] = [shards[i].merge(shards[i + 1])]
    count, mean, m2 = by_numpy(x)
    assert shards[0].count == count
    size = 1 + x.abs().max().item()
    judge("mean", shards[0].mean, mean, budget=1e-14 * size)
    judge("m2", shards[0].m2, m2, budget=1e-13 * (size + m2.max().item()))


@pytest.mark.parametrize("count", [int, torch.tensor], ids=["int", "tensor"])
def test_merge_of_nothing(count):
    nothing = Moments(count(0), torch.zeros(3), torch.zeros(3))
    both = nothing.merge(nothing)
    assert both.count == 0
    assert torch.equal(both.mean, torch.zeros(3))
    some = Moments(count(4), torch.ones(3), torch.full((3,), 2.0))
    for merged in (some.merge(nothing), nothing.merge(some)):
        assert merged.count == 4
        assert torch.equal(merged.mean, some.mean)
        assert torch.equal(merged.m2, some.m2)


def test_counts_may_differ_per_channel():
    x = drifting(6, 2, dtype=torch.float64)
    four, two = Moments.of(x[:4]), Moments.of(x[:2])  # the first channel of one, the second of the other
    mixed = [torch.stack([getattr(four, k)[0], getattr(two, k)[1]]) for k in ("mean", "m2")]
    one = Moments(torch.tensor([4, 2]), *mixed)
    merged = one.merge(Moments.of(x[4:]))
    wholes = Moments.of(x), Moments.of(torch.cat([x[:2], x[4:]]))
    assert merged.count.tolist() == [6, 4]
    for channel, whole in enumerate(wholes):
        judge("mean", merged.mean[channel], whole.mean[channel])
        judge("m2", merged.m2[channel], whole.m2[channel])


def test_is_a_value():
    with pytest.raises(AttributeError):
        Moments.of(torch.ones(2, 3)).count = 5


@pytest.mark.parametrize("layout", ["rows", "planes"])
def test_the_certified_data_set_of_large_equal_digits(layout):
    """At least 12 digits of each standard deviation, of the values as float64 holds them.

    Source: NIST Statistical Reference Datasets, analysis of variance, SmLs09: nine treatments of 2,001 values near
    10¹², whose first value is the treatment's mean and whose others lie 0.1 below and above it in turn.
    """
    centres = [0.4, 0.3, 0.5, 0.3, 0.5, 0.3, 0.5, 0.3, 0.5]
    columns = [[10**12 + c, *[10**12 + c - 0.1, 10**12 + c + 0.1] * 1000] for c in centres]
    x = torch.tensor(columns, dtype=torch.float64)
    x = x.T.contiguous() if layout == "rows" else x.unsqueeze(0)
    layer = batchnorm.BatchNorm(9, momentum=1.0, dtype=torch.float64)
    layer(x)
    for column, direct, remembered in zip(columns, Moments.of(x).unbiased_variance, layer.running_var, strict=True):
        exactly = [Fraction(value) for value in column]
        mean = sum(exactly) / len(exactly)
        certified = math.sqrt(sum((value - mean) ** 2 for value in exactly) / (len(exactly) - 1))
        assert abs(direct.sqrt().item() / certified - 1) < 1e-12
        if NATIVE:  # torch's own operator has no digit of this mean to spare
            assert abs(remembered.sqrt().item() / certified - 1) < 1e-12
