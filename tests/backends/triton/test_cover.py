"""A short list makes every pair of choices that the long one makes, and adds no entry."""

import itertools
import random

from batchnorm.backends.triton.cover import pairs


def made(entries):
    return {frozenset(pair) for e in entries for pair in itertools.combinations(e.items(), 2)}


def test_every_pair_of_choices_is_made():
    factors = {"tile": range(7), "dtype": "abc", "activation": range(6), "mask": range(3)}
    every = [dict(zip(factors, values, strict=True)) for values in itertools.product(*factors.values())]
    allowed = [e for e in random.Random(0).sample(every, 300) if e["mask"] == 0 or e["activation"] != 2]
    short = pairs(allowed, lambda e: e)
    assert made(short) == made(allowed)
    assert [e for e in allowed if e in short] == short
    assert 7 * 6 <= len(short) < 70  # a tile and an activation are a pair, so it cannot be shorter
