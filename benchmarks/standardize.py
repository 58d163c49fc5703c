"""Compares Standardize with scikit-learn's StandardScaler: one pass over the data, in memory and from Parquet.

    python benchmarks/standardize.py [rows]        (10⁷ × 20 float32 by default: 0.8 GB in memory, as much on disk)

The two take turns; the printed seconds are medians, and the ratio is the median over turns.
"""

import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow
from pyarrow import parquet
from sklearn.preprocessing import StandardScaler

import batchnorm as bn

COLUMNS, TURNS, BATCH = 20, 3, 65_536


def scaler_over(path: Path) -> StandardScaler:
    """A StandardScaler fitted to a file in pieces, as its documentation recommends."""
    scaler = StandardScaler()
    with parquet.ParquetFile(path) as file:
        for batch in file.iter_batches(batch_size=BATCH):
            scaler.partial_fit(np.column_stack([c.to_numpy() for c in batch.columns]))
    return scaler


def compare(name: str, ours: Callable[[], bn.Standardize], theirs: Callable[[], StandardScaler]) -> None:
    times: dict[str, list[float]] = {"ours": [], "theirs": []}
    for turn in range(TURNS):
        for who, run in sorted({"ours": ours, "theirs": theirs}.items(), reverse=bool(turn % 2)):
            start = time.perf_counter()
            fitted = run()
            times[who].append(time.perf_counter() - start)
            mean = fitted.mean.numpy() if isinstance(fitted, bn.Standardize) else fitted.mean_
            assert np.abs(mean - 1000).max() < 0.1
    ratio = statistics.median(b / a for a, b in zip(times["ours"], times["theirs"], strict=True))
    a, b = (statistics.median(times[who]) for who in ("ours", "theirs"))
    print(f"{name:<10} Standardize {a:6.2f} s   StandardScaler {b:6.2f} s   {ratio:5.1f} times", flush=True)


def in_memory(x: np.ndarray) -> None:
    compare("in memory", lambda: bn.Standardize(COLUMNS).fit(x), lambda: StandardScaler().partial_fit(x))


def from_parquet(path: Path) -> None:
    compare("Parquet", lambda: bn.Standardize(COLUMNS).fit(path), lambda: scaler_over(path))


def write(x: np.ndarray, path: Path) -> None:
    names = [f"c{i}" for i in range(COLUMNS)]
    with parquet.ParquetWriter(path, pyarrow.schema([(n, pyarrow.float32()) for n in names])) as writer:
        for start in range(0, len(x), 500_000):
            part = np.ascontiguousarray(x[start : start + 500_000].T)
            writer.write_table(pyarrow.table(dict(zip(names, part, strict=True))))


def main(rows: int) -> None:
    print(f"{rows:,} rows × {COLUMNS} float32, {TURNS} turns each")
    with tempfile.TemporaryDirectory() as folder:
        x = np.random.default_rng(0).standard_normal((rows, COLUMNS), dtype=np.float32)
        x += 1000
        in_memory(x)
        write(x, Path(folder) / "x.parquet")
        del x
        from_parquet(Path(folder) / "x.parquet")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 10_000_000)
