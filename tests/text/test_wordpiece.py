"""BERT's tokenizer against the library `tokenizers`, and what a small vocabulary makes of words."""

import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pydiff.text.wordpiece import SPECIALS, WordPiece, words_of

PIECES = [*SPECIALS, "a", "red", "heart", "##s", "un", "##known", ".", "#", "心", "bar", "ö", "o", "##x", "x", "##o"]
VOCABULARY = {piece: i for i, piece in enumerate(PIECES)}


def assigned_long_ago(c):
    """Characters of which both sides know the same, whichever Unicode their tables are of."""
    old = unicodedata.ucd_3_2_0.category(c)
    return old != "Cn" and old == unicodedata.category(c)


texts = st.text(st.characters(codec="utf-8").filter(assigned_long_ago), max_size=20) | st.text(
    "arednostx #.,心äöÖßΣσİıǅﬁ\t\n\u200b\u00ad\u0301\u3000😀'-[]", max_size=20
)


@pytest.fixture(scope="module")
def theirs():
    tokenizers = pytest.importorskip("tokenizers", reason="comparison with tokenizers: not installed")
    made = tokenizers.Tokenizer(tokenizers.models.WordPiece(VOCABULARY, unk_token="[UNK]"))
    made.normalizer = tokenizers.normalizers.BertNormalizer()
    made.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    made.add_special_tokens(list(SPECIALS))
    return made


@settings(max_examples=500, deadline=None)
@given(
    text=st.lists(texts | st.sampled_from([*SPECIALS, " red hearts.", "a" * 101, "x" * 100]), max_size=4).map("".join)
)
def test_it_gives_the_numbers_of_tokenizers(theirs, text):
    assert WordPiece(VOCABULARY).numbers(text) == theirs.encode(text, add_special_tokens=False).ids


def test_the_longest_piece_first_accents_dropped_and_signs_alone():
    wordpiece = WordPiece(VOCABULARY)
    names = {number: piece for piece, number in VOCABULARY.items()}

    def read(text):
        return [names[number] for number in wordpiece.numbers(text)]

    assert read("A RED hearts.") == ["a", "red", "heart", "##s", "."]
    assert read("unknown unred Bär 红心") == ["un", "##known", "[UNK]", "bar", "[UNK]", "心"]
    assert read("x" * 100) == ["x"] + ["##x"] * 99
    assert read("x" * 101) == ["[UNK]"]
    assert wordpiece.row("a red heart", 4) == [2, VOCABULARY["a"], VOCABULARY["red"], 3]
    assert wordpiece.unknown("unred Bär unred") == ["unred"]
    assert words_of("Öl\u00ad, a\u0301", lowercase=False) == ["Öl", ",", "a\u0301"]


def test_a_vocabulary_without_the_special_tokens():
    with pytest.raises(ValueError, match=r"has no \[SEP\], which BERT needs"):
        WordPiece({piece: i for piece, i in VOCABULARY.items() if piece != "[SEP]"})
