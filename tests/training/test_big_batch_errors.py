"""Steps that cannot be one big batch raise a clear error; a failed step changes no state and leaves no thread."""

import _thread
import contextlib
import copy
import threading

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import batchnorm as bn
from tests.support.big_batch_networks import Task, resnet
from tests.support.memory import memory, same


@pytest.fixture(autouse=True)
def no_thread_is_left():
    before = threading.active_count()
    yield
    assert threading.active_count() == before


def norm(**options):
    return nn.Sequential(nn.Linear(3, 3), bn.BatchNorm1d(3, **options))


@pytest.mark.parametrize(("size", "error"), [
    (0, ValueError), (-1, ValueError), (True, TypeError), (2.0, TypeError), (None, TypeError), ("4", TypeError),
])  # fmt: skip
def test_sizes(size, error):
    with pytest.raises(error, match="micro_batch_size"):
        bn.big_batch(norm(), torch.sum, torch.randn(4, 3), micro_batch_size=size)


@pytest.mark.parametrize(("inputs", "message"), [
    (torch.randn(0, 3), "at least one sample, got inputs with none"),
    (torch.tensor(1.0), r"expected inputs with samples along dimension 0 of a tensor, got a tensor \(\)"),
    ({"a": 1}, "of a tensor, got int"),
    ((), "of a tensor, got nothing"),
    (1, "of a tensor, got int"),
    ((torch.randn(4, 3), {"b": torch.randn(5)}), r"inputs\[0\] has 4, inputs\[1\]\['b'\] has 5"),
    (iter([]), "at least one micro-batch"),
    (iter([(torch.randn(2, 3), None, None)]), "expected pairs .* got 3 values in item 0"),
])  # fmt: skip
def test_inputs(inputs, message):
    with pytest.raises(ValueError, match=message):
        bn.big_batch(norm(), torch.sum, inputs, micro_batch_size=2)


class Returns(nn.Module):
    def __init__(self, what):
        super().__init__()
        self.what = what

    def forward(self, x):
        return self.what(x)


@pytest.mark.parametrize(("what", "message"), [
    (lambda x: x.mean(), r"output to have the 2 samples .* got shape \(\).*loss_fn"),
    (lambda x: {"a": [x, x.T]}, r"output\['a'\]\[1\] .* got shape \(3, 2\)"),
    (lambda x: None, "to return tensors, got NoneType"),
    (lambda x: (x, x.sum().item()), "no tensors to be equal in all micro-batches"),
    (lambda x: x if x[0, 0] == 0 else (x, x), "nested alike, but those of micro-batch 0"),
])  # fmt: skip
def test_outputs(what, message):
    x = torch.arange(12.0, requires_grad=True).reshape(4, 3)
    with pytest.raises(ValueError, match=message):
        bn.big_batch(Returns(what), lambda y: y[0].sum(), x, micro_batch_size=2)


@pytest.mark.parametrize(("loss_fn", "message"), [
    (lambda y: y, r"one value for the whole batch, got a tensor \(4, 3\)"),
    (lambda y: 1.0, "one value for the whole batch, got float"),
    (lambda y: y.detach().sum(), "nothing to train"),
])  # fmt: skip
def test_losses(loss_fn, message):
    model = norm()
    before = memory(model)
    with pytest.raises(ValueError, match=message):
        bn.big_batch(model, loss_fn, torch.randn(4, 3), micro_batch_size=2)
    assert same(memory(model), before)


def test_contexts_without_gradients():
    for context in (torch.no_grad(), torch.inference_mode()):
        with context, pytest.raises(RuntimeError, match=r"outside of torch.no_grad"):
            bn.big_batch(norm(), torch.sum, torch.randn(4, 3), micro_batch_size=2)
    with pytest.raises(RuntimeError, match=r"outside of torch.compile, torch.func and vmap"):
        torch.func.grad(lambda x: bn.big_batch(norm(), torch.sum, x, micro_batch_size=2))(torch.randn(4, 3))


class Stranger(nn.BatchNorm1d):
    pass


def test_layers_and_wrappers_that_cannot_wait():
    for layer in (Stranger(3), nn.LazyBatchNorm1d()):
        model = nn.Sequential(nn.Linear(3, 3), layer)
        with pytest.raises(ValueError, match=r"normalise each micro-batch by itself: 1 \(\w+\).*bn.register"):
            bn.big_batch(model, torch.sum, torch.randn(4, 3), micro_batch_size=2)
    bn.big_batch(nn.Sequential(nn.Linear(3, 3), Stranger(3).eval()), torch.sum, torch.randn(4, 3), micro_batch_size=2)
    with pytest.raises(TypeError, match="cannot run the model in DataParallel"):
        bn.big_batch(nn.DataParallel(norm()), torch.sum, torch.randn(4, 3), micro_batch_size=2)


class Way(nn.Module):
    """Calls its norms in an order that depends on the data."""

    def __init__(self, choose):
        super().__init__()
        self.choose = choose
        self.first, self.second = nn.BatchNorm1d(3), nn.BatchNorm1d(3)

    def forward(self, x):
        for name in self.choose(x):
            x = getattr(self, name)(x)
        return x


FIRST, SECOND = (rf"'{name}: BatchNorm1d\(3\), step 1'" for name in ("first", "second"))


