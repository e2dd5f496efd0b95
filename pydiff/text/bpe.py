"""CLIP's tokenizer: a prompt becomes the numbers of its tokens, pieces of words that often occur (byte pair encoding:
Sennrich, Haddow and Birch 2016, "Neural machine translation of rare words with subword units", section 3.2).

    tokenizer = bpe.clip()
    tokenizer.numbers("a photo of a cat")        [320, 1125, 539, 320, 2368]
    tokenizer.row("a photo of a cat", 77)        the same between start and end, then padding: 77 numbers

The steps, in this order; the result is that of the library `tokenizers`, against which it is tested:

1. special tokens, such as <|endoftext|>, are cut out as they are;
2. the rest is normalised: NFC, any white space is one space, lower case, letter by letter ("ΣΑΣ" becomes "σασ");
3. it is split into 's, 't .. | letters | single digits | other characters but white space;
4. every piece is written in UTF-8, a printable character for each byte, the last of them marked with </w>;
5. the pair of neighbours in a piece that comes first in the list of merges is joined, until no pair is in the list.
"""

import functools
import gzip
import operator
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from pydiff.text.pairs import join

FILE = Path(__file__).with_name("bpe_simple_vocab_16e6.txt.gz")
MERGES = 49152 - 256 - 2  # of those in the file, how many OpenAI uses
START, END = "<|startoftext|>", "<|endoftext|>"
LAST = "</w>"  # marks the end of a piece
SPACE = "\t\n\v\f\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"  # Unicode's White_Space
CACHED = 1 << 14  # pieces whose tokens are cached

_PRINTABLE = [*range(33, 127), *range(161, 173), *range(174, 256)]
_OTHERS = [byte for byte in range(256) if byte not in _PRINTABLE]
BYTES = {byte: chr(byte) for byte in _PRINTABLE} | {byte: chr(256 + i) for i, byte in enumerate(_OTHERS)}


class Special(NamedTuple):
    """A text that is one or several tokens wherever it occurs. normalized: whether it is matched case-insensitively."""

    text: str
    numbers: tuple[int, ...]
    normalized: bool = False


class Tokenizer:
    """vocabulary: {token: its number}. merges: pairs of tokens, the first to be joined first. specials: see Special.
    start, end, pad, unknown: numbers of tokens; the last is for bytes that the vocabulary does not have.
    """

    def __init__(
        self, vocabulary: Mapping[str, int], merges: Iterable[tuple[str, str]], specials: Iterable[Special],
        start: int, end: int, pad: int, unknown: int,
    ):  # fmt: skip
        self.vocabulary, self.start, self.end, self.pad, self.unknown = dict(vocabulary), start, end, pad, unknown
        self.ranks = {pair: rank for rank, pair in enumerate(merges)}
        self.specials = tuple(specials)
        self._piece = functools.lru_cache(CACHED)(self._numbers_of_piece)
        self._cuts = [_cutter([s for s in self.specials if s.normalized == kind]) for kind in (False, True)]

    def with_special(self, text: str, numbers: Sequence[int]) -> "Tokenizer":
        """The same tokenizer with one more word, matched case-insensitively, that consists of these tokens."""
        specials = (*self.specials, Special(text, tuple(numbers), normalized=True))
        ends = self.start, self.end, self.pad, self.unknown
        return Tokenizer(self.vocabulary, self.ranks, specials, *ends)

    def numbers(self, text: str) -> list[int]:
        """The tokens of a text of any length, without start and end."""
        found = []
        for part, token in _cut(text, self._cuts[0]):
            if token is not None:
                found += token.numbers
                continue
            for rest, other in _cut(normalized(part), self._cuts[1]):
                found += other.numbers if other is not None else self._numbers_of_rest(rest)
        return found

    def row(self, text: str, length: int) -> list[int]:
        """Start, the tokens that fit, end, and padding: `length` numbers."""
        row = [self.start, *self.numbers(text)[: length - 2], self.end]
        return row + [self.pad] * (length - len(row))

    def text(self, numbers: Sequence[int]) -> str:
        """The text of these tokens; incomplete UTF-8 characters are replaced."""
        byte_of = {character: byte for byte, character in BYTES.items()}
        names = {number: name for name, number in self.vocabulary.items()}
        names |= {n: s.text + LAST for s in self.specials for n in s.numbers}
        said = "".join(names.get(number, "") for number in numbers).replace(LAST, " ")
        return b"".join(bytes([byte_of.get(c, 32)]) for c in said).decode("utf-8", "replace").strip()

    def _numbers_of_rest(self, text):
        return [number for piece in pieces(text) for number in self._piece(piece)]

    def _numbers_of_piece(self, piece):
        parts = [BYTES[byte] for byte in piece.encode("utf-8", "replace")]
        parts[-1] += LAST
        return [self.vocabulary.get(part, self.unknown) for part in join(parts, self.ranks, operator.add)]


