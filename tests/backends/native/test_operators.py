"""The operators around the kernels: running statistics, arguments in any layout and dtype, and what they refuse."""

from functools import partial

import pytest
import torch

from batchnorm.core import ops
from tests.backends.native.material import (
    PLACES,
    batch_norm,
    every_dtype,
    every_place,
    forward,
    parameters,
    tensors,
    wide,
)
from tests.support.backends import needs_native
from tests.support.material import LAYOUTS, drifting
from tests.support.oracle import answer, by_torch, exact, judge, judge_all

pytestmark = needs_native
SHAPES = pytest.mark.parametrize("shape", [(6, 20, 13, 11), (6, 3, 100, 100), (50, 7), (300, 1030)], ids=str)


# ---- the population


@SHAPES
@every_place
@every_dtype
@pytest.mark.parametrize("momentum", [0.3, None])
def test_it_moves_and_the_batch_counts(momentum, dtype, place, shape):
    mean, var, *_ = parameters(shape[1], wide(dtype))
    batches, skipped = torch.tensor(0), torch.tensor(0)
    for step in range(3):
        (x,) = tensors(shape, dtype, place, x=3.0 + step)
        truth = exact(x, mean, var, training=True, momentum=1 / (step + 1) if momentum is None else momentum)
        versions = [t._version for t in (mean, var, batches)]
        forward(x, running_mean=mean, running_var=var, batches=batches, skipped=skipped, momentum=momentum)
        assert [t._version for t in (mean, var, batches)] == [v + 1 for v in versions]
        judge("running_mean", mean, truth.running_mean, size=truth.sizes["running_mean"])
        judge("running_var", var, truth.running_var, size=truth.sizes["running_var"])
    assert (batches, skipped) == (3, 0)


