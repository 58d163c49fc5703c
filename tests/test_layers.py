"""The layers as torch's: state, options, modes, and everything people do to a layer."""

import copy
import io
import pickle
from contextlib import nullcontext

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import batchnorm as bn
from tests.support.material import LAYOUTS, drifting
from tests.support.oracle import exact, judge

PAIRS = {
    "1d": (bn.BatchNorm1d, nn.BatchNorm1d, (6, 4)),
    "1d, (N, C, L)": (bn.BatchNorm1d, nn.BatchNorm1d, (6, 4, 5)),
    "2d": (bn.BatchNorm2d, nn.BatchNorm2d, (6, 4, 3, 5)),
    "3d": (bn.BatchNorm3d, nn.BatchNorm3d, (6, 4, 3, 2, 2)),
    "sync": (bn.SyncBatchNorm, nn.SyncBatchNorm, (6, 4, 3, 5)),
    "any rank": (bn.BatchNorm, nn.BatchNorm2d, (6, 4, 3, 5)),
}
OPTIONS = {
    "defaults": {},
    "momentum=None": {"momentum": None},
    "momentum=1": {"momentum": 1.0},
    "momentum=0": {"momentum": 0.0},
    "no running statistics": {"track_running_stats": False},
    "not affine": {"affine": False},
    "no bias": {"bias": False},
    "neither": {"affine": False, "track_running_stats": False},
    "large eps": {"eps": 0.5},
}
every_pair = pytest.mark.parametrize("pair", PAIRS)
every_option = pytest.mark.parametrize("options", OPTIONS)


def twins(pair="2d", options="defaults", **more):
    """One of ours and one of torch's in the same state, γ and β not trivial."""
    ours, theirs, shape = PAIRS[pair]
    ours, theirs = ours(shape[1], **OPTIONS[options], **more), theirs(shape[1], **OPTIONS[options], **more)
    with torch.no_grad():
        for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
            b.copy_(a.copy_(torch.randn(a.shape)))
    return ours, theirs, shape


def assert_same_state(ours, theirs):
    a, b = ours.state_dict(), theirs.state_dict()
    assert list(a) == list(b)
    assert a._metadata == b._metadata
    for name, value in a.items():
        assert value.dtype == b[name].dtype, name
        if value.is_floating_point():
            judge(name, value, b[name].double(), budget=2e-6 * (1 + b[name].abs().max().item()))
        else:
            assert torch.equal(value, b[name]), name


@every_pair
@every_option
def test_training_and_evaluation_as_torch(pair, options):
    """Several steps, so that the running statistics have moved; then eval, back to train, and eval again."""
    ours, theirs, shape = twins(pair, options)
    compute = theirs if pair != "sync" else nn.BatchNorm2d(4, **OPTIONS[options])  # torch's needs a GPU to train
    compute.load_state_dict(theirs.state_dict())
    for step, mode in enumerate([True, True, True, False, True, False, False]):
        x = drifting(*shape, offset=3.0 * step)
        wide = copy.deepcopy(compute).double()  # float64 on the same values
        leaves = [x.clone().requires_grad_(), x.clone().requires_grad_(), x.double().requires_grad_()]
        grad = drifting(*shape, offset=0.2)
        outputs = [layer.train(mode)(leaf) for layer, leaf in zip((ours, compute, wide), leaves, strict=True)]
        for layer, y in zip((ours, compute, wide), outputs, strict=True):
            layer.zero_grad()
            y.backward(grad.to(y.dtype))
        judge("y", outputs[0], outputs[2], outputs[1], size=x.abs().max().item())
        steepest = (x.var([0, *range(2, x.dim())], correction=0) + 1e-5).rsqrt().max().item()
        terms = 4 * steepest * grad.abs().max().item() * max(1.0, leaves[2].grad.abs().max().item())
        judge("grad of x", leaves[0].grad, leaves[2].grad, leaves[1].grad, size=terms)
        for a, b in zip(ours.parameters(), compute.parameters(), strict=True):
            judge("grad of a parameter", a.grad, b.grad.double(), budget=1e-5 * (1 + b.grad.abs().max().item()))
        assert_same_state(ours, compute)


