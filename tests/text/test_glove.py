"""The GloVe encoder: what a caption becomes, what is said of a prompt, and that the file is what it says."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pydiff import text
from pydiff.text.glove import SCALE, TOKENS, Glove, english, split, vectors
from pydiff.text.make_glove import COUNT, EXTRA, chosen, whiten
from pydiff.text.names import CAPITAL_OF, ENGLISH_OF, PAIRS, ROWS

GLOVE = Glove()
WORD = st.sampled_from(vectors().words)


def states(prompt):
    return GLOVE.encode([prompt])["encoder_hidden_states"][0]


def vector(word):
    return SCALE * vectors().white[vectors().place[word]]


def test_a_caption_is_the_sequence_of_its_words_vectors():
    encoded = states("A red HEART, and a dog's bone!")
    words = ["a", "red", "heart", "and", "a", "dog", "bone"]
    assert encoded.shape == (TOKENS, 50) == (GLOVE.tokens, GLOVE.width)
    assert encoded.dtype == np.float32
    np.testing.assert_array_equal(encoded[: len(words)], [vector(word) for word in words])
    assert not encoded[len(words) :].any()


def test_the_null_prompt_is_zero():
    (name, row), *others = GLOVE.null().items()
    assert (name, row.shape, others) == ("encoder_hidden_states", (TOKENS, 50), [])
    assert not row.any()
    np.testing.assert_array_equal(states("  "), row)


@given(st.lists(st.lists(WORD | st.just("qqqq"), max_size=40), min_size=1, max_size=5))
def test_a_caption_is_encoded_alone_as_among_others(captions):
    prompts = [" ".join(words) for words in captions]
    together = GLOVE.encode(prompts)["encoder_hidden_states"]
    for prompt, row, words in zip(prompts, together, captions, strict=True):
        np.testing.assert_array_equal(states(prompt), row)
        known = [w for word in words for w in split(word, vectors().place) if w in vectors().place][:TOKENS]
        np.testing.assert_array_equal(row[: len(known)], [vector(word) for word in known] or np.zeros((0, 50)))


def test_the_words_are_white_and_colours_are_told_apart():
    white, table = vectors().white[:-1].astype(np.float64), vectors()
    np.testing.assert_allclose(white.mean(0), 0, atol=1e-5)
    np.testing.assert_allclose(np.cov(white, rowvar=False, bias=True), np.eye(50), atol=1e-5)
    assert not table.white[-1].any()

    def cosine(array, a, b):
        a, b = (array[table.place[word]].astype(float) for word in (a, b))
        return a @ b / np.sqrt((a @ a) * (b @ b))

    assert cosine(table.raw, "red", "blue") > 0.85
    assert cosine(white, "red", "blue") < 0.7


def test_whitening_survives_sums_whose_factors_add_up_to_one():
    mean, matrix = whiten(np.random.default_rng(0).standard_normal((500, 7)) @ np.diag(np.arange(1, 8)) + 3)
    a, b, c = np.random.default_rng(1).standard_normal((3, 7))
    np.testing.assert_allclose(
        (a - b + c - mean) @ matrix, (a - mean) @ matrix - (b - mean) @ matrix + (c - mean) @ matrix, atol=1e-6
    )


@pytest.mark.parametrize(
    ("given_text", "words"),
    [
        ("medium-light skin", ["medium", "light", "skin"]),
        ("woman's hat; WOMAN’S HAT", ["woman", "hat", "woman", "hat"]),
        ("eight o'clock", ["eight", "o'clock"]),
        ("piñata café", ["pinata", "cafe"]),
        ("Bär bar", ["bär", "bar"]),
        ("red_and-blue", ["red", "and", "blue"]),
        ("", []),
        ("?! ...", []),
    ],
)
def test_words_of_a_text(given_text, words):
    known = {"medium", "light", "skin", "woman", "hat", "eight", "o'clock", "pinata", "cafe", "red", "and", "blue"}
    assert split(given_text, known) == words


# ---- what is said ---------------------------------------------------------------------------------------------------


def test_an_understood_prompt_and_the_empty_one_need_no_remark():
    assert GLOVE.remarks("a red heart") == GLOVE.remarks("") == []


def test_unknown_words_are_named():
    (remark,) = GLOVE.remarks("a red glorptangle with flurbs")
    assert remark == "the encoder 'glove' does not know 'glorptangle' and 'flurbs', which are left out"
    (remark,) = GLOVE.remarks("red " + " ".join(f"qq{i}q" for i in range(30)))
    assert "'qq7q' and 22 others" in remark
    assert GLOVE.unknown(["a flurb", "flurb dog", "glorp"]) == ["flurb", "glorp"]


@pytest.mark.parametrize("prompt", ["一只红色的猫", "красный кот", "!!!", "flurb", "🐈", "١٢٣"])
def test_a_prompt_of_which_nothing_is_understood_is_an_error_in_one_sentence(prompt):
    with pytest.raises(
        ValueError, match="cannot be drawn: the encoder 'glove' knows 4,724 English words, and "
    ) as error:
        GLOVE.remarks(prompt)
    assert "\n" not in str(error.value)
    assert prompt in str(error.value)
    assert not states(prompt).any()  # and in a caption it is nothing


def test_a_long_prompt_is_cut_and_says_so():
    (remark,) = GLOVE.remarks("red heart " * 150)
    assert remark == "a prompt has at most 24 known words; cut after 'heart', 276 more are not used"
    np.testing.assert_array_equal(states("red heart " * 150), states("red heart " * 12))
    assert GLOVE.remarks("red heart " * 12) == []


def test_german_names_are_read_as_english_ones_and_that_is_said():
    (remark,) = GLOVE.remarks("a map of Österreich")
    assert remark.startswith("österreich as austria: German names are read as English ones, other German is not")
    np.testing.assert_array_equal(states("a map of Österreich"), states("a map of austria"))
    assert english("island", vectors().place) == "island"  # an English word, too


def test_every_german_name_leads_to_a_known_word():
    known = vectors().place
    assert all(name in known for name in ENGLISH_OF.values())
    assert all(word in known for pair in CAPITAL_OF.items() for word in pair)
    assert len({country for country, *_ in ROWS}) == len(ROWS)
    assert len(PAIRS) == 35
    assert "." not in {word for pair in PAIRS for word in pair}


# ---- the file, and what is saved of it ------------------------------------------------------------------------------


def test_the_words_of_the_file():
    words = vectors().words
    assert len(words) == len(set(words)) == COUNT == 4724
    assert set(EXTRA) <= set(words)


def test_every_word_of_the_emoji_is_known_but_a_few():
    from pydiff.data import load

    english_captions = [c for row in load("emoji").in_languages(["en"]).captions for c in row]
    assert sorted(GLOVE.unknown(english_captions)) == [
        "facepalming", "keycap", "merperson", "paperclips", "pushpin", "selfie"
    ]  # fmt: skip


def test_the_choice_of_words_depends_on_frequency_and_captions_alone():
    frequent = [
        "the",
        "a",
        "x1",
        "heart",
        *(f"w{chr(97 + i % 26)}{chr(97 + i // 26 % 26)}{chr(97 + i // 676)}" for i in range(6000)),
    ]
    frequent += ["rare", "unicorn"]
    words = chosen(frequent, ["a rare thing"])
    assert len(words) == COUNT
    assert words == sorted(words, key=frequent.index)
    assert {"rare", "a", "heart", "the"} <= set(words)
    assert not {"unicorn", "x1", "thing"} & set(words)


@pytest.mark.parametrize(
    ("caption", "understood"),
    [("a cat", True), ("flurb cat", True), ("flurb", False), ("0 0.5 1", False), ("", False), ("Österreich", True)],
)
def test_what_counts_as_understood(caption, understood):
    assert GLOVE.understands(caption) == understood


def test_an_encoder_is_saved_with_its_fingerprint():
    config = GLOVE.to_config()
    assert type(text.from_config(config)) is Glove
    assert text.named("glove").to_config() == config
    with pytest.raises(ValueError, match="trained with another 'glove' encoder"):
        text.from_config(config | {"fingerprint": "0"})
    for function, argument in ((text.from_config, {"kind": "magic"}), (text.named, "magic")):
        with pytest.raises(ValueError, match=r"'magic'.* known are .*glove"):
            function(argument)
