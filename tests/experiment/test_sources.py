"""Every format is read as it was written; a broken file gives a one-line error."""

import gzip
import struct
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from batchnorm.experiment.data import Data, InputError
from batchnorm.experiment.sources import load


def everything(data: Data) -> torch.Tensor:
    return torch.cat([data.train.x, data.validation.x, data.test.x])


def frame(n: int = 60) -> pd.DataFrame:
    return pd.DataFrame({"a": np.arange(n) * 1.5, "b": np.arange(n), "kind": ["red", "blue", "green"] * (n // 3)})


@pytest.mark.parametrize(
    ("name", "task", "shape", "outputs", "count"),
    [
        ("digits", "classification", (1, 8, 8), 10, 1797),
        ("wine", "classification", (13,), 3, 178),
        ("diabetes", "regression", (10,), 1, 442),
        ("iris", "classification", (4,), 3, 150),
        ("breast_cancer", "classification", (30,), 2, 569),
    ],
)
def test_embedded(name: str, task: str, shape: tuple[int, ...], outputs: int, count: int) -> None:
    data = load(name)
    assert (data.task, data.shape, data.outputs, len(everything(data))) == (task, shape, outputs, count)


WRITE = {
    "csv": lambda frame, path: frame.to_csv(path, index=False),
    "csv.gz": lambda frame, path: frame.to_csv(path, index=False),
    "tsv": lambda frame, path: frame.to_csv(path, index=False, sep="\t"),
    "semicolons.csv": lambda frame, path: frame.to_csv(path, index=False, sep=";"),
    "commas.csv": lambda frame, path: frame.to_csv(path, index=False, sep=";", decimal=","),
    "parquet": lambda frame, path: frame.to_parquet(path),
}


@pytest.mark.parametrize("kind", WRITE)
def test_tables(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"mine.{kind}"
    WRITE[kind](frame(), path)
    data = load(str(path), "kind")
    assert (data.name, data.shape, data.outputs) == (path.name, (2,), 3)
    for part in (data.train, data.validation, data.test):  # classes in order of their names: blue, green, red
        assert torch.equal(torch.tensor([2, 0, 1])[part.x[:, 1].long() % 3], part.y)
        assert torch.equal(part.x[:, 0], part.x[:, 1] * 1.5)


def test_whole_numbers_are_classes_unless_there_are_many(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    pd.DataFrame({"x": range(100), "few": [0, 1] * 50, "many": range(100)}).to_csv(path, index=False)
    assert load(str(path), "few").task == "classification"
    assert load(str(path), "many").task == "regression"
    assert load(str(path), "few", "regression").task == "regression"


@pytest.mark.parametrize("dtype", ["uint8", "uint16", ">f4", "float64"])
def test_npz(tmp_path: Path, dtype: str) -> None:
    x = np.arange(120).reshape(40, 3).astype(dtype)
    np.savez(tmp_path / "a.npz", x=x, y=np.arange(40) % 2)
    found = everything(load(str(tmp_path / "a.npz")))
    assert torch.equal(found.sort(0).values, torch.from_numpy(x.astype("float32")))


def test_npz_with_a_test_part(tmp_path: Path) -> None:
    x, y = np.random.default_rng(0).normal(size=(40, 3)), np.arange(40) % 2
    np.savez(tmp_path / "a.npz", x_train=x, y_train=y, x_test=x[:6] + 100, y_test=y[:6])
    data = load(str(tmp_path / "a.npz"))
    assert len(data.test) == 6
    assert data.test.x.min() > 50


def idx(path: Path, values: np.ndarray) -> None:
    raw = struct.pack(">HBB", 0, 8, values.ndim) + struct.pack(f">{values.ndim}i", *values.shape)
    raw += values.astype("uint8").tobytes()
    path.write_bytes(gzip.compress(raw) if path.suffix == ".gz" else raw)


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_idx_folders(tmp_path: Path, suffix: str) -> None:
    images = np.arange(30 * 12).reshape(30, 4, 3) % 251
    idx(tmp_path / f"train-images-idx3-ubyte{suffix}", images)
    idx(tmp_path / f"train-labels-idx1-ubyte{suffix}", np.arange(30) % 3)
    idx(tmp_path / f"t10k-images-idx3-ubyte{suffix}", images[:5])
    idx(tmp_path / f"t10k-labels-idx1-ubyte{suffix}", np.arange(5) % 3)
    data = load(str(tmp_path))
    assert (data.name, data.shape, data.outputs) == (tmp_path.name, (1, 4, 3), 3)
    assert torch.equal(data.test.x[:, 0], torch.from_numpy(images[:5]).float())
    assert torch.equal(data.test.y, torch.arange(5) % 3)


def broken(folder: Path, name: str) -> str:
    path = folder / name
    path.write_bytes(b"not what it says \x00\xff\n\n\n")
    return str(path)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "idx").mkdir()
    (tmp_path / "no-idx").mkdir()
    for name in ("train-images-idx3-ubyte", "train-labels-idx1-ubyte.gz"):
        broken(tmp_path / "idx", name)
    np.savez(tmp_path / "other.npz", z=np.zeros(3))
    np.savez(tmp_path / "objects.npz", x=np.array([{}], dtype=object), y=np.zeros(1))
    cases = {
        broken(tmp_path, "a.npz"): "cannot be read as .npz",
        broken(tmp_path, "a.parquet"): "cannot be read as a table",
        broken(tmp_path, "a.xls"): "expected .csv, .tsv, .*, .npz or a folder",
        str(tmp_path / "idx"): "not an idx file",
        str(tmp_path / "no-idx"): "expected train-images-idx3-ubyte",
        str(tmp_path / "other.npz"): "expected arrays x, y",
        str(tmp_path / "objects.npz"): "cannot be read as .npz",
        str(tmp_path / "nowhere"): "no such file",
    }
    for path, message in cases.items():
        with pytest.raises(InputError, match=message) as caught:
            load(path, "kind" if path.endswith("parquet") else None)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("columns", "target", "message"),
    [
        ({}, None, "say which column to predict with --target; its columns are a, b, kind"),
        ({}, "c", "no column 'c'; its columns are a, b, kind"),
        ({}, "a", "column 'kind' holds text, such as 'red'"),
        ({"b": [None, 2.0, 3.0] * 20}, "kind", "column 'b' has no value in 20 rows, first in row 1;"),
        ({"kind": [None, "x", "y"] * 20}, "kind", "the target 'kind' has no value in 20 rows, first in row 1;"),
        ({"kind": ["same"] * 60}, "kind", "only one class"),
    ],
)
def test_tables_that_cannot_be_studied(tmp_path: Path, columns: dict, target: str | None, message: str) -> None:
    path = tmp_path / "t.csv"
    frame().assign(**columns).to_csv(path, index=False)
    with pytest.raises(InputError, match=message):
        load(str(path), target)


def test_text_cannot_be_regressed(tmp_path: Path) -> None:
    frame().to_csv(tmp_path / "t.csv", index=False)
    with pytest.raises(InputError, match="regression cannot predict"):
        load(str(tmp_path / "t.csv"), "kind", "regression")


def test_names_in_quotes_may_hold_separators(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    frame().rename(columns={"a": "a; b; c; d"}).to_csv(path, index=False, quoting=1)
    assert load(str(path), "kind").shape == (2,)


@pytest.mark.parametrize(("fill", "expected"), [("mean", 2.0), ("median", 1.0), ("-7.5", -7.5)])
def test_missing_values_are_filled(tmp_path: Path, fill: str, expected: float) -> None:
    path = tmp_path / "t.csv"
    frame().assign(a=[0.0, 1.0, 5.0, np.nan] * 15).to_csv(path, index=False)
    found = everything(load(str(path), "kind", fill=fill))
    assert (found[:, 0] == expected).sum() == 15 + 15 * (expected == 1.0)


def test_columns_are_dropped(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    frame().assign(name="x", empty=np.nan).to_csv(path, index=False)
    assert load(str(path), "kind", drop=["name", "empty"]).shape == (2,)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target": "kind", "drop": ["price"]}, "--drop price: no such column; its columns are a, b, kind"),
        ({"target": "kind", "drop": ["kind"]}, "--drop kind: this is the target"),
        ({"target": "kind", "fill": "zero"}, "--fill zero: expected mean, median or a number"),
    ],
)
def test_options_of_tables_that_cannot_be(tmp_path: Path, options: dict, message: str) -> None:
    frame().to_csv(tmp_path / "t.csv", index=False)
    with pytest.raises(InputError, match=message):
        load(str(tmp_path / "t.csv"), **options)


def test_options_of_tables_are_for_tables() -> None:
    with pytest.raises(InputError, match=r"--target is for tables, such as a \.csv file; digits is none"):
        load("digits", "x")
    with pytest.raises(InputError, match="--fill is for tables"):
        load("wine", fill="mean")


def test_a_header_without_rows(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("a,b,kind\n")
    with pytest.raises(InputError, match=r"t\.csv: there are no rows below the header"):
        load(str(tmp_path / "t.csv"), "kind")


@pytest.mark.parametrize("column", ["a", "y"])
def test_values_beyond_float32(tmp_path: Path, column: str) -> None:
    table = pd.DataFrame({"a": np.arange(60) * 1.5, "y": np.arange(60) * 0.5})
    table[column] *= 1e200
    table.to_csv(tmp_path / "t.csv", index=False)
    with pytest.raises(InputError, match=r"go up to \S+e\+20\d, beyond the range of float32"):
        load(str(tmp_path / "t.csv"), "y")


@pytest.mark.parametrize("style", ["train-images-idx3-ubyte", "train-images.idx3-ubyte"])
def test_folders_of_known_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, style: str) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="mnist: no idx files in mnist, "):
        load("mnist")
    folder = tmp_path / "MNIST" / "raw"
    folder.mkdir(parents=True)
    images, labels = np.arange(40 * 9, dtype=np.uint8), np.arange(40, dtype=np.uint8) % 2
    (folder / style).write_bytes(struct.pack(">HBBiii", 0, 8, 3, 40, 3, 3) + images.tobytes())
    name = style.replace("images", "labels").replace("idx3", "idx1")
    (folder / name).write_bytes(struct.pack(">HBBi", 0, 8, 1, 40) + labels.tobytes())
    assert load("mnist").shape == (1, 3, 3)
