"""CLIP's tokenizer against the library `tokenizers`, as transformers sets it up, and by itself."""

import unicodedata

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pydiff.text import bpe
from pydiff.text.bpe import BYTES, LAST, Special, Tokenizer
from tests.peers import import_transformers

CLIP = bpe.clip()
# Characters that this Python's tables of Unicode know: the library's may be of another version.
ASSIGNED = st.characters(exclude_categories=["Cn", "Cs", "Co"])
LIKELY = st.sampled_from(
    "aeinorstÄßéΣσςЖжع中文が्ि한글İıǅﬁ①²½١'’`´.,!?;:-–_#@&|<>()[]{}%$€0123456789 \t\n\u00a0\u2003\u200b"
    "\u200d\u0301\u0327🎨👩🚀❤\ufe0f"
)
WORDS = st.sampled_from(
    ["a photo of", "don't", "I'LL", "we've", "'s", "''s", "2024", "x2", "Bär", "ΟΔΟΣ", "naïve", "e\u0301", "日本",
     "<|endoftext|>", "<|startoftext|>", "<|EndOfText|>", "<|ENDOFTEXT|>'s", "|>'s", "!!", "hello-world", "#1", "  "]
)  # fmt: skip
TEXTS = st.lists(st.text(ASSIGNED, max_size=12) | st.text(LIKELY, max_size=12) | WORDS, max_size=6).map("".join)


@pytest.fixture(scope="module")
def transformers():
    return import_transformers()


def theirs(transformers, pad=bpe.END, normalized=False):
    merges = [tuple(pair) for pair in CLIP.ranks]
    ends = {"bos_token": bpe.START, "eos_token": bpe.END, "unk_token": bpe.END}
    if normalized:
        from tokenizers import AddedToken

        ends = {name: AddedToken(token, normalized=True, special=True) for name, token in ends.items()}
        pad = ends["eos_token"] if pad == bpe.END else pad
    return transformers.CLIPTokenizer(vocab=CLIP.vocabulary, merges=merges, pad_token=pad, **ends)


@pytest.fixture(scope="module")
def pairs(transformers):
    """(ours, theirs) of Stable Diffusion 1, of 2, and as folders before version 5 of transformers describe them."""
    old = Tokenizer(
        CLIP.vocabulary, CLIP.ranks, [s._replace(normalized=True) for s in CLIP.specials],
        CLIP.start, CLIP.end, CLIP.pad, CLIP.unknown,
    )  # fmt: skip
    return [
        (CLIP, theirs(transformers)),
        (bpe.clip("!"), theirs(transformers, "!")),
        (old, theirs(transformers, normalized=True)),
    ]


@settings(max_examples=100, suppress_health_check=list(HealthCheck), deadline=None)
@given(st.lists(TEXTS, min_size=100, max_size=100))
def test_ten_thousand_drawn_texts_equal_tokenizers(pairs, texts):
    for (ours, their), share in zip(pairs, (texts, texts[::10], texts[::10]), strict=True):
        expected = their(share)["input_ids"]
        for text, ids in zip(share, expected, strict=True):
            assert [ours.start, *ours.numbers(text), ours.end] == ids, ascii(text)


def test_rows_are_cut_and_padded_as_theirs(pairs):
    texts = ["", "a photo of a cat", "word " * 80, "a " * 75, "a " * 76]
    for ours, their in pairs:
        expected = their(texts, padding="max_length", max_length=77, truncation=True)["input_ids"]
        assert [ours.row(text, 77) for text in texts] == expected


def test_a_known_row():
    assert CLIP.row("a photo of a cat", 8) == [49406, 320, 1125, 539, 320, 2368, 49407, 49407]
    assert bpe.clip("!").row("a photo of a cat", 8) == [49406, 320, 1125, 539, 320, 2368, 49407, 0]
    assert len(CLIP.vocabulary) == 49408


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("ΣΑΣ", ["σασ"]),
        ("I'll don't", ["i", "'ll", "don", "'t"]),
        ("12 cats", ["1", "2", "cats"]),
        ("a\u00a0 \n b", ["a", "b"]),
        ("a\x1cb", ["a", "\x1c", "b"]),  # white space for Python, not for Unicode
        ("e\u0301t", ["ét"]),
        ("", []),
        ("!!'s", ["!!'", "s"]),
    ],
)
def test_texts_are_split(text, pieces):
    assert bpe.pieces(bpe.normalized(text)) == pieces


def test_a_special_token_is_one_as_it_is_written():
    assert CLIP.numbers(bpe.END) == [CLIP.end]
    assert CLIP.end not in CLIP.numbers("<|EndOfText|>")
    assert bpe.clip("!").numbers("wow!!") == [bpe.clip().numbers("wow")[0], 0, 0]
    assert 0 not in CLIP.numbers("wow!!")


def test_a_word_of_ones_own_is_found_in_any_case():
    more = CLIP.with_special("<my-Cat>", [50000, 50001])
    assert more.numbers("a photo of <MY-cat>s") == [*CLIP.numbers("a photo of"), 50000, 50001, *CLIP.numbers("s")]
    assert CLIP.numbers("<my-Cat>")[0] < 49408
    longer = more.with_special("<my-cat>2", [50002])
    assert longer.numbers("<my-cat>2 <my-cat>") == [50002, 50000, 50001]


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=40))
def test_text_comes_back(text):
    said = CLIP.text(CLIP.numbers(text))
    assert "".join(said.split()) == "".join(bpe.normalized(text).split())


def test_bytes_that_the_vocabulary_lacks_are_unknown():
    few = Tokenizer({"a": 0, "a" + LAST: 1, "<u>": 2}, [], [Special("<u>", (2,))], 0, 1, 2, 2)
    assert few.numbers("ab aé") == [0, 2, 0, 2, 2]


def test_half_a_surrogate_pair_is_no_error():
    assert CLIP.numbers("a \ud800") == CLIP.numbers("a ?")


def test_every_byte_has_a_character():
    assert sorted(BYTES) == list(range(256))
    assert len(set(BYTES.values())) == 256
    assert all(unicodedata.category(c)[0] != "C" for c in BYTES.values())
    assert np.all([len(c) == 1 for c in BYTES.values()])
