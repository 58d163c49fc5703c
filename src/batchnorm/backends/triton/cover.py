"""Pairwise coverage: a short part of a list, in which every pair of choices of the whole list still occurs."""

import heapq
import itertools
from collections.abc import Callable, Hashable, Sequence
from typing import TypeVar

T = TypeVar("T")


def pairs(entries: Sequence[T], choices: Callable[[T], dict[str, Hashable]]) -> list[T]:
    """A part of `entries`, in their order: two choices that occur together in any entry also do so in this part.

    `choices` gives an entry's value for each factor. The algorithm is greedy: it takes the entry with the most new
    pairs next.
    """
    numbers: dict[Hashable, int] = {}
    new = []
    for entry in entries:
        made = itertools.combinations(choices(entry).items(), 2)
        new.append({numbers.setdefault(frozenset(pair), len(numbers)) for pair in made})
    heap = [(-len(found), i) for i, found in enumerate(new)]
    heapq.heapify(heap)
    covered, taken = set[int](), []
    while len(covered) < len(numbers):
        gain, i = heapq.heappop(heap)
        new[i] -= covered
        if len(new[i]) < -gain:  # it was counted before other entries were taken
            heapq.heappush(heap, (-len(new[i]), i))
            continue
        covered |= new[i]
        taken.append(i)
    return [entries[i] for i in sorted(taken)]