@pytest.mark.parametrize(("choose", "message"), [
    (lambda x: ("first", "second") if x.sum() < 0 else ("second", "first"),
     f"micro-batch 0 is at {FIRST} in its forward pass, and micro-batch 1 is at {SECOND}"),
    (lambda x: ("first",) if x.sum() < 0 else ("first", "second"),
     f"micro-batch 0 is at the end of its forward pass, and micro-batch 1 is at {SECOND}"),
    (lambda x: ("first", "second") if x.sum() < 0 else (),
     f"micro-batch 0 is at {FIRST} in its forward pass, and micro-batch 1 is at the end of its forward pass"),
])  # fmt: skip
def test_ways_that_depend_on_the_data(choose, message):
    model, x = Way(choose), torch.randn(4, 3, requires_grad=True)
    with torch.no_grad():
        x[:2], x[2:] = -1 - x[:2].abs(), 1 + x[2:].abs()
    before = memory(model)
    with pytest.raises(RuntimeError, match=message):
        bn.big_batch(model, torch.sum, x, micro_batch_size=2)
    assert same(memory(model), before)
    assert type(model.first) is nn.BatchNorm1d


def test_backward_passes_that_differ():
    class Half(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.BatchNorm1d(3), nn.BatchNorm1d(3)

        def forward(self, x):
            y = self.first(x)
            z = self.second(y)
            return y if y[0, 0] > 0 else z

    x = torch.tensor([[5.0], [6.0], [-5.0], [-6.0]]).expand(4, 3)
    message = f"{FIRST} in its backward pass.* {SECOND} in its backward"
    with pytest.raises(RuntimeError, match=message):
        bn.big_batch(Half(), torch.sum, x, micro_batch_size=2)


class Fault(torch.autograd.Function):
    """Identity that raises in the forward or backward pass of one micro-batch."""

    @staticmethod
    def forward(ctx, x, fault):
        ctx.fault = fault
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        ctx.fault("backward")
        return grad, None


class Faulty(nn.Module):
    def __init__(self, fault):
        super().__init__()
        self.fault = fault

    def forward(self, x):
        self.fault("forward")
        return Fault.apply(x, self.fault)


def interrupt():
    _thread.interrupt_main()  # as Ctrl-C: the main thread gets KeyboardInterrupt, wherever it waits


FAULTS = [ZeroDivisionError, KeyboardInterrupt, SystemExit, interrupt]


@pytest.mark.parametrize("where", ["forward", "backward"])
@pytest.mark.parametrize(
    "what", [ZeroDivisionError, KeyboardInterrupt, SystemExit, interrupt], ids=lambda w: w.__name__
)
@pytest.mark.parametrize("number", [0, 1, 2])
def test_a_fault_moves_nothing(where, what, number):
    case, calls = resnet(), []

    def fault(at):
        if at == where:
            calls.append(at)
            if len(calls) == number + 1:
                if what is interrupt:
                    interrupt()
                else:
                    raise what("on purpose")

    model = nn.Sequential(*case.model[:4], Faulty(fault), *case.model[4:])
    case.in_parts(case.model)  # gradients and statistics from before
    grads = [p.grad for p in model.parameters()]
    copies = [g.clone() for g in grads]
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(KeyboardInterrupt if what is interrupt else what) as raised:
        case.in_parts(model)
    if what is ZeroDivisionError:
        assert f"in micro-batch {number} of bn.big_batch" in raised.value.__notes__
    assert all(torch.equal(a, b) for a, b in zip(before.values(), model.state_dict().values(), strict=True))
    for p, held, value in zip(model.parameters(), grads, copies, strict=True):
        assert p.grad is held
        assert torch.equal(held, value)
    assert all(type(m).__module__.startswith("torch") for m in model.modules() if isinstance(m, nn.BatchNorm2d))
    calls.append("no more")
    case.in_parts(model)  # and the model goes on as if nothing had been


def test_faults_elsewhere_move_nothing():
    model = norm()
    layer, x = model[1], torch.randn(8, 3)
    before = memory(model)

    def fail(*_):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        bn.big_batch(model, fail, x, micro_batch_size=4)

    def batches():
        yield x[:4]
        fail()

    with pytest.raises(ZeroDivisionError):
        bn.big_batch(model, torch.sum, batches(), micro_batch_size=4)
    with bn.accumulate(model, 3):
        layer(x)
        window = layer._window.taken, layer._window.moments
        with pytest.raises(ZeroDivisionError):
            bn.big_batch(model, fail, x, micro_batch_size=4)
        assert (layer._window.taken, layer._window.moments) == window
        layer._window.drain()
    assert same(memory(model), before)
    assert all(p.grad is None for p in model.parameters())


def test_a_broad_except_in_the_model_does_not_hold_up_the_end():
    class Stubborn(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.BatchNorm1d(3), nn.BatchNorm1d(3)

        def forward(self, x):
            with contextlib.suppress(BaseException):
                x = self.first(x)
            if x[0, 0] > 100:
                raise ZeroDivisionError
            return self.second(x)

    x = torch.randn(6, 3)
    x[4:] = 1e9
    model = Stubborn()
    model.first.eval()
    with pytest.raises(ZeroDivisionError):
        bn.big_batch(model, F.mse_loss, x, x, micro_batch_size=2)
    case = Task(model, F.mse_loss, torch.randn(6, 3), torch.randn(6, 3))
    case.in_parts(case.model, 2)
