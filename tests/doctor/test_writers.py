"""Writers are recognised by their methods."""

import pytest
import torch
from torch import nn

import batchnorm as bn


class AddScalar:
    def __init__(self) -> None:
        self.seen: list[tuple[str, float, int]] = []

    def add_scalar(self, tag: str, value: float, step: int) -> None:
        self.seen.append((tag, value, step))


class LogMetrics(AddScalar):
    add_scalar = None  # type: ignore[assignment]

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self.seen += [(tag, value, step) for tag, value in metrics.items()]


class Log(AddScalar):
    add_scalar = None  # type: ignore[assignment]

    def log(self, data: dict[str, float], step: int | None = None) -> None:
        self.seen += [(tag, value, step) for tag, value in data.items()]


def watched(writer: object) -> bn.doctor.Watch:
    torch.manual_seed(0)
    model = nn.Sequential(bn.BatchNorm1d(3))
    with bn.watch(model, writer, every=2) as w:
        for _ in range(4):
            model(torch.randn(16, 3)).square().sum().backward()
    return w


@pytest.mark.parametrize("kind", [AddScalar, LogMetrics, Log])
def test_every_writer_gets_the_same(kind: type[AddScalar]) -> None:
    writer = kind()
    records = watched(writer).records
    values = {k for r in records for k in r.items() if k[0] not in ("step", "layer")}
    assert {(tag.removeprefix("batchnorm/0/"), value) for tag, value, _ in writer.seen} == values
    assert [step for *_, step in writer.seen] == [0] * 4 + [2] * 4


def test_something_else_is_refused() -> None:
    with pytest.raises(TypeError, match=r"log_metrics\(values, step\) as Lightning's loggers.*got list"):
        bn.watch(nn.BatchNorm1d(3), [])
