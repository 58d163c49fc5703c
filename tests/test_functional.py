"""`batch_norm` against the oracle and against torch's own: every layout, dtype and mode, offsets, errors, options."""

import hypothesis
import hypothesis.strategies as st
import pytest
import torch
from torch.nn import functional as F

import batchnorm as bn
from tests.support.backends import as_torch
from tests.support.material import LAYOUTS, drifting
from tests.support.oracle import ACTIVATIONS, answer, away_from_kinks, by_torch, exact, judge, judge_all

SHAPES = [
    (37, 5),
    (2053, 3),  # past a block of 2048 values
    (3, 5, 7),
    (5, 1, 13),
    (4, 3, 5, 7),
    (3, 2, 41, 53),  # past a block, and odd
    (2, 3, 3, 2, 5),
    (3, 4, 1, 2, 3, 2),
]
# input dtype, parameters' dtype
DTYPES = {
    "float32": (torch.float32, torch.float32),
    "float64": (torch.float64, torch.float64),
    "bfloat16": (torch.bfloat16, torch.bfloat16),
    "float16": (torch.float16, torch.float16),
    "bfloat16 and float32": (torch.bfloat16, torch.float32),
    "float16 and float32": (torch.float16, torch.float32),
}


def parameters(channels, dtype=torch.float32):
    """running_mean, running_var, weight, bias: none of them trivial."""
    mean, bias = torch.randn(2, channels, dtype=torch.float64)
    var, weight = torch.rand(2, channels, dtype=torch.float64) * 2 + 0.5
    weight[::2] *= -1
    return [t.to(dtype, copy=True) for t in (mean, var, weight, bias)]  # not views of one another


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("dtypes", DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_as_torch(shape, layout, dtypes, training):
    dtype, affine_dtype = DTYPES[dtypes]
    x = LAYOUTS[layout](drifting(*shape, dtype=dtype))
    grad = drifting(*shape, dtype=dtype, offset=0.3)
    args = (x, *parameters(shape[1], affine_dtype), training, 0.3)
    ours, torchs = (answer(f, *args, grad=grad) for f in (bn.batch_norm, F.batch_norm))
    judge_all(ours, exact(*args, grad=grad), torchs)
    assert ours.y.dtype == dtype
    assert ours.y.stride() == torchs.y.stride()


@pytest.mark.parametrize("dtypes", DTYPES)
@pytest.mark.parametrize("given", ["weight", "bias", "neither", "no running statistics"])
def test_parts_left_out(given, dtypes):
    dtype, affine_dtype = DTYPES[dtypes]
    x, grad = drifting(6, 4, 5, dtype=dtype), drifting(6, 4, 5, dtype=dtype, offset=0.3)
    mean, var, weight, bias = parameters(4, affine_dtype)
    if given == "no running statistics":
        args = (x, None, None, weight, bias, True)
    else:
        args = (x, mean, var, weight if given == "weight" else None, bias if given == "bias" else None, True)
    ours, torchs = (answer(f, *args, grad=grad) for f in (bn.batch_norm, F.batch_norm))
    judge_all(ours, exact(*args, grad=grad), torchs)


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("dtypes", DTYPES)
@pytest.mark.parametrize("with_residual", [False, True], ids=["alone", "residual"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_residual_and_activation(activation, with_residual, dtypes, training):
    dtype, affine_dtype = DTYPES[dtypes]
    x, residual, grad = (drifting(5, 4, 7, 9, dtype=dtype, offset=o) for o in (3.0, 1.0, 0.3))
    x, residual = LAYOUTS["channels_last"](x), LAYOUTS["sliced"](residual) if with_residual else None
    args = (x, *parameters(4, affine_dtype), training, 0.3)
    keywords = {"residual": residual, "activation": activation}
    # No gradient arrives within rounding of a kink, where two right answers differ; the next test looks there.
    away = away_from_kinks(exact(*args, **keywords).z, activation, dtype)
    assert away.float().mean() > 0.8
    grad = torch.where(away, grad, 0.0)
    ours, torchs = (answer(f, *args, **keywords, grad=grad) for f in (bn.batch_norm, by_torch))
    judge_all(ours, exact(*args, **keywords, grad=grad), torchs)


@pytest.mark.parametrize("activation", ["relu", "leaky_relu", "hardswish"])
def test_at_the_kink_either_side_is_right(activation):
    """Elements within rounding of a kink, alone: the gradient is one of the two slopes there."""
    kink = {"hardswish": 3.0}.get(activation, 0.0)
    x = torch.full((4, 2, 3), kink, requires_grad=True)
    y = bn.batch_norm(x, torch.zeros(2), torch.ones(2), eps=0.0, activation=activation)
    y.sum().backward()
    slopes = {"relu": (0.0, 1.0), "leaky_relu": (0.01, 1.0), "hardswish": (1.5, 1.0)}[activation]
    assert min(abs(x.grad - s).max() for s in slopes) < 1e-6


@pytest.mark.parametrize("mean", [1e4, -1e6])
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", [(4096, 4), (7, 3, 301), (3, 5, 41, 53), (2, 3, 5, 7, 11)], ids=str)
def test_exact_far_from_zero(shape, layout, training, mean):
    """float32 data at a mean of 1e4 and 1e6, σ = 1: torch is off by up to the values themselves here."""
    x = LAYOUTS[layout](torch.randn(shape) + mean)
    channels = shape[1]
    buffers = torch.full((channels,), mean + 0.3), torch.full((channels,), 1.1)
    weight, bias = torch.linspace(0.5, 1.0, channels), torch.linspace(-0.5, 0.5, channels)
    grad = drifting(*shape, offset=0.3)
    truth = exact(x, *buffers, weight, bias, training, grad=grad)
    ours = answer(bn.batch_norm, x, *buffers, weight, bias, training, grad=grad)
    if as_torch():
        judge_all(ours, truth, answer(F.batch_norm, x, *buffers, weight, bias, training, grad=grad))
        return
    far = layout in ("expanded", "one_sample") and training  # few distinct values: a small σ magnifies
    judge("y", ours.y, truth.y, budget=1e-5 * (truth.y.abs().max().item() if far else 1.0))
    judge("running_mean", ours.running_mean, truth.running_mean)
    judge("running_var", ours.running_var, truth.running_var)
    for name, g in truth.grads.items():
        if g is not None:
            judge(f"grad of {name}", ours.grads[name], g, budget=1e-5 * g.abs().max().item())


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("constant", [0.0, 0.1, -1e7, 1e30])
def test_constant_channel_gives_the_bias(constant, layout):
    if as_torch():
        pytest.skip("torch's operator serves, which puts out 105 for a constant of -1e7")
    x = LAYOUTS[layout](torch.full((5, 2, 7, 11), constant))
    mean, var = torch.zeros(2), torch.zeros(2)
    y = bn.batch_norm(x, mean, var, torch.ones(2), torch.tensor([0.0, 0.5]), training=True, momentum=1.0)
    assert torch.equal(y, torch.tensor([0.0, 0.5]).reshape(1, 2, 1, 1).expand_as(y))
    assert torch.equal(mean, x[0, :, 0, 0])
    assert torch.equal(var, torch.zeros(2))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_statistics_are_never_narrower_than_float32(dtype):
    """70,000 values whose sum and squares overflow float16, and whose sum stalls in bfloat16."""
    x = (torch.randn(7, 2, 100, 100) + 100).to(dtype)
    mean, var = torch.zeros(2), torch.zeros(2)
    y = bn.batch_norm(x, mean, var, training=True, momentum=1.0)
    truth = exact(x, mean, var, training=True, momentum=1.0)
    rivals = (None, None)
    if as_torch():
        rivals = torch.zeros(2), torch.zeros(2)
        F.batch_norm(x, *rivals, training=True, momentum=1.0)
    judge("running_mean", mean, truth.running_mean, rivals[0])
    judge("running_var", var, truth.running_var, rivals[1])
    judge("y", y, truth.y)


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("momentum", [0.0, 0.3, 1.0, -1.2, torch.tensor(0.3)], ids=str)
def test_return_stats_writes_nothing(momentum, training):
    x, (mean, var, weight, bias) = drifting(6, 3, 5), parameters(3)
    kept = mean.clone(), var.clone()
    y, *new = bn.batch_norm(x, mean, var, weight, bias, training, momentum, return_stats=True)
    assert torch.equal(mean, kept[0])
    assert torch.equal(var, kept[1])
    truth, torchs = exact(x, mean, var, weight, bias, training, float(momentum)), [s.clone() for s in kept]
    F.batch_norm(x, *torchs, weight, bias, training, float(momentum))
    judge("new running_mean", new[0], truth.running_mean, torchs[0])
    judge("new running_var", new[1], truth.running_var, torchs[1])
    assert torch.equal(y, bn.batch_norm(x, mean, var, weight, bias, training, momentum))  # this one writes
    assert torch.equal(mean, new[0])
    assert torch.equal(var, new[1])
    assert torch.equal(mean, kept[0]) == (not training or momentum == 0)


def test_return_stats_of_none():
    y, mean, var = bn.batch_norm(drifting(6, 3), None, None, training=True, return_stats=True)
    assert mean is var is None
    assert y.shape == (6, 3)


NONE, ZEROS, ONES = None, torch.zeros(3), torch.ones(3)
BAD_CALLS = {
    "one value per channel": lambda f: f(torch.ones(1, 3), ZEROS, ONES, training=True),
    "one value per channel, 4-D": lambda f: f(torch.ones(1, 3, 1, 1), ZEROS, ONES, training=True),
    "eval without statistics": lambda f: f(torch.ones(2, 3), NONE, NONE),
    "eps of 0 in training": lambda f: f(torch.ones(2, 3), ZEROS, ONES, training=True, eps=0.0),
    "eps below 0": lambda f: f(torch.ones(2, 3), ZEROS, ONES, training=True, eps=-1.0),
    "running_mean too long": lambda f: f(torch.ones(2, 3), torch.zeros(4), ONES),
    "running_var too short": lambda f: f(torch.ones(2, 3), ZEROS, torch.ones(2), training=True),
    "weight too long": lambda f: f(torch.ones(2, 3), ZEROS, ONES, torch.ones(4), training=True),
    "bias too short": lambda f: f(torch.ones(2, 3), ZEROS, ONES, ONES, torch.ones(2), training=True),
    "integers": lambda f: f(torch.ones(2, 3).long(), ZEROS, ONES, training=True),
    "integers in eval": lambda f: f(torch.ones(2, 3).long(), ZEROS, ONES),
    "complex": lambda f: f(torch.ones(2, 3) * 1j, ZEROS, ONES, training=True),
    "one dimension": lambda f: f(torch.ones(3), ZEROS, ONES, training=True),
    "no dimension": lambda f: f(torch.tensor(1.0), NONE, NONE, training=True),
    "bfloat16 parameters": lambda f: f(torch.ones(2, 3), ZEROS.bfloat16(), ONES.bfloat16(), training=True),
    "float64 input": lambda f: f(torch.ones(2, 3).double(), ZEROS, ONES, training=True),
    "float16 weight, bfloat16 input": lambda f: f(torch.ones(2, 3).bfloat16(), ZEROS, ONES, ONES.half(), ONES.half()),
}


@pytest.mark.parametrize("call", BAD_CALLS)
def test_errors_as_torch(call):
    with pytest.raises(Exception) as torchs:  # noqa: PT011
        BAD_CALLS[call](F.batch_norm)
    with pytest.raises(type(torchs.value)):
        BAD_CALLS[call](bn.batch_norm)


@pytest.mark.parametrize(
    ("keywords", "error", "says"),
    [
        ({"running_mean": ZEROS, "running_var": None}, ValueError, "both"),
        ({"residual": torch.ones(2, 3, 1)}, RuntimeError, r"residual of shape \(2, 3\).* got \(2, 3, 1\)"),
        ({"activation": "tanh"}, ValueError, "activation must be one of None, 'relu'.*; got 'tanh'"),
        ({"weight": torch.ones(4)}, RuntimeError, r"weight should contain 3 elements not 4.*shape \(2, 3\)"),
    ],
)
def test_errors_say_what_was_expected(keywords, error, says):
    keywords = {"running_mean": ZEROS, "running_var": ONES, **keywords}
    with pytest.raises(error, match=says):
        bn.batch_norm(torch.ones(2, 3), training=True, **keywords)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("nonfinite", ["skip", "propagate", "raise"])
def test_nonfinite(nonfinite, bad):
    """One value spoils its channel's output; what it does to the memory is the caller's choice."""
    x = drifting(6, 3, 5)
    good = x.clone()
    x[4, 1, 2] = bad
    mean, var, weight, bias = parameters(3)
    args = (weight, bias, True, 0.3)
    kept = mean.clone(), var.clone()
    moved = exact(good, mean, var, *args)
    if nonfinite == "raise":
        with pytest.raises(FloatingPointError, match=r"channels \[1\]"):
            bn.batch_norm(x, mean, var, *args, nonfinite="raise")
        assert torch.equal(mean, kept[0])
        assert torch.equal(var, kept[1])
        bn.batch_norm(good, mean, var, *args, nonfinite="raise")
        judge("running_mean", mean, moved.running_mean)
        return
    y = bn.batch_norm(x, mean, var, *args, nonfinite=nonfinite)
    torchs = F.batch_norm(x, *(s.clone() for s in kept), *args)
    assert torch.equal(y.isfinite(), torchs.isfinite())
    for got, old, new in ((mean, kept[0], moved.running_mean), (var, kept[1], moved.running_var)):
        judge("other channels", got[[0, 2]], new[[0, 2]])
        assert torch.equal(got[1], old[1]) if nonfinite == "skip" else not got[1].isfinite()


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("shape", [(0, 3), (0, 3, 5), (4, 3, 0), (0, 3, 2, 2), (0, 3, 2, 0, 2)], ids=str)
def test_empty(shape, training):
    x, grad = torch.empty(shape), torch.empty(shape)
    args = (x, *parameters(3), training)
    ours, torchs = (answer(f, *args, grad=grad) for f in (bn.batch_norm, F.batch_norm))
    assert ours.y.shape == ours.grads["x"].shape == shape
    for name in ("weight", "bias"):
        assert torch.equal(ours.grads[name], torch.zeros(3))
        assert torch.equal(torchs.grads[name], torch.zeros(3))
    assert torch.equal(ours.running_mean, args[1])
    assert torch.equal(ours.running_var, args[2])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)  # in float64 no cast makes a copy
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_autograd_holds_no_buffer(activation, dtype):
    """Two forwards in eval, then the buffers move, then the backward: the gradient is that of the forward."""
    mean, var, weight, bias = parameters(3, dtype)
    x, grad = drifting(4, 3, 5, dtype=dtype).requires_grad_(), drifting(4, 3, 5, dtype=dtype)
    weight.requires_grad_()
    truth = exact(x, mean, var, weight, bias, activation=activation, grad=grad)
    first, _ = (bn.batch_norm(x, mean, var, weight, bias, activation=activation) for _ in range(2))
    mean.fill_(77.0)
    var.zero_()
    first.backward(grad)
    judge("grad of x", x.grad, truth.grads["x"], budget=1e-5)
    judge("grad of weight", weight.grad, truth.grads["weight"], budget=1e-4)


def test_training_between_evaluation_and_its_backward():
    """torch 2.13 computes a wrong gradient here, without an error: its operator updates buffers that autograd holds."""
    mean, var, weight, bias = parameters(3)
    x, grad = drifting(4, 3, 5).requires_grad_(), drifting(4, 3, 5, offset=1.0)
    truth = exact(x, mean, var, weight, bias, grad=grad)
    y = bn.batch_norm(x, mean, var, weight, bias)
    before = mean.clone()
    bn.batch_norm(drifting(4, 3, 5, offset=9.0), mean, var, weight, bias, True)
    assert not torch.equal(mean, before)
    y.backward(grad)
    judge("grad of x", x.grad, truth.grads["x"], budget=1e-5)


def test_two_forwards_in_training_before_one_backward():
    mean, var, weight, bias = parameters(3)
    weight.requires_grad_()
    one, two = drifting(4, 3, 5).requires_grad_(), drifting(4, 3, 5, offset=1.0)
    truth = exact(one, mean, var, weight, bias, True, grad=one.detach())
    y = bn.batch_norm(one, mean, var, weight, bias, True)
    bn.batch_norm(two, mean, var, weight, bias, True)
    y.backward(one.detach())
    judge("grad of x", one.grad, truth.grads["x"], budget=1e-5)


def test_input_weight_and_bias_are_left_alone():
    x, (mean, var, weight, bias) = drifting(4, 3, 5), parameters(3)
    kept = [t.clone() for t in (x, weight, bias)]
    bn.batch_norm(x, mean, var, weight, bias, True, activation="relu", residual=x)
    assert all(torch.equal(a, b) for a, b in zip((x, weight, bias), kept, strict=True))


def test_gradients_only_where_asked():
    x, (mean, var, weight, bias) = drifting(4, 3, 5), parameters(3)
    bias.requires_grad_()
    bn.batch_norm(x, mean, var, weight, bias, True).sum().backward()
    assert torch.equal(bias.grad, torch.full((3,), 20.0))
    assert x.grad is weight.grad is None
    y = bn.batch_norm(x, mean, var, weight, bias.detach(), True)
    assert not y.requires_grad


# Properties: any shape, layout and dtype

shapes = st.lists(st.integers(1, 9), min_size=2, max_size=5).filter(lambda s: s[0] * torch.Size(s[2:]).numel() > 1)


@hypothesis.given(shapes, st.sampled_from(sorted(LAYOUTS)), st.sampled_from(sorted(DTYPES)), st.booleans())
def test_any_input(shape, layout, dtypes, training):
    dtype, affine_dtype = DTYPES[dtypes]
    torch.manual_seed(hash(tuple(shape)))
    x, grad = LAYOUTS[layout](drifting(*shape, dtype=dtype)), drifting(*shape, dtype=dtype, offset=0.3)
    args = (x, *parameters(shape[1], affine_dtype), training, 0.3, 1e-2)  # tiny batches: a larger eps keeps 1/σ sane
    ours, torchs = (answer(f, *args, grad=grad) for f in (bn.batch_norm, F.batch_norm))
    judge_all(ours, exact(*args, grad=grad), torchs)


@hypothesis.given(shapes, st.floats(0.01, 100), st.floats(-100, 100))
def test_invariant_to_affine_changes_of_the_input(shape, scale, shift):
    torch.manual_seed(hash(tuple(shape)))
    x = drifting(*shape, dtype=torch.float64)
    one = bn.batch_norm(x, None, None, training=True, eps=1e-12)
    other = bn.batch_norm(x * scale + shift, None, None, training=True, eps=1e-12 * scale**2)
    judge("y", other, one, budget=1e-8)


@hypothesis.given(shapes, st.randoms())
def test_order_of_the_batch_does_not_matter(shape, random):
    torch.manual_seed(hash(tuple(shape)))
    x, order = drifting(*shape), list(range(shape[0]))
    random.shuffle(order)
    buffers = [torch.zeros(2, shape[1]), torch.zeros(2, shape[1])]
    one, other = (bn.batch_norm(t, *b, training=True) for t, b in zip((x, x[order]), buffers, strict=True))
    judge("y", other, one[order], budget=1e-5 * one.abs().max().item())
    judge("running statistics", buffers[1], buffers[0], budget=1e-6 * buffers[0].abs().max().item())


@hypothesis.given(shapes, st.sampled_from(sorted(LAYOUTS)))
def test_mean_0_and_standard_deviation_1(shape, layout):
    torch.manual_seed(hash(tuple(shape)))
    shape = [shape[0] + 10, *shape[1:]]
    x = LAYOUTS[layout](drifting(*shape, dtype=torch.float64))
    y = bn.batch_norm(x, None, None, training=True, eps=1e-14)
    over = [0, *range(2, y.dim())]
    judge("mean", y.mean(over), torch.zeros(shape[1]), budget=1e-10)
    varies = x.var(over, correction=0) > 1e-3  # an expanded input may be constant
    judge("standard deviation", y.std(over, correction=0)[varies], torch.ones(shape[1])[varies], budget=1e-10)
