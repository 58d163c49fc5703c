"""The operators: torch's own checks of them, and their derivatives of every order."""

import pytest
import torch
from torch.autograd import forward_ad
from torch.autograd.gradcheck import gradcheck, gradgradcheck

import batchnorm as bn
from batchnorm.core import ops
from tests.support.backends import NATIVE, needs_native
from tests.support.material import LAYOUTS, drifting
from tests.support.oracle import ACTIVATIONS

every_activation = pytest.mark.parametrize("activation", ACTIVATIONS)
# torch's own decompositions for forward mode are scripted when the first dual tensor comes
scripts = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")
# torch 2.14: opcheck itself looks at the gradients of tensors that are no leaves
of_opcheck = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf Tensor:UserWarning")
modes = pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])


def arguments(shape=(5, 3, 4, 2), dtype=torch.float64, residual=True, affine=True, requires_grad=True):
    """x, residual, weight, bias."""
    x = drifting(*shape, dtype=dtype)
    residual = drifting(*shape, dtype=dtype, offset=0.5) if residual else None
    weight, bias = (torch.randn(shape[1], dtype=dtype) if affine else None for _ in range(2))
    return [None if t is None else t.requires_grad_(requires_grad) for t in (x, residual, weight, bias)]


def buffers(channels, dtype):
    """Running mean and variance, the counter, and the counter of skipped batches."""
    return torch.zeros(channels, dtype=dtype), torch.ones(channels, dtype=dtype), torch.tensor(0), torch.tensor(0)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("residual", "affine", "activation"), [(True, True, "relu"), (False, False, None)])
@of_opcheck
def test_opcheck(residual, affine, activation, dtype, layout):
    """Schemas, fakes, autograd registration and AOT dispatch, by torch.library's own judge."""
    x, residual, weight, bias = arguments(dtype=dtype, residual=residual, affine=affine)
    with torch.no_grad():
        x, residual = (None if t is None else LAYOUTS[layout](t).requires_grad_() for t in (x, residual))
    inputs, nothing = (x, residual, weight, bias), (None,) * 4
    population = torch.randn(3, dtype=dtype), torch.rand(3, dtype=dtype)
    moved = buffers(3, dtype)
    for given in ((None, None, *moved), (None, None, *nothing), (*population, *nothing)):
        torch.library.opcheck(ops.forward, (*inputs, *given, 0.1, 1e-5, activation, True))
    x, residual, weight, bias = (None if t is None else t.detach() for t in inputs)
    y, statistics = ops.forward(x, residual, weight, bias, *(None,) * 6, None, 1e-5, activation, False)
    extra = y if activation else None
    for constant in (True, False):
        torch.library.opcheck(
            ops.backward,
            (torch.randn_like(x), x, extra, weight, bias, statistics, 1e-5, activation, constant, [True] * 4),
        )


@pytest.mark.parametrize("mask", [None, "positions", "values"])
@pytest.mark.parametrize("virtual", [0, 2])
@of_opcheck
def test_opcheck_of_the_primitives(virtual, mask):
    x, residual, *_ = arguments(requires_grad=False)
    mask = {None: None, "positions": torch.rand(5, 1, 4, 2), "values": torch.rand(x.shape)}[mask]
    _, mean, m2 = ops.moments(x, virtual, mask)
    tables = mean, m2, mean
    torch.library.opcheck(torch.ops.batchnorm.moments.default, (x, virtual, mask))
    torch.library.opcheck(torch.ops.batchnorm.normalize.default, (x, *tables, residual, "silu", virtual, mask))
    rest = (residual, "silu", virtual, mask)
    torch.library.opcheck(torch.ops.batchnorm.backward_reduce.default, (x, x, *tables, *rest))
    torch.library.opcheck(torch.ops.batchnorm.backward_apply.default, (x, x, *tables, *tables, *rest))


@pytest.mark.parametrize("momentum", [0.1, None])
@pytest.mark.parametrize("counted", [True, False])
@of_opcheck
def test_opcheck_of_the_operators_on_populations(counted, momentum):
    mean, var, *counters = buffers(3, torch.float32)
    counters = counters if counted or momentum is None else (None, None)
    torch.library.opcheck(ops.move_population, (mean, var, *counters, torch.randn(3), torch.rand(3), momentum, True))
    torch.library.opcheck(torch.ops.batchnorm.anchor.default, (mean, var, 1e-5))
    torch.library.opcheck(torch.ops.batchnorm.refuse.default, (torch.zeros(3, dtype=torch.bool), "float32", "norm"))


def function(training, activation, residual):
    """batch_norm of the tensors alone, for gradcheck; the running statistics are not theirs."""
    mean, var = torch.linspace(-1, 1, 3).double(), torch.linspace(0.5, 2, 3).double()

    def of(x, *rest):
        r, weight, bias = rest if residual else (None, *rest)
        m, v = (None, None) if training else (mean, var)
        return bn.batch_norm(x, m, v, weight, bias, training, residual=r, activation=activation)

    return of


def smooth(training, activation, residual, shape=(4, 3, 2)):
    """Arguments at which the activation has no kink nearby: finite differences would step over it."""
    for _ in range(50):
        args = [t for t in arguments(shape, residual=residual) if t is not None]
        z = function(training, None, residual)(*args).detach()
        if min((z - kink).abs().min() for kink in (0.0, 3.0, -3.0)) > 1e-3:
            return args
    raise AssertionError("no such arguments found")


