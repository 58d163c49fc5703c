"""Where data comes from: embedded sets, tables, .npz, folders of idx files (the MNIST format)."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import torch

from .data import Data, InputError, Part, Task, needs, split

EMBEDDED = ("digits", "wine", "diabetes")


def load(source: str, target: str | None = None, task: Task | None = None, seed: int = 0) -> Data:
    """Data by name or path, raw: its columns are still on their own scales.

    source: `digits`, `wine`, `diabetes`, a .csv or .parquet table (with `target`, a column), an .npz with x, y (or
    x_train, y_train, x_test, y_test), or a folder of idx files. Raises InputError, with one line, for anything else.
    """
    if source in EMBEDDED:
        return _embedded(source, task, seed)
    path = Path(source)
    if not path.exists():
        raise InputError(f"{source}: no such file, and not one of {', '.join(EMBEDDED)}")
    if path.is_dir():
        return _idx_folder(path, task, seed)
    if path.suffix.lower() == ".npz":
        return _npz(path, task, seed)
    if path.suffix.lower() in (".csv", ".parquet"):
        return _table(path, target, task, seed)
    raise InputError(f"{source}: expected .csv, .parquet, .npz or a folder of idx files, got '{path.suffix}'")


def _embedded(name: str, task: Task | None, seed: int) -> Data:
    try:
        from sklearn import datasets
    except ImportError:
        raise needs("scikit-learn") from None
    if name == "diabetes":
        x, y = datasets.load_diabetes(return_X_y=True, scaled=False)
    else:
        x, y = getattr(datasets, f"load_{name}")(return_X_y=True)
    if name == "digits":
        x = x.reshape(-1, 1, 8, 8)
    return split(name, torch.from_numpy(x), torch.from_numpy(y), task, seed=seed)


def _table(path: Path, target: str | None, task: Task | None, seed: int) -> Data:
    try:
        import pandas as pd
    except ImportError:
        raise needs("pandas") from None
    try:
        frame = pd.read_csv(path) if path.suffix.lower() == ".csv" else pd.read_parquet(path)
    except ImportError:
        raise needs("pyarrow") from None
    except Exception as error:  # parsers raise their own many kinds; the user's file is at fault in all of them
        raise InputError(f"{path.name}: cannot be read as a table: {_first_line(error)}") from error
    columns = ", ".join(map(str, frame.columns))
    if target is None:
        raise InputError(f"{path.name}: say which column to predict with --target; its columns are {columns}")
    if target not in frame.columns:
        raise InputError(f"{path.name}: no column '{target}'; its columns are {columns}")
    labels, features = frame[target], frame.drop(columns=target)
    if features.shape[1] == 0:
        raise InputError(f"{path.name}: no column besides the target '{target}'")
    for column in features.columns:
        if not pd.api.types.is_numeric_dtype(features[column]):
            text = features[column].dropna().astype(str)
            example = f", such as '{text.iloc[0][:30]}'" if len(text) else ""
            raise InputError(f"{path.name}: column '{column}' holds text{example}; encode it as numbers or drop it")
        if features[column].isna().any():
            raise InputError(f"{path.name}: column '{column}' has {int(features[column].isna().sum())} missing values")
    if labels.isna().any():
        raise InputError(f"{path.name}: the target '{target}' has {int(labels.isna().sum())} missing values")
    x = torch.from_numpy(features.to_numpy(dtype="float64", copy=True))
    return split(path.name, x, _labels(path, labels, task), task, seed=seed)


def _labels(path: Path, labels: Any, task: Task | None) -> torch.Tensor:
    """Text and truth values become classes; whole numbers stay whole; the task follows from what they are."""
    import pandas as pd

    if pd.api.types.is_bool_dtype(labels) or not pd.api.types.is_numeric_dtype(labels):
        if task == "regression":
            raise InputError(f"{path.name}: the target '{labels.name}' holds text, which regression cannot predict")
        return torch.from_numpy(pd.factorize(labels, sort=True)[0].astype("int64"))
    values = labels.to_numpy(copy=True)
    whole = np.issubdtype(values.dtype, np.integer)
    if whole and task is None and labels.nunique() > max(20, len(labels) // 20):
        whole = False  # 300 different whole numbers are a quantity, not 300 classes
    return torch.from_numpy(values.astype("int64" if whole else "float64"))


def _npz(path: Path, task: Task | None, seed: int) -> Data:
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {key: torch.from_numpy(_native(file[key])) for key in file.files}
    except (OSError, ValueError, TypeError, BadZipFile) as error:
        raise InputError(f"{path.name}: cannot be read as .npz: {_first_line(error)}") from error
    if {"x_train", "y_train", "x_test", "y_test"} <= arrays.keys():
        test = Part(arrays["x_test"], arrays["y_test"])
        return split(path.name, arrays["x_train"], arrays["y_train"], task, test, seed)
    if {"x", "y"} <= arrays.keys():
        return split(path.name, arrays["x"], arrays["y"], task, seed=seed)
    raise InputError(f"{path.name}: expected arrays x, y (or x_train, y_train, x_test, y_test), got {sorted(arrays)}")


def _native(array: np.ndarray) -> np.ndarray:
    """torch reads neither the other byte order nor unsigned integers wider than a byte."""
    array = array.astype(array.dtype.newbyteorder("="))
    return array.astype("int64") if array.dtype.kind == "u" and array.dtype.itemsize > 1 else array


def _idx_folder(folder: Path, task: Task | None, seed: int) -> Data:
    train = _idx_pair(folder, "train")
    if train is None:
        raise InputError(f"{folder}: expected train-images-idx3-ubyte and train-labels-idx1-ubyte, with or without .gz")
    return split(folder.name, train.x, train.y, task, _idx_pair(folder, "t10k"), seed)


def _idx_pair(folder: Path, prefix: str) -> Part | None:
    arrays = []
    for kind in ("images-idx3-ubyte", "labels-idx1-ubyte"):
        found = [p for p in (folder / f"{prefix}-{kind}", folder / f"{prefix}-{kind}.gz") if p.exists()]
        if not found:
            return None
        arrays.append(_read_idx(found[0]))
    images, labels = arrays
    return Part(images.unsqueeze(1), labels.long())


def _read_idx(path: Path) -> torch.Tensor:
    """The format: two zero bytes, 8 for unsigned byte, the rank, one big-endian int32 a dimension, the values."""
    try:
        raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        zeros, kind, rank = struct.unpack_from(">HBB", raw)
        shape = struct.unpack_from(f">{rank}i", raw, 4)
        if zeros or kind != 8:
            raise ValueError("not unsigned bytes")
        return torch.frombuffer(bytearray(raw[4 + 4 * rank :]), dtype=torch.uint8).reshape(shape)
    except (OSError, EOFError, ValueError, RuntimeError, struct.error) as error:
        raise InputError(f"{path.name}: not an idx file of bytes: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
