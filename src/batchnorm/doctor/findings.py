"""What the doctor says: findings, and the report that holds them."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any

SEVERITIES = ("info", "warning", "error")


@dataclass(frozen=True)
class Finding:
    """One fault: what is seen, where, with which numbers, why, and the cure."""

    severity: str
    rule: str
    layers: tuple[str, ...]
    what: str
    cause: str
    cure: str
    evidence: dict[str, Any]


@dataclass(frozen=True)
class Report:
    """Every finding about one network, worst first, and how many layers were read."""

    findings: tuple[Finding, ...]
    layers: int

    @property
    def worst(self) -> str | None:
        """The highest severity found, or None where nothing was."""
        found = [SEVERITIES.index(finding.severity) for finding in self.findings]
        return SEVERITIES[max(found)] if found else None

    def to_json(self) -> str:
        """The report as strict JSON: non-finite evidence is written as text."""
        body = {
            "layers": self.layers,
            "worst": self.worst,
            "findings": [
                {**asdict(f), "evidence": {k: _plain(v) for k, v in f.evidence.items()}} for f in self.findings
            ],
        }
        return json.dumps(body, indent=2, allow_nan=False)

    def __str__(self) -> str:
        if not self.findings:
            return f"{self.layers} batch norms read, nothing found."
        return "\n".join(
            f"{f.severity}: {f.what} [{f.rule}]\n  layers: {', '.join(f.layers)}\n"
            f"  likely cause: {f.cause}\n  cure: {f.cure}"
            for f in self.findings
        )


def report(findings: list[Finding], layers: int) -> Report:
    ordered = sorted(findings, key=lambda f: -SEVERITIES.index(f.severity))
    return Report(tuple(ordered), layers)


def _plain(value: Any) -> Any:
    finite = not isinstance(value, float) or value - value == 0
    return value if finite else str(value)
