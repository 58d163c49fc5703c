"""The colour of a verdict, by its meaning: good news, bad news, or neither."""

from __future__ import annotations

from typing import Any

Tone = str  # a class of the style sheet: holds (good), fails (bad), warns (a cost), open (neither), fact (always true)

STYLES = {"holds": "green", "fails": "red", "warns": "yellow", "open": "dim", "fact": "cyan"}  # in the terminal


def tone(claim: dict[str, Any]) -> Tone:
    """The tone of a claim. Good news is a benefit that holds or a cost that does not; "fact" is neither."""
    verdict, kind = claim["verdict"], claim["kind"]
    if verdict in ("not measured", "within its spread"):
        return "open"
    if kind == "construction":
        return "fact" if verdict == "holds" else "fails"
    if kind == "cost":
        return "warns" if verdict == "holds" else "holds"
    return "holds" if verdict == "holds" else "fails"


def badge(claim: dict[str, Any]) -> str:
    """The text of the verdict."""
    return "true by construction" if tone(claim) == "fact" else str(claim["verdict"])
