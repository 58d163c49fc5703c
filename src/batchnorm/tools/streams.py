"""Read arrays, data frames, loaders, and files larger than memory as a stream of tensors."""

import csv
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

ROWS = 65_536  # rows of a file or a memory map that are read at a time


def several(batches: Any, limit: int | None = None) -> Iterable[Any]:
    """The batches for a model, at most `limit`: of an iterable, or of a function that returns one.

    Raises:
        TypeError: a single batch (its rows would be taken for batches), or something that is not an iterable.
    """
    batches = batches() if callable(batches) else batches
    kind = type(batches).__name__
    if isinstance(batches, Tensor | np.ndarray | Mapping):
        raise TypeError(f"expected batches, as a list or a DataLoader, got a {kind}: put a single batch into a list")
    if isinstance(batches, str) or not isinstance(batches, Iterable):
        raise TypeError(f"expected batches, as a list or a DataLoader, got {kind}; a Dataset goes into a DataLoader")
    return batches if limit is None else islice(batches, limit)


def tensors(source: Any, columns: list[str] | None = None) -> Iterator[Tensor]:
    """The batches of `source`, one after another; of a batch that is a tuple or list, the first element.

    `source` is an array, a tensor, a data frame, a path (.parquet, .csv, .npy), or an iterable of those.

    Raises:
        TypeError: something that is none of these, or a column that is not numeric.
        ValueError: a file of another kind.
    """
    if isinstance(source, str | Path):
        yield from _file(Path(source), columns)
    elif hasattr(source, "columns") and hasattr(source, "to_numpy"):
        yield from _array((source if columns is None else source[columns]).to_numpy())
    elif isinstance(source, Tensor):
        yield source
    elif isinstance(source, np.ndarray):
        yield from _array(source)
    elif isinstance(source, Iterable):
        for batch in source:
            yield from tensors(batch[0] if isinstance(batch, tuple | list) else batch, columns)
    else:
        raise TypeError(
            f"expected an array, a tensor, a data frame, a path or an iterable of them, got {type(source).__name__}"
        )


def names_of(source: Any, columns: list[str] | None = None) -> list[str] | None:
    """The names of the columns of `source`, if it has any."""
    if columns is not None or not isinstance(source, str | Path):
        columns = list(source.columns) if columns is None and hasattr(source, "columns") else columns
        return None if columns is None else [str(c) for c in columns]
    if Path(source).suffix == ".npy":
        return None
    if Path(source).suffix == ".parquet":
        from pyarrow.parquet import read_schema

        return list(read_schema(source).names)
    with open(source, newline="", encoding="utf-8-sig") as lines:
        return next(csv.reader(lines))


def _file(path: Path, columns: list[str] | None) -> Iterator[Tensor]:
    if path.suffix == ".npy":
        yield from _array(np.load(path, mmap_mode="r", allow_pickle=False))
    elif path.suffix == ".parquet":
        from pyarrow.parquet import ParquetFile

        with ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=ROWS, columns=columns):
                yield _table(batch)
    elif path.suffix == ".csv":
        yield from _csv(path, columns)
    else:
        raise ValueError(f"{path.name}: expected a .parquet, .csv or .npy file")


def _csv(path: Path, columns: list[str] | None) -> Iterator[Tensor]:
    from pyarrow import csv as arrow
    from pyarrow import float64, types

    with arrow.open_csv(path, convert_options=arrow.ConvertOptions(include_columns=columns)) as file:
        guessed = file.schema  # from the first block: later ones may have fractions where it has integers or nothing
    wide = {f.name: float64() for f in guessed if types.is_integer(f.type) or types.is_null(f.type)}
    options = arrow.ConvertOptions(include_columns=columns, column_types=wide)
    with arrow.open_csv(path, convert_options=options) as file:
        for batch in file:
            yield _table(batch)


def _table(batch: Any) -> Tensor:
    """A pyarrow record batch as (rows, columns), laid out column by column as it comes; nulls are NaN."""
    from pyarrow import float64, types

    columns = []
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        if not (types.is_integer(column.type) or types.is_floating(column.type) or types.is_null(column.type)):
            if not (types.is_boolean(column.type) or types.is_decimal(column.type)):
                raise TypeError(f"column {name!r} is {column.type}, not numeric: name the columns to read (columns=)")
            column = column.cast(float64())
        values = column.cast(float64()) if types.is_null(column.type) else column
        columns.append(values.to_numpy(zero_copy_only=False))
    return torch.from_numpy(np.stack(columns)).t()


def _array(array: np.ndarray) -> Iterator[Tensor]:
    """A writable array without a copy; a memory map, or an array that torch cannot share, as copies of its pieces."""
    if array.dtype.kind not in "fiub" or array.dtype.itemsize > 8:
        raise TypeError(f"expected numbers of at most 64 bits, got an array of {array.dtype}")
    signed = array.dtype.kind != "u" or array.dtype.itemsize == 1
    if array.flags.writeable and array.dtype.isnative and signed and min(array.strides, default=0) >= 0:
        yield torch.from_numpy(array)
        return
    dtype = array.dtype.newbyteorder("=") if signed else np.dtype(np.float64)
    rows = ROWS if array.ndim > 1 else max(len(array), 1)
    for start in range(0, len(array), rows):
        yield torch.from_numpy(np.array(array[start : start + rows], dtype=dtype))
