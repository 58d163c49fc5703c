"""The nine claims, each measured on the same evidence."""

from __future__ import annotations

from collections.abc import Callable

from . import layer_claims, training_claims
from .evidence import Evidence
from .verdict import Claim, NotMeasured

CLAIMS: tuple[tuple[str, Callable[[Evidence], Claim]], ...] = (
    ("Faster", training_claims.faster),
    ("Steadier", training_claims.steadier),
    ("The same distribution", layer_claims.same_distribution),
    ("Mean 0, deviation 1", layer_claims.mean_and_deviation),
    ("The shape is kept", layer_claims.shape_kept),
    ("Different scales", training_claims.scales),
    ("Gradients", layer_claims.gradients),
    ("Overfitting", training_claims.overfitting),
    ("Where it hurts", training_claims.small_batches),
)


def measure(evidence: Evidence) -> list[Claim]:
    """Every claim in order; one that this evidence cannot answer says why."""
    return [_measure(number, title, claim, evidence) for number, (title, claim) in enumerate(CLAIMS, 1)]


def _measure(number: int, title: str, claim: Callable[[Evidence], Claim], evidence: Evidence) -> Claim:
    try:
        return claim(evidence)
    except NotMeasured as error:
        return Claim(number, title, "", reason=str(error))
