"""The colour of a verdict, by its meaning: good news, bad news, or neither."""

from __future__ import annotations

from typing import Any

Tone = str  # a class of the style sheet: holds (good), fails (bad), warns (mind this), open (nothing either way)

STYLES = {"holds": "green", "fails": "red", "warns": "yellow", "open": "dim", "fact": "cyan"}  # in the terminal


def tone(claim: dict[str, Any]) -> Tone:
    """Good news is green: a benefit that is there, or a cost that is not. What is true by construction is neither."""
    verdict, kind = claim["verdict"], claim["kind"]
    if verdict in ("not measured", "within its spread"):
        return "open"
    if kind == "construction":
        return "fact" if verdict == "holds" else "fails"
    if kind == "cost":
        return "warns" if verdict == "holds" else "holds"
    return "holds" if verdict == "holds" else "fails"


def badge(claim: dict[str, Any]) -> str:
    """The verdict's words."""
    return "true by construction" if tone(claim) == "fact" else str(claim["verdict"])