@pytest.mark.parametrize("momentum", [None, 0.3])
@every_pair
def test_running_statistics_against_the_oracle(pair, momentum):
    """Also after reset: each batch by momentum, or by 1/k; unbiased variance; float32 buffers round once a step."""
    layer = PAIRS[pair][0](4, momentum=momentum)
    for _ in range(2):
        mean, var = torch.zeros(4), torch.ones(4)
        for k in range(1, 5):
            x = drifting(*PAIRS[pair][2], offset=2.0 * k)
            step = exact(x, mean, var, training=True, momentum=1 / k if momentum is None else momentum)
            mean, var = step.running_mean, step.running_var
            layer(x)
            assert layer.num_batches_tracked == k
        judge("running_mean", layer.running_mean, mean, budget=2e-6)
        judge("running_var", layer.running_var, var, budget=2e-6)
        layer.reset_running_stats()


def test_the_plain_average_is_exact_in_float64():
    layer = bn.BatchNorm1d(4, momentum=None).double()
    batches = [drifting(6, 4, dtype=torch.float64, offset=100.0 * k) for k in range(7)]
    for x in batches:
        layer(x)
    judge("running_mean", layer.running_mean, torch.stack([x.mean(0) for x in batches]).mean(0), budget=1e-11)
    judge("running_var", layer.running_var, torch.stack([x.var(0) for x in batches]).mean(0), budget=1e-11)


@every_pair
@every_option
def test_state_dict_goes_both_ways(pair, options):
    ours, theirs, shape = twins(pair, options)
    ours(drifting(*shape))
    theirs.load_state_dict(ours.state_dict())
    assert_same_state(ours, theirs)
    fresh = PAIRS[pair][0](shape[1], **OPTIONS[options])
    fresh.load_state_dict(theirs.state_dict())
    assert_same_state(fresh, ours)
    assert fresh._version == theirs._version


def test_state_dict_of_before_num_batches_tracked():
    """Version 1 checkpoints have no counter: torch fills it in, and says nothing."""
    state = bn.BatchNorm2d(3).state_dict()
    del state["num_batches_tracked"]
    state._metadata[""]["version"] = 1
    layer = bn.BatchNorm2d(3)
    layer(drifting(4, 3, 2, 2))
    layer.load_state_dict(state)
    assert torch.equal(layer.running_mean, torch.zeros(3))


@pytest.mark.parametrize("copier", ["deepcopy", "pickle", "torch.save", "weights_only"])
@every_pair
def test_copies_go_on_alike(pair, copier):
    layer = PAIRS[pair][0](4, momentum=0.3, activation="silu", nonfinite="propagate")
    x, y = (drifting(*PAIRS[pair][2], offset=o) for o in (3.0, -2.0))
    layer(x)
    file = io.BytesIO()
    if copier == "deepcopy":
        twin = copy.deepcopy(layer)
    elif copier == "pickle":
        twin = pickle.loads(pickle.dumps(layer))
    elif copier == "torch.save":
        torch.save(layer, file)
        twin = torch.load(io.BytesIO(file.getvalue()), weights_only=False)
    else:
        torch.save(layer.state_dict(), file)
        twin = type(layer)(4, momentum=0.3, activation="silu", nonfinite="propagate")
        twin.load_state_dict(torch.load(io.BytesIO(file.getvalue()), weights_only=True))
    assert type(twin) is type(layer)
    assert repr(twin) == repr(layer)
    assert torch.equal(layer(y), twin(y))
    assert_same_state(twin, layer)
    assert twin.running_mean.data_ptr() != layer.running_mean.data_ptr()


