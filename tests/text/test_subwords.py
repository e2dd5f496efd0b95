"""Our tokenizer: learned merges against a slow one by the definition, every language, numbers that can be read back."""

import unicodedata
from collections import Counter
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pydiff.text.subwords import END, PAD, START, Subwords, split

TEXTS = ["ein rotes Herz", "ein grünes Herz", "a red heart", "a red red rose", "一颗红心", "una casa rossa, rossa!"]
SUBWORDS = Subwords.learned(TEXTS)
words = st.text(st.sampled_from("abäß心 -"), max_size=12)


def by_the_definition(texts, merges):
    """Byte pair encoding as the paper's program has it: count all pairs anew for every merge."""
    counts = Counter(word for text in texts for word in split(text))
    spelled = {word: [f"{b}" for b in word.encode()] for word in counts}
    for pieces in spelled.values():
        pieces[-1] += "/"
    names = [f"{b}" for b in range(256)] + [f"{b}/" for b in range(256)]
    made = []
    while len(made) < merges:
        pairs = Counter()
        for word, pieces in spelled.items():
            for pair in pairwise(pieces):
                pairs[pair] += counts[word]
        if not pairs or max(pairs.values()) < 2:
            break
        best = min(pairs, key=lambda pair: (-pairs[pair], names.index(pair[0]), names.index(pair[1])))
        made.append((names.index(best[0]) + 2, names.index(best[1]) + 2))
        name = "+".join(best)
        names.append(name)
        for word, pieces in spelled.items():
            i, merged = 0, []
            while i < len(pieces):
                both = tuple(pieces[i : i + 2]) == best
                merged.append(name if both else pieces[i])
                i += 1 + both
            spelled[word] = merged
    return made


@settings(max_examples=60, deadline=None)
@given(st.lists(words, max_size=8), st.integers(0, 12))
def test_the_merges_are_those_of_the_definition(texts, merges):
    assert Subwords.learned(texts, merges).merges == by_the_definition(texts, merges)


def test_frequent_words_are_one_piece():
    assert [SUBWORDS.spelled(piece) for piece in SUBWORDS.encode("Ein red Herz")] == ["ein ", "red ", "herz "]
    assert len(SUBWORDS) == 2 + 2 * END + len(SUBWORDS.merges)


@settings(deadline=None)
@given(st.text(max_size=30))
def test_any_text_is_encoded_and_can_be_read_back(text):
    pieces = SUBWORDS.encode(text)
    assert all(piece not in (PAD, START) for piece in pieces)
    read = b"".join(SUBWORDS._bytes_of(piece) + b"\xff" * SUBWORDS._ends(piece) for piece in pieces)
    assert [word.decode("utf-8", "surrogatepass") for word in read.split(b"\xff")[:-1]] == split(text)


def test_an_umlaut_is_one_letter_however_it_was_typed():
    for form in ("NFC", "NFD"):
        assert SUBWORDS.encode(unicodedata.normalize(form, "GRÜNES")) == SUBWORDS.encode("grünes")


def test_a_saved_one_is_equal_and_its_fingerprint_is_of_the_merges():
    saved = Subwords(**SUBWORDS.to_config())
    assert saved.merges == SUBWORDS.merges
    assert saved.words == SUBWORDS.words
    assert saved.fingerprint() == SUBWORDS.fingerprint() != Subwords(SUBWORDS.merges[:-1]).fingerprint()
    for merges in ([[2, 9000]], [[0, 5]]):
        with pytest.raises(ValueError, match="a piece cannot be made of"):
            Subwords(merges)
