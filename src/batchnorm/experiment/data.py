"""The data of a study: three parts in memory, checked once."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

Task = Literal["classification", "regression"]

EVALUATION_LIMIT = 2000  # the most samples of a part that are scored, so that scoring is cheaper than training


class InputError(ValueError):
    """Raised for input that cannot be studied; the message is one line and says what to change."""


def needs(package: str) -> InputError:
    return InputError(
        f"this needs {package}: pip install 'batchnorm[study]', or in a checkout "
        "pip install -c constraints.txt -e '.[study]'"
    )


def first_line(error: Exception) -> str:
    """The first line of an error's message, or its type."""
    return (str(error).splitlines() or [type(error).__name__])[0]


@dataclass(frozen=True)
class Part:
    """Inputs x: (N, *) float32 and targets y: (N,) int64 (classes) or float32 (standardised values)."""

    x: Tensor
    y: Tensor

    def __len__(self) -> int:
        return len(self.x)

    def head(self, limit: int = EVALUATION_LIMIT) -> Part:
        return Part(self.x[:limit], self.y[:limit])


@dataclass(frozen=True)
class Data:
    """A data set split in three: the learning rate is chosen on `validation`, `test` is scored once at the end."""

    name: str
    task: Task
    outputs: int
    train: Part
    validation: Part
    test: Part

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.train.x.shape[1:])

    @property
    def is_table(self) -> bool:
        return self.train.x.ndim == 2

    @property
    def score_name(self) -> str:
        return "accuracy" if self.task == "classification" else "R²"

    def describe(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "task": self.task,
            "score": self.score_name,
            "input_shape": list(self.shape),
            "outputs": self.outputs,
            "train": len(self.train),
            "validation": len(self.validation),
            "test": len(self.test),
        }


def split(name: str, x: Tensor, y: Tensor, task: Task | None = None, test: Part | None = None, seed: int = 0) -> Data:
    """Checks x: (N, *) and y: (N,) and splits them: 60/20/20, or 80/20 if a test part is given.

    Classes keep their shares in every part. A regression target is standardised by the training part's mean and
    standard deviation, so the loss of the best constant is 1.
    """
    x, y, task = check(name, x, y, task)
    classes = None
    if task == "classification":
        classes, y = torch.unique(y, return_inverse=True)
    generator = torch.Generator().manual_seed(seed)
    shares = (0.2,) if test is not None else (0.2, 0.2)
    train, *rest = _split_indices(
        y if classes is not None else torch.zeros(len(y), dtype=torch.long), shares, generator
    )
    validation = rest[0]
    held_out = _encode(name, test, classes, x) if test is not None else Part(x[rest[1]], y[rest[1]])
    parts = [Part(x[train], y[train]), Part(x[validation], y[validation]), held_out]
    if classes is None:
        parts = _standardise_targets(parts)
    return Data(name, task, 1 if classes is None else len(classes), *parts)


def check(name: str, x: Tensor, y: Tensor, task: Task | None) -> tuple[Tensor, Tensor, Task]:
    """Returns x as float32, y as int64 or float32, and the task; raises InputError for data that cannot be used."""
    if len(x) != len(y):
        raise InputError(f"{name}: {len(x)} inputs but {len(y)} targets")
    if y.ndim == 2 and y.shape[1] == 1:
        y = y[:, 0]
    if y.ndim != 1:
        raise InputError(f"{name}: expected one target a sample, got targets of shape {tuple(y.shape)}")
    if len(x) < 20:
        raise InputError(f"{name}: {len(x)} samples are too few for a study, which needs at least 20")
    task = task or ("regression" if y.is_floating_point() else "classification")
    x = _as_float32(name, "inputs", x, "fill or drop them first")
    if task == "regression" or not y.isfinite().all():
        y = _as_float32(name, "targets", y, "drop those rows first")
    if task == "regression":
        if y.min() == y.max():
            raise InputError(f"{name}: the target is the same value everywhere, there is nothing to learn")
        return x, y, task
    if y.is_floating_point() and not (y == y.round()).all():
        raise InputError(f"{name}: the targets are not whole numbers; use --task regression")
    y = y.long()
    _, counts = y.unique(return_counts=True)
    if len(counts) < 2:
        raise InputError(f"{name}: only one class in the targets, there is nothing to learn")
    if len(counts) > len(y) // 4:
        raise InputError(f"{name}: {len(counts)} classes for {len(y)} samples; use --task regression")
    if counts.min() < 5:
        raise InputError(f"{name}: a class with {int(counts.min())} samples cannot be split; at least 5 are needed")
    return x, y, task


