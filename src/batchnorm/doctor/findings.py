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
OUTPUT = "(output)"  # stands in evidence for the network's output, beside the layers

Evidence = dict[str, Any]  # per layer: a number, or several by name


@dataclass(frozen=True)
class Finding:
    """One fault: what is seen, where, with which numbers, why, and the cure."""

    severity: str
    rule: str
    layers: tuple[str, ...]
    what: str
    cause: str
    cure: str
    evidence: Evidence


@dataclass(frozen=True)
class Rule:
    """A fault the doctor knows: how it is found, and what is said of it. `find` gives the evidence per faulty layer."""

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
        """The text about layers that have this fault."""
        layers = tuple(name for name in evidence if name != OUTPUT)
        return Finding(self.severity, self.name, layers, self.what, self.cause, self.cure, evidence)


def rule(name: str, severity: str, what: str, cause: str, cure: str) -> Callable[[Callable[[Any], Evidence]], Rule]:
    """Makes a rule of the function that finds the evidence; its docstring says why its threshold is safe."""
    return lambda find: Rule(name, severity, what, cause, cure, find)


@dataclass(frozen=True)
class Report:
    """Every finding about one network, worst first, and what was measured per layer.

    `layers` holds the numbers per batch norm, `output` those at the network's output, `notes` what was not looked at.
    """

    findings: tuple[Finding, ...]
    layers: dict[str, dict[str, Any]]
    output: dict[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def worst(self) -> str | None:
        """The highest severity found, or None where nothing was."""
        return max((f.severity for f in self.findings), key=SEVERITIES.index, default=None)

    def reaches(self, severity: str) -> bool:
        """True if something at least as bad was found."""
        return self.worst is not None and SEVERITIES.index(self.worst) >= SEVERITIES.index(severity)

    def to_dict(self) -> dict[str, Any]:
        """The report as plain values; numbers that are not finite are text."""
        return _plain(asdict(self) | {"worst": self.worst})

    def to_json(self) -> str:
        """The report as strict JSON."""
        return json.dumps(self.to_dict(), indent=2, allow_nan=False)

    def save(self, path: str | Path) -> Path:
        """Writes one HTML page that needs nothing besides itself."""
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
