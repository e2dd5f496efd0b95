"""Byte pair encoding, the way in: neighbours are joined, the pair that was learned first before all others.

Words are short, but nothing says so of what is found in captions: a queue keeps the work at n log n steps.
"""

import heapq
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any


def join(parts: Sequence[Any], ranks: Mapping[tuple, int], joined: Callable[[Any, Any], Any]) -> list[Any]:
    """`parts` with neighbours joined until no pair of them is in `ranks`.

    ranks: {pair: its place in the order}; of equal pairs, the first from the left is joined first. joined: makes one
    part of two. As in the library `tokenizers`.
    """
    made: list[Any] = list(parts)
    end = len(made)
    before, after = list(range(-1, end - 1)), list(range(1, end + 1))  # the places of neighbours
    queue = [(ranks[pair], place) for place, pair in enumerate(pairwise(made)) if pair in ranks]
    heapq.heapify(queue)
    while queue:
        rank, place = heapq.heappop(queue)
        other = after[place] if made[place] is not None else end
        if other == end or ranks.get((made[place], made[other])) != rank:
            continue  # one of the two was joined with another meanwhile
        made[place], made[other] = joined(made[place], made[other]), None
        after[place] = after[other]
        if after[place] < end:
            before[after[place]] = place
        for left in (before[place], place):
            if left >= 0 and after[left] < end:
                rank = ranks.get((made[left], made[after[left]]))
                if rank is not None:
                    heapq.heappush(queue, (rank, left))
    return [part for part in made if part is not None]
