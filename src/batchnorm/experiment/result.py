"""The result of a study, as numbers, JSON and a page."""

from __future__ import annotations

import json
import math
import platform
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import torch

from .data import Data, InputError
from .headline import headline
from .runs import Run
from .settings import Settings
from .verdict import Claim


@dataclass
class Study:
    """The result of a study. `claims` come in order; `to_json()` and `save()` hold every number behind them."""

    network: str
    data: Data
    settings: Settings
    claims: list[Claim]
    scores: dict[str, dict[str, object]]
    notes: list[str]
    runs: list[Run]
    planned: int
    interrupted: bool
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """The study as plain numbers, lists and text.

        The same seed gives the same values on one machine with one build of torch, apart from `timings`. Another
        processor rounds differently, and training amplifies the difference.
        """
        return _finite(
            {
                "headline": headline(self.data, self.scores, self.claims),
                "notes": self.notes,
                "network": self.network,
                "data": self.data.describe(),
                "settings": self.settings.to_dict(),
                "interrupted": self.interrupted,
                "runs_finished": len(self.runs),
                "runs_planned": self.planned,
                "scores": self.scores,
                "claims": [claim.to_dict() for claim in self.claims],
                "runs": [run.to_dict() for run in self.runs],
                "environment": {
                    "python": platform.python_version(),
                    "torch": torch.__version__,
                    "threads": self.settings.threads,
                },
                "timings": {"seconds": round(self.seconds, 2)},
            }
        )

    def to_json(self) -> str:
        return json.dumps(self.to_dict(), allow_nan=False, ensure_ascii=False)

    def save(self, path: str | Path = "study", *, interactive: bool = False) -> Path:
        """Writes report.html and report.json into the folder `path` and returns the page's path.

        interactive: figures that zoom and show their values, with plotly.js in the page: about 5 MB more.
        """
        return write(Path(path), self.to_json(), self._page(interactive))

    def _page(self, interactive: bool = False) -> str:
        from batchnorm.report.html import page

        try:
            return page(self.to_dict(), interactive)
        except ImportError as error:
            raise InputError(str(error)) from error

    def _repr_html_(self) -> str:
        """The page as an iframe, for notebooks."""
        frame = "width: 100%; height: 800px; border: 1px solid #8a8f98; border-radius: 8px"
        return f'<iframe title="batchnorm study" style="{frame}" srcdoc="{escape(self._page())}"></iframe>'


def write(folder: Path, json: str, page: str) -> Path:
    """Writes report.json and report.html into the folder and returns the page's path."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "report.json").write_text(json, encoding="utf-8")
        (folder / "report.html").write_text(page, encoding="utf-8")
    except OSError as error:
        raise InputError(f"cannot write to {folder}: {error.strerror}") from error
    return folder / "report.html"


def _finite(value: Any) -> Any:
    """Rounds to six digits, the most that the page shows; NaN and infinity become None, as JSON has neither."""
    if isinstance(value, dict):
        return {str(k): _finite(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(v) for v in value]
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    return value
