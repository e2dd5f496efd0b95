"""Arithmetic in prompts."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pydiff.text import arithmetic


@pytest.mark.parametrize(
    ("prompt", "terms"),
    [
        ("a cat", [(1, "a cat")]),
        ("", [(1, "")]),
        ("[man firefighter] - [man] + [woman]", [(1, "man firefighter"), (-1, "man"), (1, "woman")]),
        ("[a]-[b]+[c]", [(1, "a"), (-1, "b"), (1, "c")]),
        ("[a] \u2013 [b] \u2212 [c]", [(1, "a"), (-1, "b"), (-1, "c")]),
        ("0.5 [a cat] + .25*[a dog]", [(0.5, "a cat"), (0.25, "a dog")]),
        ("- [a] + 2[b]", [(-1, "a"), (2, "b")]),
        ("[]", [(1, "")]),
        ("a cat [sketch]", [(1, "a cat [sketch]")]),
        ("3 cats", [(1, "3 cats")]),
        ("- a list", [(1, "- a list")]),
    ],
)
def test_what_is_a_sum_and_what_is_a_prompt(prompt, terms):
    assert arithmetic(prompt) == terms


@pytest.mark.parametrize("prompt", ["[a", "[a] [b]", "[a] + b", "[a] +", "[[a]]", "[a] - - [b]", "[a]]", "2 [a] 3 [b]"])
def test_brackets_that_are_no_sum(prompt):
    with pytest.raises(ValueError, match="cannot be calculated; write it like") as error:
        arithmetic(prompt)
    assert "\n" not in str(error.value)


@given(st.lists(st.tuples(st.integers(-9, 9).filter(bool), st.text("abc äöü,.-+", max_size=8)), min_size=1, max_size=5))
def test_any_sum_is_read_as_it_was_written(terms):
    written = " ".join(f"{'-' if factor < 0 else '+'} {abs(factor)} [{text}]" for factor, text in terms)
    assert arithmetic(written) == [(factor, text.strip()) for factor, text in terms]
