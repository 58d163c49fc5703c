"""A claim with its measured effect, one value per seed, and the verdict on it."""

from __future__ import annotations

import statistics
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from .wording import WORDING, Kind

Verdict = Literal["holds", "within its spread", "does not hold here", "not measured"]


class NotMeasured(Exception):  # noqa: N818  # a finding, not a fault
    """Raised if a study cannot judge a claim; the message is the reason."""


@dataclass
class Claim:
    """One claim with its measured effect and its verdict.

    effects: one number per seed, in the wording's unit, positive if the claim is right. median, spread: the effects'
    median and standard deviation over seeds. `sentence` gives the result in one plain sentence, `figure` in numbers,
    `detail` holds every number behind it.
    """

    number: int
    sentence: str = ""
    figure: str = ""
    effects: list[float] = field(default_factory=list)
    median: float | None = None
    spread: float | None = None
    verdict: Verdict = "not measured"
    reason: str = ""
    detail: dict[str, Any] = field(default_factory=dict)

    @property
    def title(self) -> str:
        return WORDING[self.number].title

    @property
    def unit(self) -> str:
        return WORDING[self.number].unit

    @property
    def kind(self) -> Kind:
        """A benefit, a cost, or true by construction: guaranteed by the layer's arithmetic, so no discovery."""
        return WORDING[self.number].kind

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | asdict(WORDING[self.number])


def judge(claim: Claim) -> Claim:
    """Sets median, spread and verdict.

    A claim holds if the median effect is above 0 by more than the spread, and does not hold if it is 0 in every seed or
    below 0 by as much as the spread. In between it is within its spread, as other seeds could change the sign.
    """
    claim.median = statistics.median(claim.effects)
    if len(claim.effects) < 2:
        claim.verdict, claim.reason = "not measured", "one seed has no spread to judge by; use two or more"
        return claim
    claim.spread = statistics.stdev(claim.effects)
    effect = f"{claim.median:.3g} ± {claim.spread:.2g} {claim.unit}"
    if claim.median > claim.spread:
        claim.verdict, claim.reason = "holds", f"the effect, {effect}, is beyond its spread over seeds"
    elif claim.median > -claim.spread:
        claim.verdict = "within its spread"
        claim.reason = f"the effect, {effect}, may be chance: other seeds could differ"
    else:
        claim.verdict, claim.reason = "does not hold here", f"the effect, {effect}, is not above 0"
    return claim
