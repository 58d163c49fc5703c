"""`convert` and `revert`: in place, lossless, and with a report of what they leave."""

import copy
import warnings

import pytest
import torch
from torch import nn

import batchnorm as bn
from batchnorm.tools import registry as room
from tests.support.material import drifting

THEIRS = {
    nn.BatchNorm1d: bn.BatchNorm1d,
    nn.BatchNorm2d: bn.BatchNorm2d,
    nn.BatchNorm3d: bn.BatchNorm3d,
    nn.SyncBatchNorm: bn.SyncBatchNorm,
}
every_class = pytest.mark.parametrize("theirs", THEIRS)


@pytest.fixture(autouse=True)
def registry(monkeypatch):
    """What a test registers is forgotten after it."""
    monkeypatch.setattr(room, "_ours", dict(room._ours))


class Net(nn.Module):
    """A net with what real ones have: nesting, a shared norm, a norm in a list, a plain attribute beside them."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
        self.shared = nn.BatchNorm2d(4, momentum=None, eps=1e-3)
        self.again = self.shared
        self.norms = nn.ModuleList([nn.BatchNorm2d(4, affine=False), nn.BatchNorm2d(4, track_running_stats=False)])
        self.head = nn.Linear(4, 2)

    def forward(self, x):
        x = self.again(self.shared(self.stem(x)))
        for norm in self.norms:
            x = norm(x)
        return self.head(x.mean([2, 3]))


def batches(k=3):
    return [drifting(5, 3, 6, 6, offset=float(o + 1)) for o in range(k)]


@every_class
def test_a_layer_is_the_same_object_of_another_class(theirs):
    layer = theirs(4)
    tensors = [*layer.parameters(), *layer.buffers()]
    assert bn.convert(layer) is layer
    assert type(layer) is THEIRS[theirs]
    assert all(a is b for a, b in zip(tensors, [*layer.parameters(), *layer.buffers()], strict=True))
    assert bn.revert(layer) is layer
    assert type(layer) is theirs
    assert all(a is b for a, b in zip(tensors, [*layer.parameters(), *layer.buffers()], strict=True))


@every_class
def test_round_trip_is_lossless(theirs):
    layer = theirs(4, momentum=None, eps=0.1)
    before = dict(vars(layer))
    bn.convert(layer, activation="relu", nonfinite="raise").set_options(activation=None)
    assert vars(bn.revert(layer)) == before


def test_model_computes_the_same():
    net, x = Net(), batches()
    other = bn.convert(copy.deepcopy(net))
    for batch in x:
        torch.testing.assert_close(other(batch), net(batch), rtol=1e-4, atol=1e-5)
    for a, b in zip(other.state_dict().values(), net.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(other.eval()(x[0]), net.eval()(x[0]), rtol=1e-4, atol=1e-5)
    assert sum(isinstance(m, bn.BatchNorm) for m in other.modules()) == 4


def test_shared_modules_stay_shared():
    net = bn.convert(Net())
    assert net.shared is net.again
    assert type(net.shared) is bn.BatchNorm2d


def test_optimizers_go_on():
    """The optimizer made before the conversion, momentum buffers and all, trains the converted model."""
    net = Net()
    other = copy.deepcopy(net)
    optimizers = [torch.optim.SGD(m.parameters(), 0.01, momentum=0.9) for m in (net, other)]
    for step, x in enumerate(batches(4)):
        if step == 2:
            bn.convert(other)
        for model, optimizer in zip((net, other), optimizers, strict=True):
            optimizer.zero_grad()
            model(x).square().sum().backward()
            optimizer.step()
    for (name, a), b in zip(other.state_dict().items(), net.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5, msg=name)


def test_hooks_names_flags_and_attributes_survive():
    net, calls = Net(), []
    norm = net.stem[1]
    norm.register_forward_pre_hook(lambda *_: calls.append("pre"))
    norm.register_forward_hook(lambda *_: calls.append("forward"))
    norm.register_full_backward_hook(lambda *_: calls.append("backward"))
    norm.register_state_dict_post_hook(lambda *_: calls.append("state"))
    norm.weight.register_hook(lambda _: calls.append("weight"))
    norm.bias.requires_grad_(False)
    norm.note = "kept"
    net.norms[0].eval()
    names = [n for n, _ in net.named_modules()], [n for n, _ in net.named_parameters()]
    for change in (bn.convert, bn.revert):
        change(net)
        assert ([n for n, _ in net.named_modules()], [n for n, _ in net.named_parameters()]) == names
        assert [m.training for m in net.modules()].count(False) == 1
        assert not net.norms[0].training
        assert not norm.bias.requires_grad
        assert norm.weight.requires_grad
        assert norm.note == "kept"
        calls.clear()
        net(batches()[0]).sum().backward()
        net.state_dict()
        assert sorted(calls) == ["backward", "forward", "pre", "state", "weight"]


def test_device_and_dtype_survive():
    layer = bn.convert(nn.BatchNorm2d(4, device="meta", dtype=torch.float64))
    assert all(t.is_meta for t in layer.state_dict().values())
    assert layer.weight.dtype == torch.float64


def test_options_are_set_on_every_layer_also_on_ours():
    net = nn.Sequential(nn.BatchNorm2d(4), bn.BatchNorm2d(4), nn.Sequential(bn.BatchNorm(4)))
    bn.convert(net, activation="gelu")
    assert [m.activation for m in net.modules() if isinstance(m, bn.BatchNorm)] == ["gelu"] * 3


def test_sync_is_short_for_all_ranks_and_reverts_to_torchs_default():
    net = bn.convert(Net(), sync=True)
    assert all(m.process_group is True for m in net.modules() if isinstance(m, bn.BatchNorm))
    assert bn.convert(Net()).stem[1].process_group is None
    assert bn.revert(bn.convert(nn.SyncBatchNorm(4), sync=True)).process_group is None


def test_a_frozen_layer_is_not_reverted():
    net = bn.freeze(Net().stem)
    with pytest.raises(ValueError, match=r"1 \(frozen\)"):
        bn.revert(net)
    assert type(bn.revert(bn.unfreeze(net))[1]) is nn.BatchNorm2d


@pytest.mark.parametrize(
    ("options", "error"), [({"activation": "tanh"}, ValueError), ({"nonsense": 1}, TypeError)], ids=["value", "name"]
)
def test_bad_options_change_nothing(options, error):
    net = nn.Sequential(nn.BatchNorm2d(4))
    with pytest.raises(error):
        bn.convert(net, **options)
    assert type(net[0]) is nn.BatchNorm2d


class Louder(nn.BatchNorm2d):
    """A subclass with behaviour of its own."""

    def forward(self, input):
        return 2 * super().forward(input)


def test_subclasses_are_left_alone_and_named():
    net = nn.Sequential(nn.BatchNorm2d(4), nn.Sequential(Louder(4)), nn.InstanceNorm2d(4), nn.LayerNorm(4))
    with pytest.warns(
        UserWarning, match=r"left as they are: 1 × Louder \(1\.0\): a subclass of torch's.*register"
    ) as seen:
        bn.convert(net)
    assert seen[0].filename == __file__
    assert [type(m) for m in net] == [bn.BatchNorm2d, nn.Sequential, nn.InstanceNorm2d, nn.LayerNorm]
    assert type(net[1][0]) is Louder
    with pytest.warns(UserWarning, match=r"\(the model itself\)"):
        assert type(bn.convert(Louder(4))) is Louder


def test_ours_are_not_converted_twice_and_subclasses_of_ours_stay():
    class Mine(bn.BatchNorm2d):
        pass

    net = nn.Sequential(Mine(4), bn.BatchNorm(4), bn.BatchNorm2d(4))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        bn.convert(net)
    assert [type(m) for m in net] == [Mine, bn.BatchNorm, bn.BatchNorm2d]


def test_lazy_layers_are_named_until_they_are_materialised():
    net = nn.Sequential(nn.LazyBatchNorm2d(), nn.ReLU())
    with pytest.warns(UserWarning, match=r"1 × LazyBatchNorm2d \(0\): not materialised: run a batch"):
        bn.convert(net)
    assert type(net[0]) is nn.LazyBatchNorm2d
    net(drifting(5, 4, 3, 3))
    bn.convert(net)
    assert type(net[0]) is bn.BatchNorm2d
    assert net[0].num_features == 4
    assert net[0].num_batches_tracked == 1


def test_register():
    class Theirs(nn.BatchNorm2d):
        pass

    class Ours(bn.BatchNorm2d):
        pass

    bn.register(Theirs, Ours)
    net = bn.convert(nn.Sequential(Theirs(4), nn.BatchNorm2d(4)))
    assert [type(m) for m in net] == [Ours, bn.BatchNorm2d]
    assert [type(m) for m in bn.revert(net)] == [Theirs, nn.BatchNorm2d]
    bn.register(Theirs, Ours)  # again is no error


def test_what_is_left_is_said_once_by_class():
    class Softer(Louder):
        pass

    net = nn.Sequential(*[Louder(4) for _ in range(7)], Softer(4))
    with pytest.warns(UserWarning, match="left as they are") as seen:
        bn.convert(net)
    assert len(seen) == 1
    said = str(seen[0].message)
    assert "7 × Louder (0, 1, 2, 3, 4 and 2 more): " in said
    assert "1 × Softer (7): " in said


def test_a_class_is_no_model():
    with pytest.raises(TypeError, match="the class Net: make one first"):
        bn.convert(Net)
    with pytest.raises(TypeError, match=r"expected a model, an nn\.Module, got 3"):
        bn.convert(3)


class Widened(nn.BatchNorm2d):
    """A constructor of its own, and the same computation."""

    def __init__(self, *, width):
        super().__init__(width)


@pytest.mark.parametrize("wrong", ["forward", "gradient", "statistics", "evaluation"])
def test_register_refuses_what_computes_something_else(wrong):
    class Theirs(nn.BatchNorm2d):
        def forward(self, input):
            if wrong == "statistics" and self.training:
                self.running_mean += 1
            y = super().forward(input)
            if wrong == "forward" or (wrong == "evaluation" and not self.training):
                return y * 1.001
            return y.detach() + (y - y.detach()) * 2 if wrong == "gradient" else y

    class Ours(bn.BatchNorm2d):
        pass

    with pytest.raises(ValueError, match=r"Ours does not compute what Theirs computes: the .* differs in"):
        bn.register(Theirs, Ours)
    assert Theirs not in room._ours


def test_register_with_an_example():
    class Ours(bn.BatchNorm2d):
        pass

    with pytest.raises(TypeError, match=r"Widened\(6\) makes no layer to compare .* pass register\(..., example="):
        bn.register(Widened, Ours)
    bn.register(Widened, Ours, example=Widened(width=3))
    assert type(bn.convert(Widened(width=5))) is Ours


@pytest.mark.parametrize(
    ("theirs", "ours", "error", "says"),
    [
        (nn.LayerNorm, bn.BatchNorm2d, TypeError, "LayerNorm must be a subclass of torch's batch norms"),
        (bn.BatchNorm1d, bn.BatchNorm2d, TypeError, "not of ours"),
        (Louder, nn.BatchNorm2d, TypeError, "BatchNorm2d must be a subclass of batchnorm.BatchNorm"),
        (Louder, bn.BatchNorm2d, ValueError, "BatchNorm2d already is the counterpart of BatchNorm2d"),
    ],
)
def test_register_refuses(theirs, ours, error, says):
    with pytest.raises(error, match=says):
        bn.register(theirs, ours)
    assert Louder not in room._ours


def test_revert_refuses_what_torch_cannot_do_and_changes_nothing():
    net = nn.Sequential(bn.BatchNorm2d(4), bn.BatchNorm2d(4, activation="relu"), bn.BatchNorm(4))
    with pytest.raises(ValueError, match=r"1 \(activation='relu'\), 2 \(BatchNorm has no counterpart\)"):
        bn.revert(net)
    assert [type(m) for m in net] == [bn.BatchNorm2d, bn.BatchNorm2d, bn.BatchNorm]
    assert net[1].activation == "relu"


def test_revert_leaves_no_trace():
    layer = bn.revert(bn.BatchNorm2d(4, nonfinite="raise"))
    assert vars(layer).keys() == vars(nn.BatchNorm2d(4)).keys()
    assert type(bn.revert(nn.Sequential(nn.Linear(2, 2), nn.BatchNorm2d(2)))[1]) is nn.BatchNorm2d


def test_state_dict_and_checkpoint_of_torchs_load_into_the_converted():
    net = Net()
    net(batches()[0])
    state = copy.deepcopy(net.state_dict())
    fresh = bn.convert(Net())
    assert fresh.load_state_dict(state).missing_keys == []
    for a, b in zip(fresh.state_dict().values(), state.values(), strict=True):
        assert torch.equal(a, b)
    assert fresh.state_dict()._metadata == state._metadata
