"""The hooks of `recompute` beside checkpoints, hooks of the user, threads, errors, compilers and big batches."""

import copy
import threading

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import batchnorm as bn
from tests.support.backends import NATIVE
from tests.training.recompute_cases import (
    Residual,
    both,
    counted,
    gradients,
    images,
    kept,
    open_now,
    plain,
    residual,
    same,
    storage_of,
)


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


def test_the_output_of_a_checkpoint_is_kept() -> None:
    """Its norm's input is not kept, so a recipe would keep that in its place."""
    model, x, outputs = nn.Sequential(*plain()[:2], nn.Conv2d(8, 2, 3)), images(), []
    model[1].register_forward_hook(lambda m, a, y: outputs.append(storage_of(y)))

    class Checkpointed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.last = model[:2], model[2]

        def forward(self, x):
            return self.last(checkpoint(self.body, x, use_reentrant=False))

    checkpointed = Checkpointed()
    with bn.recompute(checkpointed):
        loss = checkpointed(x).sum()
    assert not outputs[0].expired()
    loss.backward()


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


def test_where_hooks_are_forbidden() -> None:
    model, x = plain().eval(), images()
    with bn.recompute(model):
        with torch.autograd.graph.disable_saved_tensors_hooks("no hooks here"):
            model(x).sum().backward()
        parameters = {name: p.detach() for name, p in model.named_parameters()}
        loss = lambda parameters: torch.func.functional_call(model, parameters, (x,)).sum()  # noqa: E731
        grads = torch.func.grad(loss)(parameters)
    expected = torch.func.grad(loss)(parameters)
    assert all(torch.equal(grads[name], expected[name]) for name in expected)


def test_nothing_is_kept_without_gradients() -> None:
    model, x = residual(), images()
    with bn.recompute(model), counted() as storages, torch.no_grad():
        model(x)
    assert not storages


def test_a_model_entered_through_a_part() -> None:
    model, x = nn.ModuleDict({"body": plain("silu")}), images()
    more = kept(model["body"], x)
    with bn.recompute(model):
        assert kept(model["body"], x) <= more
        assert kept(model["body"], x) < more or not NATIVE


@pytest.mark.parametrize("virtual", [None, 2])
def test_big_batches(virtual) -> None:
    """Micro-batches in threads of their own; parking sees what is kept."""
    model, x, y = residual(virtual_batch_size=virtual), images(), torch.tensor([0, 1, 2, 3])
    other = bn.convert(copy.deepcopy(model), recompute=True)
    results, sizes = [], []
    for m in (model, other):
        with counted() as storages:
            loss = bn.big_batch(m, nn.functional.cross_entropy, x, y, micro_batch_size=2)
        results.append([loss, *(p.grad for p in m.parameters())])
        sizes.append(sum(storages.values()))
    assert same(*results)
    assert sizes[1] < sizes[0]
    assert not open_now()


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
