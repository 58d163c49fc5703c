"""The callback in transformers' Trainer, alone and on two ranks."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

pytest.importorskip("transformers", reason="the callback is for transformers")
pytest.importorskip("accelerate", reason="transformers' Trainer needs accelerate")

from transformers import TrainerCallback

import batchnorm as bn
from batchnorm.integrations.transformers import BatchNormCallback
from tests.integrations.frameworks import steps
from tests.integrations.frameworks.transformers_cases import rows, trainer


def test_on_two_ranks(on_two_ranks) -> None:
    on_two_ranks("transformers_cases", "accumulated_and_shared", "calibrated")


def test_a_shorter_last_step_is_a_window_too(tmp_path: Path) -> None:
    net = bn.convert(steps.network())
    trainer(net, BatchNormCallback(), tmp_path, rows(1, 5), gradient_accumulation_steps=2).train()
    wanted = nn.BatchNorm1d(3).double()
    batches = [x for x, _ in steps.data(1, 5)[0]]
    for window in (batches[:2], batches[2:4], batches[4:]):
        wanted(torch.cat(window))
    torch.testing.assert_close(net[0].state_dict()["running_var"], wanted.running_var, rtol=1e-12, atol=1e-12)
    assert net[0].num_batches_tracked == 3
    assert net[0]._window is None


def test_calibrated_before_each_evaluation(tmp_path: Path) -> None:
    net, seen = bn.convert(steps.network()), []

    class Look(TrainerCallback):
        def on_prediction_step(self, *_: Any, **__: Any) -> None:
            seen.append((net[0].running_var.clone(), int(net[0].num_batches_tracked)))

    everything = torch.cat([x for x, _ in steps.data(1, 4)[0]])
    callback = BatchNormCallback(calibrate=[{"x": x} for x in everything.split(10)])
    fit = trainer(net, callback, tmp_path, rows(1, 4), num_train_epochs=2, eval_strategy="epoch")
    fit.add_callback(Look())
    fit.train()
    assert [counted for _, counted in seen] == [4, 8]
    for variance, _ in seen:
        torch.testing.assert_close(variance, everything.var(0), rtol=1e-12, atol=1e-12)
    assert len(callback.calibrations) == 3
    assert callback.report.worst != "error"


def test_frozen_and_watched(tmp_path: Path) -> None:
    class Writer:
        def __init__(self) -> None:
            self.steps: list[int] = []

        def add_scalar(self, tag: str, value: float, step: int) -> None:
            self.steps.append(step)

    writer, net = Writer(), bn.convert(steps.network())
    callback = BatchNormCallback(writer, watch=2, freeze_at=1, diagnose=False)
    options = {"num_train_epochs": 3, "gradient_accumulation_steps": 2}
    trainer(net, callback, tmp_path, rows(1, 4), **options).train()
    assert net[0].frozen == "statistics"
    assert net[0].num_batches_tracked == 2, "two steps of the first epoch"
    assert sorted(set(writer.steps)) == [0, 2, 4]
    assert len(callback.watched.records) == 3 * 2 * 2
    assert not net[0]._forward_hooks


def test_a_model_without_our_layers(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no batch norm of ours: bn\.convert\(model\) first"):
        trainer(steps.network(), BatchNormCallback(), tmp_path, rows(1, 2)).train()


def test_the_next_training_after_an_interrupted_one(tmp_path: Path) -> None:
    class Stop(TrainerCallback):
        def on_substep_end(self, *_: Any, **__: Any) -> None:
            raise KeyboardInterrupt

    net, callback = bn.convert(steps.network()), BatchNormCallback(watch=1)
    fit = trainer(net, callback, tmp_path, rows(1, 4), gradient_accumulation_steps=2)
    fit.add_callback(Stop())
    with pytest.raises(KeyboardInterrupt):
        fit.train()
    fit.remove_callback(Stop)
    fit.train()
    assert net[0].num_batches_tracked == 2, "the window that was interrupted is forgotten"
    assert not net[0]._forward_hooks
