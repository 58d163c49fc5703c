"""Splits, checks and standardisation."""

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from batchnorm.experiment.data import InputError, Part, gather, split, standardise


def table(n: int = 100) -> tuple[Tensor, Tensor]:
    return torch.randn(n, 3) * torch.tensor([1.0, 100.0, 1e-3]) + 7, torch.arange(n) % 4


def test_the_parts_are_disjoint_and_complete() -> None:
    x, y = torch.arange(100.0).reshape(100, 1), torch.arange(100) % 4
    data = split("rows", x, y)
    parts = [data.train.x, data.validation.x, data.test.x]
    assert [len(part) for part in parts] == [60, 20, 20]
    assert sorted(torch.cat(parts).flatten().tolist()) == x.flatten().tolist()


def test_rows_keep_their_targets() -> None:
    x = torch.arange(100.0).reshape(100, 1)
    data = split("rows", x, torch.arange(100) % 4)
    for part in (data.train, data.validation, data.test):
        assert torch.equal(part.x[:, 0].long() % 4, part.y)


def test_classes_keep_their_shares() -> None:
    y = torch.tensor([0] * 80 + [5] * 20)  # 5 becomes class 1
    data = split("shares", torch.randn(100, 2), y)
    assert data.outputs == 2
    assert [part.y.float().mean().item() for part in (data.train, data.validation, data.test)] == [
        pytest.approx(0.2)
    ] * 3


def test_a_given_test_part_is_left_whole() -> None:
    x, y = table()
    test = Part(torch.randn(7, 3), torch.tensor([3, 2, 1, 0, 1, 2, 3]))
    data = split("given", x, y, test=test)
    assert torch.equal(data.test.x, test.x)
    assert torch.equal(data.test.y, test.y)
    assert (len(data.train), len(data.validation)) == (80, 20)


def test_a_regression_target_is_standardised_by_the_training_part() -> None:
    data = split("values", torch.randn(50, 2), 1000 + 50 * torch.randn(50))
    assert data.task == "regression"
    assert data.train.y.mean().item() == pytest.approx(0, abs=1e-4)
    assert data.train.y.std(correction=0).item() == pytest.approx(1, abs=1e-4)
    assert data.test.y.mean().item() != pytest.approx(0, abs=1e-4)


def test_each_column_is_standardised_by_the_training_part() -> None:
    data = standardise(split("columns", *table()))
    torch.testing.assert_close(data.train.x.mean(0), torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(data.train.x.std(0, correction=0), torch.ones(3), atol=1e-5, rtol=0)
    assert data.test.x.mean(0).abs().max() > 1e-3


def test_a_constant_column_stays_finite() -> None:
    x, y = table()
    x[:, 1] = 5.0
    assert torch.equal(standardise(split("constant", x, y)).train.x[:, 1], torch.zeros(60))


def test_images_are_standardised_as_a_whole() -> None:
    x = torch.rand(40, 1, 3, 3)
    x[:, :, 0, 0] = 0.0  # a dark corner stays darker than the rest
    data = standardise(split("images", x, torch.arange(40) % 2))
    assert data.train.x.mean().item() == pytest.approx(0, abs=1e-5)
    assert data.train.x[:, :, 0, 0].mean() < -1


@pytest.mark.parametrize(
    ("x", "y", "task", "message"),
    [
        (torch.randn(30, 2), torch.arange(29), None, "30 inputs but 29 targets"),
        (torch.randn(10, 2), torch.arange(10) % 2, None, "10 samples are too few"),
        (torch.full((30, 2), torch.nan), torch.arange(30) % 2, None, "NaN or infinite"),
        (torch.randn(30, 2), torch.full((30,), torch.inf), None, "targets hold NaN"),
        (torch.randn(30, 2), torch.zeros(30, dtype=torch.long), None, "only one class"),
        (torch.randn(30, 2), torch.ones(30), None, "same value everywhere"),
        (torch.randn(30, 2), torch.arange(30), None, "30 classes for 30 samples"),
        (torch.randn(30, 2), torch.tensor([0] * 27 + [1] * 3), None, "a class with 3 samples"),
        (torch.randn(30, 2), torch.randn(30), "classification", "not whole numbers"),
        (torch.randn(30, 2), torch.zeros(30, 2), None, "one target a sample"),
    ],
)
def test_what_cannot_be_studied_is_said_in_one_line(x: Tensor, y: Tensor, task: None, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        split("mine", x, y, task)
    assert str(caught.value).startswith("mine: ")
    assert "\n" not in str(caught.value)


def test_a_test_part_with_an_unknown_class_is_refused() -> None:
    x, y = table()
    with pytest.raises(InputError, match="a class that the training part has not"):
        split("given", x, y, test=Part(torch.randn(2, 3), torch.tensor([0, 9])))


def test_arrays_datasets_and_loaders_give_the_same_part() -> None:
    x, y = table(25)
    dataset = TensorDataset(x, y)
    for source in ((x, y), (x.numpy(), y.numpy()), dataset, DataLoader(dataset, batch_size=7)):
        part = gather(source)
        assert torch.equal(part.x, x)
        assert torch.equal(part.y, y)


def test_what_is_no_data_is_refused() -> None:
    with pytest.raises(InputError, match="arrays, a DataLoader or a Dataset"):
        gather(3)
