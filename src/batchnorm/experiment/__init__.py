"""The study: the effects of normalisation on a network, measured."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from torch import nn

    from .result import Study


def study(
    make_network: Callable[..., nn.Module],
    train: Any,
    test: Any = None,
    *,
    name: str = "data",
    task: Literal["classification", "regression"] | None = None,
    rates: Sequence[float] | None = None,
    seeds: int | None = None,
    seed: int = 0,
    epochs: int | None = None,
    batch_size: int | None = None,
    batch_sizes: Sequence[int] | None = None,
    optimizer: Literal["sgd", "adam"] = "sgd",
    norms: str = "batch,none",
    workers: int | None = None,
    quick: bool = False,
    progress: Callable[[int, int, str], None] | None = None,
) -> Study:
    """Trains a network with and without batch norm and judges nine claims about batch norm on it.

    Each claim gets an effect per seed, positive if the claim is right, and a verdict: it holds if the median effect is
    above 0 by more than the standard deviation over seeds, median(e) > s(e). Claims about training are not measured if
    neither arm learned anything. Both arms of a seed start from the same weights and see the same batches. Each arm
    uses its own best learning rate, chosen on a validation part.

    Args:
        make_network: called with (input shape, number of outputs), or with nothing; returns a new network with batch
            norms. The plain arm is the same network with every batch norm replaced by the identity.
        train: (x, y) arrays, a DataLoader or a Dataset, read once into memory. x: (N, *), y: (N,) whole numbers
            (classes) or floating point (regression). Inputs are standardised by the training part: each column of a
            table (N, D), anything else as a whole.
        test: data in the same form, scored once at the end; without it a fifth of `train` is held out. Another fifth
            is the validation part.
        name: name of the data, for the headings.
        task: "classification" or "regression"; None to choose by the dtype of y.
        rates: learning rates of the sweep; by default seven, and more while the best one is at an edge.
        seeds: number of runs of each setting.
        seed: the first seed; it also splits the data.
        epochs: epochs of each run.
        batch_size: batch size of each run.
        batch_sizes: batch sizes for the last claim.
        quick: True for a small sweep, for a first look.
        optimizer: "sgd" or "adam".
        norms: the arms: "batch,none", and after these, to be shown beside them, "layer" and "group".
        workers: processes that train at once; by default one per core on Linux, and one elsewhere. The results do not
            depend on it.
        progress: called with (updates done, updates planned, what is running).

    Returns:
        A Study: `claims`, `to_json()`, `save(folder)` for a page and its JSON. Ctrl-C ends the study after the current
        run; the finished runs are kept, and `interrupted` is True.

    Raises:
        InputError: the data or the network cannot be studied; a ValueError with a message of one line.

    Examples:
        >>> import torch
        >>> from torch import nn
        >>> import batchnorm as bn
        >>> x = torch.randn(200, 6, generator=torch.Generator().manual_seed(0))
        >>> def make_network():
        ...     return nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 2))
        >>> result = bn.study(make_network, (x, (x.sum(1) > 0).long()), rates=[0.1, 1.0], seeds=2, epochs=2, quick=True)
        >>> [claim.number for claim in result.claims]
        [1, 2, 3, 4, 5, 6, 7, 8, 9]

    Source: Ioffe & Szegedy 2015, Batch Normalization (arXiv:1502.03167), section 4.1 and figure 1.
    """
    from .data import gather, split
    from .plan import run
    from .settings import choose

    part = gather(train)
    held_out = None if test is None else gather(test, "test")
    data = split(name, part.x, part.y, task, held_out, seed)
    settings = choose(
        data,
        rates=rates,
        seeds=seeds,
        seed=seed,
        epochs=epochs,
        batch_size=batch_size,
        batch_sizes=batch_sizes,
        optimizer=optimizer,
        norms=norms,
        workers=workers,
        quick=quick,
    )
    label = getattr(make_network, "__name__", type(make_network).__name__)
    return run(make_network, data, settings, label, progress or (lambda done, total, what: None), print)
