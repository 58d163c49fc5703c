"""torch.fx and torch.jit.trace: our layers are single nodes of a graph, as torch's are."""

import copy

import pytest
import torch
from torch import Tensor, fx, nn

import batchnorm as bn
from tests.support import zoo
from tests.support.material import drifting


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.last = nn.Conv2d(4, 4, 1), bn.BatchNorm2d(4, activation="relu"), bn.BatchNorm(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.norm(self.conv(x), x), mask=x > 0)


def step(model: nn.Module, x: Tensor) -> list[Tensor]:
    leaf = x.clone().requires_grad_()
    y = model(leaf)
    y.square().sum().backward()
    return [y.detach(), leaf.grad, *(t.clone() for t in model.state_dict().values())]


def test_layers_are_leaves_and_the_graph_computes_the_same():
    model = nn.Sequential(Block(), bn.BatchNorm2d(4)).double()
    graph = fx.symbolic_trace(copy.deepcopy(model))
    calls = [n.target for n in graph.graph.nodes if n.op == "call_module"]
    assert calls == ["0.conv", "0.norm", "0.last", "1"]
    for _ in range(2):
        x = drifting(3, 4, 5, 5).double()
        for a, b in zip(step(graph, x), step(model, x), strict=True):
            assert torch.equal(a, b)


def test_a_converted_and_fused_model_is_traced():
    model = nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.ReLU())
    graph = fx.symbolic_trace(bn.convert(model, fuse=True))
    x = drifting(3, 4, 5, 5)
    torch.testing.assert_close(graph(x), model(x))
    assert graph.get_submodule("1").activation == "relu"


class Twice(bn.BatchNorm2d):
    def forward(self, *inputs):
        return 2 * super().forward(*inputs)


@pytest.mark.parametrize(
    ("model", "says"),
    [(bn.BatchNorm2d(4), r"is the whole model: put it into an nn\.Sequential"), (nn.Sequential(Twice(4)), "leaf")],
    ids=["root", "subclass"],
)
def test_what_cannot_be_recorded_is_an_error(model, says):
    """A subclass that calls our forward would run twice: as a leaf, and in the graph."""
    with pytest.raises(TypeError, match=f"torch.fx cannot record .*{says}"):
        fx.symbolic_trace(model)


# torch scripts some of its own when this part of it is first imported
@pytest.mark.filterwarnings("ignore:`torch.jit.script(_method)?` is deprecated:DeprecationWarning")
def test_torchs_own_fusion_of_convolutions_leaves_results_alone():
    from torch.fx.experimental import optimization

    model = nn.Sequential(
        nn.Conv2d(4, 4, 1), bn.BatchNorm2d(4, activation="relu"), nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)
    )
    model(drifting(3, 4, 5, 5))
    fused, x = optimization.fuse(model.eval()), drifting(3, 4, 5, 5)
    torch.testing.assert_close(fused(x), model(x), rtol=1e-4, atol=1e-5)
    assert isinstance(fused.get_submodule("1"), bn.BatchNorm2d)


def test_torchvisions_feature_extractor():
    zoo.package_or_skip("torchvision")
    from torchvision.models.feature_extraction import create_feature_extractor

    model = bn.convert(zoo.build(zoo.Entry("torchvision", "resnet18", 64)), fuse=True)
    model.train()(torch.randn(4, 3, 64, 64))
    features = create_feature_extractor(model, {"layer1.0.bn1": "norm", "layer2": "middle"})
    x, seen = torch.randn(2, 3, 64, 64), []
    model.layer1[0].bn1.register_forward_hook(lambda _, inputs, output: seen.append(output))
    model.eval()(x)
    found = features.eval()(x)
    torch.testing.assert_close(found["norm"], seen[0])
    assert found["middle"].shape == (2, 128, 8, 8)


@pytest.mark.filterwarnings("ignore:`torch.jit.trace(_method)?` is deprecated:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:`torch.jit.trace(_method)?` is deprecated:DeprecationWarning")
@pytest.mark.parametrize("options", [{}, {"momentum": None}, {"activation": "relu"}, {"affine": False}], ids=str)
def test_jit_trace_in_training(options):
    """The traced layer normalises by each batch and moves its population, as torch's layer does in eager mode."""
    theirs = nn.BatchNorm2d(4, **{name: value for name, value in options.items() if name != "activation"})
    layer = bn.BatchNorm2d(4, **options)
    traced = torch.jit.trace(layer.train(), drifting(3, 4, 5, 5))
    layer.reset_running_stats()  # tracing has run the layer
    for number in range(3):
        x = drifting(3, 4, 5, 5, offset=float(number))
        wanted = theirs(x).relu() if "activation" in options else theirs(x)
        torch.testing.assert_close(traced(x), wanted, rtol=1e-4, atol=1e-4)
    for a, b in zip(layer.buffers(), theirs.buffers(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
    names = [n.kind() for n in traced.inlined_graph.nodes()]
    assert "aten::batch_norm" in names, "runtimes of traces know this operator, and none of ours"
