"""A tokenizer for captions in any language: subwords, learned from the captions themselves (byte pair encoding,
Sennrich, Haddow and Birch 2016, "Neural machine translation of rare words with subword units").

A word is the sequence of its UTF-8 bytes, the last of which is marked as such. The most frequent pair of neighbouring
pieces in all the captions becomes a new piece, again and again: after a few hundred merges, frequent words are one
piece each. No word of any language is unknown, as single bytes are also pieces.

    subwords = Subwords.learned(["ein rotes Herz", "ein grünes Herz"])
    subwords.encode("ein blaues Herz")     numbers of the pieces
"""

import functools
import hashlib
import heapq
import json
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from itertools import pairwise

from pydiff.text.pairs import join

MERGES = 4096  # the most that are learned
WORDS = 20_000  # the most frequent words of the captions, from which the merges are learned
LONG = 2048  # letters of a word; what is longer, such as an image as a text, is not learned from
END = 256  # added to the last byte of a word
PAD, START = 0, 1  # numbers that are not pieces: padding after a caption, and its start
_FIRST = 2  # number of the byte 0
_WORD = re.compile(r"[^\W_]+|[^\w\s]|_")


def split(text: str) -> list[str]:
    """The words and signs of a text, in lower case; Ä is one letter, however it is encoded."""
    return _WORD.findall(unicodedata.normalize("NFC", text).lower())


class Subwords:
    """Pieces of words with numbers. merges: pairs of numbers of earlier pieces, in the order in which they were
    learned. words: those of the captions it was learned from, the most frequent first, WORDS at most.
    """

    def __init__(self, merges: Sequence[Sequence[int]], words: Sequence[str] = ()):
        self.merges = [(int(a), int(b)) for a, b in merges]
        for number, pair in enumerate(self.merges, _FIRST + 2 * END):
            if not all(_FIRST <= piece < number for piece in pair):
                raise ValueError(f"a piece cannot be made of {pair}, which are not both before it")
        self.words = list(words)
        self._rank = {pair: i for i, pair in enumerate(self.merges)}
        self.pieces = functools.lru_cache(maxsize=2**16)(self._pieces)

    def __len__(self) -> int:
        return _FIRST + 2 * END + len(self.merges)

    @classmethod
    def learned(cls, texts: Iterable[str], merges: int = MERGES) -> "Subwords":
        """Learns merges while a pair occurs at least twice; of equally frequent pairs, the one with the smaller
        numbers. Deterministic.
        """
        counts = Counter(word for text in texts for word in split(text) if len(word) <= LONG)
        chosen = sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:WORDS]
        spelled, times = [_bytes(word) for word, _ in chosen], [count for _, count in chosen]
        pairs, where = Counter(), defaultdict(set)  # how often, and in which words
        for i, pieces in enumerate(spelled):
            for pair in pairwise(pieces):
                pairs[pair] += times[i]
                where[pair].add(i)
        made, queue = [], [(-count, pair) for pair, count in pairs.items()]
        heapq.heapify(queue)
        while queue and len(made) < merges:
            count, best = heapq.heappop(queue)
            if -count != pairs[best]:
                continue  # its count has changed, and it is in the queue again
            if pairs[best] < 2:
                break
            number, changed = _FIRST + 2 * END + len(made), set()
            made.append(best)
            for i in where[best]:
                before, after = spelled[i], _merged(spelled[i], best, number)
                for pieces, sign in ((before, -1), (after, 1)):
                    for pair in pairwise(pieces):
                        pairs[pair] += sign * times[i]
                        changed.add(pair)
                        if sign > 0 and number in pair:
                            where[pair].add(i)
                spelled[i] = after
            for pair in changed - {best}:
                heapq.heappush(queue, (-pairs[pair], pair))
            pairs[best] = 0
        return cls(made, [word for word, _ in chosen])

    def encode(self, text: str) -> list[int]:
        """The numbers of a text's pieces, without START and PAD."""
        return [piece for word in split(text) for piece in self.pieces(word)]

    def _pieces(self, word: str) -> tuple[int, ...]:
        return tuple(join(_bytes(word), self._rank, lambda a, b: _FIRST + 2 * END + self._rank[a, b]))

    def spelled(self, piece: int) -> str:
        """The text of a piece; bytes that are not a whole letter as \\xNN, the end of a word as a space."""
        return self._bytes_of(piece).decode("utf-8", "backslashreplace") + (" " if self._ends(piece) else "")

    def _bytes_of(self, piece):
        if piece >= _FIRST + 2 * END:
            return b"".join(map(self._bytes_of, self.merges[piece - _FIRST - 2 * END]))
        return bytes([(piece - _FIRST) % END]) if piece >= _FIRST else b""

    def _ends(self, piece):
        while piece >= _FIRST + 2 * END:
            piece = self.merges[piece - _FIRST - 2 * END][1]
        return piece >= _FIRST + END

    def fingerprint(self) -> str:
        """A string that changes with everything that changes the result of `encode`."""
        return hashlib.sha256(json.dumps(self.merges).encode()).hexdigest()[:32]

    def to_config(self) -> dict:
        """A dict for JSON; Subwords(**config) is equal to this one."""
        return {"merges": [list(pair) for pair in self.merges], "words": self.words}


def _bytes(word):
    pieces = [_FIRST + byte for byte in word.encode("utf-8", "surrogatepass")]
    return [*pieces[:-1], pieces[-1] + END]


def _merged(pieces, pair, number):
    merged, i = [], 0
    while i < len(pieces):
        if pieces[i] == pair[0] and i + 1 < len(pieces) and pieces[i + 1] == pair[1]:
            merged.append(number)
            i += 2
        else:
            merged.append(pieces[i])
            i += 1
    return merged
