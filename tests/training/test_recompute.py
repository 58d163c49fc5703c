"""Gradients under `recompute` are the same bits, and less is kept for them."""

import copy
import gc
import pickle
import threading
from contextlib import nullcontext

import pytest
import torch
from hypothesis import given, settings
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils.checkpoint import checkpoint

import batchnorm as bn
from batchnorm.core.recipes import of_thread
from batchnorm.core.torch_internals import function_mode_on_top, saved_tensors_hooks_on_top
from tests.support.backends import NATIVE, needs_native
from tests.support.option_matrix import SETTINGS, Setting, data, layer_for, take_step
from tests.support.oracle import ACTIVATIONS
from tests.training.recompute_cases import (
    Dense,
    Residual,
    both,
    counted,
    gradients,
    images,
    kept,
    plain,
    residual,
    same,
)

every_activation = pytest.mark.parametrize("activation", ACTIVATIONS)
pytestmark = pytest.mark.filterwarnings("ignore:.*are not finite:RuntimeWarning")

OPTIONS = {
    "none": {},
    "virtual": {"virtual_batch_size": 2},
    "renorm": {"renorm": bn.Renorm(1.5, 0.5)},
    "cumulative": {"momentum": None},
    "no affine": {"affine": False},
    "no bias": {"bias": False},
    "no population": {"track_running_stats": False},
    "raises": {"nonfinite": "raise"},
}


@every_activation
@pytest.mark.parametrize("make", [plain, residual])
@pytest.mark.parametrize("chain", [False, True])
def test_the_same_bits(make, activation, chain) -> None:
    assert same(*both(make(activation), images(), chain))


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("make", [plain, residual])
def test_the_same_bits_with_options(make, options) -> None:
    assert same(*both(make("silu", **OPTIONS[options]), images()))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
def test_the_same_bits_in_every_dtype_and_layout(dtype, layout) -> None:
    model = residual("gelu").to(dtype).to(memory_format=layout)
    assert same(*both(model, images(dtype).contiguous(memory_format=layout)))


@pytest.mark.parametrize("state", ["eval", "frozen", "fully frozen"])
def test_by_the_population(state) -> None:
    model = residual()
    if state == "eval":
        model.eval()
    else:
        bn.freeze(model, affine=state == "fully frozen")
    x = images()
    assert same(*both(model, x))
    with bn.recompute(model):
        less = kept(model, x)
    assert less < kept(model, x)


@pytest.mark.parametrize("virtual", [None, 2])
def test_masks(virtual) -> None:
    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv1, self.conv2 = nn.Conv1d(3, 4, 3, padding=1), nn.Conv1d(4, 4, 3)
            self.norm = bn.BatchNorm1d(4, activation="silu", virtual_batch_size=virtual, single="population")

        def forward(self, x):
            y = self.norm(self.conv1(x), lengths=torch.tensor([9, 2, 5, 7]))
            return self.conv2(y)

    model, x = Masked(), torch.randn(4, 3, 9)
    assert same(*both(model, x))
    more = kept(model, x)
    with bn.recompute(model):
        less = kept(model, x)
    assert more - less == 4 * 4 * 9 * 4  # the norm's output


@needs_native
def test_each_output_is_kept_no_more() -> None:
    """After each of the two norms stands a layer that saves its input; the second through a view."""
    model, x = plain("silu"), images()
    more = kept(model, x)
    with bn.recompute(model):
        less = kept(model, x)
    outputs = 4 * (4 * 8 * 6 * 6 + 4 * 8 * 4 * 4)
    assert more - less == outputs


@needs_native
def test_every_second_block_keeps_its_output() -> None:
    model, x = residual(blocks=5), images()
    with torch.no_grad():
        shape = model[:4](x).shape
    block = 4 * shape.numel()
    plain_outputs = 4 * (4 * 6 * 6 * 6) + 5 * block  # of the stem, and of the first norm in each block
    more = kept(model, x)
    with bn.recompute(model):
        less = kept(model, x)
    assert more - less == plain_outputs + 3 * block
    with bn.recompute(model, chain=True):
        least = kept(model, x)
    assert more - least == plain_outputs + 5 * block


