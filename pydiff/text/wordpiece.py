"""BERT's tokenizer: the longest known beginning of a word, then the longest known continuation, and so on (Wu et al.
2016, "Google's neural machine translation system", section 4.1, as Devlin et al. 2019 use it).

    wordpiece = WordPiece(vocabulary)
    wordpiece.numbers("a red heart")     [1037, 2417, 2540]

The steps, in this order; the result is that of the library `tokenizers`, against which it is tested:

1. special tokens, such as [SEP], are cut out as they are;
2. control characters are removed, white space becomes a space, Chinese characters become separate words;
3. accents are removed (NFD, without the marks), then lower case, letter by letter: "Bär" is read as "bar";
4. the text is split at spaces, and at punctuation, which becomes separate words;
5. every word is cut from the left into the longest pieces of the vocabulary; ## marks the continuation of a word. A
   word with a remainder that is not a piece, or with more than 100 characters, becomes [UNK].
"""

import functools
import re
import unicodedata
from collections.abc import Mapping

LONGEST = 100  # characters of a word
SPECIALS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
_CHINESE = [
    (0x4E00, 0x9FFF), (0x3400, 0x4DBF), (0x20000, 0x2A6DF), (0x2A700, 0x2B73F), (0x2B740, 0x2B81F),
    (0x2B920, 0x2CEAF), (0xF900, 0xFAFF), (0x2F800, 0x2FA1F),
]  # fmt: skip


class WordPiece:
    """vocabulary: {piece: its number}, with the SPECIALS. lowercase: whether case and accents are dropped."""

    def __init__(self, vocabulary: Mapping[str, int], lowercase: bool = True):
        missing = [token for token in SPECIALS if token not in vocabulary]
        if missing:
            raise ValueError(f"the vocabulary has no {missing[0]}, which BERT needs")
        self.vocabulary, self.lowercase = dict(vocabulary), lowercase
        self._cut = re.compile("(" + "|".join(map(re.escape, SPECIALS)) + ")")
        self.pieces = functools.lru_cache(maxsize=2**14)(self._pieces)

    def numbers(self, text: str) -> list[int]:
        """The tokens of a text of any length, without [CLS] and [SEP]."""
        found = []
        for part in self._cut.split(text):
            words = [part] if part in SPECIALS else words_of(part, self.lowercase)
            found += [number for word in words for number in self.pieces(word)]
        return found

    def row(self, text: str, most: int) -> list[int]:
        """[CLS], the tokens that fit, [SEP]: at most `most` numbers, and no padding."""
        return [self.vocabulary["[CLS]"], *self.numbers(text)[: most - 2], self.vocabulary["[SEP]"]]

    def unknown(self, text: str) -> list[str]:
        """The words of a text that become [UNK], as the vocabulary has no pieces for them: each once, in order."""
        unk = (self.vocabulary["[UNK]"],)
        return list(dict.fromkeys(word for word in words_of(text, self.lowercase) if self.pieces(word) == unk))

    def _pieces(self, word):
        if word in SPECIALS:
            return (self.vocabulary[word],)
        found, place = [], 0
        while place < len(word) <= LONGEST:
            for end in range(len(word), place, -1):
                piece = ("##" if place else "") + word[place:end]
                if piece in self.vocabulary:
                    break
            else:
                break
            found.append(self.vocabulary[piece])
            place = end
        return tuple(found) if place == len(word) else (self.vocabulary["[UNK]"],)


def words_of(text: str, lowercase: bool = True) -> list[str]:
    """The words and punctuation of a text, cleaned as BERT's vocabulary expects."""
    kept = [" " if c in "\t\n\r" or c.isspace() else c for c in text if not _gone(c)]
    text = "".join(f" {c} " if _is_chinese(c) else c for c in kept)
    if lowercase:
        plain = (c for c in unicodedata.normalize("NFD", text) if unicodedata.category(c) != "Mn")
        text = "".join(c.lower() for c in plain)
    return "".join(f" {c} " if _is_sign(c) else c for c in text).split()


def _gone(c):
    return c in "\0\ufffd" or (c not in "\t\n\r" and unicodedata.category(c) in ("Cc", "Cf", "Co", "Cs"))


def _is_chinese(c):
    return any(first <= ord(c) <= last for first, last in _CHINESE)


@functools.lru_cache(maxsize=2**14)
def _is_sign(c):
    return bool(re.match(r"[!-/:-@\[-`{-~]", c)) or unicodedata.category(c).startswith("P")