def test_deepcopy_in_the_middle_of_training():
    """Between backward and step, the graph alive: the two train on alike without touching each other."""
    model = nn.Sequential(nn.Conv2d(3, 4, 3), bn.BatchNorm2d(4, activation="relu"), nn.Flatten(), nn.Linear(64, 2))
    batches = [drifting(5, 3, 6, 6, offset=o) for o in (1.0, 2.0, 3.0)]
    loss = model(batches[0]).square().sum()
    loss.backward(retain_graph=True)
    twin = copy.deepcopy(model)
    assert all(p.grad is None for p in twin.parameters())  # as torch copies parameters
    kept = copy.deepcopy(model.state_dict())
    for m in (model, twin):
        assert all(torch.equal(t, kept[name]) for name, t in m.state_dict().items())  # the first left the second alone
        optimizer = torch.optim.SGD(m.parameters(), 0.01)
        for x in batches:
            optimizer.zero_grad()
            m(x).square().sum().backward()
            optimizer.step()
    for (name, one), other in zip(model.state_dict().items(), twin.state_dict().values(), strict=True):
        assert torch.equal(one, other), name
    assert model[1].num_batches_tracked == 4


@pytest.mark.parametrize("pair", ["1d", "1d, (N, C, L)", "2d", "3d"])
def test_shapes_refused_as_torch(pair):
    ours, theirs, _ = twins(pair)
    for rank in range(6):
        x = torch.ones(2, 4, 3, 2, 5, 1)[(..., *[0] * (6 - rank))]
        with torch.no_grad():
            expected = _error(theirs, x)
            got = _error(ours, x)
        assert type(got) is type(expected), rank
        assert str(got) == str(expected) or expected is None, rank


def _error(layer, x):
    try:
        layer(x)
    except Exception as error:
        return error
    return None


def test_any_rank_from_two_up():
    layer = bn.BatchNorm(4)
    for rank in range(2, 8):
        y = layer(drifting(3, 4, *[2] * (rank - 2)))
        over = [0, *range(2, rank)]
        judge("mean", y.mean(over), torch.zeros(4), budget=1e-6)
        judge("variance", y.var(over, correction=0), torch.ones(4), budget=1e-3)
    with pytest.raises(ValueError, match=r"at least 2D input \(N, C, \*\) \(got 1D input\)"):
        layer(torch.ones(4))


