"""A progress bar, by default only on a terminal."""

import sys
from collections.abc import Iterable, Iterator, Sized
from typing import Any


def track(batches: Iterable[Any], label: str, wanted: bool | None) -> Iterator[Any]:
    """`batches`, with a progress bar if `wanted`; None: if stderr is a terminal and rich is installed."""
    if wanted is None:
        wanted = sys.stderr.isatty()
    if not wanted:
        yield from batches
        return
    try:
        from rich.console import Console
        from rich.progress import Progress
    except ImportError:
        yield from batches
        return
    total = len(batches) if isinstance(batches, Sized) else None
    with Progress(console=Console(stderr=True), transient=True) as bar:
        yield from bar.track(batches, total=total, description=label)
