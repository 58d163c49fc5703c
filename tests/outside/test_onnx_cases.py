"""The ONNX project's own cases for BatchNormalization, as they ship in its wheel.

ONNX keeps the biased variance, and its momentum is the share of the old value.
"""

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

import batchnorm as bn
from tests.support.oracle import judge

onnx = pytest.importorskip("onnx")
from onnx import numpy_helper  # noqa: E402


def node_cases():
    """(name, attributes, inputs, outputs) of every node case of this operator."""
    np.random.seed(0)  # the cases draw their data when they are collected
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what other people's case files do at import is theirs
        from onnx.backend.test.case import node
        from onnx.backend.test.case.node import batch_normalization  # noqa: F401
    for case in node._NodeTestCases:
        (operator, *rest) = case.model.graph.node
        if operator.op_type == "BatchNormalization" and not rest:
            attributes = {a.name: onnx.helper.get_attribute_value(a) for a in operator.attribute}
            for inputs, outputs in case.data_sets:
                yield pytest.param(attributes, inputs, outputs, case.rtol, id=case.name)


def tensors(arrays):
    return [torch.from_numpy(np.array(a)) for a in arrays]


NODE_CASES = list(node_cases())


def test_all_cases_are_there():
    assert [c.id for c in NODE_CASES] == [
        "test_batchnorm_example",
        "test_batchnorm_epsilon",
        "test_batchnorm_example_training_mode",
        "test_batchnorm_epsilon_training_mode",
    ]


@pytest.mark.parametrize(("attributes", "inputs", "outputs", "rtol"), NODE_CASES)
def test_node(attributes, inputs, outputs, rtol):
    x, weight, bias, mean, var = tensors(inputs)
    training = bool(attributes.get("training_mode", 0))
    momentum = 1 - attributes.get("momentum", 0.9)
    y, new_mean, new_var = bn.batch_norm(
        x, mean, var, weight, bias, training, momentum, attributes.get("epsilon", 1e-5), return_stats=True
    )
    wanted = tensors(outputs)
    judge("y", y, wanted[0], budget=1e-6 * wanted[0].abs().max().item())
    assert len(wanted) == (3 if training else 1)
    if training:
        count = x.numel() // x.shape[1]
        biased = new_var - momentum * x.var([0, 2, 3], correction=1) / count  # the unbiased one exceeds it by v/n
        judge("output_mean", new_mean, wanted[1], budget=1e-6)
        judge("output_var", biased, wanted[2], budget=1e-6)
        assert not torch.allclose(new_var, wanted[2], rtol=rtol)  # else the case would not tell the two apart


CONVERTED = sorted((Path(onnx.__file__).parent / "backend/test/data/pytorch-converted").glob("test_BatchNorm*"))


@pytest.mark.parametrize("folder", CONVERTED, ids=lambda p: p.name)
def test_stored(folder):
    """Networks of one batch norm that were exported from torch long ago, with the outputs they had."""
    graph = onnx.load(folder / "model.onnx").graph
    (operator,) = graph.node
    assert operator.op_type == "BatchNormalization"
    stored = {t.name: numpy_helper.to_array(t) for t in graph.initializer}
    x, y = (
        numpy_helper.to_array(onnx.load_tensor(folder / "test_data_set_0" / f"{name}_0.pb"))
        for name in ("input", "output")
    )
    attributes = {a.name: onnx.helper.get_attribute_value(a) for a in operator.attribute}
    weight, bias, mean, var = tensors(stored[name] for name in operator.input[1:])
    x, y = tensors([x, y])
    got = bn.batch_norm(x, mean, var, weight, bias, eps=attributes["epsilon"])
    judge("y", got, y, budget=1e-6 * y.abs().max().item())


def test_stored_cases_are_there():
    assert len(CONVERTED) == 5