@needs_native
def test_concatenations_are_rebuilt() -> None:
    """Five layers see 8, 10, ..., 16 channels: each concatenation is kept twice without, and its parts once with."""
    model, x = nn.Sequential(nn.Conv2d(3, 8, 3), Dense(8, 2, 5), nn.Conv2d(18, 4, 3)), images()
    assert same(*both(model, x))
    more = kept(model, x)
    with bn.recompute(model):
        less = kept(model, x)
    position = 4 * 4 * 6 * 6  # bytes of a channel
    assert more - less == 2 * (8 + 10 + 12 + 14 + 16) * position  # and the last one costs what its parts do


@needs_native
def test_concatenations_of_outputs_cost_nothing() -> None:
    class Branches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.ModuleList(nn.Conv2d(3, 4, 3) for _ in range(3))
            self.norm = nn.ModuleList(bn.BatchNorm2d(4, activation="relu") for _ in range(3))
            self.last = nn.Conv2d(12, 2, 3)

        def forward(self, x):
            return self.last(torch.cat([n(c(x)) for c, n in zip(self.conv, self.norm, strict=True)], dim=1))

    model, x = Branches(), images()
    assert same(*both(model, x))
    more = kept(model, x)
    with bn.recompute(model):
        less = kept(model, x)
    assert more - less == 4 * 4 * 12 * 6 * 6


@needs_native
def test_products_with_something_small_are_multiplied_again() -> None:
    """Squeeze and excitation: the norm's output, its product with a factor for each channel, and the next input."""

    class Squeezed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 8, 3), bn.BatchNorm2d(8, activation="silu")
            self.excite, self.last = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 2, 3)

        def forward(self, x):
            y = self.norm(self.conv(x))
            return self.last(y * self.excite(y.mean((2, 3), keepdim=True)).sigmoid())

    model, x = Squeezed(), images()
    assert same(*both(model, x))
    more = kept(model, x)
    with bn.recompute(model):
        less = kept(model, x)
    assert more - less == 2 * 4 * 4 * 8 * 6 * 6


