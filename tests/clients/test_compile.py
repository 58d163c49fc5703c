"""Under torch.compile(fullgraph=True): no graph break, no read of a value by the host, the same numbers."""

import copy

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend

import batchnorm as bn
from tests.support.material import drifting


@pytest.fixture(autouse=True)
def fresh():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


class Net(nn.Module):
    """Every kind of layer at once, so that one compilation tells of all."""

    def __init__(self):
        super().__init__()
        self.plain = bn.BatchNorm2d(4)
        self.average = bn.BatchNorm2d(4, momentum=None)
        self.fused = bn.BatchNorm2d(4, activation="gelu", momentum=0.3, nonfinite="propagate")
        self.untracked = bn.BatchNorm(4, track_running_stats=False, affine=False)

    def forward(self, x):
        y = self.average(self.plain(x).relu())
        return self.untracked(self.fused(y, x))


def step(model, x):
    x = x.clone().requires_grad_()
    model.zero_grad()
    y = model(x)
    (y * x.detach().sin()).sum().backward()
    return [y.detach(), x.grad, *(p.grad for p in model.parameters()), *(b.clone() for b in model.buffers())]


def assert_alike(got, wanted, tolerance=1e-9):
    for a, b in zip(got, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


# inductor scripts some of torch when it is first imported
@pytest.mark.filterwarnings("ignore:`torch.jit.script(_method)?` is deprecated")
@pytest.mark.parametrize(("backend", "dtype"), [("aot_eager", torch.float64), ("inductor", torch.float32)], ids=str)
def test_train_and_eval(backend, dtype):
    """Several steps in train, then eval, then train again; each mode is compiled once."""
    eager = Net().to(dtype)
    model = copy.deepcopy(eager)
    counter = CompileCounterWithBackend(backend)
    compiled = torch.compile(model, fullgraph=True, backend=counter, dynamic=False)
    for number, mode in enumerate([True, True, False, False, True]):
        for m in (eager, model):
            m.train(mode)
        x = drifting(5, 4, 3, 7, offset=1.0 + number, dtype=dtype)
        # four layers deep, float32's rounding has grown; which mistakes there may be, float64 tells
        assert_alike(step(compiled, x), step(eager, x), 1e-9 if dtype is torch.float64 else 1e-3)
    assert model.average.num_batches_tracked == 3
    assert counter.frame_count == 2


def test_no_value_is_read_by_the_host():
    """Fake tensors have no values: a read is an error in the trace, also of the counter with momentum=None."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        for mode in (True, False):
            model = Net().train(mode)
            y = model(torch.randn(5, 4, 3, 7, requires_grad=True))
            y.sum().backward()
            assert y.shape == (5, 4, 3, 7)


@pytest.mark.parametrize("mode", [True, False], ids=["train", "eval"])
def test_dynamic_shapes(mode):
    """What the first batch compiled serves any batch and image size."""
    eager = nn.Sequential(bn.BatchNorm2d(4, activation="relu"), bn.BatchNorm2d(4, momentum=None)).double().train(mode)
    model = copy.deepcopy(eager)
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(model, fullgraph=True, backend=counter, dynamic=True)
    frames = []
    for shape in [(5, 4, 3, 7), (3, 4, 8, 5), (11, 4, 6, 9)]:
        x = drifting(*shape, dtype=torch.float64)
        assert_alike(step(compiled, x), step(eager, x))
        frames.append(counter.frame_count)
    assert frames == frames[:1] * 3


def test_channels_last_and_mixed_dtypes():
    eager = nn.Sequential(bn.BatchNorm2d(4, activation="silu"), bn.BatchNorm2d(4)).train()
    model = copy.deepcopy(eager)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    x = drifting(5, 4, 3, 7).to(memory_format=torch.channels_last)
    y = compiled(x)
    assert y.stride() == eager(x).stride()
    for bad in (x.bfloat16(), x.half()):
        y, wanted = compiled(bad), eager(bad)
        assert y.dtype == bad.dtype
        torch.testing.assert_close(y, wanted, rtol=2e-2, atol=2e-2)


def test_functional_and_converted():
    """`batch_norm` itself, returning statistics; and a converted model of torch's layers."""
    x, mean, var = drifting(5, 4, 3, dtype=torch.float64), torch.zeros(4).double(), torch.ones(4).double()
    f = torch.compile(bn.batch_norm, fullgraph=True, backend="aot_eager")
    assert_alike(
        f(x, mean, var, training=True, return_stats=True), bn.batch_norm(x, mean, var, training=True, return_stats=True)
    )
    assert not mean.any()
    model = bn.convert(nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)).double())
    eager, x = copy.deepcopy(model), drifting(5, 4, dtype=torch.float64)
    assert_alike(step(torch.compile(model, fullgraph=True, backend="aot_eager"), x), step(eager, x))


def test_errors_come_through():
    layer = torch.compile(bn.BatchNorm2d(4), backend="eager")
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        layer(torch.ones(1, 4, 1, 1))


@pytest.mark.parametrize("options", [{}, {"virtual_batch_size": 2}], ids=["plain", "virtual"])
def test_skipped_batches_are_counted_in_the_graph(options):
    model = bn.convert(nn.Sequential(nn.BatchNorm1d(4)), **options)
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(model, fullgraph=True, backend=counter, dynamic=False)
    good, bad = drifting(6, 4), drifting(6, 4)
    bad[0, 1] = torch.nan
    for x in (good, bad, good, bad):
        compiled(x)
    assert model[0].skipped_batches == 2
    assert model[0].running_mean.isfinite().all()
    assert counter.frame_count == 1
    with pytest.warns(RuntimeWarning, match="not finite"):  # eager mode reports; compiled code only counts
        model(bad)
    assert model[0].skipped_batches == 3