def _as_float32(name: str, what: str, values: Tensor, cure: str) -> Tensor:
    if not values.isfinite().all():
        raise InputError(f"{name}: the {what} hold NaN or infinite values; {cure}")
    narrow = values.float()
    if not narrow.isfinite().all():
        largest = values.abs().max().item()
        raise InputError(f"{name}: the {what} go up to {largest:.3g}, beyond the range of float32; use another unit")
    return narrow


def _split_indices(strata: Tensor, shares: Iterable[float], generator: torch.Generator) -> list[Tensor]:
    shares = tuple(shares)
    pieces: list[list[Tensor]] = [[] for _ in range(len(shares) + 1)]
    for stratum in strata.unique():
        members = (strata == stratum).nonzero()[:, 0]
        members = members[torch.randperm(len(members), generator=generator)]
        for piece, share in zip(pieces[1:], shares, strict=True):
            take = round(share * len(strata[strata == stratum]))
            piece.append(members[:take])
            members = members[take:]
        pieces[0].append(members)
    joined = [torch.cat(piece) for piece in pieces]
    return [indices[torch.randperm(len(indices), generator=generator)] for indices in joined]


def _encode(name: str, test: Part, classes: Tensor | None, x: Tensor) -> Part:
    """The given test part, with the classes numbered as in the training part."""
    if test.x.shape[1:] != x.shape[1:]:
        raise InputError(f"{name}: test inputs have shape {tuple(test.x.shape[1:])}, training {tuple(x.shape[1:])}")
    if len(test.x) != len(test.y) or not test.x.float().isfinite().all() or not test.y.isfinite().all():
        raise InputError(f"{name}: the test part needs one target a sample and finite inputs")
    y = test.y[:, 0] if test.y.ndim == 2 else test.y
    if classes is None:
        return Part(test.x.float(), y.float())
    if not torch.isin(y.long(), classes).all():
        raise InputError(f"{name}: the test part has a class that the training part has not")
    return Part(test.x.float(), torch.searchsorted(classes, y.long()))


def _standardise_targets(parts: list[Part]) -> list[Part]:
    mean, std = parts[0].y.mean(), parts[0].y.std(correction=0)
    return [Part(part.x, (part.y - mean) / std) for part in parts]


def standardise(data: Data) -> Data:
    """Scales each column of a table, or images as a whole, to mean 0 and standard deviation 1 in the training part."""
    x = data.train.x.double()
    dims = (0,) if data.is_table else tuple(range(x.ndim))
    mean, std = x.mean(dims, keepdim=True), x.std(dims, correction=0, keepdim=True)
    std = torch.where(std > 0, std, torch.ones_like(std))

    def apply(part: Part) -> Part:
        return Part(((part.x.double() - mean) / std).float(), part.y)

    return replace(data, train=apply(data.train), validation=apply(data.validation), test=apply(data.test))


def gather(source: Any, name: str = "train") -> Part:
    """Reads an (x, y) pair of arrays, a DataLoader or a Dataset of (x, y) pairs into memory."""
    if isinstance(source, Part):
        return source
    if isinstance(source, (tuple, list)) and len(source) == 2:
        x, y = (torch.as_tensor(array) for array in source)
        return Part(x, y)
    try:
        batches = source if isinstance(source, torch.utils.data.DataLoader) else torch.utils.data.DataLoader(source)
        pairs = [(torch.as_tensor(x), torch.as_tensor(y)) for x, y in batches]
        return Part(torch.cat([x for x, _ in pairs]), torch.cat([y for _, y in pairs]))
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(
            f"{name}: expected (x, y) arrays, a DataLoader or a Dataset of (x, y) pairs: {error}"
        ) from error
