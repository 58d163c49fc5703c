"""Writers of scalars, recognised by their methods, so that no package is imported for them."""

from __future__ import annotations

from typing import Any

METHODS = ("add_scalar", "log_metrics", "log")


def check(writer: Any) -> None:
    """Raise a TypeError if `write` cannot use this writer."""
    if not any(callable(getattr(writer, method, None)) for method in METHODS):
        raise TypeError(
            "expected a writer with add_scalar(tag, value, step) as TensorBoard's SummaryWriter, "
            "log_metrics(values, step) as Lightning's loggers and mlflow, or log(values, step=...) as a run of wandb; "
            f"got {type(writer).__name__}"
        )


def write(writer: Any, values: dict[str, float], step: int) -> None:
    """Write `values` (by tag) with the first of `METHODS` that the writer has."""
    if callable(getattr(writer, "add_scalar", None)):
        for tag, value in values.items():
            writer.add_scalar(tag, value, step)
    elif callable(getattr(writer, "log_metrics", None)):
        writer.log_metrics(values, step=step)
    else:
        writer.log(values, step=step)
