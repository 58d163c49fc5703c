"""ONNX export: one standard BatchNormalization node per layer, and ONNX Runtime computes what the layer does."""

import numpy as np
import pytest
import torch
from torch import nn

import batchnorm as bn
from tests.support.material import drifting

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

# The exporters warn of themselves and of parts of torch they use; none of it is our doing.

pytestmark = [
    pytest.mark.filterwarnings("ignore:`isinstance.treespec, LeafSpec.` is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:You are using the legacy TorchScript-based ONNX export:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:The feature will be removed. Please remove usage:DeprecationWarning"),
]


def trained(layer, *shape):
    for offset in (1.0, 4.0):
        layer(drifting(*shape, offset=offset))
    with torch.no_grad():
        for p in layer.parameters():
            p.uniform_(-2.0, 2.0)
    return layer.eval()


def run(file, x):
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    (y,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    return torch.from_numpy(np.array(y))


LAYERS = {
    "1d": (bn.BatchNorm1d, (5, 4)),
    "1d, (N, C, L)": (bn.BatchNorm1d, (5, 4, 6)),
    "2d": (bn.BatchNorm2d, (5, 4, 6, 3)),
    "3d": (bn.BatchNorm3d, (5, 4, 2, 3, 2)),
}


@pytest.mark.parametrize("dynamo", [True, False], ids=["torch.export", "tracing"])
@pytest.mark.parametrize("kind", LAYERS)
def test_one_standard_node(kind, dynamo, tmp_path):
    layer_class, shape = LAYERS[kind]
    layer, file = trained(layer_class(4, eps=1e-3), *shape), tmp_path / "layer.onnx"
    x = drifting(*shape)
    torch.onnx.export(layer, (x,), str(file), dynamo=dynamo, verbose=False)
    (node,) = onnx.load(file).graph.node
    assert node.op_type == "BatchNormalization"
    assert node.domain == ""
    attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    assert attributes["epsilon"] == pytest.approx(1e-3)
    torch.testing.assert_close(run(file, x), layer(x), rtol=1e-5, atol=1e-5)


def test_a_network_with_options(tmp_path):
    """Residual and activation become nodes of their own after the standard one."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.one = bn.BatchNorm2d(4, activation="relu")
            self.two = bn.BatchNorm2d(4, activation="leaky_relu", affine=False)

        def forward(self, x):
            return self.two(self.one(x), x)

    net, file, x = trained(Net(), 5, 4, 6, 3), tmp_path / "net.onnx", drifting(5, 4, 6, 3)
    torch.onnx.export(net, (x,), str(file), dynamo=True, verbose=False)
    operators = [n.op_type for n in onnx.load(file).graph.node]
    assert operators == ["BatchNormalization", "Relu", "BatchNormalization", "Add", "LeakyRelu"]
    torch.testing.assert_close(run(file, x), net(x), rtol=1e-5, atol=1e-5)
