"""A short list in place of a long one: it makes every pair of choices that an entry of the long list makes together."""

import heapq
import itertools
from collections.abc import Callable, Hashable, Sequence
from typing import TypeVar

T = TypeVar("T")


def pairs(entries: Sequence[T], choices: Callable[[T], dict[str, Hashable]]) -> list[T]:
    """Entries, in their order, so that any two choices that some entry makes together are made together by one of them.

    `choices` gives an entry's value for each factor. Greedy: next comes the entry with the most pairs that are new.
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
        if len(new[i]) < -gain:  # others were taken since it was counted
            heapq.heappush(heap, (-len(new[i]), i))
            continue
        covered |= new[i]
        taken.append(i)
    return [entries[i] for i in sorted(taken)]