@pytest.mark.parametrize("mode", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("shape", [(1, 4, 1, 1), (2, 5, 3, 3), (0, 4, 3, 3), (1, 4, 1, 2)], ids=str)
def test_awkward_batches_as_torch(shape, mode):
    """One value per channel, too many channels, none at all, two values."""
    ours, theirs, _ = twins()
    x = drifting(*shape)
    expected, got = (_error(layer.train(mode), x) for layer in (theirs, ours))
    assert type(got) is type(expected)
    if isinstance(expected, ValueError):
        assert str(got).startswith(str(expected))  # and then says what to do
    if isinstance(expected, Exception):  # torch has counted the batch by then; ours has not changed
        theirs.num_batches_tracked.zero_()
    assert_same_state(ours, theirs)


@every_option
def test_evaluation_without_buffers_uses_the_batch(options):
    ours, theirs, shape = twins("2d", options)
    for layer in (ours, theirs):
        layer.running_mean = layer.running_var = None
        layer.eval()
    x = drifting(*shape)
    judge("y", ours(x), theirs(x).double(), budget=1e-5)
    assert_same_state(ours, theirs)


@pytest.mark.parametrize("mode", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("toggled", [True, False])
def test_track_running_stats_set_by_hand(toggled, mode):
    """The flag changed after construction: buffers there are not written to, nor missed where there are none."""
    ours, theirs, shape = twins("2d", "no running statistics" if toggled else "defaults")
    x = drifting(*shape)
    for layer in (ours, theirs):
        layer(x)
        layer.track_running_stats = toggled
        layer.train(mode)
    judge("y", ours(x * 2), theirs(x * 2).double(), budget=1e-5)
    assert_same_state(ours, theirs)


@pytest.mark.parametrize("mode", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("pair", ["1d, (N, C, L)", "2d", "3d"])
def test_memory_format_as_torch(pair, layout, mode):
    ours, theirs, shape = twins(pair)
    x = LAYOUTS[layout](drifting(*shape))
    outputs = [layer.train(mode)(x) for layer in (ours, theirs)]
    assert outputs[0].stride() == outputs[1].stride()


@pytest.mark.parametrize("mode", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("cast", ["half", "bfloat16", "float", "double"])
def test_cast_models(cast, mode):
    """model.half() and the like: buffers and parameters follow, the counter does not."""
    ours, theirs, shape = twins()
    x = getattr(drifting(*shape), cast)()
    outputs = []
    for layer in (ours, theirs):
        getattr(layer, cast)().train(mode)
        leaf = x.clone().requires_grad_()
        y = layer(leaf)
        y.sum().backward()
        outputs.append((y, leaf.grad, layer.weight.grad, layer.bias.grad))
    for got, want in zip(*outputs, strict=True):
        assert got.dtype == want.dtype == x.dtype
    assert ours.num_batches_tracked.dtype == torch.int64
    truth = exact(x, *(torch.zeros(4), torch.ones(4)), ours.weight, ours.bias, mode)
    judge("y", outputs[0][0], truth.y, outputs[1][0])
    for name in ("running_mean", "running_var"):
        assert getattr(ours, name).dtype == x.dtype
        judge(name, getattr(ours, name), getattr(truth, name), getattr(theirs, name))


@pytest.mark.parametrize("cast", ["half", "bfloat16", "double"])
@pytest.mark.parametrize("to", ["half", "bfloat16", "float", "double"])
@pytest.mark.parametrize("mode", [True, False], ids=["train", "eval"])
def test_every_pair_of_dtypes_as_torch(cast, to, mode):
    """Parameters in one dtype, the input in another: what torch takes we take, what it refuses we refuse."""
    ours, theirs, shape = twins()
    x = getattr(drifting(*shape), to)()
    expected, got = (_error(getattr(layer, cast)().train(mode), x) for layer in (theirs, ours))
    assert type(got) is type(expected)
    assert got is None or "mixed dtype" in str(got)


def test_inference_mode():
    ours, theirs, shape = twins()
    x = drifting(*shape)
    with torch.inference_mode():
        y = ours(x)
        judge("y", y, theirs(x).double(), budget=1e-5)
        assert y.is_inference()
        ours.eval()(x)
    assert_same_state(ours, theirs)
    ours.train()(x.requires_grad_()).square().sum().backward()  # the buffers are ordinary ones still
    assert ours.weight.grad.isfinite().all()


def test_frozen_parameters():
    ours, theirs, shape = twins()
    x = drifting(*shape)
    for layer in (ours, theirs):
        layer.weight.requires_grad_(False)
        layer(x).sum().backward()
    assert ours.weight.grad is None
    judge("grad of bias", ours.bias.grad, theirs.bias.grad.double())
    for p in ours.parameters():
        p.requires_grad_(False)
    assert not ours(x).requires_grad
    assert ours(x.requires_grad_()).requires_grad


@pytest.mark.parametrize("mode", [True, False], ids=["train", "eval"])
@every_pair
def test_meta_device(pair, mode):
    """Tensors without values: whoever reads one, the counter with momentum=None say, fails here."""
    ours, _, shape = PAIRS[pair]
    layer = ours(shape[1], momentum=None, device="meta", activation="relu").train(mode)
    y = layer(torch.empty(shape, device="meta"), torch.empty(shape, device="meta"))
    assert y.is_meta
    assert y.shape == shape
    layer = layer.to_empty(device="cpu")
    layer.reset_parameters()
    judge("y", layer.train()(drifting(*shape)).mean().double(), torch.tensor(0.4), budget=0.1)


def test_dtype_keyword():
    layer = bn.BatchNorm2d(4, dtype=torch.float64)
    assert layer(drifting(3, 4, 2, 2, dtype=torch.float64)).dtype == layer.running_var.dtype == torch.float64


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointing_runs(reentrant):
    """The recomputation gives the same gradients."""
    x, grad = drifting(5, 3, 4, 4).requires_grad_(), drifting(5, 4, 2, 2)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), bn.BatchNorm2d(4, activation="gelu"))
    model(x).backward(grad)
    wanted = [x.grad, *(p.grad for p in model.parameters())]
    x.grad = None
    model.zero_grad()
    checkpoint(model, x, use_reentrant=reentrant).backward(grad)
    for got, want in zip([x.grad, *(p.grad for p in model.parameters())], wanted, strict=True):
        assert torch.equal(got, want)


def test_fuse_conv_bn_eval():
    conv, layer = nn.Conv2d(3, 4, 3), bn.BatchNorm2d(4)
    for offset in (1.0, 5.0):
        layer(conv(drifting(5, 3, 6, 6, offset=offset)))
    x = drifting(5, 3, 6, 6)
    fused = nn.utils.fusion.fuse_conv_bn_eval(conv.eval(), layer.eval())
    judge("y", fused(x), layer(conv(x)).double(), budget=1e-5)


def test_convert_sync_batchnorm_of_torchs():
    """torch's own converter takes ours, state and all: it gives our layer of torch's class."""
    model = nn.Sequential(bn.BatchNorm2d(4, momentum=0.3))
    model(drifting(5, 4, 3, 3))
    sync = nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(model))
    assert type(sync[0]) is bn.SyncBatchNorm
    assert sync[0].momentum == 0.3
    assert_same_state(model[0], sync[0])


def test_is_one_of_torchs():
    for ours, theirs, _ in PAIRS.values():
        assert issubclass(ours, theirs) or ours is bn.BatchNorm
        assert issubclass(ours, nn.modules.batchnorm._BatchNorm)


def test_residual_and_activation():
    layer = bn.BatchNorm2d(4, activation="relu")
    x, residual = drifting(5, 4, 3, 3), drifting(5, 4, 3, 3, offset=1.0)
    y = layer(x, residual)
    judge("y", y, exact(x, training=True, residual=residual, activation="relu").y, budget=1e-5)
    judge("y", bn.SyncBatchNorm(4, activation="relu")(input=x, residual=residual), y.double(), budget=0.0)


@pytest.mark.parametrize("option", [{"activation": "tanh"}, {"nonfinite": "ignore"}, {"activation": 3}])
def test_options_are_checked(option):
    with pytest.raises(
        ValueError, match=f"{next(iter(option))} must be one of .*; got {next(iter(option.values()))!r}"
    ):
        bn.BatchNorm2d(3, **option)
    layer = bn.BatchNorm2d(3)
    with pytest.raises(ValueError, match="must be one of"):
        layer.set_options(**{"nonfinite": "raise", "activation": "relu", **option})
    assert (layer.activation, layer.nonfinite) == (None, "skip")  # none is set
    with pytest.raises(TypeError, match=r"unknown option 'slope'; there are activation, .*nonfinite"):
        layer.set_options(slope=0.2)


def test_repr_says_what_differs_from_torchs():
    assert repr(bn.BatchNorm2d(3)) == repr(nn.BatchNorm2d(3))
    assert repr(bn.BatchNorm2d(3, activation="relu")) == f"{repr(nn.BatchNorm2d(3))[:-1]}, activation='relu')"


@pytest.mark.parametrize("nonfinite", ["skip", "propagate", "raise"])
def test_nonfinite_batch(nonfinite):
    layer, x = bn.BatchNorm2d(4, nonfinite=nonfinite), drifting(5, 4, 3, 3)
    x[0, 2] = torch.nan
    if nonfinite == "raise":
        with pytest.raises(FloatingPointError, match=r"^BatchNorm2d\(4\), step 1: .*channels \[2\]"):
            layer(x)
    else:
        with pytest.warns(RuntimeWarning, match=r"channels \[2\]") if nonfinite == "skip" else nullcontext():
            y = layer(x)
        layer(x)  # said once
        assert layer.skipped_batches == (2 if nonfinite == "skip" else 0)
        assert y[:, [0, 1, 3]].isfinite().all()
        assert y[:, 2].isnan().all()
    remembered = layer.running_mean.isfinite() & layer.running_var.isfinite()
    assert remembered.tolist() == [True, True, nonfinite != "propagate", True]


def test_hooks_are_called():
    layer, calls = bn.BatchNorm2d(4), []
    layer.register_forward_pre_hook(lambda *_: calls.append("pre"))
    layer.register_forward_hook(lambda *_: calls.append("forward"))
    layer.register_full_backward_hook(lambda *_: calls.append("backward"))
    layer(drifting(5, 4, 3, 3).requires_grad_()).sum().backward()
    assert calls == ["pre", "forward", "backward"]
