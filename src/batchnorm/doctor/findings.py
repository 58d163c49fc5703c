"""Rules, the findings they make, and the report that holds them."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

SEVERITIES = ("info", "warning", "error")
OUTPUT = "(output)"  # key of the network's output in the evidence, beside the names of the layers

Evidence = dict[str, Any]  # per layer: a number, or several by name


@dataclass(frozen=True)
class Finding:
    """One fault: its description, the layers, the measured numbers, the likely cause and the cure."""

    severity: str
    rule: str
    layers: tuple[str, ...]
    what: str
    cause: str
    cure: str
    evidence: Evidence


@dataclass(frozen=True)
class Rule:
    """A kind of fault: its texts, and the function `find`, which returns the evidence of each faulty layer."""

    name: str
    severity: str
    what: str
    cause: str
    cure: str
    find: Callable[[Any], Evidence]

    def __call__(self, seen: Any) -> list[Finding]:
        evidence = self.find(seen)
        return [self.finding(evidence)] if evidence else []

    def finding(self, evidence: Evidence) -> Finding:
        """The finding about the layers in `evidence`."""
        layers = tuple(name for name in evidence if name != OUTPUT)
        return Finding(self.severity, self.name, layers, self.what, self.cause, self.cure, evidence)


def rule(name: str, severity: str, what: str, cause: str, cure: str) -> Callable[[Callable[[Any], Evidence]], Rule]:
    """Makes a rule of the decorated function, which finds the evidence; its docstring justifies the threshold."""
    return lambda find: Rule(name, severity, what, cause, cure, find)


@dataclass(frozen=True)
class Report:
    """The findings about one network, worst first, and the measurements of each layer.

    `layers` holds the numbers of each batch norm, `output` those of the network's output, `notes` the checks left out.
    """

    findings: tuple[Finding, ...]
    layers: dict[str, dict[str, Any]]
    output: dict[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def worst(self) -> str | None:
        """The highest severity of the findings; None if there are none."""
        return max((f.severity for f in self.findings), key=SEVERITIES.index, default=None)

    def reaches(self, severity: str) -> bool:
        """True if a finding has this severity or a higher one."""
        return self.worst is not None and SEVERITIES.index(self.worst) >= SEVERITIES.index(severity)

    def to_dict(self) -> dict[str, Any]:
        """The report as plain values; non-finite numbers become text."""
        return _plain(asdict(self) | {"worst": self.worst})

    def to_json(self) -> str:
        """The report as strict JSON."""
        return json.dumps(self.to_dict(), indent=2, allow_nan=False)

    def save(self, path: str | Path) -> Path:
        """Writes one HTML page that needs no other file, and returns its path."""
        from batchnorm.report.diagnosis import page

        path = Path(path)
        path.write_text(page(self.to_dict()), encoding="utf-8")
        return path

    def show(self, console: Console | None = None) -> None:
        """Prints a table to the terminal (with rich)."""
        from rich.console import Console

        from batchnorm.report.diagnosis import show

        show(self.to_dict(), console or Console())

    def __str__(self) -> str:
        if not self.findings:
            return f"{len(self.layers)} batch norms read, nothing found."
        return "\n".join(
            f"{f.severity}: {f.what} [{f.rule}]\n  layers: {', '.join(f.layers)}\n"
            f"  likely cause: {f.cause}\n  cure: {f.cure}"
            for f in self.findings
        )


def report(findings: list[Finding], layers: dict[str, dict[str, Any]], **measured: Any) -> Report:
    ordered = sorted(findings, key=lambda f: -SEVERITIES.index(f.severity))
    return Report(tuple(ordered), layers, **measured)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _plain(v) for name, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
