"""torch.func: the transforms torch's own layer supports, with the same numbers; if it raises, so do our layers."""

import copy

import pytest
import torch
from torch import nn
from torch.func import (
    functional_call,
    grad,
    hessian,
    jacfwd,
    jacrev,
    jvp,
    replace_all_batch_norm_modules_,
    stack_module_state,
    vjp,
    vmap,
)

import batchnorm as bn
from tests.support.material import drifting

# torch's own decompositions for forward mode are scripted when the first dual tensor comes
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")
modes = pytest.mark.parametrize("mode", [True, False], ids=["train", "eval"])


def twins(mode=True, **options):
    theirs = nn.BatchNorm2d(3, **options).double().train(mode)
    with torch.no_grad():
        for t in (*theirs.parameters(), *theirs.buffers()):
            t.copy_(torch.rand(t.shape) + 0.5) if t.is_floating_point() else None
    return bn.convert(copy.deepcopy(theirs)), theirs


def data(*shape):
    return drifting(*(shape or (4, 3, 2, 5)), dtype=torch.float64)


def outcome(f):
    """What `f` gives, or the class of what it raises."""
    try:
        return f()
    except Exception as error:
        return type(error)


def assert_alike(f, layers):
    """`f(layer)` gives the same, or raises the same."""
    got, wanted = (outcome(lambda layer=layer: f(layer)) for layer in layers)
    if isinstance(wanted, type):
        assert got is wanted
    else:
        torch.testing.assert_close(got, wanted, rtol=1e-9, atol=1e-10)
    return not isinstance(wanted, type)


TRANSFORMS = {
    "grad": lambda layer, x: grad(lambda x: layer(x).sin().sum())(x),
    "vjp": lambda layer, x: vjp(layer, x)[1](x.cos()),
    "jvp": lambda layer, x: jvp(layer, (x,), (x.cos(),)),
    "jacrev": lambda layer, x: jacrev(lambda x: layer(x).sum([0, 2]))(x),
    "jacfwd": lambda layer, x: jacfwd(lambda x: layer(x).sum([0, 2]))(x),
    "hessian": lambda layer, x: hessian(lambda x: layer(x).sin().sum())(x[:2, :, :1, :2]),
    "vmap": lambda layer, x: vmap(layer)(torch.stack([x, 2 * x + 1])),
    "vmap over dimension 2": lambda layer, x: vmap(layer, in_dims=2, out_dims=1)(torch.stack([x, 2 * x + 1], 2)),
    "vmap of grad": lambda layer, x: vmap(grad(lambda x: layer(x).sin().sum()))(torch.stack([x, 2 * x + 1])),
    "grad of vmap": lambda layer, x: grad(lambda x: vmap(layer)(x).sin().sum())(torch.stack([x, 2 * x + 1])),
}
OPTIONS = {
    "tracked": {},
    "untracked": {"track_running_stats": False},
    "untracked, not affine": {"track_running_stats": False, "affine": False},
}


@modes
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("transform", TRANSFORMS)
def test_transforms_as_torch(transform, options, mode):
    """In train with running statistics torch refuses them all (they would be written to); so do we."""
    layers = twins(mode, **OPTIONS[options])
    x = data()
    worked = assert_alike(lambda layer: TRANSFORMS[transform](layer, x), layers)
    assert worked == (not mode or options != "tracked")


@modes
def test_functional_call_and_its_gradient(mode):
    """The buffers passed in are those that move; the layer's own stay."""
    layers = twins(mode)
    x, kept = data(), copy.deepcopy(layers[0].state_dict())

    def train_step(layer):
        parameters, buffers = dict(layer.named_parameters()), {k: b.clone() for k, b in layer.named_buffers()}
        gradient = grad(lambda p, b: functional_call(layer, (p, b), (x,)).sin().sum())(parameters, buffers)
        return gradient, buffers

    assert assert_alike(train_step, layers)
    assert all(torch.equal(a, kept[k]) for k, a in layers[0].state_dict().items())
    moved = train_step(layers[0])[1]
    assert torch.equal(moved["running_mean"], kept["running_mean"]) == (not mode)
    assert moved["num_batches_tracked"] == mode


@modes
@pytest.mark.parametrize("shared", [True, False], ids=["one batch for all", "a batch each"])
def test_ensembles(shared, mode):
    """Stacked states under vmap: each member learns by its own data and moves its own buffers."""
    members = [[bn.convert(copy.deepcopy(m)), m] for m in (twins(mode)[1] for _ in range(3))]
    x = data() if shared else torch.stack([data() + k for k in range(3)])

    def call(which):
        stacked = [m[which] for m in members]
        parameters, buffers = stack_module_state(stacked)
        base = copy.deepcopy(stacked[0])

        def one(p, b, x):
            return functional_call(base, (p, b), (x,))

        y = vmap(one, in_dims=(0, 0, None if shared else 0), randomness="different")(parameters, buffers, x)
        return y.detach(), buffers

    assert assert_alike(call, (0, 1))
    if mode:
        means = call(0)[1]["running_mean"]
        alone = [m[0](x if shared else x[k]) is not None and m[0].running_mean for k, m in enumerate(members)]
        torch.testing.assert_close(means, torch.stack(alone))


@modes
def test_per_sample_gradients(mode):
    """Supported in eval, where samples do not mix; in train torch says what to do instead, and we raise too."""
    layers, x = twins(mode), data()

    def per_sample(layer):
        parameters, buffers = dict(layer.named_parameters()), dict(layer.named_buffers())

        def loss(p, x):
            return functional_call(layer, (p, buffers), (x[None],)).sin().sum()

        return vmap(grad(loss), in_dims=(None, 0))(parameters, x)

    assert assert_alike(per_sample, layers) == (not mode)


def test_vmap_in_training_raises_and_moves_nothing():
    layer, kept = twins()[0], twins()[0].running_mean.shape
    before = layer.running_mean.clone()
    with pytest.raises(RuntimeError, match="vmap"):
        vmap(layer)(torch.stack([data(), data()]))
    assert torch.equal(layer.running_mean, before)
    assert layer.running_mean.shape == kept


def test_replace_all_batch_norm_modules():
    model = nn.Sequential(nn.Conv2d(3, 3, 1), bn.BatchNorm2d(3, activation="relu")).double()
    assert replace_all_batch_norm_modules_(model) is model
    assert model[1].running_mean is None
    x = torch.stack([data(), 2 * data()])
    y = vmap(model)(x)
    torch.testing.assert_close(y, torch.stack([model(x[0]), model(x[1])]))


@modes
@pytest.mark.parametrize("activation", ["relu", "silu"])
def test_residual_and_activation_under_transforms(activation, mode):
    layer = bn.BatchNorm2d(3, activation=activation, track_running_stats=False).double().train(mode)
    x, r = data(), data()
    leaf = x.clone().requires_grad_()
    layer(leaf, r).sin().sum().backward()
    torch.testing.assert_close(grad(lambda x: layer(x, r).sin().sum())(x), leaf.grad)
    y = vmap(layer)(torch.stack([x, r]), torch.stack([r, x]))
    torch.testing.assert_close(y, torch.stack([layer(x, r), layer(r, x)]))
