"""Cut nested inputs into micro-batches, and join nested outputs again, along dimension 0."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from batchnorm.core.torch_internals import keystr, tree_flatten, tree_flatten_with_path, tree_unflatten


@dataclass(frozen=True)
class MicroBatch:
    """The arguments of the model for one micro-batch.

    `sources` are the caller's inputs that require a gradient. The arguments have a detached leaf instead of each:
    `leaves`. Their gradients are passed on to `sources` when all micro-batches are done.
    """

    args: tuple[Any, ...]
    keywords: dict[str, Any]
    samples: int
    sources: tuple[Tensor, ...] = ()
    leaves: tuple[Tensor, ...] = ()


def check_size(size: Any, streamed: bool) -> None:
    """Raise an error unless `size` is a whole number of samples ≥ 1."""
    if streamed and size is None:
        return
    if isinstance(size, bool) or not isinstance(size, int):
        raise TypeError(f"expected micro_batch_size to be a whole number of samples, got {size!r}")
    if size < 1:
        raise ValueError(f"expected a micro_batch_size of at least 1 sample, got {size}")


def is_stream(inputs: Any) -> bool:
    """True for a loader or another iterable of batches; False for tensors and the containers that torch flattens."""
    leaves, _ = tree_flatten(inputs)
    return len(leaves) == 1 and leaves[0] is inputs and not isinstance(inputs, Tensor) and isinstance(inputs, Iterable)


def cut(inputs: Any, size: int | None, what: str = "inputs") -> Iterator[MicroBatch]:
    """The inputs in pieces of at most `size` samples, or in one piece if `size` is None.

    Tensors of one dimension or more are cut along the first. Everything else is the same in all pieces.

    Raises:
        ValueError: there is no such tensor, the tensors have different numbers of samples, or no samples.
    """
    paths, spec = tree_flatten_with_path(inputs)
    lengths = {f"{what}{keystr(path)}": len(t) for path, t in paths if isinstance(t, Tensor) and t.dim()}
    samples = next(iter(lengths.values()), None)
    if samples is None:
        raise ValueError(
            f"expected {what} with samples along dimension 0 of a tensor, got {_names(leaf for _, leaf in paths)}"
        )
    if len(set(lengths.values())) > 1:
        said = ", ".join(f"{name} has {n}" for name, n in lengths.items())
        raise ValueError(f"expected {what} of one number of samples along dimension 0, but {said}")
    if samples == 0:
        raise ValueError(f"expected at least one sample, got {what} with none")
    for start in range(0, samples, size or samples):
        stop = min(start + (size or samples), samples)
        pairs = [_piece(leaf, start, stop) for _, leaf in paths]
        wanted = [(source, leaf) for source, leaf in pairs if isinstance(leaf, Tensor) and leaf.requires_grad]
        nested = tree_unflatten([leaf for _, leaf in pairs], spec)
        args, keywords = _call(nested)
        yield MicroBatch(args, keywords, stop - start, tuple(s for s, _ in wanted), tuple(leaf for _, leaf in wanted))


def _piece(leaf: Any, start: int, stop: int) -> tuple[Any, Any]:
    """A part of the caller's value, and that part detached from the caller's graph, for the model."""
    if not isinstance(leaf, Tensor):
        return leaf, leaf
    source = leaf[start:stop] if leaf.dim() else leaf
    return source, source.detach().requires_grad_(leaf.requires_grad)


def _call(nested: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Arguments of the model: a tuple is positional, a dict keyword arguments, anything else one argument."""
    if isinstance(nested, dict):
        return (), nested
    return (nested, {}) if type(nested) is tuple else ((nested,), {})


class Stream:
    """The micro-batches of a loader, and its targets. Items that are larger than `size` are cut further.

    If `paired`, the items are pairs of inputs and targets, or single tensors and dicts without targets; otherwise they
    are inputs alone. `targets` is complete after the last micro-batch.
    """

    def __init__(self, items: Iterable[Any], size: int | None, paired: bool) -> None:
        self.items, self.size, self.paired = items, size, paired
        self._targets: list[Any] = []

    def __iter__(self) -> Iterator[MicroBatch]:
        for number, item in enumerate(self.items):
            inputs = item
            if self.paired and isinstance(item, tuple | list):
                if len(item) != 2:
                    raise ValueError(
                        f"expected pairs (inputs, targets) from the iterable, got {len(item)} values in item {number}"
                    )
                inputs, targets = item
                self._targets.append(targets)
            yield from cut(inputs, self.size, f"item {number}")

    def targets(self) -> Any:
        """The targets of all items together; None if there were none."""
        if not self._targets or all(t is None for t in self._targets):
            return None
        return joined(self._targets, "targets")


def joined(parts: Sequence[Any], what: str) -> Any:
    """Join the nested tensors of several micro-batches; other values must be equal in all.

    Raises:
        ValueError: parts that are nested differently, or that differ in a value that is not a tensor.
    """
    flat = [tree_flatten(part) for part in parts]
    specs = [spec for _, spec in flat]
    for number, spec in enumerate(specs):
        if spec != specs[0]:
            raise ValueError(f"expected {what} nested alike, but those of micro-batch 0 are {specs[0]}, and those of "
                             f"micro-batch {number} {spec}")  # fmt: skip
    leaves = [_joined(values, what) for values in zip(*(leaves for leaves, _ in flat), strict=True)]
    return tree_unflatten(leaves, specs[0])


def _joined(values: tuple[Any, ...], what: str) -> Any:
    if all(isinstance(value, Tensor) and value.dim() for value in values):
        return torch.cat(values)
    if any(isinstance(value, Tensor) for value in values):
        raise ValueError(f"expected {what} to be tensors with samples along dimension 0, got {_names(values)}")
    if any(value != values[0] for value in values):
        raise ValueError(f"expected {what} that are no tensors to be equal in all micro-batches, got {values}")
    return values[0]


def _names(values: Iterable[Any]) -> str:
    found = (f"a tensor {tuple(v.shape)}" if isinstance(v, Tensor) else type(v).__name__ for v in values)
    return ", ".join(dict.fromkeys(found)) or "nothing"
