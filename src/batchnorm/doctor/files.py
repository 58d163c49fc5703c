"""Checkpoints of unknown origin: read as numbers, never executed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from .states import LayerState, of_state_dict

LIMIT = 8 * 2**30  # bytes; larger files are refused before they are opened


class BadFileError(ValueError):
    """A checkpoint that cannot be read, in one line."""


def read(path: str | Path) -> list[LayerState]:
    """Batch-norm states in a safetensors or torch file; raises BadFileError, in one line."""
    path = Path(path)
    try:
        if path.stat().st_size > LIMIT:
            raise ValueError(f"larger than {LIMIT} bytes")
        return of_state_dict(_tensors(path))
    except Exception as error:  # parsers of hostile bytes raise anything; the caller sees one line
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise BadFileError(f"cannot read {path.name!r}: {reason}") from error


def _tensors(path: Path) -> dict[str, Tensor]:
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        return load_file(path)
    state = torch.load(path, map_location="cpu", weights_only=True)
    if isinstance(state, Mapping) and isinstance(state.get("state_dict"), Mapping):
        state = state["state_dict"]
    if not isinstance(state, Mapping):
        raise ValueError(f"expected a state dict, got {type(state).__name__}")
    return {k: v for k, v in state.items() if isinstance(k, str) and isinstance(v, Tensor)}
