"""Every option of our layers, and everything that a thread of torch can be set to, gives the big batch's step."""

import copy
import itertools
import warnings

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

import batchnorm as bn
from tests.support.big_batch_networks import Task, assert_same_step, classes, compare, conv, headed, pictures, resnet
from tests.support.memory import memory, same


class One(nn.Module):
    """A layer of ours between two linear maps, with whatever its call takes."""

    def __init__(self, **options) -> None:
        super().__init__()
        self.before, self.after = nn.Linear(6, 6, bias=False), nn.Linear(6, 2)
        self.norm = bn.BatchNorm1d(3, **options)
        self.double()

    def forward(self, x: Tensor, residual: Tensor | None = None, **keywords: Tensor) -> Tensor:
        if residual is not None:
            residual = self.before(residual)
        return self.after(self.norm(self.before(x), residual, **keywords)).flatten(1)


def task(samples: int = 11, residual: bool = False, mask: str | None = None, **options) -> Task:
    drift = torch.linspace(-2, 2, samples, dtype=torch.float64).reshape(-1, 1, 1)
    inputs = {"x": torch.randn(samples, 3, 6, dtype=torch.float64) + drift}
    if residual:
        inputs["residual"] = torch.randn(samples, 3, 6, dtype=torch.float64)
    if mask == "mask":
        inputs["mask"] = torch.rand(samples, 6) < 0.7
        inputs["mask"][4:8] = False  # nothing is left of the second micro-batch
    elif mask == "weights":
        inputs["mask"] = torch.rand(samples, 3, 6).double()
    elif mask == "lengths":
        inputs["lengths"] = torch.randint(0, 7, (samples,))
    return Task(One(**options), lambda y: (y * y.detach().cos()).sum(), inputs)


@pytest.mark.parametrize("activation", [None, "relu", "silu"])
@pytest.mark.parametrize("residual", [False, True], ids=["", "residual"])
@pytest.mark.parametrize("mask", [None, "mask", "weights", "lengths"])
def test_what_counts_and_what_comes_out(activation, residual, mask):
    for renorm, affine in itertools.product((None, bn.Renorm(1.5, 0.5, warmup=2)), (True, False)):
        case = task(residual=residual, mask=mask, activation=activation, renorm=renorm, affine=affine)
        compare(case)


@pytest.mark.parametrize("options", [
    {"momentum": None}, {"track_running_stats": False}, {"bias": False}, {"single": "population"},
    {"nonfinite": "raise"}, {"nonfinite": "propagate"}, {"eps": 0.1, "momentum": 1.0},
], ids=str)  # fmt: skip
def test_what_is_remembered(options):
    parts, _ = compare(task(**options))
    if options.get("track_running_stats", True):
        assert parts.norm.num_batches_tracked == 1


def test_renorm_warms_up_with_the_steps():
    case = task(renorm=bn.Renorm(3, 5, warmup=4))
    for _ in range(3):  # the limits and the population that it renormalises towards move once a step
        parts, _ = compare(case)
        parts.zero_grad()
        case = Task(parts, case.loss_fn, case.inputs)


@pytest.mark.parametrize("size", [2, 4, 8])
def test_virtual_batches_within_micro_batches(size):
    compare(task(virtual_batch_size=2), size)


def test_virtual_batches_across_micro_batches():
    compare(task(virtual_batch_size=11), 3)  # one group: the whole batch
    case = task(virtual_batch_size=4)
    before = memory(case.model)
    with pytest.raises(
        ValueError, match=r"norm: BatchNorm1d\(3\), step 1: .*6, 5 rows cut its virtual batches of 4.*a multiple of 4"
    ):
        case.in_parts(case.model, 6)
    assert same(memory(case.model), before)


def test_the_last_virtual_batch_may_be_one_value():
    model = nn.Sequential(nn.Linear(3, 3), bn.BatchNorm1d(3, virtual_batch_size=2)).double()
    case = Task(model, lambda y: y.square().sum(), torch.randn(5, 3).double())
    for step in (case.big, case.in_parts):
        with pytest.raises(ValueError, match="more than 1 value per channel"):
            step(copy.deepcopy(model))
    model[1].single = "population"
    compare(case)


