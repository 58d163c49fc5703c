"""Loads tables from files: finds the separator, checks the columns and fills missing values."""

from __future__ import annotations

import csv
import gzip
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .data import Data, InputError, Task, first_line, needs, split

SEPARATED = (".csv", ".tsv", ".txt", ".csv.gz", ".tsv.gz")
TABLES = (*SEPARATED, ".parquet")
FILLS = ("mean", "median")


def is_table(path: Path) -> bool:
    return path.name.lower().endswith(TABLES)


def load_table(
    path: Path, target: str | None, task: Task | None, seed: int, drop: Sequence[str] = (), fill: str | None = None
) -> Data:
    """Loads a table with one row per sample. The first line shows the separator: comma, semicolon or tab.

    target: the column to predict. drop: columns to leave out. fill: the value for missing values of the other columns:
    the column's mean or median, or a number.
    """
    frame = _read(path)
    columns = ", ".join(map(str, frame.columns))
    for column in drop:
        if column not in frame.columns:
            raise InputError(f"{path.name}: --drop {column}: no such column; its columns are {columns}")
    if target is None:
        raise InputError(f"{path.name}: say which column to predict with --target; its columns are {columns}")
    if target not in frame.columns:
        raise InputError(f"{path.name}: no column '{target}'; its columns are {columns}")
    if target in drop:
        raise InputError(f"{path.name}: --drop {target}: this is the target")
    if len(frame) == 0:
        raise InputError(f"{path.name}: there are no rows below the header")
    labels, features = frame[target], frame.drop(columns=[target, *drop])
    if features.shape[1] == 0:
        raise InputError(f"{path.name}: no column besides the target '{target}'")
    features = _filled(path, _numbers(path, features), fill)
    if labels.isna().any():
        raise InputError(
            f"{path.name}: the target '{target}' has no value in {_rows(labels.isna())}; remove these rows"
        )
    x = torch.from_numpy(features.to_numpy(dtype="float64", copy=True))
    return split(path.name, x, _labels(path, labels, task), task, seed=seed)


def _read(path: Path) -> Any:
    try:
        import pandas as pd
    except ImportError:
        raise needs("pandas") from None
    try:
        if not path.name.lower().endswith(SEPARATED):
            return pd.read_parquet(path)
        separator = _separator(path)
        frame = pd.read_csv(path, sep=separator)
        if separator == ";" and _has_decimal_commas(frame):
            frame = pd.read_csv(path, sep=separator, decimal=",")
        return frame
    except ImportError:
        raise needs("pyarrow") from None
    except Exception as error:  # parsers raise errors of many kinds; in all of them the user's file is at fault
        raise InputError(f"{path.name}: cannot be read as a table: {first_line(error)}") from error


def _separator(path: Path) -> str:
    """The separator of the first line. Separators inside quotes do not count."""
    opened = gzip.open if path.name.lower().endswith(".gz") else open
    with opened(path, "rt", encoding="utf-8", errors="replace") as file:
        header = file.readline(1 << 20)
    return max(",;\t", key=lambda separator: len(next(csv.reader([header], delimiter=separator), [])))


def _has_decimal_commas(frame: Any) -> bool:
    """True if a column of text holds numbers such as 3,14."""
    import pandas as pd

    texts = [frame[c].dropna().astype(str) for c in frame.columns if not pd.api.types.is_numeric_dtype(frame[c])]
    return any(len(text) and bool(text.str.fullmatch(r"\s*-?\d+,\d+\s*").any()) for text in texts)


def _numbers(path: Path, features: Any) -> Any:
    import pandas as pd

    for column in features.columns:
        if not pd.api.types.is_numeric_dtype(features[column]):
            text = features[column].dropna().astype(str)
            example = f", such as '{text.iloc[0][:30]}'" if len(text) else ""
            raise InputError(
                f"{path.name}: column '{column}' holds text{example}; encode it as numbers, or leave it out with "
                f"--drop {column}"
            )
    return features


def _rows(missing: Any) -> str:
    """The number of rows without a value, and the first of them, counted from 1 below the header."""
    first, count = int(missing.to_numpy().argmax()) + 1, int(missing.sum())
    return f"row {first}" if count == 1 else f"{count} rows, first in row {first}"


def _filled(path: Path, features: Any, fill: str | None) -> Any:
    for column in features.columns:
        missing = features[column].isna()
        if missing.any() and fill is None:
            raise InputError(
                f"{path.name}: column '{column}' has no value in {_rows(missing)}; --fill median fills them, "
                f"--drop {column} leaves it out"
            )
        if missing.all():
            raise InputError(f"{path.name}: column '{column}' has no values at all; leave it out with --drop {column}")
    if fill is None:
        return features
    if fill in FILLS:
        return features.fillna(getattr(features, fill)())
    try:
        return features.fillna(float(fill))
    except ValueError:
        raise InputError(f"--fill {fill}: expected mean, median or a number") from None


def _labels(path: Path, labels: Any, task: Task | None) -> torch.Tensor:
    """The target as a tensor. Text and truth values become classes; whole numbers stay integers if they are few."""
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
