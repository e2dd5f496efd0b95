"""Two attributes of prompts: "{woman,man} pilot: {light,dark} skin tone" is four prompts, in rows and columns."""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from itertools import combinations
from typing import NamedTuple

ROWS, COLUMNS = 6, 6  # the most that are shown of a pattern found in captions
_CHOICE = re.compile(r"\{([^{}]*)\}")


class Attributes(NamedTuple):
    """pattern: the prompt with {} in two places. rows, columns: what is put there. known: the prompts that are captions
    of the data, or None if that is unknown.
    """

    pattern: str
    rows: list[str]
    columns: list[str]
    known: frozenset[str] | None = None

    def prompts(self) -> list[str]:
        """The prompts of the grid, row by row."""
        before, between, after = self.pattern.split("{}")
        return [f"{before}{row}{between}{column}{after}" for row in self.rows for column in self.columns]


def parse(pattern: str, captions: Iterable[str] | None = None) -> Attributes:
    """The attributes of a pattern with two {a,b,..}. captions: of the data. Raises ValueError for other patterns."""
    choices = [[choice.strip() for choice in found.split(",")] for found in _CHOICE.findall(pattern)]
    if len(choices) != 2 or re.search("[{}]", _CHOICE.sub("", pattern)):
        raise ValueError(f"a grid has two choices in braces, like '{{red,green}} {{heart,book}}'; got {pattern!r:.80}")
    return _known(Attributes(_CHOICE.sub("{}", pattern), *choices), captions)  # pyright: ignore[reportArgumentType]


def found(captions: Sequence[str]) -> Attributes | None:
    """The two places at which captions differ most often while the rest is the same; None if there are none.

    The most frequent words at these places are taken, in alphabetical order.
    """
    pairs = defaultdict(set)
    for caption in dict.fromkeys(captions):
        words = caption.split()
        for i, j in combinations(range(min(len(words), 12)), 2):
            pattern = " ".join("{}" if k in (i, j) else word for k, word in enumerate(words))
            if len(words) > 2 and not re.search("[{}]", caption):
                pairs[pattern].add((words[i], words[j]))
    best = max(pairs.items(), key=lambda item: (_size(item[1]), len(item[0]), item[0]), default=None)
    if best is None or _size(best[1]) < 4:
        return None
    rows, columns = (_frequent(best[1], side, most) for side, most in ((0, ROWS), (1, COLUMNS)))
    return _known(Attributes(best[0], rows, columns), captions)


def _frequent(pairs, side, most):
    counts = Counter(pair[side] for pair in pairs)
    chosen = sorted(counts, key=lambda word: (-counts[word], word))[:most]
    return sorted(chosen)


def _size(pairs):
    """How many prompts of the grid that would be shown are captions; 0 if it has a single row or column."""
    if len({a for a, _ in pairs}) < 2 or len({b for _, b in pairs}) < 2:
        return 0
    rows, columns = _frequent(pairs, 0, ROWS), _frequent(pairs, 1, COLUMNS)
    return sum((a, b) in pairs for a in rows for b in columns)


def _known(attributes, captions):
    if captions is None:
        return attributes
    return attributes._replace(known=frozenset(attributes.prompts()) & frozenset(captions))