def test_batches_that_are_not_finite():
    case = task()
    case.inputs["x"][5] = torch.inf
    whole, parts = copy.deepcopy(case.model), copy.deepcopy(case.model)
    for model, step in ((whole, case.big), (parts, case.in_parts)):
        with pytest.warns(RuntimeWarning, match=r"channels \[0, 1, 2\] are not finite"):
            step(model)
    assert parts.norm.skipped_batches == whole.norm.skipped_batches == 1
    assert same(memory(parts), memory(whole))
    case.model.norm.nonfinite = "raise"
    before = memory(case.model)
    with pytest.raises(FloatingPointError, match=r"norm: BatchNorm1d\(3\), step 1: the batch statistics of channels"):
        case.in_parts(case.model)
    assert same(memory(case.model), before)
    assert all(p.grad is None for p in case.model.parameters())


def test_one_value_in_all_is_the_big_batchs_error():
    case = Task(nn.Sequential(nn.BatchNorm1d(3)), lambda y: y.sum(), torch.randn(1, 3))
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        case.in_parts(case.model, 4)


def test_frozen_and_evaluated_layers_wait_for_nobody():
    case = resnet()
    case.big(case.model)
    case.model.zero_grad()
    for prepare in (bn.freeze, nn.Module.eval):
        model = copy.deepcopy(case.model)
        prepare(model)
        parts, _ = compare(Task(model, case.loss_fn, case.inputs, case.targets))
        assert same(memory(parts), memory(case.model))
    mixed = copy.deepcopy(case.model)
    mixed[1].eval()
    bn.freeze(mixed[3])
    compare(Task(mixed, case.loss_fn, case.inputs, case.targets))


@pytest.mark.parametrize("context", [
    bn.paused, lambda m: bn.accumulate(m, 2), lambda m: bn.domain(m, "night"), lambda m: bn.domain(m, "night", True),
    lambda m: bn.backend("reference"),
], ids=["paused", "accumulate", "domain", "affine domain", "reference"])  # fmt: skip
def test_contexts(context):
    case = resnet()
    models = [bn.convert(copy.deepcopy(case.model)) for _ in range(2)]
    for model, step in zip(models, (case.big, case.in_parts), strict=True):
        with context(model):
            step(model)
            step(model)
    assert_same_step(models[1], models[0])


class Penalised(nn.Module):
    """Returns each sample's slope of a critic: a derivative within the forward pass, differentiated again."""

    def __init__(self) -> None:
        super().__init__()
        self.critic = nn.Sequential(nn.Linear(4, 6), bn.BatchNorm1d(6, activation="silu"), nn.Linear(6, 1)).double()

    def forward(self, x: Tensor) -> Tensor:
        x = x.detach().requires_grad_()
        (slope,) = torch.autograd.grad(self.critic(x).sum(), x, create_graph=True)
        return slope


def test_a_derivative_within_the_forward_pass():
    drift = torch.linspace(-1, 1, 11).double().unsqueeze(1)
    compare(Task(Penalised(), lambda slopes: slopes.square().sum(), torch.randn(11, 4).double() + drift))


class Checkpointed(nn.Module):
    def __init__(self, reentrant: bool) -> None:
        super().__init__()
        self.reentrant = reentrant
        self.stem = nn.Conv2d(3, 4, 1)
        self.main = nn.Sequential(*conv(4, 4), nn.ReLU(), *conv(4, 4), nn.ReLU())
        self.head = headed(*conv(4, 4), width=4)
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        return self.head(checkpoint(self.main, self.stem(x), use_reentrant=self.reentrant))


@pytest.mark.parametrize("reentrant", [False, True])
def test_activation_checkpoints(reentrant):
    model = bn.convert(Checkpointed(reentrant))  # torch's layers would remember twice
    parts, _ = compare(Task(model, F.cross_entropy, pictures(), classes()))
    assert parts.main[1].num_batches_tracked == 1


def test_autocast_and_grad_scaler():
    case = resnet()
    model, x = case.model.float(), case.inputs.float()
    seen = []
    model[-1].register_forward_hook(lambda *_: seen.append(torch.is_autocast_enabled("cpu")))
    whole, parts = copy.deepcopy(model), copy.deepcopy(model)
    for network, size in ((whole, None), (parts, 4)):
        optimizer, scaler = torch.optim.SGD(network.parameters(), 0.1), torch.amp.GradScaler("cpu", init_scale=64.0)
        with torch.autocast("cpu", torch.bfloat16):
            if size is None:
                loss = scaler.scale(F.cross_entropy(network(x), case.targets))
            else:
                loss_fn = lambda y, t, s=scaler: s.scale(F.cross_entropy(y, t))  # noqa: E731
                loss = bn.big_batch(network, loss_fn, x, case.targets, micro_batch_size=size)
        if size is None:
            loss.backward()
        scaler.step(optimizer)
        scaler.update()
        assert scaler.get_scale() == 64.0
    assert seen == [True] * 4
    for a, b in zip(whole.parameters(), parts.parameters(), strict=True):
        torch.testing.assert_close(b.grad, a.grad, rtol=0.05, atol=0.02 * a.grad.abs().max().item() + 1e-3)


