"""torch's own cases, as they ship in its wheel: module inputs, module errors, and the samples of its operators."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import batchnorm as bn
from tests.support.oracle import exact, judge

common_modules = pytest.importorskip("torch.testing._internal.common_modules", reason="needs expecttest")
common_methods = pytest.importorskip("torch.testing._internal.common_methods_invocations", reason="needs expecttest")

OURS = {nn.BatchNorm1d: bn.BatchNorm1d, nn.BatchNorm2d: bn.BatchNorm2d, nn.BatchNorm3d: bn.BatchNorm3d}
INFOS = {info.module_cls: info for info in common_modules.module_db if info.module_cls in OURS}
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]

every_class = pytest.mark.parametrize("theirs", OURS, ids=lambda c: c.__name__)
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)
modes = pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])


def cases(theirs, dtype, training):
    make = INFOS[theirs].module_inputs_func
    found = make(INFOS[theirs], device="cpu", dtype=dtype, requires_grad=True, training=training)
    assert len(found) >= 7  # a torch that ships none would pass unnoticed
    return found


@every_class
@every_dtype
@modes
def test_module_inputs(theirs, dtype, training):
    for case in cases(theirs, dtype, training):
        construct, forward = case.constructor_input, case.forward_input
        layers = [c(*construct.args, **construct.kwargs, dtype=dtype) for c in (OURS[theirs], theirs)]
        with torch.no_grad():
            for p in layers[1].parameters():
                p.uniform_(0.5, 2.0)
        layers[0].load_state_dict(layers[1].state_dict())
        (x,) = forward.args
        buffers = copy.deepcopy(dict(layers[0].named_buffers()))
        results = []
        for layer in layers:
            layer.train(training)
            leaf = x.detach().clone().requires_grad_()
            y = layer(leaf)
            grad = torch.linspace(-1, 2, y.numel()).reshape(y.shape).to(dtype)
            y.backward(grad)
            results.append({"y": y, "x": leaf.grad} | {k: p.grad for k, p in layer.named_parameters()})
            results[-1] |= dict(layer.named_buffers())
        assert results[0].keys() == results[1].keys()
        layer = layers[0]
        if x.numel() == 0:
            for name, got in results[0].items():
                assert torch.equal(got, results[1][name]), name
            continue
        mean, var = buffers.get("running_mean"), buffers.get("running_var")
        momentum = 1.0 if layer.momentum is None else layer.momentum  # the first batch's share of the average
        truth = exact(x, mean, var, layer.weight, layer.bias, training or mean is None, momentum, layer.eps, grad=grad)
        right = {"y": truth.y, **truth.grads, "running_mean": truth.running_mean, "running_var": truth.running_var}
        for name, got in results[0].items():
            if name == "num_batches_tracked":
                assert torch.equal(got, results[1][name]), case.desc
            else:
                judge(f"{case.desc}: {name}", got, right[name], results[1][name], size=truth.sizes[name])


@every_class
@modes
def test_module_errors(theirs, training):
    make = INFOS[theirs].module_error_inputs_func
    found = make(INFOS[theirs], device="cpu", dtype=torch.float32, requires_grad=False, training=training)
    assert found
    for case in found:
        construct, forward = case.module_error_input.constructor_input, case.module_error_input.forward_input
        layer = OURS[theirs](*construct.args, **construct.kwargs).train(training)
        reference = theirs(*construct.args, **construct.kwargs).train(training)
        try:
            reference(*forward.args)
        except case.error_type:
            with pytest.raises(case.error_type, match=case.error_regex if training else "eps must be"):
                layer(*forward.args)
        else:  # torch refuses it in training only
            assert not training
            layer(*forward.args)


def samples(name, dtype):
    (info,) = [i for i in common_methods.op_db if i.name == name and not i.variant_test_name]
    found = list(info.sample_inputs("cpu", dtype, requires_grad=True))
    assert len(found) >= 10
    return found


@every_dtype
def test_operator_samples(dtype):
    for sample in samples("nn.functional.batch_norm", dtype):
        mean, var, weight, bias = sample.args
        results = []
        for function in (bn.batch_norm, F.batch_norm):
            leaf = sample.input.detach().clone().requires_grad_()
            affine = [None if t is None else t.detach().clone().requires_grad_() for t in (weight, bias)]
            stats = [None if t is None else t.clone() for t in (mean, var)]
            y = function(leaf, *stats, *affine, **sample.kwargs)
            grad = torch.linspace(-1, 2, y.numel()).reshape(y.shape).to(dtype)
            y.backward(grad)
            results.append([y, *stats, leaf.grad, *(None if t is None else t.grad for t in affine)])
        if sample.input.numel() == 0:
            assert results[0][0].shape == results[1][0].shape
            assert torch.equal(results[0][3], results[1][3])
            continue
        truth = exact(sample.input, mean, var, weight, bias, grad=grad, **sample.kwargs)
        right = [truth.y, truth.running_mean, truth.running_var, *(truth.grads[k] for k in ("x", "weight", "bias"))]
        names = "y", "running_mean", "running_var", "x", "weight", "bias"
        for name, got, want, rival in zip(names, results[0], right, results[1], strict=True):
            assert (got is None) == (rival is None), name
            if got is not None:
                judge(f"{tuple(sample.input.shape)} {sample.kwargs}: {name}", got, want, rival, size=truth.sizes[name])
