"""`bn.watch` into TensorBoard's own files, read back with its own reader."""

from pathlib import Path

import pytest
import torch
from torch import nn

pytest.importorskip("tensorboard", reason="the writer is TensorBoard's")

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.tensorboard import SummaryWriter

import batchnorm as bn


def test_scalars_come_back(tmp_path: Path) -> None:
    model = nn.Sequential(bn.BatchNorm1d(3))
    with SummaryWriter(str(tmp_path)) as writer, bn.watch(model, writer, every=2) as w:
        for _ in range(4):
            model(torch.randn(16, 3)).square().sum().backward()
    events = EventAccumulator(str(tmp_path)).Reload()
    assert set(events.Tags()["scalars"]) == {
        f"batchnorm/0/{what}" for what in ("activation_mean", "activation_std", "silent_channels", "gradient_rms")
    }
    written = [(e.step, e.value) for e in events.Scalars("batchnorm/0/gradient_rms")]
    read = [(r["step"], pytest.approx(r["gradient_rms"])) for r in w.records if "gradient_rms" in r]
    assert written == read
    assert [step for step, _ in written] == [0, 2]