def normalized(text: str) -> str:
    """NFC, lower case, any white space as one space; letter by letter, so that no sigma becomes a final one."""
    text = re.sub(f"[{SPACE}]+", " ", unicodedata.normalize("NFC", text))
    return "".join(character.lower() for character in text)


def pieces(text: str) -> list[str]:
    """The pieces into which a normalised text is split. Letters and digits are recognised by their Unicode category."""
    kinds = "".join(_kind(character) for character in text)
    found, place = [], 0
    while place < len(text):
        match = _MARKED.match(text, place)
        if match:
            found += re.findall(r"<\||\|>|[a-z]+|'[a-z]+", match[0])
        else:
            match = _RUN.match(kinds, place)
            if kinds[place] != " ":
                found.append(text[place : match.end()])  # pyright: ignore[reportOptionalMemberAccess]
        place = match.end()  # pyright: ignore[reportOptionalMemberAccess]
    return found


_MARKED = re.compile(r"<\|(?:start|end)oftext\|>|'s|'t|'re|'ve|'m|'ll|'d")
_RUN = re.compile(r"L+|N|o+| +")


@functools.lru_cache(CACHED)
def _kind(character: str) -> str:
    if re.match(f"[{SPACE}]", character):
        return " "
    category = unicodedata.category(character)[0]
    return category if category in "LN" else "o"


def _cutter(specials):
    """(pattern, {text: Special}) that finds these, longest first; None if there are none."""
    if not specials:
        return None
    table = {normalized(s.text) if s.normalized else s.text: s for s in reversed(specials)}
    return re.compile("|".join(map(re.escape, sorted(table, key=len, reverse=True)))), table


def _cut(text, cutter):
    """The text as (part, None) and ("", Special), in order."""
    if cutter is None:
        return [(text, None)]
    pattern, table = cutter
    found, place = [], 0
    for match in pattern.finditer(text):
        found += [(text[place : match.start()], None), ("", table[match[0]])]
        place = match.end()  # pyright: ignore[reportOptionalMemberAccess]
    return [*found, (text[place:], None)]


@functools.cache
def clip(pad: str = END) -> Tokenizer:
    """OpenAI's tokenizer, from the shipped list. pad: the padding token, "!" in Stable Diffusion 2, the end
    token in 1.
    """
    with gzip.open(FILE, "rt", encoding="utf-8") as file:
        merges = [tuple(line.split()) for line in file.read().split("\n")[1 : MERGES + 1]]
    alone = list(BYTES.values())
    tokens = [*alone, *(character + LAST for character in alone), *map("".join, merges), START, END]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    start, end, padding = (vocabulary[token] for token in (START, END, pad))
    specials = [Special(token, (vocabulary[token],)) for token in dict.fromkeys((START, END, pad))]
    return Tokenizer(vocabulary, merges, specials, start, end, padding, end)  # pyright: ignore[reportArgumentType]
