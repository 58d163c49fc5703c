"""Counts how often the verdicts of a study change with the seed.

It runs ten studies of sklearn's digits, each with three seeds of its own.

python benchmarks/verdicts.py [--quick] [network] [studies]

It prints, for each claim, the usual verdict, the share of studies with another one and the share with the opposite one.
Then it prints the two shares over all claims but those that are true by construction. Ten studies take about ten times
as long as one; --quick runs those of `batchnorm study --quick`.
"""

import statistics
import sys

from batchnorm.experiment import plan, settings, sources, study_networks
from batchnorm.experiment.flips import flips
from batchnorm.experiment.verdict import Claim


def studies(network: str, count: int, quick: bool) -> list[list[Claim]]:
    """The claims of `count` studies with different seeds and different splits of the data."""
    found = []
    for i in range(count):
        data = sources.load("digits", seed=i)
        seeds = 2 if quick else 3
        chosen = settings.choose(data, seeds=seeds, seed=i * seeds, quick=quick)
        found.append(plan.run(study_networks.named(network), data, chosen, network).claims)
        print(f"{i + 1} of {count}", file=sys.stderr, flush=True)
    return found


def main() -> None:
    arguments = [a for a in sys.argv[1:] if a != "--quick"]
    network, count = (arguments[0] if arguments else "mlp"), int(arguments[1]) if len(arguments) > 1 else 10
    found = studies(network, count, "--quick" in sys.argv)
    judged = []
    for claims in zip(*found, strict=True):
        counted = flips([claim.verdict for claim in claims])
        print(f"{claims[0].number} {claims[0].title:22} usually: {counted.usual:20} "
              f"another: {counted.other:4.0%}  opposite: {counted.opposite:4.0%}")  # fmt: skip
        if claims[0].kind != "construction":
            judged.append(counted)
    another, opposite = (
        statistics.fmean(values) for values in zip(*((f.other, f.opposite) for f in judged), strict=True)
    )
    print(f"another verdict than usual: {another:.0%} of {count * len(judged)}; the opposite one: {opposite:.0%}")


if __name__ == "__main__":
    main()
