"""Loads the data of a study: embedded sets, tables, .npz, folders of idx files (the MNIST format)."""

from __future__ import annotations

import gzip
import struct
from collections.abc import Sequence
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import torch

from .data import Data, InputError, Part, Task, first_line, needs, split
from .tables import TABLES, is_table, load_table

EMBEDDED = ("digits", "wine", "diabetes", "iris", "breast_cancer")
FOLDERS = {  # usual places of idx files: below the working directory, also as torchvision has them, and Debian's
    "fashion": ("fashion", "fashion-mnist", "FashionMNIST/raw", "data/FashionMNIST/raw",
                "/usr/share/datasets/fashion-mnist", "/usr/share/dataset-fashion-mnist"),
    "mnist": ("mnist", "MNIST/raw", "data/MNIST/raw", "/usr/share/datasets/mnist"),
}  # fmt: skip


def load(
    source: str,
    target: str | None = None,
    task: Task | None = None,
    seed: int = 0,
    *,
    drop: Sequence[str] = (),
    fill: str | None = None,
) -> Data:
    """Loads data by name or path; the columns are not yet standardised.

    source: a name in `EMBEDDED`; a table (.csv, .tsv, either with .gz, .parquet) with `target`, a column, `drop` and
    `fill`; an .npz with x, y (or x_train, y_train, x_test, y_test); a folder of idx files, or `fashion` or `mnist` for
    one in a usual place. Raises InputError, with one line, for anything else.
    """
    path = Path(source)
    named = source in EMBEDDED or source in FOLDERS
    if not named and not path.exists():
        raise InputError(f"{source}: no such file, and not one of {', '.join((*EMBEDDED, *FOLDERS))}")
    if path.is_file() and is_table(path):
        return load_table(path, target, task, seed, drop, fill)
    for option, given in (("target", target), ("drop", drop), ("fill", fill)):
        if given:
            raise InputError(f"--{option} is for tables, such as a .csv file; {source} is none")
    if source in EMBEDDED:
        return _embedded(source, task, seed)
    if source in FOLDERS:
        return _idx_folder(_known_folder(source), task, seed)
    if path.is_dir():
        return _idx_folder(path, task, seed)
    if path.suffix.lower() == ".npz":
        return _npz(path, task, seed)
    raise InputError(f"{source}: expected {', '.join(TABLES)}, .npz or a folder of idx files, got '{path.suffix}'")


def _known_folder(name: str) -> Path:
    found = [Path(place) for place in FOLDERS[name] if _idx_file(Path(place), "train", "images-idx3-ubyte")]
    if not found:
        raise InputError(f"{name}: no idx files in {', '.join(FOLDERS[name])}; give the folder that holds them")
    return found[0]


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


def _npz(path: Path, task: Task | None, seed: int) -> Data:
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {key: torch.from_numpy(_native(file[key])) for key in file.files}
    except (OSError, ValueError, TypeError, BadZipFile) as error:
        raise InputError(f"{path.name}: cannot be read as .npz: {first_line(error)}") from error
    if {"x_train", "y_train", "x_test", "y_test"} <= arrays.keys():
        test = Part(arrays["x_test"], arrays["y_test"])
        return split(path.name, arrays["x_train"], arrays["y_train"], task, test, seed)
    if {"x", "y"} <= arrays.keys():
        return split(path.name, arrays["x"], arrays["y"], task, seed=seed)
    raise InputError(f"{path.name}: expected arrays x, y (or x_train, y_train, x_test, y_test), got {sorted(arrays)}")


def _native(array: np.ndarray) -> np.ndarray:
    """Converts foreign byte orders and unsigned integers wider than a byte, which torch does not read."""
    array = array.astype(array.dtype.newbyteorder("="))
    return array.astype("int64") if array.dtype.kind == "u" and array.dtype.itemsize > 1 else array


def _idx_folder(folder: Path, task: Task | None, seed: int) -> Data:
    train = _idx_pair(folder, "train")
    if train is None:
        raise InputError(f"{folder}: expected train-images-idx3-ubyte and train-labels-idx1-ubyte, with or without .gz")
    return split(folder.name, train.x, train.y, task, _idx_pair(folder, "t10k"), seed)


def _idx_pair(folder: Path, prefix: str) -> Part | None:
    found = [_idx_file(folder, prefix, kind) for kind in ("images-idx3-ubyte", "labels-idx1-ubyte")]
    if None in found:
        return None
    images, labels = (_read_idx(path) for path in found if path is not None)
    return Part(images.unsqueeze(1), labels.long())


def _idx_file(folder: Path, prefix: str, kind: str) -> Path | None:
    """The file, if it exists: with a dash or a dot in its name (both are in use), compressed or not."""
    stems = (f"{prefix}-{kind}", f"{prefix}-{kind.replace('-', '.', 1)}")
    paths = [folder / f"{stem}{end}" for stem in stems for end in ("", ".gz")]
    return next((path for path in paths if path.is_file()), None)


def _read_idx(path: Path) -> torch.Tensor:
    """Reads two zero bytes, 8 for unsigned byte, the rank, one big-endian int32 per dimension, and the values."""
    try:
        raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        zeros, kind, rank = struct.unpack_from(">HBB", raw)
        shape = struct.unpack_from(f">{rank}i", raw, 4)
        if zeros or kind != 8:
            raise ValueError("not unsigned bytes")
        return torch.frombuffer(bytearray(raw[4 + 4 * rank :]), dtype=torch.uint8).reshape(shape)
    except (OSError, EOFError, ValueError, RuntimeError, struct.error) as error:
        raise InputError(f"{path.name}: not an idx file of bytes: {first_line(error)}") from error