class Counting(TorchFunctionMode):
    def __init__(self) -> None:
        super().__init__()
        self.convolutions = 0

    def __torch_function__(self, func, types, args=(), kwargs=None):
        self.convolutions += func is torch.conv2d
        return func(*args, **(kwargs or {}))


class CountingDispatch(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.convolutions = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.convolutions += func is torch.ops.aten.convolution.default
        return func(*args, **(kwargs or {}))


def test_modes_and_saved_tensor_hooks_reach_the_threads():
    case = resnet()
    convolutions = sum(isinstance(m, nn.Conv2d) for m in case.model.modules())
    for mode in (Counting(), CountingDispatch()):
        with mode:
            compare(case)
        assert mode.convolutions == convolutions * (1 + 3)
    packed = [[], []]
    for seen, step in zip(packed, (case.big, case.in_parts), strict=True):
        with torch.autograd.graph.saved_tensors_hooks(lambda t, s=seen: s.append(t.numel()) or t, lambda t: t):
            step(copy.deepcopy(case.model))
    assert len(packed[1]) > 2 * len(packed[0])


def test_the_default_device_and_dtype_reach_the_threads():
    class Asking(nn.Module):
        def forward(self, x):
            made = torch.ones(2)
            seen.append((made.device.type, made.dtype))
            return x * 1.0

    seen, x = [], torch.randn(4, 3, device="cpu", requires_grad=True)
    before = torch.get_default_dtype()
    try:
        torch.set_default_dtype(torch.float64)
        with torch.device("meta"):
            bn.big_batch(Asking(), torch.sum, x, micro_batch_size=2)
    finally:
        torch.set_default_dtype(before)
    assert seen == [("meta", torch.float64)] * 2


def test_a_seed_fixes_dropout():
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 2)).double()
    case = Task(model, lambda y: y.square().sum(), torch.randn(11, 6).double())
    losses = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        losses.append(case.in_parts(copy.deepcopy(model)).item())
    assert losses[0] == losses[1] != losses[2]


def test_compiled_models_run_eagerly():
    case = resnet()
    whole, parts = copy.deepcopy(case.model), copy.deepcopy(case.model)
    compiled = torch.compile(parts, backend="eager")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        compiled(case.inputs)  # compiled before, too
        whole(case.inputs)
        case.in_parts(compiled)
    case.big(whole)
    assert_same_step(parts, whole)


def test_a_hook_on_an_accumulated_gradient_runs_once():
    case = resnet()
    seen, weight = [], case.model[0].weight
    handle = weight.register_post_accumulate_grad_hook(lambda p: seen.append(p.grad.clone()))
    case.in_parts(case.model)
    assert len(seen) == 1
    assert torch.equal(seen[0], weight.grad)
    handle.remove()
    case.in_parts(case.model)
    assert len(seen) == 1


def test_sparse_gradients_stay_sparse_and_hooks_skip_what_got_none():
    class Embeds(nn.Module):
        def __init__(self):
            super().__init__()
            self.table, self.norm = nn.Embedding(10, 3, sparse=True), nn.BatchNorm1d(3)
            self.unused = nn.Parameter(torch.ones(3))

        def forward(self, x):
            return self.norm(self.table(x))

    model = Embeds().double()
    seen = []
    model.unused.grad = torch.ones(3, dtype=torch.float64)
    model.unused.register_post_accumulate_grad_hook(seen.append)
    whole, parts = copy.deepcopy(model), model
    case = Task(model, lambda y: y.pow(3).sum(), torch.randint(0, 10, (11,)))
    for _ in range(2):
        case.big(whole)
        case.in_parts(parts)
    assert parts.table.weight.grad.is_sparse
    torch.testing.assert_close(parts.table.weight.grad.to_dense(), whole.table.weight.grad.to_dense())
    assert not seen