def test_a_part_that_is_written_again_before_the_backward_pass() -> None:
    class WithState(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.last = bn.BatchNorm2d(3), nn.Conv2d(5, 2, 3)
            self.register_buffer("state", torch.ones(4, 2, 8, 8))

        def forward(self, x):
            y = self.last(torch.cat([self.norm(x), self.state], 1))
            self.state += 1
            return y

    assert same(*both(WithState(), images()))


# ---- in-place changes


class Changed(nn.Module):
    """Convolution, norm, a change in place, convolution."""

    def __init__(self, change) -> None:
        super().__init__()
        self.conv1, self.norm, self.conv2 = nn.Conv2d(3, 4, 3), bn.BatchNorm2d(4), nn.Conv2d(4, 2, 3)
        self.change = change

    def forward(self, x):
        y = self.norm(self.conv1(x))
        self.change(y)
        return self.conv2(y)


@pytest.mark.parametrize(
    "change",
    [torch.Tensor.relu_, lambda y: y[:, :1].mul_(2), lambda y: y.detach().add_(1)],
    ids=["all", "part", "alias"],
)
def test_an_output_that_was_changed_in_place_is_no_recipe(change) -> None:
    assert same(*both(Changed(change), images()))


def test_a_change_after_saving_is_an_error_as_without() -> None:
    for change in (lambda m: m.conv2.weight, lambda m: m.norm.weight):
        model = Changed(lambda y: None)
        with bn.recompute(model):
            y = model(images())
        with torch.no_grad():
            change(model).add_(1)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            y.sum().backward()


def test_the_input_of_a_norm_changed_in_place_is_an_error() -> None:
    class Bad(Changed):
        def forward(self, x):
            z = self.conv1(x)
            y = self.norm(z)
            z.add_(1)
            return self.conv2(y)

    model = Bad(None)
    with bn.recompute(model):
        y = model(images())
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


# ---- whatever else reads or changes the graph


def test_second_derivatives() -> None:
    def penalty(model, x):
        x = x.detach().requires_grad_()
        (g,) = torch.autograd.grad(model(x).square().sum(), x, create_graph=True)
        g.square().sum().backward()
        return [x.grad, *(p.grad for p in model.parameters())]

    for make in (plain, residual):
        model, x = make("silu").double(), images(torch.float64)
        other = copy.deepcopy(model)
        with bn.recompute(other):
            got = penalty(other, x)
        assert same(got, penalty(model, x))


def test_several_backward_passes_through_one_graph() -> None:
    model, x = residual(), images()
    with bn.recompute(model):
        loss = model(x).square().mean()
    first = torch.autograd.grad(loss, list(model.parameters()), retain_graph=True)
    second = torch.autograd.grad(loss, list(model.parameters()))
    assert same(list(first), list(second))


def test_partial_backward_passes() -> None:
    """Of some parameters only, last layers first: some readers of an output never come."""

    def partial(model):
        loss = model(images).square().mean()
        parts = [list(m.parameters()) for m in (model[-1], model[3], model[0])]
        return [g for part in parts for g in torch.autograd.grad(loss, part, retain_graph=True)]

    model, images = residual(), torch.randn(4, 3, 8, 8)
    with bn.recompute(model):
        got = partial(model)
    assert same(got, partial(model))


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpoints_are_left_alone(reentrant) -> None:
    class Checkpointed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.blocks = plain()[:2], nn.ModuleList(Residual(8, 8) for _ in range(3))
            self.last = nn.Conv2d(8, 2, 3)

        def forward(self, x):
            x = self.stem(x)
            for block in self.blocks:
                x = checkpoint(block, x, use_reentrant=reentrant)
            return self.last(x)

    model, x = Checkpointed(), images()
    without, got = both(model, x)
    assert same(without, got)
    outer = copy.deepcopy(model if not reentrant else residual())
    without = gradients(copy.deepcopy(outer), x)
    with bn.recompute(outer):
        assert same(without, gradients(outer, x, lambda x: checkpoint(outer, x, use_reentrant=reentrant)))


def test_hooks_of_the_user_outside() -> None:
    """They get what is kept, each tensor once, and no output of a norm that has a recipe."""
    model, x = plain("silu"), images()
    packed, unpacked = [], []

    def pack(t):
        packed.append(tuple(t.shape))
        return t.clone()

    def unpack(t):
        unpacked.append(t.shape)
        return t

    other = copy.deepcopy(model)
    with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
        loss = model(x).square().mean()
        model_grads = torch.autograd.grad(loss, list(model.parameters()))
        before = len(packed)
        packed.clear()
        with bn.recompute(other):
            y = other(x)
        inside = list(packed)
        loss = y.square().mean()
    got = torch.autograd.grad(loss, list(other.parameters()))
    assert same(list(model_grads), list(got))
    assert unpacked
    if NATIVE:
        assert inside.count((4, 8, 6, 6)) == 1  # the first norm's input, and not its output
        assert len(inside) < before


def test_hooks_of_the_user_inside() -> None:
    class Offloaded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.parts = nn.ModuleList([Residual(3, 4), Residual(4, 4), Residual(4, 4)])

        def forward(self, x):
            x = self.parts[0](x)
            with torch.autograd.graph.save_on_cpu():
                x = self.parts[1](x)
            return self.parts[2](x)

    assert same(*both(Offloaded(), images()))


def test_autocast() -> None:
    model, x = residual(), images()
    other = copy.deepcopy(model)

    def forward(m):
        def run(x):
            with torch.autocast("cpu", torch.bfloat16):
                return m(x).float()

        return run

    with bn.recompute(other):
        got = gradients(other, x, forward(other))
    assert same(gradients(model, x, forward(model)), got)


def test_threads_do_not_see_one_another() -> None:
    model, x = residual(), images()
    expected = gradients(copy.deepcopy(model), x)
    results = {}
    barrier = threading.Barrier(3)

    def step(i: int, recomputed: bool) -> None:
        own = copy.deepcopy(model)
        barrier.wait()
        if recomputed:
            with bn.recompute(own):
                results[i] = gradients(own, x), kept(own, x)
        else:
            results[i] = gradients(own, x), kept(own, x)

    threads = [threading.Thread(target=step, args=(i, i > 0)) for i in range(3)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert all(same(expected, results[i][0]) for i in range(3))
    lesser = [results[i][1] for i in range(3)]
    assert lesser[1] == lesser[2] <= lesser[0]


def test_an_error_in_the_forward_pass_closes_it() -> None:
    class Fails(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.error = bn.BatchNorm1d(3), None

        def forward(self, x):
            y = self.norm(x)
            if self.error:
                raise self.error
            return y

    for error in (ValueError("no"), KeyboardInterrupt()):
        model = bn.convert(Fails(), recompute=True)
        model.error = error
        with pytest.raises(type(error)):
            model(torch.randn(4, 3))
        model.error = None
        model(torch.randn(4, 3))
        assert not open_now()
        with bn.recompute(model):
            model.error = error
            with pytest.raises(type(error)):
                model(torch.randn(4, 3))
        assert not open_now()
        bn.revert(model)


def open_now() -> bool:
    """Whether anything of a forward pass is left in this thread."""
    return any(
        found is not None for found in (of_thread.listener, saved_tensors_hooks_on_top(), function_mode_on_top())
    )


def test_nothing_is_kept_without_gradients() -> None:
    model, x = residual(), images()
    with bn.recompute(model), counted() as storages, torch.no_grad():
        model(x)
    assert not storages


def storage_of(y: torch.Tensor) -> StorageWeakRef:
    return StorageWeakRef(y.untyped_storage())


def test_graphs_die_without_the_garbage_collector() -> None:
    model, x = nn.Sequential(residual()[:-3], Dense(8, 2, 3)), images()
    model(x).sum().backward()
    gc.collect()
    gc.disable()
    try:
        with bn.recompute(model):
            alive = []
            handle = model[0][0].register_forward_hook(lambda m, a, y: alive.append(storage_of(y)))
            y = model(x)
            y.sum().backward()
            del y
            assert alive[0].expired()
            y = model(x)  # without a backward pass
            assert not alive[1].expired()
            del y
            assert alive[1].expired()
            handle.remove()
        assert alive[1].expired()
        before = len(gc.get_objects())
        for _ in range(5):
            with bn.recompute(model):
                model(x)
        assert len(gc.get_objects()) - before < 50
    finally:
        gc.enable()


def test_outputs_that_outlive_the_graph_hold_nothing() -> None:
    """The recipe is for the graph alone: an output that somebody keeps does not keep the norm's input."""
    model, x = plain()[:2], images()
    inputs = []
    model[0].register_forward_hook(lambda m, a, y: inputs.append(storage_of(y)))
    with bn.recompute(model):
        y = model(x)
        y.sum().backward()
        y = y.detach()
        assert inputs[0].expired()


# ---- convert and revert, copies and pickles


def test_convert_and_revert() -> None:
    torch_model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 3))
    x = images()
    before = kept(torch_model, x)
    hooks = len(torch_model._forward_hooks)
    model = bn.convert(torch_model, fuse=True, recompute=True)
    less = kept(model, x)
    assert less < before
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert kept(other, x) == less
        assert not bn.revert(other)._forward_hooks
    bn.convert(model, recompute="chain")
    assert len(model._forward_hooks) == hooks + 1
    bn.revert(model)
    assert kept(model, x) == before
    assert not model._forward_hooks
    assert not model._forward_pre_hooks
    assert not model._forward_hooks_always_called


def test_a_model_entered_through_a_part() -> None:
    model, x = nn.ModuleDict({"body": plain("silu")}), images()
    more = kept(model["body"], x)
    with bn.recompute(model):
        assert kept(model["body"], x) <= more
        assert kept(model["body"], x) < more or not NATIVE


@needs_native
def test_a_layer_may_be_left_out() -> None:
    model, x = plain("silu"), images()
    more = kept(model, x)
    model[1].set_options(recompute=False)
    with bn.recompute(model):
        less = kept(model, x)
    assert more - less == 4 * 4 * 8 * 4 * 4  # of the other norm
    assert same(*both(model, x))


@needs_native
def test_maxima_are_taken_again() -> None:
    layers = nn.Conv2d(3, 4, 3), bn.BatchNorm2d(4, activation="relu"), nn.MaxPool2d(2), nn.Conv2d(4, 2, 3)
    model, x = nn.Sequential(*layers), images()
    assert same(*both(model, x))
    more = kept(model, x)
    with bn.recompute(model):
        less = kept(model, x)
    assert more - less == 4 * 4 * 4 * (6 * 6 + 3 * 3)


class Followed(nn.Module):
    """A layer, and an operation that saves its input."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x, residual, mask=None):
        return self.layer(x, residual, mask=mask).sin()


@settings(max_examples=80, deadline=None)
@given(SETTINGS.filter(lambda s: not s.poisoned))
def test_every_combination_of_options(s: Setting) -> None:
    d = data(s)
    one, other = (Followed(layer_for(s, d)) for _ in range(2))
    with bn.backend(s.backend) if s.backend and s.backend != "aten" else nullcontext():
        with bn.recompute(one):
            y, grads = take_step(s, one.layer, one, d)
        expected, right = take_step(s, other.layer, other, d)
    assert torch.equal(y, expected)
    assert all(torch.equal(grads[name], right[name]) for name in right)


def test_compiled() -> None:
    """The hooks are traced into nothing, and a compiled part within an eager model keeps what it keeps."""
    model = nn.Sequential(nn.Linear(3, 4), bn.BatchNorm1d(4, activation="silu"), nn.Linear(4, 2))
    x = torch.randn(6, 3)
    expected = gradients(copy.deepcopy(model), x)
    whole = bn.convert(copy.deepcopy(model), recompute=True)
    got = gradients(whole, x, torch.compile(whole, backend="aot_eager", fullgraph=True))
    torch.testing.assert_close(got, expected)
    part = bn.convert(nn.Sequential(copy.deepcopy(model), nn.Identity()), recompute=True)
    part[0].compile(backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(gradients(part, x), expected)
    assert not open_now()


def test_wrong_input() -> None:
    with pytest.raises(ValueError, match="no batch norm of ours"), bn.recompute(nn.Linear(2, 2)):
        pass
    with pytest.raises(ValueError, match="recompute must be False, True or 'chain'; got 'all'"):
        bn.convert(nn.BatchNorm1d(3), recompute="all")
    with pytest.raises(ValueError, match="recompute must be one of True, False"):
        bn.BatchNorm1d(3, recompute="chain")


@needs_native
@pytest.mark.parametrize("chain", [False, True])
def test_blocks_that_add_after_the_activation(chain) -> None:
    """As in Darknet: every second sum is added again, or with `chain` each."""

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(4, 4, 3, padding=1), bn.BatchNorm2d(4, activation="leaky_relu")

        def forward(self, x):
            return x + self.norm(self.conv(x))

    model, x = nn.Sequential(nn.Conv2d(3, 4, 3), *(Block() for _ in range(4)), nn.Conv2d(4, 2, 3)), images()
    assert same(*both(model, x, chain))
    more = kept(model, x)
    with bn.recompute(model, chain=chain):
        less = kept(model, x)
    assert more - less == (4 if chain else 2) * 4 * 4 * 4 * 6 * 6  # outputs of the norms were not kept before either


@needs_native
def test_nested_concatenations() -> None:
    """Each layer appends to one concatenation: parts are kept once, however deep they are nested."""

    class Appends(nn.Module):
        def __init__(self, inputs: int) -> None:
            super().__init__()
            self.norm, self.conv = bn.BatchNorm2d(inputs, activation="silu"), nn.Conv2d(inputs, 2, 3, padding=1)

        def forward(self, x):
            return torch.cat([x, self.conv(self.norm(x))], 1)

    model, x = nn.Sequential(nn.Conv2d(3, 4, 3), *(Appends(4 + 2 * i) for i in range(4)), nn.Conv2d(12, 2, 3)), images()
    assert same(*both(model, x))
    more = kept(model, x)
    with bn.recompute(model):
        less = kept(model, x)
    position = 4 * 4 * 6 * 6  # bytes of a channel
    assert more - less == (4 + 6 + 8 + 10) * 2 * position  # and the last one costs what its parts do
