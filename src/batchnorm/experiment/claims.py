"""The nine claims, each measured on the same evidence."""

from __future__ import annotations

from collections.abc import Callable

from . import layer_claims, training_claims
from .evidence import Evidence
from .verdict import Claim, NotMeasured

CLAIMS: dict[int, Callable[[Evidence], Claim]] = {
    1: training_claims.faster,
    2: training_claims.steadier,
    3: layer_claims.same_distribution,
    4: layer_claims.mean_and_deviation,
    5: layer_claims.shape_kept,
    6: training_claims.scales,
    7: layer_claims.gradients,
    8: training_claims.overfitting,
    9: training_claims.small_batches,
}


def measure(evidence: Evidence) -> list[Claim]:
    """Measures every claim, in order. A claim that this evidence cannot answer gets a reason."""
    return [_measure(number, claim, evidence) for number, claim in CLAIMS.items()]


def _measure(number: int, claim: Callable[[Evidence], Claim], evidence: Evidence) -> Claim:
    try:
        return claim(evidence)
    except NotMeasured as error:
        return Claim(number, reason=str(error))