@every_activation
@modes
@pytest.mark.parametrize("residual", [True, False], ids=["residual", "alone"])
def test_gradients_of_first_and_second_order(residual, training, activation):
    f, args = function(training, activation, residual), smooth(training, activation, residual)
    assert gradcheck(f, args, fast_mode=False)
    assert gradgradcheck(f, args)


@every_activation
@modes
@scripts
@pytest.mark.parametrize("residual", [True, False], ids=["residual", "alone"])
def test_forward_mode(residual, training, activation):
    f, args = function(training, activation, residual), smooth(training, activation, residual)
    assert gradcheck(f, args, check_forward_ad=True, check_backward_ad=False, check_undefined_grad=False)


@modes
@pytest.mark.parametrize("layout", ["channels_last", "sliced", "expanded"])
def test_gradients_in_other_layouts(layout, training):
    f = function(training, "silu", True)
    args = smooth(training, "silu", True, (3, 3, 2, 2))
    assert gradcheck(lambda x, r, *rest: f(LAYOUTS[layout](x), LAYOUTS[layout](r), *rest), args)
    assert gradgradcheck(lambda x, r, *rest: f(LAYOUTS[layout](x), LAYOUTS[layout](r), *rest), args)


@modes
@pytest.mark.parametrize("which", range(4), ids=["x", "residual", "weight", "bias"])
def test_gradient_of_one_argument_alone(which, training):
    f, args = function(training, "silu", True), smooth(training, "silu", True)
    for i, t in enumerate(args):
        t.requires_grad_(i == which)
    assert gradcheck(f, args)
    assert gradgradcheck(f, args)


@modes
def test_one_tensor_in_two_roles(training):
    """The input as its own residual: the gradient is the sum of both."""
    x, _, weight, bias = arguments((4, 3, 2))
    f = function(training, "silu", True)
    assert gradcheck(lambda x: f(x, x, weight, bias), x)
    assert gradgradcheck(lambda x: f(x, x, weight, bias), x)


@needs_native
@modes
@every_activation
def test_what_is_kept_of_a_residual(activation, training):
    """The output where it says what the derivative is, mostly the next layer keeps it too; else the residual."""
    x, residual, weight, bias = arguments()
    seen = set()
    with torch.autograd.graph.saved_tensors_hooks(lambda t: seen.add(t.data_ptr()) or t, lambda t: t):
        y = function(training, activation, True)(x, residual, weight, bias)
    by_output = activation in ("relu", "relu6", "leaky_relu")
    assert (y.data_ptr() in seen) == by_output
    assert (residual.data_ptr() in seen) == (activation is not None and not by_output)


@modes
@every_activation
def test_both_backward_paths_agree(activation, training):
    """The kernel's gradient and the one built to be differentiated again are the same numbers."""
    args = smooth(training, activation, True)
    y = function(training, activation, True)(*args)
    grad = torch.randn_like(y)
    once = torch.autograd.grad(y, args, grad, retain_graph=True)
    again = torch.autograd.grad(y, args, grad, create_graph=True)
    for a, b in zip(once, again, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@modes
@every_activation
def test_every_gradient_is_a_function_of_the_arriving_one(activation, training):
    """gradgradcheck passes over a gradient that is cut off from the graph."""
    args = smooth(training, activation, True)
    y = function(training, activation, True)(*args)
    arriving = torch.randn_like(y).requires_grad_()
    for got in torch.autograd.grad(y, args, arriving, create_graph=True):
        (again,) = torch.autograd.grad(got.square().sum(), arriving, retain_graph=True)
        assert again.any()


@pytest.mark.parametrize("grad", ["expanded", "transposed", "one number"])
def test_gradients_arriving_in_any_layout(grad):
    x, residual, weight, bias = arguments((4, 3, 5, 2))
    y = bn.batch_norm(x, None, None, weight, bias, True, residual=residual, activation="silu")
    arriving = {
        "expanded": torch.randn(1, 3, 1, 1, dtype=torch.float64).expand_as(y),
        "transposed": LAYOUTS["reversed"](torch.randn_like(y)),
        "one number": torch.tensor(2.0, dtype=torch.float64).expand_as(y),
    }[grad]
    wanted = torch.autograd.grad(y, (x, residual, weight, bias), arriving.contiguous(), retain_graph=True)
    got = torch.autograd.grad(y, (x, residual, weight, bias), arriving)
    for a, b in zip(got, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-13, atol=1e-13)
    if NATIVE:  # compilers rely on it: the operator's gradient is laid out as its tensor, whatever arrives
        assert got[0].stride() == x.stride()
        assert got[1].stride() == residual.stride()


def test_statistics_take_no_part_in_the_gradient():
    x, _, weight, bias = arguments()
    y, statistics = ops.forward(x, None, weight, bias, *(None,) * 6, None, 1e-5, None, False)
    assert y.requires_grad
    assert not statistics.requires_grad


@scripts
def test_forward_mode_tangents_without_gradients():
    """A dual input that does not require grad."""
    x, tangent = drifting(4, 3, dtype=torch.float64), torch.randn(4, 3, dtype=torch.float64)
    with forward_ad.dual_level():
        y = bn.batch_norm(forward_ad.make_dual(x, tangent), None, None, training=True)
        got = forward_ad.unpack_dual(y).tangent
    f = lambda x: bn.batch_norm(x, None, None, training=True)  # noqa: E731
    difference = (f(x + 1e-6 * tangent) - f(x - 1e-6 * tangent)) / 2e-6
    torch.testing.assert_close(got, difference, rtol=1e-6, atol=1e-7)
