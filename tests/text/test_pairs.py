"""Byte pair encoding against its definition, and texts that are no language."""

import random
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from pydiff.text import bpe
from pydiff.text.pairs import join
from pydiff.text.subwords import LONG, Subwords


def by_definition(parts, merges):
    """Goes through all parts for the first pair in the list that occurs, and joins it from the left, until none is."""
    ranks = {pair: rank for rank, pair in enumerate(merges)}
    while found := set(pairwise(parts)) & ranks.keys():
        first, made = min(found, key=ranks.__getitem__), []
        while parts:
            both = tuple(parts[:2]) == first
            made.append("".join(parts[:2]) if both else parts[0])
            parts = parts[2 if both else 1 :]
        parts = made
    return parts


@st.composite
def learned(draw):
    """A list of merges as it is learned: each of parts that are there before it, and of a text that is not."""
    known, merges = ["a", "b", "c"], []
    for _ in range(draw(st.integers(0, 12))):
        pair = draw(st.sampled_from(known)), draw(st.sampled_from(known))
        if "".join(pair) not in known:
            merges.append(pair)
            known.append("".join(pair))
    return merges


@given(learned(), st.text("abc", max_size=40))
def test_pairs_are_joined_in_the_order_in_which_they_were_learned(merges, text):
    ranks = {pair: rank for rank, pair in enumerate(merges)}
    assert join(list(text), ranks, lambda a, b: a + b) == by_definition(list(text), merges)


def test_texts_that_are_no_language_take_no_time():
    """As an image written into a caption; to go through it once for every pair would take hours."""
    blob = "".join(random.Random(0).choices("abcdefghijklmnopqrstuvwxyz", k=200_000))
    assert bpe.clip().text(bpe.clip().numbers(blob)) == blob
    tokenizer = Subwords.learned([f"a red heart {blob}", "a red apple"])
    assert tokenizer.encode("red heart") == tokenizer.encode("a red heart")[1:]
    assert len(tokenizer.encode("red")) == 1
    assert tokenizer.merges == Subwords.learned(["a red heart", "a red apple"]).merges
    assert len(tokenizer.encode(blob)) > LONG
