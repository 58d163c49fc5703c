"""torch.export: the graph holds the layer's numbers, its buffers are updated, its batch may have any size."""

import copy

import pytest
import torch
from torch import nn
from torch.export import Dim, export

import batchnorm as bn
from tests.support.material import drifting


def trained():
    model = nn.Sequential(bn.BatchNorm2d(4, activation="relu"), nn.Conv2d(4, 4, 2), bn.BatchNorm2d(4, momentum=None))
    for offset in (0.0, 4.0):
        model(drifting(5, 4, 6, 7, offset=offset))
    return model


@pytest.mark.parametrize("mode", [True, False], ids=["train", "eval"])
def test_same_numbers_and_buffers(mode):
    model = trained().train(mode)
    twin = copy.deepcopy(model)
    program = export(model, (drifting(5, 4, 6, 7),), dynamic_shapes=({0: Dim("batch", min=2)},))
    for n in (5, 2, 9):
        x = drifting(n, 4, 6, 7)
        torch.testing.assert_close(program.module()(x), twin(x), rtol=1e-4, atol=1e-5)
        twin.load_state_dict(model.state_dict())


def test_buffers_move_in_an_exported_training_graph():
    model = trained()
    twin = copy.deepcopy(model)
    program = export(model, (drifting(5, 4, 6, 7),)).module()
    for offset in (1.0, 2.0):
        x = drifting(5, 4, 6, 7, offset=offset)
        program(x), twin(x)
    for name, buffer in program.named_buffers():
        torch.testing.assert_close(buffer, twin.get_buffer(name), rtol=1e-4, atol=1e-5, msg=name)
    assert twin[0].num_batches_tracked == 4


# torch's own decompositions use a part of torch that is deprecated
@pytest.mark.filterwarnings("ignore:`isinstance.treespec, LeafSpec.` is deprecated:FutureWarning")
def test_evaluation_is_standard_operators():
    """So that every consumer of exported programs knows them: no operator of ours is in the graph."""
    program = export(trained().eval(), (drifting(5, 4, 6, 7),)).run_decompositions()
    targets = [str(n.target) for n in program.graph.nodes if n.op == "call_function"]
    assert any("native_batch_norm" in t for t in targets)
    assert not any(t.startswith("batchnorm.") for t in targets)


def test_save_and_load(tmp_path):
    model, x = trained().eval(), drifting(5, 4, 6, 7)
    torch.export.save(export(model, (x,)), tmp_path / "model.pt2")
    loaded = torch.export.load(tmp_path / "model.pt2").module()
    torch.testing.assert_close(loaded(x), model(x), rtol=1e-5, atol=1e-6)
