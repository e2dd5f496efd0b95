"""Our own tokenizer for captions in any language: pieces of words, learned from the captions themselves (byte pair
encoding, Sennrich, Haddow and Birch 2016, "Neural machine translation of rare words with subword units").

A word is the sequence of its UTF-8 bytes, the last of which is marked as such. The pair of neighbouring pieces that is
most frequent in all the captions becomes a piece of its own, again and again: after a few hundred merges frequent words
are one piece each. No word of any language is unknown, for single bytes are pieces, too.

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

MERGES = 4096  # learned at most
WORDS = 20_000  # of the captions, the most frequent, from which they are learned
END = 256  # added to the last byte of a word
PAD, START = 0, 1  # numbers of what is no piece: nothing more follows, a caption begins
_FIRST = 2  # number of the byte 0
_WORD = re.compile(r"[^\W_]+|[^\w\s]|_")


def split(text: str) -> list[str]:
    """The words and signs of a text, in lower case; Ä is one letter, however it was typed."""
    return _WORD.findall(unicodedata.normalize("NFC", text).lower())


class Subwords:
    """Pieces of words with numbers. merges: pairs of earlier pieces' numbers, in the order in which they were learned.

    words: those of the captions from which it was learned, the most frequent first, WORDS at most.
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
        """Merges while a pair occurs twice; of equally frequent ones that with the smaller numbers. No randomness."""
        counts = Counter(word for text in texts for word in split(text))
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
                continue  # it has changed since, and stands in the queue again
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
        pieces = _bytes(word)
        while len(pieces) > 1:
            pairs = set(pairwise(pieces)) & self._rank.keys()
            if not pairs:
                break
            first = min(pairs, key=self._rank.__getitem__)
            pieces = _merged(pieces, first, _FIRST + 2 * END + self._rank[first])
        return tuple(pieces)

    def spelled(self, piece: int) -> str:
        """What a piece stands for; bytes that are no whole letter as \\xNN, the end of a word as a space."""
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
        """Changes with everything that changes what `encode` gives."""
        return hashlib.sha256(json.dumps(self.merges).encode()).hexdigest()[:32]

    def to_config(self) -> dict:
        """For JSON: Subwords(**config) is an equal one."""
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