@pytest.mark.parametrize("buffer", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_the_largest_value_that_its_dtype_holds(buffer):
    """A batch statistic beyond the buffer's range is skipped, one within it is not."""
    largest = torch.finfo(buffer).max
    for size, fits in ((0.9, True), (4.0, False)):
        x = torch.tensor([[0.0], [1.0]]).mul(size * largest**0.5).to(buffer)
        assert bool(x.double().var() <= largest) == fits
        mean, var, skipped = torch.zeros(1, dtype=buffer), torch.ones(1, dtype=buffer), torch.tensor(0)
        forward(x, running_mean=mean, running_var=var, skipped=skipped)
        assert (skipped == 0) == fits
        assert (var != 1).item() == fits


@pytest.mark.parametrize("skip", [True, False], ids=["skip", "propagate"])
@SHAPES
@every_place
def test_a_batch_that_is_not_finite(place, shape, skip):
    (x,) = tensors(shape, torch.float32, place, x=3.0)
    x[2, 1].view(-1)[0] = float("nan")
    mean, var = torch.zeros(shape[1]), torch.ones(shape[1])
    batches, skipped = torch.tensor(5), torch.tensor(7)
    forward(x, running_mean=mean, running_var=var, batches=batches, skipped=skipped, skip=skip)
    others = torch.arange(shape[1]) != 1
    assert mean[others].isfinite().all()
    assert (var[others] != 1).all()
    assert (mean[1] == 0 and var[1] == 1) if skip else (mean[1].isnan() and var[1].isnan())
    assert (batches, skipped) == (6, 7 + skip)


@every_place
def test_moments_that_are_given_stay(place):
    """The frozen case, with no gradient through the statistics, even where the sums are not finite."""
    x, grad = tensors((6, 20, 13, 11), torch.float32, place, x=3.0, grad=0.3)
    arguments = x, *parameters(20), False
    ours = answer(batch_norm, *arguments, grad=grad)
    judge_all(ours, exact(*arguments, grad=grad), answer(by_torch, *arguments, grad=grad))
    grad[0, 3, 0, 0] = float("inf")
    poisoned = answer(batch_norm, *arguments, grad=grad)
    assert poisoned.grads["x"].isinf().sum() == 1
    assert poisoned.grads["x"].isnan().sum() == 0


# ---- layouts


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", [(6, 20, 13, 11), (7, 5), (4, 3, 5, 2, 3)], ids=str)
def test_the_same_bits_from_any_layout(shape, layout):
    """The input, and what arrives with it: a residual and a gradient of other strides."""
    arguments = parameters(shape[1])
    x, residual, grad = (drifting(*shape, offset=o) for o in (3.0, 1.0, 0.3))
    function = partial(batch_norm, activation="relu")
    given = x.contiguous(), *(LAYOUTS[layout](t) for t in (residual, grad))
    one = answer(function, given[0], *arguments, residual=given[1], grad=given[2])
    plain = answer(function, given[0], *arguments, residual=given[1].contiguous(), grad=given[2].contiguous())
    for (name, a), (_, b) in zip(one.parts(), plain.parts(), strict=True):
        assert torch.equal(a, b), name
    x = LAYOUTS[layout](x)
    got = answer(function, x, *arguments, grad=grad)
    dense = "channels_last" if got.y.stride() != got.y.contiguous().stride() else "contiguous"
    again = answer(function, LAYOUTS[dense](x), *arguments, grad=grad)
    for (name, a), (_, b) in zip(got.parts(), again.parts(), strict=True):
        assert (a is b is None) or torch.equal(a, b), name


def test_an_expanded_gradient():
    """`y.sum().backward()` hands over one value with strides of zero."""
    x, arguments = drifting(6, 20, 13, 11), parameters(20)
    grads = [
        answer(batch_norm, x, *arguments, grad=g).grads
        for g in (torch.full_like(x, 0.7), torch.tensor(0.7).expand_as(x))
    ]
    for name in ("x", "weight", "bias"):
        assert torch.equal(grads[0][name], grads[1][name])


@pytest.mark.parametrize("which", ["running_mean", "running_var", "weight", "bias"])
def test_parameters_and_buffers_with_steps(which):
    """Every other element of something larger: read, written and given a gradient there, and nowhere else."""
    names = "running_mean", "running_var", "weight", "bias"
    given = dict(zip(names, parameters(5), strict=True))
    around = torch.full((10,), 77.0)
    around[::2] = given[which]
    x, grad = drifting(8, 5, 3), drifting(8, 5, 3, offset=0.3)
    results = []
    for parameter in (given[which].clone(), around[::2]):
        all_four = {k: t.clone() for k, t in given.items()} | {which: parameter}
        mean, var, *affine = all_four.values()
        affine = [t.detach().requires_grad_() for t in affine]
        y = batch_norm(x, mean, var, *affine)
        results.append([y, *torch.autograd.grad(y, affine, grad), mean, var])
    for a, b in zip(*results, strict=True):
        assert torch.equal(a, b)
    assert (around[1::2] == 77).all()
    assert torch.equal(around[::2] != given[which], torch.full((5,), which.startswith("running")))


# ---- dtypes


@pytest.mark.parametrize("parameter", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_parameters_narrow_or_wide(dtype, parameter):
    """In the dtype of the input or in float32; any other is refused, as torch does."""
    x, grad = drifting(6, 20, 13, 11, dtype=dtype), drifting(6, 20, 13, 11, dtype=dtype, offset=0.3)
    arguments = x, *parameters(20, parameter), True
    if parameter not in (dtype, torch.float32):
        with pytest.raises(RuntimeError, match=r"batchnorm: weight has .* and the input"):
            answer(batch_norm, *arguments, grad=grad)
        return
    ours, truth = answer(batch_norm, *arguments, grad=grad), exact(*arguments, grad=grad)
    judge_all(ours, truth, answer(by_torch, *arguments, grad=grad))
    assert ours.grads["weight"].dtype == ours.grads["bias"].dtype == ours.running_var.dtype == parameter


@pytest.mark.parametrize("bias", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("weight", [torch.float32, torch.bfloat16], ids=str)
def test_each_parameter_has_a_dtype_of_its_own(weight, bias):
    x = drifting(6, 20, 13, dtype=torch.bfloat16)
    leaves = torch.ones(20, dtype=weight, requires_grad=True), torch.zeros(20, dtype=bias, requires_grad=True)
    batch_norm(x, torch.zeros(20), torch.ones(20), *leaves).sum().backward()
    assert [t.grad.dtype for t in leaves] == [weight, bias]


@pytest.mark.parametrize("dtype", [torch.int32, torch.float32, torch.uint8, torch.int64], ids=str)
def test_a_counter_of_any_dtype(dtype):
    """One value is written, wherever it lies."""
    around = torch.zeros(5, dtype=dtype)
    forward(
        drifting(6, 3), running_mean=torch.zeros(3), running_var=torch.ones(3), batches=around[2], skipped=around[3]
    )
    assert around.tolist() == [0, 0, 1, 0, 0]


# ---- what is needed, and what is refused


def test_gradients_that_nobody_needs_are_empty():
    x, residual, grad = tensors((6, 4, 5), torch.float32, "contiguous")
    _, _, weight, bias = parameters(4)
    _, statistics = forward(x, residual, weight, bias, activation="silu")
    whole = ops.backward(grad, x, residual, weight, bias, statistics, 1e-5, "silu", False, [True] * 4)
    for bits in range(16):
        needs = [bool(bits >> i & 1) for i in range(4)]
        results = ops.backward(grad, x, residual, weight, bias, statistics, 1e-5, "silu", False, needs)
        for i, (got, full, need) in enumerate(zip(results, whole, needs, strict=True)):
            if need:
                torch.testing.assert_close(got, full, rtol=1e-6, atol=1e-6)
            elif i != 0 or not needs[1]:  # dx comes along with the residual's
                assert got.numel() == 0


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"x": torch.ones(3)}, "expected an input"),
        ({"x": torch.ones(0, 3)}, "expected an input with values"),
        ({"x": torch.ones(4, 3).long()}, "expected float32, float64, bfloat16 or float16"),
        ({"x": torch.ones(1, 3)}, "one value has no variance"),
        ({"x": torch.ones(4, 3).to_sparse()}, "sparse"),
        ({"weight": torch.ones(4)}, "expected weight of 3 channels"),
        ({"weight": torch.ones(3, device="meta")}, "meta"),
        ({"running_mean": torch.zeros(3)}, "expected running_mean and running_var, or neither"),
        ({"running_mean": torch.zeros(3), "running_var": torch.ones(2)}, "expected running_var of 3 channels"),
        ({"running_mean": torch.zeros(3), "running_var": torch.ones(3), "momentum": None}, "num_batches_tracked"),
        ({"running_mean": torch.zeros(3), "running_var": torch.ones(3), "batches": torch.zeros(2)}, "one element"),
        ({"mean": torch.zeros(3)}, "a mean needs a variance"),
        ({"residual": torch.ones(4, 2)}, "expected the residual of shape"),
        ({"residual": torch.ones(4, 3, device="meta")}, "meta"),
        ({"activation": "tanh"}, "unknown activation tanh"),
        ({"eps": 0.0}, "eps must be positive"),
    ],
    ids=str,
)
def test_refused(change, match):
    arguments = {"x": drifting(4, 3)} | change
    with pytest.raises((RuntimeError, NotImplementedError), match=match):
        forward(arguments.pop("x"), **arguments)


def test_primitives_refuse_parameters_of_other_groups():
    x, row = drifting(6, 3), torch.ones(2, 3, dtype=torch.float64)
    with pytest.raises(RuntimeError, match="parameters of 3 groups, got 2"):
        ops.normalize(x, row, row, row, None, None, 2)
    with pytest.raises(RuntimeError, match=r"expand|size"):
        ops.normalize(x, row[:, :2], row[:, :2], row[:, :2], None, None, 3)
    with pytest.raises(RuntimeError, match=r"expand|size"):
        ops.moments(x, 0, torch.ones(5, 3))


@every_place
def test_a_refusal_moves_nothing(place):
    x = PLACES[place](drifting(4, 3, 5))
    mean, var, batches = torch.zeros(3), torch.ones(3), torch.tensor(0)
    with pytest.raises(RuntimeError, match="residual"):
        forward(x, x[:2], running_mean=mean, running_var=var, batches=batches)
    assert (mean.any(), (var == 1).all(), batches) == (False, True, 0)
