"""The shipped encoder: every word of a caption becomes its GloVe vector (Pennington, Socher and Manning 2014).

4,724 English words, 50 numbers each, trained on Wikipedia and newspapers; see glove.LICENSE.txt and make_glove.py. A
caption becomes the sequence of its words' whitened vectors, then zeros up to the limit; the empty caption is all zeros.
A network cannot tell the order of the words from it.

Whitening. Raw vectors of related words nearly coincide (the cosine of red and blue is 0.89), and a few coordinates are
much larger than the rest. With the mean m and the covariance C of all the words,

    z = C^(-1/2) (v - m)

has mean 0 and identity covariance over the words, so that no direction is small. It is an affine map: sums of vectors
whose factors add up to 1, such as a - b + c, are preserved.
"""

import functools
import re
import unicodedata
from collections import Counter
from collections.abc import Container, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from pydiff.text.encoder import HIDDEN_STATES, TextEncoder, listed, register
from pydiff.text.names import ENGLISH_OF

FILE = Path(__file__).with_name("glove.npz")
TOKENS = 24
# The network is given SCALE z. At first, a pixel attends equally to 24 positions, most of them empty: of vectors of
# variance 1 only a few hundredths would arrive, and it would take long until the network used them at all.
SCALE = 4

_WORD = re.compile(r"[^\W_]+(?:['’\-][^\W_]+)*")


class Vectors(NamedTuple):
    """words: N, the most frequent first. place: {word: its row}. raw: (N, 50) float32, GloVe's own vectors, rounded to
    8 bits. white: (N + 1, 50) float32, whitened, with a row of zeros at the end.
    """

    words: list[str]
    place: dict[str, int]
    raw: np.ndarray
    white: np.ndarray


@functools.cache
def vectors() -> Vectors:
    """The word vectors that come with pydiff."""
    with np.load(FILE, allow_pickle=False) as arrays:
        words = arrays["words"].tobytes().decode().split("\n")
        raw = arrays["vectors"] * arrays["scale"]
        centred, whitening = raw.astype(np.float64) - arrays["mean"], arrays["whitening"]
    white = np.zeros((len(words) + 1, raw.shape[1]))
    for k in range(raw.shape[1]):  # term by term, not by BLAS: the same bits on every machine
        white[:-1] += centred[:, k : k + 1] * whitening[k]
    white = white.astype(np.float32)
    for array in (raw, white):
        array.flags.writeable = False
    return Vectors(words, {word: i for i, word in enumerate(words)}, raw, white)


def split(text: str, known: Container[str]) -> list[str]:
    """The words of a text in lower case. Unknown words are split at hyphens and apostrophes, and stripped of accents if
    that makes them known; a possessive s is dropped.
    """
    words = []
    for whole in _WORD.findall(unicodedata.normalize("NFC", text).lower().replace("’", "'")):
        word = whole.removesuffix("'s") if whole not in known else whole
        parts = [word] if word in known else re.split("['-]", word)
        for part in parts:
            if part not in known and (plain := _without_accents(part)) in known:
                part = plain
            words.append(part)
    return words


def _without_accents(word: str) -> str:
    """A foreign word as English writes it. Words with a German umlaut are kept: Bär is not bar."""
    if set(word) & set("äöü"):
        return word
    return "".join(c for c in unicodedata.normalize("NFKD", word) if not unicodedata.combining(c))


def english(word: str, known: Container[str]) -> str:
    """The word itself, or its English translation if it is a known German name."""
    return word if word in known else ENGLISH_OF.get(word, word)


@register
class Glove(TextEncoder):
    """Captions as sequences of whitened GloVe vectors: encoder_hidden_states (N, 24, 50) float32."""

    kind = "glove"
    languages = ("en",)
    tokens = TOKENS
    width = 50

    def encode(self, captions: Sequence[str]):
        """encoder_hidden_states; unknown words are left out, and known words after the first 24."""
        table = vectors()
        rows = np.full((len(captions), TOKENS), len(table.words))  # the row of zeros
        for row, caption in zip(rows, captions, strict=True):
            places = _places(caption)[:TOKENS]
            row[: len(places)] = places
        return {HIDDEN_STATES: np.float32(SCALE) * table.white[rows]}

    def remarks(self, prompt: str):
        """Sentences on names that are read as English ones, on unknown words, and on what is beyond the limit."""
        known, words, found = vectors().place, split(prompt, vectors().place), []
        read = {word: english(word, known) for word in words}
        names = [f"{word} as {name}" for word, name in read.items() if word != name and name in known]
        unknown = [word for word, name in read.items() if name not in known]
        if prompt.strip() and len(unknown) == len(read):
            what = f"does not know {listed(unknown)}" if unknown else "finds no words in it"
            raise ValueError(
                f"the prompt {prompt!r:.80} cannot be drawn: the encoder 'glove' knows {len(known):,} English words, "
                f"and {what}; describe the image in common English words"
            )
        if names:
            found.append(f"{', '.join(names)}: German names are read as English ones, other German is not understood")
        if unknown:
            verb = "is" if len(unknown) == 1 else "are"
            found.append(f"the encoder 'glove' does not know {listed(unknown)}, which {verb} left out")
        used = [name for name in map(read.get, words) if name in known]
        if (beyond := len(used) - TOKENS) > 0:
            last = used[TOKENS - 1]
            found.append(f"a prompt has at most {TOKENS} known words; cut after {last!r}, {beyond} more are not used")
        return found

    def understands(self, caption: str):
        """Whether it knows a word of the caption; numbers alone, such as the corners of boxes, are not a caption."""
        known = vectors().words
        return any(known[place].isalpha() for place in _places(caption))

    def unknown(self, captions: Sequence[str]):
        """The words of these captions that GloVe's subset does not have, the most frequent first."""
        known = vectors().place
        words = Counter(
            word for caption in captions for word in split(caption, known) if english(word, known) not in known
        )
        return [word for word, _ in words.most_common()]

    def rows(self, prompt: str):
        """The known words of the prompt, up to the limit."""
        return [vectors().words[place] for place in _places(prompt)[:TOKENS]]

    def fingerprint(self):
        """SHA-256 of the vectors and words, the limit, and the scale."""
        return _fingerprint()


@functools.cache
def _fingerprint() -> str:
    import hashlib

    digest = hashlib.sha256(np.ascontiguousarray(vectors().white, "<f4"))
    digest.update("\n".join(vectors().words).encode())
    return f"{digest.hexdigest()[:32]}-{TOKENS}-{SCALE}"


@functools.lru_cache(maxsize=2**16)
def _places(caption: str) -> tuple[int, ...]:
    known = vectors().place
    names = (english(word, known) for word in split(caption, known))
    return tuple(known[name] for name in names if name in known)
